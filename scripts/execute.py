"""Execute the chapters into the book's own cache, with progress and a time limit for each page.

A chapter that times something runs alone; of the others two run at once where memory allows. The book build that
follows finds every notebook in the cache, so each is executed once. Notebooks are read with myst-nb's own reader: the
cache then sees the very cells that the build will look up.

    python scripts/execute.py ROOT CHAPTER.md      # one of them
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil
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
# A reader's own matplotlibrc, or a list of fonts in the home folder that names none of matplotlib's, changes no page.
MATPLOTLIB = Path("_build/.matplotlib")
PAGE_BUDGET_S = 180  # three minutes a chapter on two cores
CELL_TIMEOUT_S = 600
TOGETHER = 2
MEMORY_GIB = 6  # that the largest chapter needs
TIMES = re.compile(r"\b(measure_latency|perf_counter)\b")


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


def _run(notebook: NotebookNode, path: Path, tries: int = 3):
    """Run all cells.  Kernels that start together may be given one port: the one that dies of it is started again."""
    for left in reversed(range(tries)):
        try:
            return single_nb_execution(
                notebook,
                cwd=str(path.parent),
                timeout=CELL_TIMEOUT_S,
                allow_errors=False,
                extra_arguments=["--IPKernelApp.log_level=ERROR"],  # else a line on TCP for each kernel
            )
        except DeadKernelError:  # died over a cell
            raise
        except RuntimeError as error:
            if "died before replying" not in str(error) or not left:
                raise


def execute(root: Path, path: Path) -> None:
    """Execute the chapter `path` into the cache.

    Raises:
        SystemExit: where a cell fails, with the traceback, a cell takes longer than ten minutes, or the kernel dies.
        KeyboardInterrupt: on Ctrl-C, the kernel shut down.
    """
    cache = get_cache(str(root / CACHE))
    notebook = read(root, path)
    (root / MATPLOTLIB).mkdir(parents=True, exist_ok=True)
    os.environ["MPLCONFIGDIR"] = str((root / MATPLOTLIB).resolve())
    try:
        result = _run(notebook, path)
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


def usable_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _together() -> int:
    """Return how many chapters may run at once: as many as there are cores and memory for, at most two."""
    room = int(psutil.virtual_memory().available / 2**30 / MEMORY_GIB)
    return max(1, min(TOGETHER, usable_cores(), room))


def _start(root: Path, path: Path, threads: int | None) -> subprocess.Popen[str]:
    env = dict(os.environ) | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    command = [sys.executable, __file__, str(root), str(path)]
    return subprocess.Popen(command, env=env, text=True, stderr=subprocess.PIPE)


def _finished(running: dict[Path, subprocess.Popen[str]]) -> Path:
    while True:
        for path, process in running.items():
            if process.poll() is not None:
                return path
        time.sleep(0.1)


def _execute_some(root: Path, paths: Sequence[Path], together: int, threads: int | None) -> Iterator[Path]:
    """Execute chapters in processes of their own, `together` at a time, and yield each as it ends.

    Raises:
        SystemExit: where one fails, with its own words; those that run beside it may finish first.
        KeyboardInterrupt: on Ctrl-C, after their kernels were shut down.
    """
    todo, running, failure = list(paths), {}, ""
    try:
        while running or (todo and not failure):
            while todo and not failure and len(running) < together:
                path = todo.pop(0)
                running[path] = _start(root, path, threads)
            path = _finished(running)
            process = running.pop(path)
            words = process.stderr.read().strip()
            if process.returncode == 130:
                raise KeyboardInterrupt
            if process.returncode:
                failure = failure or words or f"The chapter {path.stem} ended with exit status {process.returncode}."
            else:
                yield path
    except KeyboardInterrupt:
        # Ctrl-C reached the children as well: each shuts its kernel down.
        for process in running.values():
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
        raise
    if failure:
        raise SystemExit(f"\n{failure}")


def execute_all(root: Path) -> list[Run]:
    """Execute every chapter under `root`/notebooks and print one line for each; return them in the book's order."""
    # A GPU must not make a build recompute everything; fingerprint.py knows the mode.
    os.environ["PRUNING_LIB_MODE"] = os.environ.get("PRUNING_LIB_MODE") or "replay"
    cache, runs = get_cache(str(root / CACHE)), {}
    shutil.rmtree(root / MATPLOTLIB, ignore_errors=True)
    paths = chapters(root)

    def note(path: Path, record: object, fresh: bool) -> None:
        seconds = record.data["execution_seconds"]
        runs[path] = Run(path.stem, seconds, record.created.timestamp(), fresh)
        told = f"{seconds:.0f} s" if fresh else f"in the cache ({seconds:.0f} s when it ran)"
        late = " OVER THE BUDGET" if seconds > PAGE_BUDGET_S else ""
        print(f"  [{len(runs)}/{len(paths)}] {path.stem} ... {told}{late}", flush=True)

    todo = []
    for path in paths:
        record = _cached(cache, read(root, path))
        if record is None:
            todo.append(path)
        else:
            note(path, record, fresh=False)
    alone = [path for path in todo if TIMES.search(path.read_text(encoding="utf-8"))]
    others = [path for path in todo if path not in alone]
    together = _together()
    threads = max(1, usable_cores() // together) if together > 1 else None
    for group, at_once, limit in ((alone, 1, None), (others, together, threads)):
        for path in _execute_some(root, group, at_once, limit):
            note(path, _cached(cache, read(root, path)), fresh=True)
    return [runs[path] for path in paths]


if __name__ == "__main__":
    try:
        execute(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve())
    except KeyboardInterrupt:
        raise SystemExit(130) from None
