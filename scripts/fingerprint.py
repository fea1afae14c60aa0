"""Decide whether executed outputs may be used again.

jupyter-cache knows a notebook by its code cells and its kernel alone. It does not know the library: change
`pruning_lib` and the old numbers stay on the page, with exit status 0. So the hashes of everything else an output
depends on are kept beside the cache, and where one differs, the cache and all that was built from it are removed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from pathlib import Path

STAMP = Path("_build/.jupyter_cache/fingerprint.json")
STALE = (".jupyter_cache", "html", ".doctrees", "jupyter_execute", "generated")
WATCHED = ("pruning_lib", "pruning_book", "requirements-torch.txt", "requirements.lock", "requirements-no-deps.txt")
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
    """Return path -> SHA-256 for every file that executed outputs depend on, and the Python and mode they ran in."""
    hashes = {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in _files(root)}
    hashes["python"] = ".".join(map(str, sys.version_info[:2]))
    hashes["mode"] = os.environ.get("PRUNING_LIB_MODE") or "replay"
    return hashes


def changes(old: dict[str, str], new: dict[str, str]) -> list[str]:
    """Return the names whose hash differs or that are on one side only."""
    return sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))


def remove(folder: Path) -> None:
    """Remove `folder` and all it holds; a folder that is not there is fine.

    Raises:
        SystemExit: where something cannot be removed: what stays would pass for the result of this build.
    """
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise SystemExit(
            f"Cannot remove {error.filename or folder}: {error.strerror}. Old results must not stay: "
            f"remove {folder} yourself, or become its owner, and run make again."
        ) from None


def _stamped(stamp: Path) -> dict[str, str]:
    try:
        return json.loads(stamp.read_text())
    except (FileNotFoundError, ValueError):  # none, or cut short by an interrupted build
        return {}


def drop_stale(root: Path) -> list[str]:
    """Remove executed outputs if anything they depend on has changed, then write the stamp.

    Returns:
        What changed; empty where the outputs may be used, and also where there were none.
    """
    stamp = root / STAMP
    new = fingerprint(root)
    had_cache = stamp.parent.exists()
    changed = changes(_stamped(stamp), new)
    if changed:
        for name in STALE:
            remove(root / "_build" / name)
        stamp.parent.mkdir(parents=True, exist_ok=True)
        stamp.write_text(json.dumps(new, indent=1))
    return changed if had_cache else []
