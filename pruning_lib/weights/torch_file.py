"""The two files that `torch.save` writes, read as data: a zip of raw storages, and the format before torch 1.6."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from .inert_pickle import Pickle, read_pickle
from .pickle_names import CheckpointError
from .pickle_values import Made, Name, TensorRef
from .reading import Entry, Source, check_view

__all__ = ["read_legacy", "read_zip"]

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
        raise CheckpointError(
            f"its zip directory is damaged or cut short ({error}). Fetch it again"
        ) from error
    pickles = [name for name in members if name.rpartition("/")[2] == "data.pkl"]
    if len(pickles) != 1 or any("/code/" in name or name.endswith("constants.pkl") for name in members):
        what = "a TorchScript program" if pickles else "a zip archive, but not one that torch.save writes"
        raise CheckpointError(f"this is {what}. Save a state dict: torch.save(model.state_dict(), …)")
    folder = pickles[0].removesuffix("data.pkl")
    with path.open("rb") as file:
        if _member(file, members.get(f"{folder}byteorder"), 16) not in (None, b"little"):
            raise CheckpointError("its numbers are big-endian. Save it anew on an ordinary computer")
        pickle = read_pickle(io.BytesIO(_member(file, members[pickles[0]], MAX_PICKLE)), allow)
    places = {
        name[len(folder) + 5 :]: place for name, place in members.items() if name.startswith(f"{folder}data/")
    }
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
            if (
                info.compress_type != zipfile.ZIP_STORED
                or info.compress_size != info.file_size
                or info.flag_bits & 1
            ):
                raise CheckpointError(
                    f"{info.filename} is packed: {info.compress_size:,} bytes would become {info.file_size:,}. "
                    "torch.save never packs, so this may be a zip bomb"
                )
            file.seek(info.header_offset)
            head = file.read(30)
            start = (
                info.header_offset
                + 30
                + int.from_bytes(head[26:28], "little")
                + int.from_bytes(head[28:], "little")
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
            raise CheckpointError(
                "this is a bare pickle, not what torch.save writes. Save a state dict with torch"
            )
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
    leftovers = [
        name for name in pickle.names if not name.startswith(("torch.", "collections.", "builtins."))
    ]
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
            raise CheckpointError(
                f"its values are nested more than {MAX_DEPTH} deep, or are more than {MAX_VALUES:,}"
            )
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
