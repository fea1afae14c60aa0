"""Write a safetensors file piece by piece, and check it; the library's own `save_file` wants all of it in memory."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..checks import printable
from .files import DTYPE_NAMES, PAIRS, open_file
from .pickle import CheckpointError


class CastError(CheckpointError):
    """A number that the wanted type cannot hold."""


@dataclass
class NewTensor:
    """A tensor to be written; `read` yields its elements in order, flat, of any type; `flushed` of them became 0."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    read: Callable[[], Iterable[Tensor]]
    flushed: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes in the new file."""
        return math.prod(self.shape) * self.dtype.itemsize

    def pieces(self) -> Iterator[Tensor]:
        """Yield its elements, cast; raise CastError where one becomes infinite."""
        self.flushed = 0
        for piece in self.read():
            cast = piece.to(self.dtype)
            if self.dtype != piece.dtype and self.dtype.is_floating_point:
                piece = piece.float() if piece.dtype.itemsize == 1 else piece  # 8-bit types can hardly be compared
                lost = torch.isinf(cast) & torch.isfinite(piece)
                if lost.any():
                    wider = "Use bfloat16, which reaches as far as float32, or keep" * (self.dtype == torch.float16)
                    raise CastError(
                        f"{self.name} holds {float(piece[lost][0]):,.6g}, and {str(self.dtype)[6:]} "
                        f"ends at {torch.finfo(self.dtype).max:,.6g}. Nothing was written. {wider or 'Keep'} the type."
                    )
                self.flushed += int(((cast == 0) & (piece != 0)).sum())
            yield cast


def _header(tensors: Sequence[NewTensor], metadata: Mapping[str, str]) -> tuple[bytes, list[NewTensor]]:
    """Return the first bytes of the file, and the tensors in the order in which they follow: by type, then by name."""
    for one in tensors:
        if one.dtype not in DTYPE_NAMES or one.name == "__metadata__" or re.search("[\ud800-\udfff]", one.name):
            raise CheckpointError(
                f"{one.name} is {one.dtype}: type or name is one that safetensors cannot hold. Cast or remove it."
            )
    types = list(DTYPE_NAMES)
    order = sorted(tensors, key=lambda one: (types.index(one.dtype), one.name))
    rows: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    at = 0
    for one in order:
        end = at + one.nbytes
        shape = [*one.shape[:-1], 2 * one.shape[-1]] if one.dtype == PAIRS else list(one.shape)
        rows[one.name] = {"dtype": DTYPE_NAMES[one.dtype], "shape": shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(rows, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, order


def file_bytes(tensors: Sequence[NewTensor], metadata: Mapping[str, str]) -> int:
    """Return the length of the file that `write_safetensors` would write."""
    return len(_header(tensors, metadata)[0]) + sum(one.nbytes for one in tensors)


def write_safetensors(path: Path, tensors: Sequence[NewTensor], metadata: Mapping[str, str]) -> None:
    """Write a new file, on the disk when this returns; of `metadata`, loaders of transformers want {"format": "pt"}."""
    header, order = _header(tensors, metadata)
    with path.open("xb") as file:
        file.write(header)
        for one in order:
            for piece in one.pieces():
                file.write(memoryview(piece.contiguous().view(torch.uint8).numpy()))
        file.flush()
        os.fsync(file.fileno())


def write_checked(path: Path, tensors: Sequence[NewTensor], metadata: Mapping[str, str]) -> None:
    """Write tensors, read the file back, and compare each with its source, bit for bit."""
    write_safetensors(path, tensors, metadata)
    written = open_file(path)
    by_name = {entry.path[0]: entry for entry in written.entries}
    for one in tensors:
        entry = by_name[one.name]
        same = entry.shape == one.shape and entry.dtype == one.dtype
        pairs = zip(one.pieces(), written.pieces(entry), strict=True)
        if not same or not all(torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in pairs):
            raise OSError(
                f"{printable(one.name, 200)} came back from the disk different from what was written. Check the disk."
            )


def check_room(folder: Path, nbytes: int) -> None:
    """Check that `nbytes` more fit on the disk of `folder`, with some to spare; an OSError says what is missing."""
    free, spare = shutil.disk_usage(folder).free, 16 * 2**20
    if nbytes + spare > free:
        left = ", ".join(path.name for path in folder.glob(".*-*.tmp"))
        raise OSError(
            errno.ENOSPC,
            f"The result needs {nbytes / 1e9:.2f} GB, and {folder} has {free / 1e9:.2f} GB free. Nothing was written. "
            f"Free some space{f' (killed runs left {left} there)' * bool(left)}, or choose a target on another disk",
        )
