"""Read a checkpoint file tensor by tensor, whatever its format, without holding more than a piece of it.

`open_file` looks at the content and not at the name: safetensors, torch's zip files and torch's older format all become
a `Source`, a list of `Entry` that say where each tensor's bytes lie. Every claim of the file (offsets, sizes, shapes)
is checked against its length before anything is read or allocated.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .pickle_names import CheckpointError

__all__ = ["DTYPE_NAMES", "Entry", "Source", "check_view", "open_file"]

PIECE = 2**18  # elements that are in memory at a time
_CODES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool", "U64": "uint64", "U32": "uint32", "U16": "uint16",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "C64": "complex64",
}  # fmt: skip
DTYPES = {code: getattr(torch, name) for code, name in _CODES.items() if hasattr(torch, name)}
DTYPE_NAMES = {dtype: code for code, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Entry:
    """One tensor of a file.

    Attributes:
        path: the keys that lead to it, as in ("state_dict", "model.diffusion_model.out.2.bias").
        dtype: of its elements.
        shape, stride: in elements.
        offset: of its first element in the storage, in elements.
        storage: names the storage; tensors that share one have the same.
        start: of the storage in the file, in bytes.
    """

    path: tuple[str, ...]
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    storage: str
    start: int

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the elements, stored one after the other."""
        return self.numel * self.dtype.itemsize

    @property
    def view(self) -> tuple:
        """Equal for two entries that are the same tensor under two names."""
        return self.storage, self.offset, self.shape, self.stride, self.dtype


@dataclass
class Source:
    """An opened checkpoint file.

    Attributes:
        path: the file.
        kind: "safetensors", "torch zip" or "torch legacy".
        nbytes: its length.
        entries: its tensors.
        storages: storage -> bytes it takes in the file.
        others: what is no tensor, shortly: top-level key -> description.
        names: the globals its pickle mentions.
        metadata: the text entries of a safetensors header.
        notes: what a reader should know, as sentences.
    """

    path: Path
    kind: str
    nbytes: int
    entries: list[Entry]
    storages: dict[str, int]
    others: dict[str, str] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    metadata: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def pieces(self, entry: Entry) -> Iterator[Tensor]:
        """Yield a tensor's elements in order, flat, in pieces of at most `PIECE` elements (a strided view in one).

        Raises:
            CheckpointError: the file became shorter since it was opened.
        """
        if not entry.numel:
            return
        with self.path.open("rb", buffering=0) as file:
            steps = zip(entry.shape, entry.stride, _row_major(entry.shape), strict=True)
            if all(step == plain for n, step, plain in steps if n > 1):
                for first in range(0, entry.numel, PIECE):
                    count = min(PIECE, entry.numel - first)
                    yield self._elements(file, entry, entry.offset + first, count)
                return
            span = 1 + sum((n - 1) * step for n, step in zip(entry.shape, entry.stride, strict=True))
            yield (
                self._elements(file, entry, entry.offset, span)
                .as_strided(entry.shape, entry.stride)
                .flatten()
            )

    def _elements(self, file, entry: Entry, first: int, count: int) -> Tensor:
        size = entry.dtype.itemsize
        buffer = bytearray(count * size)
        file.seek(entry.start + first * size)
        view, got = memoryview(buffer), 0
        while got < len(buffer):  # a raw read may bring less than was asked for
            more = file.readinto(view[got:])
            if not more:
                raise CheckpointError(
                    f"{self.path} became shorter while it was read: {'.'.join(entry.path)}."
                )
            got += more
        return torch.frombuffer(buffer, dtype=torch.uint8).view(entry.dtype)

    def read(self, entry: Entry) -> Tensor:
        """Return one tensor, contiguous."""
        pieces = list(self.pieces(entry))
        return (
            torch.cat(pieces).reshape(entry.shape) if pieces else torch.empty(entry.shape, dtype=entry.dtype)
        )


