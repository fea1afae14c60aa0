"""Write a safetensors file piece by piece, and put files and folders in place in one move.

The library's own `save_file` wants all tensors in memory at once; the format itself is a header and the bytes in a row.
The tests compare the bytes with the library's.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..files import check_place
from .files import DTYPE_NAMES

__all__ = ["Planned", "check_room", "file_bytes", "in_place", "write_safetensors"]

# In a file the wide types come first, so that every tensor is aligned; this is the library's order.
_ORDER = (
    "U64",
    "I64",
    "F64",
    "C64",
    "F32",
    "U32",
    "I32",
    "BF16",
    "F16",
    "U16",
    "I16",
    "F8_E4M3",
    "F8_E5M2",
    "I8",
    "U8",
    "BOOL",
)


class Planned(NamedTuple):
    """A tensor that is going to be written."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        numel = 1
        for n in self.shape:
            numel *= n
        return numel * self.dtype.itemsize


def _header(tensors: Sequence[Planned], metadata: Mapping[str, str]) -> tuple[bytes, list[int]]:
    """Return the first bytes of the file, and the order in which the tensors follow."""
    for tensor in tensors:
        if tensor.dtype not in DTYPE_NAMES:
            raise ValueError(f"{tensor.name} is {tensor.dtype}, which safetensors cannot hold. Cast or remove it.")
    codes = [DTYPE_NAMES[tensor.dtype] for tensor in tensors]
    order = sorted(range(len(tensors)), key=lambda i: (_ORDER.index(codes[i]), tensors[i].name))
    rows: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    at = 0
    for i in order:
        end = at + tensors[i].nbytes
        rows[tensors[i].name] = {"dtype": codes[i], "shape": list(tensors[i].shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(rows, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, order


def file_bytes(tensors: Sequence[Planned], metadata: Mapping[str, str]) -> int:
    """Return the length of the file that `write_safetensors` would write."""
    return len(_header(tensors, metadata)[0]) + sum(tensor.nbytes for tensor in tensors)


def write_safetensors(
    path: Path, tensors: Sequence[Planned], pieces: Sequence[Iterable[Tensor]], metadata: Mapping[str, str]
) -> None:
    """Write tensors whose elements come in pieces; the file is on the disk when this returns.

    Args:
        path: a new file.
        tensors: names, types and shapes; no name twice.
        pieces: for each tensor its elements in order, flat, in its type.
        metadata: text entries of the header. Loaders of transformers want {"format": "pt"}.

    Raises:
        ValueError: a type that safetensors does not have, or pieces that do not fill a tensor.
    """
    header, order = _header(tensors, metadata)
    with path.open("xb") as file:
        file.write(header)
        for i in order:
            written = 0
            for piece in pieces[i]:
                if piece.dtype != tensors[i].dtype:
                    raise ValueError(f"{tensors[i].name} was planned as {tensors[i].dtype}, but is {piece.dtype}.")
                written += file.write(memoryview(piece.contiguous().view(torch.uint8).numpy()))
            if written != tensors[i].nbytes:
                raise ValueError(f"{tensors[i].name} has {written:,} bytes instead of {tensors[i].nbytes:,}.")
        file.flush()
        os.fsync(file.fileno())


def check_room(folder: Path, nbytes: int) -> None:
    """Check that `nbytes` more fit on the disk of `folder`, with some to spare.

    Raises:
        OSError: they do not.
    """
    free, spare = shutil.disk_usage(folder).free, 16 * 2**20
    if nbytes + spare > free:
        raise OSError(
            errno.ENOSPC,
            f"The result needs {nbytes / 1e9:.2f} GB, and {folder} has {free / 1e9:.2f} GB free. Nothing was written. "
            "Free some space, or choose a target on another disk",
        )


@contextmanager
def in_place(target: Path, folder: bool = False) -> Iterator[Path]:
    """Give a temporary name beside `target`, and move what was written there into place; on any error leave nothing.

    Args:
        target: the file, or, with `folder`, the folder to make. A file that is there is replaced in one move.
        folder: whether a folder is wanted; the temporary one exists already, and `target` must not, or be empty.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if not folder:
        check_place(target)
    box = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-", suffix=".tmp"))
    temporary = box / target.name
    try:
        if folder:
            temporary.mkdir()
        yield temporary
        if folder and target.is_dir():
            target.rmdir()  # fails where it is not empty
        os.replace(temporary, target)
        _sync(target.parent)
    finally:
        shutil.rmtree(box, ignore_errors=True)


def _sync(folder: Path) -> None:
    """Bring the new name itself to the disk, where the system can."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows does not open folders
        return
    try:
        os.fsync(handle)
    except OSError:  # nor do some network disks
        pass
    finally:
        os.close(handle)
