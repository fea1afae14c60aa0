"""Files: is there room for one where it is wanted?  Asked before the work that fills it."""

from __future__ import annotations

import errno
import tempfile
from pathlib import Path

__all__ = ["check_place"]


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
