"""Execute the chapters into the book's own cache, one after the other, with progress and a time limit for each page.

The book build that follows finds every notebook in the cache, so each is executed once. Notebooks are read with
myst-nb's own reader: the cache then sees the very cells that the build will look up.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import NamedTuple

import yaml
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn, JupyterCacheAbstract
from jupyter_cache.executors.utils import single_nb_execution
from myst_nb.core.read import read_myst_markdown_notebook
from myst_parser.config.main import MdParserConfig
from nbclient.exceptions import DeadKernelError
from nbformat import NotebookNode

from setup_cell import chapters

CACHE = Path("_build/.jupyter_cache")
PAGE_BUDGET_S = 180  # three minutes a chapter on two cores
CELL_TIMEOUT_S = 600


class Run(NamedTuple):
    """One chapter's execution: its name, seconds it took, Unix time it ended, and whether this build ran it."""

    name: str
    seconds: float
    finished: float
    fresh: bool


def read(root: Path, path: Path) -> NotebookNode:
    """Return the chapter `path` as the notebook that the book build sees."""
    parse = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8")).get("parse", {})
    config = MdParserConfig(enable_extensions=set(parse.get("myst_enable_extensions", [])))
    return read_myst_markdown_notebook(path.read_text(encoding="utf-8"), config, path=str(path))


def _cached(cache: JupyterCacheAbstract, notebook: NotebookNode):
    try:
        return cache.match_cache_notebook(notebook)
    except KeyError:
        return None


def executed(root: Path, path: Path) -> NotebookNode:
    """Return the chapter `path` with the outputs the cache holds for it.

    Raises:
        KeyError: where the chapter, as it reads now, has not been executed.
    """
    return get_cache(str(root / CACHE)).merge_match_into_notebook(read(root, path))[1]


def execute(root: Path, path: Path) -> Run:
    """Execute the chapter `path`, or find it in the cache.

    Raises:
        SystemExit: where a cell fails, with the traceback, a cell takes longer than ten minutes, or the kernel dies.
        KeyboardInterrupt: on Ctrl-C, the kernel shut down.
    """
    cache = get_cache(str(root / CACHE))
    notebook = read(root, path)
    record = _cached(cache, notebook)
    if record is not None:
        return Run(path.stem, record.data["execution_seconds"], record.created.timestamp(), fresh=False)
    try:
        result = single_nb_execution(
            notebook,
            cwd=str(path.parent),
            timeout=CELL_TIMEOUT_S,
            allow_errors=False,
            extra_arguments=["--IPKernelApp.log_level=ERROR"],  # else a line on TCP for each kernel
        )
    except AssertionError:  # on Ctrl-C nbclient shuts the kernel down, then trips over its absence
        raise KeyboardInterrupt from None
    except DeadKernelError:
        raise SystemExit(
            f"\nThe kernel of {path.relative_to(root)} died, most often for lack of memory. Close other "
            "programs, or run the notebook by hand to see in which cell, then run make again."
        ) from None
    if result.err is not None:
        raise SystemExit(f"\n{result.exc_string}\nThe chapter {path.relative_to(root)} failed; see the cell above.")
    bundle = CacheBundleIn(notebook, str(path), data={"execution_seconds": result.time})
    cache.cache_notebook_bundle(bundle, check_validity=False, overwrite=True)
    return Run(path.stem, result.time, time.time(), fresh=True)


def execute_all(root: Path) -> list[Run]:
    """Execute every chapter under `root`/notebooks and print one line for each."""
    # A GPU must not make a build recompute everything; fingerprint.py knows the mode.
    os.environ["PRUNING_LIB_MODE"] = os.environ.get("PRUNING_LIB_MODE") or "replay"
    runs = []
    paths = chapters(root)
    for number, path in enumerate(paths, start=1):
        print(f"  [{number}/{len(paths)}] {path.stem} ...", end=" ", flush=True)
        run = execute(root, path)
        note = f"{run.seconds:.0f} s" if run.fresh else f"in the cache ({run.seconds:.0f} s when it ran)"
        print(note + (" OVER THE BUDGET" if run.seconds > PAGE_BUDGET_S else ""), flush=True)
        runs.append(run)
    return runs
