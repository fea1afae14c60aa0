"""Read a checkpoint file tensor by tensor, whatever its format, without holding more than a piece of it.

`open_file` looks at the content and not at the name: safetensors, or either format of `torch.save` (a zip, and the one
before torch 1.6). Every claim of the file is checked against its length before anything is read or allocated.
"""

from __future__ import annotations

import io
import json
import math
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..checks import printable
from .pickle import CheckpointError, GlobalName, InertObject, Pickle, TensorRef, read_pickle

PIECE = 2**18  # elements that are in memory at a time
MAX_PICKLE = 2**29  # bytes of a zip's pickle, which holds names and shapes only
MAX_VALUES, MAX_DEPTH = 500_000, 50  # tensors and containers; a training file of Stable Diffusion has some thousand
MAX_ITEMS = 20 * MAX_VALUES  # in all containers, those that are met again included
MAX_REPEATS = 2**24  # elements that expanded tensors may have beyond those of their storages
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of torch's older format
# Safetensors' types, in the order in which they lie in a file: the wide ones first, so that every tensor is aligned.
_TYPES = """
    U64=uint64 I64=int64 F64=float64 C64=complex64 F32=float32 U32=uint32 I32=int32 BF16=bfloat16 F16=float16 U16=uint16
    I16=int16 F8_E5M2FNUZ=float8_e5m2fnuz F8_E4M3FNUZ=float8_e4m3fnuz F8_E8M0=float8_e8m0fnu F8_E4M3=float8_e4m3fn
    F8_E5M2=float8_e5m2 I8=int8 U8=uint8 F4=float4_e2m1fn_x2 BOOL=bool
"""
_PAIRS = [pair.split("=") for pair in _TYPES.split()]
DTYPES = {code: getattr(torch, name) for code, name in _PAIRS if hasattr(torch, name)}
DTYPE_NAMES = {dtype: code for code, dtype in DTYPES.items()}
PAIRS = DTYPES.get("F4")  # torch's type of two numbers in a byte, which safetensors counts one by one


@dataclass(frozen=True)
class Entry:
    """One tensor of a file."""

    path: tuple[str, ...]  # the keys that lead to it, as in ("state_dict", "model.diffusion_model.out.2.bias")
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]  # in elements
    offset: int  # of its first element in the storage, in elements
    storage: str  # names the storage; tensors that share one have the same
    start: int  # of the storage in the file, in bytes
    bits: tuple[str, ...] = ()  # "conj", "neg": what its numbers are to those of the storage

    @property
    def numel(self) -> int:
        """Number of elements; of `PAIRS`, as torch does, those of bytes."""
        return math.prod(self.shape)

    @property
    def params(self) -> int:
        """Number of numbers."""
        return self.numel * (2 if self.dtype == PAIRS else 1)

    @property
    def nbytes(self) -> int:
        """Bytes of the elements, stored one after the other."""
        return self.numel * self.dtype.itemsize

    @property
    def view(self) -> tuple:
        """Equal for two entries that are the same tensor under two names."""
        return self.storage, self.offset, self.shape, self.stride, self.dtype, self.bits


