"""Decide whether executed outputs may be used again.

jupyter-cache knows a notebook by its code cells and its kernel alone. It does not know the library: change
`pruning_lib` and the old numbers stay on the page, with exit status 0. So the hashes of everything else an output
depends on are kept beside the cache, and where one differs, the cache and all that was built from it are removed.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path

STAMP = Path("_build/.jupyter_cache/fingerprint.json")
STALE = (".jupyter_cache", "html", ".doctrees", "jupyter_execute", "generated")
WATCHED = (
    "pruning_lib",
    "book/results",
    "requirements-torch.txt",
    "requirements.lock",
    "requirements-no-deps.txt",
)
SKIPPED_PARTS = {"__pycache__", ".ipynb_checkpoints"}


def _files(root: Path) -> list[Path]:
    found: list[Path] = []
    for name in WATCHED:
        path = root / name
        found += [path] if path.is_file() else path.rglob("*")
    # Chapters are known to the cache by their cells (so prose may change freely); what lies beside them is not.
    found += [path for path in (root / "notebooks").rglob("*") if path.suffix not in (".md", ".ipynb")]
    return sorted(path for path in set(found) if path.is_file() and not SKIPPED_PARTS & set(path.parts))


def fingerprint(root: Path) -> dict[str, str]:
    """Return path -> SHA-256 for every file that executed outputs depend on, and the Python that runs them."""
    hashes = {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in _files(root)
    }
    hashes["python"] = ".".join(map(str, sys.version_info[:2]))
    return hashes


def changes(old: dict[str, str], new: dict[str, str]) -> list[str]:
    """Return the names whose hash differs or that are on one side only."""
    return sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))


def drop_stale(root: Path) -> list[str]:
    """Remove executed outputs if anything they depend on has changed, then write the stamp.

    Returns:
        What changed; empty where the outputs may be used, and also where there were none.
    """
    stamp = root / STAMP
    new = fingerprint(root)
    had_cache = stamp.parent.exists()
    old = json.loads(stamp.read_text()) if stamp.exists() else {}
    changed = changes(old, new)
    if changed:
        for name in STALE:
            shutil.rmtree(root / "_build" / name, ignore_errors=True)
        stamp.parent.mkdir(parents=True, exist_ok=True)
        stamp.write_text(json.dumps(new, indent=1))
    return changed if had_cache else []
