"""Files: is there room for one, written whole or not at all, tagged with what they hold, and read back with words.

A file of ours is JSON, or safetensors with JSON in its header, and says what it is: "pruning_lib.schedule/1".
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import tempfile
import threading
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from glob import escape
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


def check_place(path: Path) -> None:
    """Make the folder of `path`, and raise OSError unless a file can be written there; no file is left behind."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}: no file can be written there", str(path)) from error
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "Is a directory: the name is taken by a folder", str(path))


def check_new_file(path: Path, suffix: str = "") -> Path:
    """Return where a new file, or folder, can be made: what ends in `suffix`, if any, and is not there yet."""
    if suffix and path.suffix != suffix:
        raise ValueError(f"{path} does not end in {suffix}.")
    if path.resolve().exists():  # resolved, for in new/../old the folder "new" may have yet to be made
        what = "folder" if path.is_dir() else "file"
        raise ValueError(f"{path} exists already. Give a new {what}, or move that one away.")
    check_place(path)
    return path


def beside(folder: str) -> Path:
    """Return a folder of data that is installed beside this package, in the book's room."""
    return Path(__file__).resolve().parents[1] / "pruning_book" / folder


@contextmanager
def write_whole(path: str | Path) -> Iterator[Path]:
    """Give a name beside `path` to write a file or a folder to, and move it into place; a crash leaves the old one.

    A place that cannot be written to, or a folder there that is not empty, is an OSError. SIGTERM removes the parts
    before it ends the process; parts that a killed run left are named in a warning.

    Example:
        >>> with write_whole("numbers.json") as part:
        ...     part.write_text("[1, 2]")
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{escape(path.name)}-*.tmp"):
        size = sum(part.lstat().st_size for part in left.rglob("*")) / 1e6
        warnings.warn(f"A killed run left {left} ({size:,.1f} MB). Delete it, if none is running.", stacklevel=3)
    name = {"prefix": f".{path.name}-", "suffix": ".tmp"}
    with _unwinding(), tempfile.TemporaryDirectory(dir=path.parent, ignore_cleanup_errors=True, **name) as box:
        part, usual = Path(box, path.name), Path(box, "usual")
        yield part
        if part.is_file():
            usual.touch()
            part.chmod(usual.stat().st_mode)  # safetensors makes private files
            with part.open("rb+") as file:
                os.fsync(file.fileno())
        elif path.is_dir():
            path.rmdir()  # fails where it is not empty
        os.replace(part, path)


@contextmanager
def _unwinding() -> Iterator[None]:
    """Let SIGTERM, or SIGHUP, leave a block as an exception does, and end the process when all is cleaned up."""
    told, mine = [], threading.current_thread() is threading.main_thread()
    numbers = {signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)} if mine else ()

    def leave(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_IGN)
        told.append(number)
        raise SystemExit(128 + number)

    old = {number: signal.signal(number, leave) for number in numbers if signal.getsignal(number) is signal.SIG_DFL}
    try:
        yield
    finally:
        for number in old:
            signal.signal(number, signal.SIG_DFL)
        if told:
            signal.raise_signal(told[0])


def plain(value: object) -> object:
    """Return values as JSON can hold them; of tensors, arrays, pictures and functions a digest."""
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    kind, content = type(value).__name__, repr(value).encode()
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        raw = value.contiguous().flatten().view(torch.uint8).numpy().tobytes()
        content = f"{value.dtype} {tuple(value.shape)}".encode() + raw
    elif callable(getattr(value, "tobytes", None)):  # an array, or a picture of PIL
        about = [getattr(value, name, None) for name in ("shape", "dtype", "size", "mode")]
        content = repr(about).encode() + value.tobytes()
    elif callable(value):
        content = f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', kind)}".encode()
    return {"digest": f"{kind} {hashlib.sha256(content).hexdigest()[:16]}"}


def save_json(path: str | Path, kind: str, version: int, data: Mapping) -> Path:
    """Write `data` as a JSON file of this kind and version, whole or not at all."""
    with write_whole(path) as part:
        part.write_text(
            json.dumps({"format": f"pruning_lib.{kind}/{version}", **plain(data)}, indent=1) + "\n", "utf-8"
        )
    return Path(path)


def load_json(path: str | Path, kind: str, versions: Collection[int] = (1,)) -> dict:
    """Read what `save_json` wrote; a damaged file, another kind or another version is a ValueError."""
    try:
        data = json.loads(Path(path).read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}. Expected a saved {kind}; save it anew.") from error
    return check_format(data, kind, versions, source=str(path))


def save_tensors(path: str | Path, kind: str, version: int, tensors: Mapping[str, Tensor], data: Mapping) -> Path:
    """Write tensors, and plain values beside them, as a .safetensors file of this kind and version."""
    if Path(path).suffix != ".safetensors":
        raise ValueError(f"{path} does not end in .safetensors.")
    note = json.dumps({"format": f"pruning_lib.{kind}/{version}", **plain(data)})
    with write_whole(path) as part:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, part, {kind: note})
    return Path(path)


def load_tensors(path: str | Path, kind: str, versions: Collection[int] = (1,)) -> tuple[dict[str, Tensor], dict]:
    """Read what `save_tensors` wrote: the tensors, on the CPU, and the values; errors as `load_json`."""
    if not Path(path).is_file():
        raise FileNotFoundError(errno.ENOENT, "There is no such file", str(path))
    try:
        with safe_open(path, "pt") as file:
            note = json.loads((file.metadata() or {}).get(kind, "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{path} holds no {kind}, or is damaged: {error}. Save it anew.") from error
    return tensors, check_format(note, kind, versions, source=str(path))


def check_format(data: object, kind: str, versions: Collection[int] = (1,), *, source: str = "this") -> dict:
    """Return saved values with their "version", after checking that they are of this kind and a version we read."""
    if not isinstance(data, Mapping):
        raise ValueError(f"{source} holds no {kind}, but {type(data).__name__}. Expected what its save() wrote.")
    old = f"pruning_lib.{kind}/{data['version']}" if "version" in data else None  # of old some said no more
    tag = data.get("format", old)
    name, _, version = str(tag).partition("/")
    if name != f"pruning_lib.{kind}":
        raise ValueError(f"{source} holds no {kind}: its format is {tag!r}. Expected what its save() wrote.")
    known = ", ".join(map(str, versions))
    if version not in known.split(", "):
        raise ValueError(f"{source} is a {kind} of version {version}; this pruning_lib reads {known}. Update it.")
    return {**{key: value for key, value in data.items() if key != "format"}, "version": int(version)}


@contextmanager
def reading(kind: str, source: object) -> Iterator[None]:
    """Say of what fails inside, for want of a value or by a wrong one, that `source` is damaged."""
    try:
        yield
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error).rstrip(".")
        raise ValueError(f"{source} is a damaged {kind}: {what}. Save it anew.") from error