@dataclass
class Source:
    """An opened checkpoint file."""

    path: Path
    kind: str  # "safetensors", "torch zip" or "torch legacy"
    nbytes: int  # of the file
    entries: list[Entry]  # its tensors
    storages: dict[str, int]  # storage -> bytes it takes in the file
    others: dict[str, str] = field(default_factory=dict)  # what is no tensor: top-level key -> description
    names: tuple[str, ...] = ()  # the globals its pickle mentions
    metadata: dict[str, str] = field(default_factory=dict)  # the text entries of a safetensors header
    notes: list[str] = field(default_factory=list)  # what a reader should know, as sentences

    def pieces(self, entry: Entry) -> Iterator[Tensor]:
        """Yield a tensor's elements in order, flat, in pieces of at most `PIECE` elements (a strided view in one)."""
        if not entry.numel:
            return
        steps = zip(entry.shape, entry.stride, _row_major(entry.shape), strict=True)
        with self.path.open("rb", buffering=0) as file:
            if all(step == plain for n, step, plain in steps if n > 1):
                for first in range(0, entry.numel, PIECE):
                    yield self._elements(file, entry, entry.offset + first, min(PIECE, entry.numel - first))
            else:
                span = 1 + sum((n - 1) * step for n, step in zip(entry.shape, entry.stride, strict=True))
                whole = self._elements(file, entry, entry.offset, span)
                yield whole.as_strided(entry.shape, entry.stride).reshape(-1).contiguous()

    def _elements(self, file: BinaryIO, entry: Entry, first: int, count: int) -> Tensor:
        size = entry.dtype.itemsize
        buffer = bytearray(count * size)
        file.seek(entry.start + first * size)
        view, got = memoryview(buffer), 0
        while got < len(buffer):  # a raw read may bring less than was asked for
            more = file.readinto(view[got:])
            if not more:
                raise CheckpointError(f"{self.path} became shorter while it was read: {'.'.join(entry.path)}.")
            got += more
        found = torch.frombuffer(buffer, dtype=torch.uint8).view(entry.dtype)
        found = found.conj().resolve_conj() if "conj" in entry.bits else found
        return found.neg() if "neg" in entry.bits else found


