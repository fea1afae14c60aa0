"""Read a checkpoint file tensor by tensor, whatever its format, without holding more than a piece of it.

`open_file` looks at the content and not at the name: safetensors, torch's zip files and torch's older format all become
a `Source`, a list of `Entry` that say where each tensor's bytes lie. Every claim of the file (offsets, sizes, shapes)
is checked against its length before anything is read or allocated.

The two files that `torch.save` writes, read as data: a zip of raw storages, and the format before torch 1.6.
"""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .pickle import CheckpointError, Made, Name, Pickle, TensorRef, read_pickle

__all__ = ["DTYPE_NAMES", "Entry", "Source", "check_view", "open_file", "read_legacy", "read_zip"]

PIECE = 2**18  # elements that are in memory at a time
_CODES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "C64": "complex64",
}
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
            yield (self._elements(file, entry, entry.offset, span).as_strided(entry.shape, entry.stride).flatten())

    def _elements(self, file, entry: Entry, first: int, count: int) -> Tensor:
        size = entry.dtype.itemsize
        buffer = bytearray(count * size)
        file.seek(entry.start + first * size)
        view, got = memoryview(buffer), 0
        while got < len(buffer):  # a raw read may bring less than was asked for
            more = file.readinto(view[got:])
            if not more:
                raise CheckpointError(f"{self.path} became shorter while it was read: {'.'.join(entry.path)}.")
            got += more
        return torch.frombuffer(buffer, dtype=torch.uint8).view(entry.dtype)

    def read(self, entry: Entry) -> Tensor:
        """Return one tensor, contiguous."""
        pieces = list(self.pieces(entry))
        return torch.cat(pieces).reshape(entry.shape) if pieces else torch.empty(entry.shape, dtype=entry.dtype)


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
        with safe_open(path, framework="pt") as file:  # the library checks the header; only the header is read
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


MAX_PICKLE = 2**29  # bytes of the pickle itself, which holds names and shapes only
MAX_VALUES = 500_000  # tensors and containers; a training file of Stable Diffusion has some thousand
MAX_DEPTH = 50
_NESTED = (dict, list, tuple, Made)  # a TensorRef is a tuple
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


