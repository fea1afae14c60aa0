"""Files: is there room for one where it is wanted?  Asked before the work that fills it."""

from __future__ import annotations

import errno
import tempfile
from pathlib import Path

__all__ = ["beside", "check_new_file", "check_place"]


def check_place(path: Path) -> None:
    """Make the folder of `path`, and check that a file can be written there under that name; nothing is left behind.

    Raises:
        OSError: it cannot.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path.parent):
        pass
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "Is a directory: the name is taken by a folder")


def check_new_file(path: Path, suffix: str) -> None:
    """Check that a command can write a new file at `path`.

    Raises:
        ValueError: another ending than `suffix`, or the file exists.
        OSError: it cannot be written there.
    """
    if path.suffix != suffix:
        raise ValueError(f"{path} does not end in {suffix}.")
    if path.exists():
        raise ValueError(f"{path} exists already. Give a new file, or move that one away.")
    check_place(path)


def beside(folder: str) -> Path:
    """Return a folder of data that is installed beside this package, in the book's room."""
    return Path(__file__).resolve().parents[1] / "pruning_book" / folder
