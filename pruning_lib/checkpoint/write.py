"""Write a safetensors file piece by piece.

The library's own `save_file` wants all tensors in memory at once; the format itself is a header and the bytes in a row.
The tests compare the bytes with the library's.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .files import DTYPE_NAMES, DTYPES


class TensorHeader(NamedTuple):
    """A tensor that is going to be written."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


def _header(tensors: Sequence[TensorHeader], metadata: Mapping[str, str]) -> tuple[bytes, list[int]]:
    """Return the first bytes of the file, and the order in which the tensors follow: by type, then by name."""
    for tensor in tensors:
        if tensor.dtype not in DTYPE_NAMES:
            raise ValueError(f"{tensor.name} is {tensor.dtype}, which safetensors cannot hold. Cast or remove it.")
    codes = [DTYPE_NAMES[tensor.dtype] for tensor in tensors]
    order = sorted(range(len(tensors)), key=lambda i: (list(DTYPES).index(codes[i]), tensors[i].name))
    rows: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    at = 0
    for i in order:
        end = at + tensors[i].nbytes
        rows[tensors[i].name] = {"dtype": codes[i], "shape": list(tensors[i].shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(rows, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, order


def file_bytes(tensors: Sequence[TensorHeader], metadata: Mapping[str, str]) -> int:
    """Return the length of the file that `write_safetensors` would write."""
    return len(_header(tensors, metadata)[0]) + sum(tensor.nbytes for tensor in tensors)


def write_safetensors(
    path: Path, tensors: Sequence[TensorHeader], pieces: Sequence[Iterable[Tensor]], metadata: Mapping[str, str]
) -> None:
    """Write tensors to a new file; it is on the disk when this returns.

    `pieces` are the elements of each tensor, in order, flat and in its type; `metadata` are text entries of the header,
    of which loaders of transformers want {"format": "pt"}.
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
    """Check that `nbytes` more fit on the disk of `folder`, with some to spare; an OSError says what is missing."""
    free, spare = shutil.disk_usage(folder).free, 16 * 2**20
    if nbytes + spare > free:
        raise OSError(
            errno.ENOSPC,
            f"The result needs {nbytes / 1e9:.2f} GB, and {folder} has {free / 1e9:.2f} GB free. Nothing was written. "
            "Free some space, or choose a target on another disk",
        )