def open_file(path: str | Path, allow: Iterable[str] = ()) -> Source:
    """Open a checkpoint file and check what it claims; no tensor is read yet.

    Raises FileNotFoundError, UnsafePickleError (it would run code), CheckpointError (it is empty, damaged, cut short,
    lies about its sizes, or is no checkpoint).
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    with path.open("rb") as file:
        head = file.read(512)
    try:
        is_zip = head[:4] == b"PK\x03\x04"  # the very test of torch.load
        if is_zip and head[8:9] == b"{":
            raise CheckpointError("it can be read as a zip and as safetensors, as no honest file can. Do not use it")
        if not is_zip and _is_tar(path):  # this, too, is a test of torch.load
            raise CheckpointError(f"this is {_TAR}")
        if is_zip:
            source = _read_zip(path, allow)
        elif head[8:9] == b"{":  # before the next test: a header's length may begin with any byte
            source = _read_safetensors(path)
        elif head[:1] == b"\x80":
            source = _read_legacy(path, allow)
        else:
            raise CheckpointError(_what_else(head))
    except CheckpointError as error:
        error.args = (printable(f"{path}: {error}"),)
        raise
    if (source.kind == "safetensors") != (path.suffix == ".safetensors"):
        source.notes.append(f"The name ends in {path.suffix or 'nothing'}, the content is {source.kind}.")
    return source


_TAR = "a tar archive, as torch wrote before 2017, or something else packed. Unpack it first"


def _is_tar(path: Path) -> bool:
    try:
        with tarfile.open(path, "r:"):
            return True
    except Exception:  # of many kinds, where something else is taken for a tar
        return False


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
        return f"this is {_TAR}"
    return "this is neither safetensors nor what torch.save writes. It may be cut short at its start; fetch it again"


def _row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


def _check_view(
    name: str, dtype: torch.dtype, nbytes: int, shape: tuple[int, ...], stride: tuple[int, ...], offset: int
) -> None:
    """Check that a strided view lies within its storage of `nbytes`, and claims no more than the storage holds."""
    numbers, known = (*shape, *stride, offset), len(shape) == len(stride) < 65
    if not known or not all(type(n) is int and 0 <= n < 2**63 for n in numbers) or math.prod(shape) >= 2**63:
        raise CheckpointError(f"{name} has an impossible shape, stride or offset")
    numel, holds = math.prod(shape), nbytes // dtype.itemsize
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    if numel and (last >= holds or numel > holds + MAX_REPEATS):
        raise CheckpointError(
            f"{name} claims {numel:,} elements up to place {last:,}, but its storage holds {holds:,}. "
            "A tensor that repeats itself so often must be saved as a copy: tensor.clone()."
        )


def _read_safetensors(path: Path) -> Source:
    try:
        with safe_open(path, framework="pt") as file:  # the library checks the header, but tells no offsets
            names = set(file.keys())
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"the safetensors header does not fit the file ({error})") from error
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    metadata = header.pop("__metadata__", None) or {}
    if set(header) != names:
        raise CheckpointError("the safetensors header can be read in two ways")
    entries, storages = [], {}
    for name, row in sorted(header.items(), key=lambda item: item[1]["data_offsets"][0]):
        if row["dtype"] not in DTYPES:
            lacks = f"which torch {torch.__version__} does not have"
            raise CheckpointError(f"{name} has the type {row['dtype']}, {lacks}")
        dtype, shape = DTYPES[row["dtype"]], tuple(row["shape"])
        if dtype == PAIRS:
            if not shape or shape[-1] % 2:
                raise CheckpointError(f"{name} has an odd number of F4 in a row, and torch has them in pairs")
            shape = (*shape[:-1], shape[-1] // 2)
        first, end = row["data_offsets"]
        _check_view(name, dtype, end - first, shape, _row_major(shape), 0)
        entries.append(Entry((name,), dtype, shape, _row_major(shape), 0, name, 8 + length + first))
        storages[name] = end - first
    return Source(path, "safetensors", path.stat().st_size, entries, storages, metadata=metadata)


def _read_zip(path: Path, allow: Iterable[str]) -> Source:
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
    except Exception as error:  # a hole where the directory was ends in many ways, even in a place before the file
        raise CheckpointError(f"its zip directory is damaged or cut short ({error}). Fetch it again") from error
    names = [info.filename for info in infos]
    pickles = [name for name in names if name.lower().rpartition("/")[2] == "data.pkl"]
    script = any("/code/" in name or name.lower().endswith("constants.pkl") for name in names)
    if len(pickles) != 1 or script:
        what = "a TorchScript program" if script else "a zip archive, but not one that torch.save writes"
        what = "made up: it holds several pickles" if len(pickles) > 1 and not script else what
        raise CheckpointError(f"this is {what}. Save a state dict: torch.save(model.state_dict(), …)")
    members = _members(path, infos)
    folder = pickles[0].removesuffix("data.pkl")
    with path.open("rb") as file:
        if f"{folder}byteorder" in members and _record(file, members[f"{folder}byteorder"], 16) != b"little":
            raise CheckpointError("its numbers are big-endian. Save it anew on an ordinary computer")
        pickle = read_pickle(io.BytesIO(_record(file, members[pickles[0]], MAX_PICKLE)), allow)
    data = f"{folder}data/"
    places = {name.removeprefix(data): place for name, place in members.items() if name.startswith(data)}
    for key, storage in pickle.storages.items():
        if key not in places:
            raise CheckpointError(f"the storage {key} is missing. The file is damaged; fetch it again")
        if storage.nbytes > places[key][1]:
            raise CheckpointError(
                f"the storage {key} claims {storage.nbytes:,} bytes, but the file holds {places[key][1]:,} of them"
            )
    read = ["data.pkl", *(f"data/{key}" for key in pickle.storages)]
    try:  # torch has a reader of its own, and it decides what is in a file
        theirs = torch._C.PyTorchFileReader(str(path))
        same = all(theirs.get_record_offset(name) == members[folder + name][0] for name in read)
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(f"torch.load refuses it ({str(error).splitlines()[0]}). Fetch it again") from error
    if not same:
        raise CheckpointError("torch.load would read other bytes than its directory tells. The file is made up")
    return _torch_source(path, "torch zip", pickle, places)


def _members(path: Path, infos: list[zipfile.ZipInfo]) -> dict[str, tuple[int, int]]:
    """Return name -> (first byte, bytes) of the members, or raise where they are packed, overlap or leave the file."""
    size, end, lower = path.stat().st_size, 0, set()
    members: dict[str, tuple[int, int]] = {}
    with path.open("rb") as file:
        for info in sorted(infos, key=lambda info: info.header_offset):
            if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size or info.flag_bits & 1:
                raise CheckpointError(
                    f"{info.filename} is packed: {info.compress_size:,} bytes would become {info.file_size:,}. "
                    "torch.save never packs, so this may be a zip bomb"
                )
            file.seek(max(info.header_offset, 0))  # below 0 where bytes are missing before the directory
            head = file.read(30)
            names = int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:], "little")
            start = info.header_offset + 30 + names
            if head[:4] != b"PK\x03\x04" or info.header_offset < end or start + info.file_size > size:
                raise CheckpointError(
                    f"{info.filename} claims bytes {start:,} to {start + info.file_size:,} of {size:,}, or bytes of "
                    "another. The file is cut short or made up; fetch it again"
                )
            if info.filename.lower() in lower:  # torch.load finds names in either case
                raise CheckpointError(f"{info.filename} is there twice. The file is made up; do not use it")
            lower.add(info.filename.lower())
            end = start + info.file_size
            members[info.filename] = (start, info.file_size)
    return members


def _record(file: BinaryIO, place: tuple[int, int], limit: int) -> bytes:
    start, size = place
    if size > limit:
        raise CheckpointError(f"a bookkeeping record of it has {size:,} bytes; at most {limit:,} are read")
    file.seek(start)
    return file.read(size)


def _read_legacy(path: Path, allow: Iterable[str]) -> Source:
    """Read the pickles of the older format, which stand before the raw storages."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if read_pickle(file, allow).value != MAGIC:
            raise CheckpointError("this is a bare pickle, not what torch.save writes. Save a state dict with torch")
        protocol, system = read_pickle(file).value, read_pickle(file).value
        if protocol != PROTOCOL or not isinstance(system, dict) or not system.get("little_endian", True):
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
    return _torch_source(path, "torch legacy", pickle, places)