def open_file(path: str | Path, allow: Iterable[str] = ()) -> Source:
    """Open a checkpoint file and check what it claims; no tensor is read yet.

    Args:
        path: a .safetensors, .ckpt, .pt, .pth or .bin file; the content decides, not the name.
        allow: see `read_pickle`.

    Raises:
        FileNotFoundError: there is no such file.
        UnsafePickleError: it would run code.
        CheckpointError: it is empty, damaged, cut short, lies about its sizes, or is no checkpoint.
    """
    from .torch_file import read_legacy, read_zip

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    with path.open("rb") as file:
        head = file.read(512)
    try:
        if head[:4] == b"PK\x03\x04":  # the very test of torch.load
            source = read_zip(path, allow)
        elif head[8:9] == b"{":  # before the next test: a header's length may begin with any byte
            source = _read_safetensors(path)
        elif head[:1] == b"\x80":
            source = read_legacy(path, allow)
        else:
            raise CheckpointError(_what_else(head))
    except CheckpointError as error:
        error.args = (f"{path}: {error}",)
        raise
    if (source.kind == "safetensors") != (path.suffix == ".safetensors"):
        source.notes.append(f"The name ends in {path.suffix or 'nothing'}, the content is {source.kind}.")
    return source


def check_view(
    name: str, dtype: torch.dtype, nbytes: int, shape: tuple[int, ...], stride: tuple[int, ...], offset: int
) -> None:
    """Check that a strided view lies within its storage and claims no more than the storage holds.

    Args:
        name: of the tensor, for the message.
        dtype: of its elements.
        nbytes: of the storage.
        shape, stride, offset: in elements.

    Raises:
        CheckpointError: it does not.
    """
    numbers = (*shape, *stride, offset)
    if len(shape) != len(stride) or not all(type(n) is int and n >= 0 for n in numbers) or len(shape) > 64:
        raise CheckpointError(f"{name} has an impossible shape, stride or offset")
    numel, holds = math.prod(shape), nbytes // dtype.itemsize
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    if numel and (last >= holds or numel > holds):
        raise CheckpointError(
            f"{name} claims {numel:,} elements up to place {last:,}, but its storage holds {holds:,}. "
            "A tensor that repeats itself must be saved as a copy: tensor.clone()."
        )


def _row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


def _read_safetensors(path: Path) -> Source:
    try:
        with safe_open(
            path, framework="pt"
        ) as file:  # the library checks the header; only the header is read
            names = set(file.keys())
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"the safetensors header does not fit the file ({error})") from error
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    metadata = header.pop("__metadata__", None) or {}
    entries, storages = [], {}
    for name, row in header.items():
        if row["dtype"] not in DTYPES:
            raise CheckpointError(f"{name} has the type {row['dtype']}, which this torch does not have")
        dtype, shape = DTYPES[row["dtype"]], tuple(row["shape"])
        first, end = row["data_offsets"]
        check_view(name, dtype, end - first, shape, _row_major(shape), 0)
        entries.append(Entry((name,), dtype, shape, _row_major(shape), 0, name, 8 + length + first))
        storages[name] = end - first
    if set(storages) != names:
        raise CheckpointError("the safetensors header can be read in two ways")
    entries.sort(key=lambda entry: entry.start)
    return Source(path, "safetensors", path.stat().st_size, entries, storages, metadata=metadata)


def _what_else(head: bytes) -> str:
    if not head:
        return "the file is empty. Download or copy it again"
    for start, what in (
        (b"version https://git-lfs", "a pointer of git-lfs, not the file itself. Run `git lfs pull`"),
        (b"<", "a web page, as a failed download leaves. Download the file again"),
        (b"GGUF", "a GGUF file, which holds quantised weights and is not supported"),
    ):
        if head.lstrip().startswith(start):
            return f"this is {what}"
    if head[257:262] == b"ustar":
        return "this is a tar archive, as torch wrote before 2017, or something else packed. Unpack it first"
    return "this is neither safetensors nor what torch.save writes. It may be cut short at its start; fetch it again"