def read_zip(path: Path, allow: Iterable[str]) -> Source:
    """Read the directory and the pickle of a zip file; see `open_file`."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = _checked(path, archive.infolist())
    except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"its zip directory is damaged or cut short ({error}). Fetch it again") from error
    pickles = [name for name in members if name.rpartition("/")[2] == "data.pkl"]
    if len(pickles) != 1 or any("/code/" in name or name.endswith("constants.pkl") for name in members):
        what = "a TorchScript program" if pickles else "a zip archive, but not one that torch.save writes"
        raise CheckpointError(f"this is {what}. Save a state dict: torch.save(model.state_dict(), …)")
    folder = pickles[0].removesuffix("data.pkl")
    with path.open("rb") as file:
        if _member(file, members.get(f"{folder}byteorder"), 16) not in (None, b"little"):
            raise CheckpointError("its numbers are big-endian. Save it anew on an ordinary computer")
        pickle = read_pickle(io.BytesIO(_member(file, members[pickles[0]], MAX_PICKLE)), allow)
    places = {name[len(folder) + 5 :]: place for name, place in members.items() if name.startswith(f"{folder}data/")}
    for key, storage in pickle.storages.items():
        if key not in places:
            raise CheckpointError(f"the storage {key} is missing. The file is damaged; fetch it again")
        if storage.nbytes > places[key][1]:
            raise CheckpointError(
                f"the storage {key} claims {storage.nbytes:,} bytes, but the file holds {places[key][1]:,} of them"
            )
    return _source(path, "torch zip", pickle, places)


def _checked(path: Path, infos: list[zipfile.ZipInfo]) -> dict[str, tuple[int, int]]:
    """Return name -> (first byte, bytes) of the members, or raise where they are packed, overlap or leave the file."""
    size = path.stat().st_size
    members: dict[str, tuple[int, int]] = {}
    with path.open("rb") as file:
        end = 0
        for info in sorted(infos, key=lambda info: info.header_offset):
            if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size or info.flag_bits & 1:
                raise CheckpointError(
                    f"{info.filename} is packed: {info.compress_size:,} bytes would become {info.file_size:,}. "
                    "torch.save never packs, so this may be a zip bomb"
                )
            file.seek(info.header_offset)
            head = file.read(30)
            start = (
                info.header_offset + 30 + int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:], "little")
            )
            if head[:4] != b"PK\x03\x04" or info.header_offset < end or start + info.file_size > size:
                raise CheckpointError(
                    f"{info.filename} claims bytes {start:,} to {start + info.file_size:,} of {size:,}, or bytes of "
                    "another. The file is cut short or made up; fetch it again"
                )
            if info.filename in members:
                raise CheckpointError(f"{info.filename} is there twice. The file is made up; do not use it")
            end = start + info.file_size
            members[info.filename] = (start, info.file_size)
    return members


def _member(file: BinaryIO, place: tuple[int, int] | None, limit: int) -> bytes | None:
    if place is None:
        return None
    start, size = place
    if size > limit:
        raise CheckpointError(f"a bookkeeping record of it has {size:,} bytes; at most {limit:,} are read")
    file.seek(start)
    return file.read(size)


def read_legacy(path: Path, allow: Iterable[str]) -> Source:
    """Read the pickles of the older format, which stand before the raw storages; see `open_file`."""
    size = path.stat().st_size
    with path.open("rb") as file:
        first = read_pickle(file, allow)
        if first.value != _MAGIC:
            raise CheckpointError("this is a bare pickle, not what torch.save writes. Save a state dict with torch")
        protocol, system = read_pickle(file).value, read_pickle(file).value
        if protocol != _PROTOCOL or not isinstance(system, dict) or not system.get("little_endian", True):
            raise CheckpointError("it has another protocol or big-endian numbers, which is not supported")
        pickle = read_pickle(file, allow)
        keys = read_pickle(file).value
        plain = isinstance(keys, list) and all(isinstance(key, (str, int)) for key in keys)
        if not plain or sorted(map(str, keys)) != sorted(pickle.storages):
            raise CheckpointError("its list of storages does not fit its tensors. The file is damaged")
        places, at = {}, file.tell()
        for key in map(str, keys):
            file.seek(at)
            count = int.from_bytes(file.read(8), "little", signed=True)
            storage = pickle.storages[key]
            width = storage.dtype.itemsize if storage.dtype else 1
            if count * width != storage.nbytes or at + 8 + storage.nbytes > size:
                raise CheckpointError(
                    f"the storage {key} claims {storage.nbytes:,} bytes, but the file holds {max(size - at - 8, 0):,} "
                    f"more and says {count:,} elements. It is cut short or made up; fetch it again"
                )
            places[key] = (at + 8, storage.nbytes)
            at += 8 + storage.nbytes
    return _source(path, "torch legacy", pickle, places)


def _source(path: Path, kind: str, pickle: Pickle, places: dict[str, tuple[int, int]]) -> Source:
    entries = []
    for keys, ref in _tensors(pickle.value):
        check_view(".".join(keys), ref.dtype, ref.storage.nbytes, ref.shape, ref.stride, ref.offset)
        key = ref.storage.key
        entries.append(Entry(keys, ref.dtype, ref.shape, ref.stride, ref.offset, key, places[key][0]))
    storages = {key: size for key, (_, size) in places.items()}
    top = pickle.value if isinstance(pickle.value, dict) else {"": pickle.value}
    with_tensors = {entry.path[0] for entry in entries}
    others = {_text(key): _describe(value) for key, value in top.items() if _text(key) not in with_tensors}
    source = Source(path, kind, path.stat().st_size, entries, storages, others, pickle.names)
    leftovers = [name for name in pickle.names if not name.startswith(("torch.", "collections.", "builtins."))]
    if leftovers:
        source.notes.append(f"Its pickle also names {', '.join(leftovers[:5])}; skipped, never run.")
    return source


def _tensors(value: Any) -> Iterator[tuple[tuple[str, ...], TensorRef]]:
    """Yield every tensor with the keys that lead to it; values nested too often or too deep are refused."""
    waiting: list[tuple[tuple[str, ...], Any]] = [((), value)] if isinstance(value, _NESTED) else []
    count = 0
    while waiting:
        keys, item = waiting.pop()
        count += 1
        if count > MAX_VALUES or len(keys) > MAX_DEPTH:
            raise CheckpointError(f"its values are nested more than {MAX_DEPTH} deep, or are more than {MAX_VALUES:,}")
        if isinstance(item, TensorRef):
            yield keys or ("tensor",), item
            continue
        if isinstance(item, dict):
            inside = [(_text(key), below) for key, below in item.items()]
        elif isinstance(item, Made):
            inside = [(name, getattr(item, name)) for name in ("args", "state", "items")]
        else:
            inside = [(str(i), below) for i, below in enumerate(item)]
        waiting += [((*keys, key), below) for key, below in reversed(inside) if isinstance(below, _NESTED)]


def _text(key: Any) -> str:
    if isinstance(key, (Name, Made)):
        return key.full if isinstance(key, Name) else key.name
    if isinstance(key, int) and key.bit_length() > 64:
        return f"a number of {key.bit_length()} bits"
    return ", ".join(map(_text, key)) if isinstance(key, tuple) else str(key)[:500]


def _describe(value: Any) -> str:
    if isinstance(value, Made):
        return value.name
    if isinstance(value, Name):
        return value.full
    if isinstance(value, (dict, list, tuple)):
        return f"{type(value).__name__} of {len(value)}"
    if isinstance(value, int) and value.bit_length() > 64:
        return f"int of {value.bit_length()} bits"
    return f"{type(value).__name__} {str(value)[:60]}"