def _torch_source(path: Path, kind: str, pickle: Pickle, places: dict[str, tuple[int, int]]) -> Source:
    entries = []
    for keys, ref in _tensors(pickle.value):
        _check_view(".".join(keys), ref.dtype, ref.storage.nbytes, ref.shape, ref.stride, ref.offset)
        key = ref.storage.key
        entries.append(Entry(keys, ref.dtype, ref.shape, ref.stride, ref.offset, key, places[key][0], ref.bits))
    if sum(max(one.numel - places[one.storage][1] // one.dtype.itemsize, 0) for one in entries) > MAX_REPEATS:
        raise CheckpointError("its tensors repeat themselves too often. Save copies of them: tensor.clone()")
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
    nested = (dict, list, tuple, InertObject)  # a TensorRef is a tuple
    waiting: list[tuple[tuple[str, ...], Any]] = [((), value)] if isinstance(value, nested) else []
    count = items = 0
    while waiting:
        keys, item = waiting.pop()
        if isinstance(item, TensorRef):
            yield keys or ("tensor",), item
            continue
        items += 3 if isinstance(item, InertObject) else len(item)
        if items > MAX_ITEMS:  # counted before they are copied
            raise CheckpointError(f"its values are nested so that they are more than {MAX_ITEMS:,}")
        if isinstance(item, dict):
            inside = item.items()
        elif isinstance(item, InertObject):
            inside = [(name, getattr(item, name)) for name in ("args", "state", "items")]
        else:
            inside = enumerate(item)
        inside = [(key, below) for key, below in inside if isinstance(below, nested)]
        count += len(inside)
        if count > MAX_VALUES or len(keys) >= MAX_DEPTH:
            raise CheckpointError(f"its values are nested more than {MAX_DEPTH} deep, or are more than {MAX_VALUES:,}")
        waiting += [((*keys, _text(key)), below) for key, below in reversed(inside)]


def _text(key: Any) -> str:
    if isinstance(key, GlobalName):
        return key.full
    if isinstance(key, InertObject):
        return key.name
    if isinstance(key, int) and key.bit_length() > 64:
        return f"a number of {key.bit_length()} bits"
    return ", ".join(map(_text, key)) if isinstance(key, tuple) else str(key)[:500]


def _describe(value: Any) -> str:
    if isinstance(value, (InertObject, GlobalName)):
        return _text(value)
    if isinstance(value, (dict, list, tuple)):
        return f"{type(value).__name__} of {len(value)}"
    if isinstance(value, int) and value.bit_length() > 64:
        return f"int of {value.bit_length()} bits"
    return f"{type(value).__name__} {str(value[:60] if isinstance(value, (str, bytes)) else value)[:60]}"
