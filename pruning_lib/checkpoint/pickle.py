"""Which names may stand in a checkpoint's pickle, and what is said of a file that asks for others.

The values a pickle is made of when nothing in it is run, and the few calls that are understood.

The names are those of torch's functions; what stands behind them here are functions of ours that take down what the
pickle claims. Sizes and places are checked later, against the file; see `reading.check_view`.

A pickle read as data: nothing in it is imported, looked up or called.

A .ckpt, .pt or .bin file holds a pickle, which is a program: its GLOBAL instruction fetches any function by name, its
REDUCE instruction calls it. `read_pickle` decodes the instructions with the standard library's `pickletools` and plays
them on a stack of plain values. Names stay names; a call of one of the few functions that rebuild a tensor becomes a
`TensorRef`, any other call an inert `Made`. A file that names anything outside the list in `pickle_names` is refused.

`torch.load(weights_only=True)` pursues the same aim by calling a list of trusted functions. It was broken twice
(CVE-2025-32434 below torch 2.6, CVE-2026-24747 below 2.10), it refuses the training leftovers that real files carry,
and it cannot read old files tensor by tensor. The tests compare both on files that torch accepts.
"""

from __future__ import annotations

import _compat_pickle
import fnmatch
import pickletools
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, BinaryIO, NamedTuple

import torch

__all__ = [
    "CALLS",
    "CheckpointError",
    "Made",
    "Name",
    "Pickle",
    "StorageRef",
    "TensorRef",
    "UnsafePickleError",
    "call",
    "mapping",
    "may_stand",
    "read_pickle",
    "storage_of",
]

# What training programs leave beside the weights. It is read as inert data, listed in the report, and never kept.
# Under a * stand classes only: a library's functions, and what it has imported itself, are nobody's leftovers.
_LEFTOVERS = (
    "pytorch_lightning.*",
    "lightning.*",
    "lightning_fabric.*",
    "lightning_utilities.*",
    "omegaconf.*",
    "argparse.Namespace",
    "collections.*",
    "typing.*",
    "pathlib.*",
    "torch.optim.*",
    "numpy.dtypes.*",
    "torch.*Storage",
    "torch.cuda.*Storage",
    "torch.storage.*Storage",
)
_EXACT = {
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "numpy.dtype",
    "numpy.ndarray",
    "datetime.datetime",
    "datetime.timedelta",
    "datetime.date",
    "_codecs.encode",
    "collections.defaultdict",
    "collections.deque",
}
_PLAIN = {
    "set",
    "frozenset",
    "list",
    "dict",
    "tuple",
    "int",
    "float",
    "complex",
    "bool",
    "str",
    "bytes",
    "bytearray",
    "slice",
    "range",
    "object",
}
# Modules whose names no caller may allow.
_NEVER = {
    "os",
    "posix",
    "nt",
    "sys",
    "subprocess",
    "builtins",
    "importlib",
    "runpy",
    "shutil",
    "socket",
    "ctypes",
    "pickle",
    "marshal",
    "code",
    "pty",
    "webbrowser",
    "operator",
    "functools",
    "types",
}


class CheckpointError(ValueError):
    """A checkpoint that cannot be read: damaged, cut short, or not what it says it is."""


class UnsafePickleError(CheckpointError):
    """A pickle that asks for code. `names` lists what it asked for; nothing of it was run."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = tuple(dict.fromkeys(names))
        wanted = ", ".join(self.names[:5]) + (f" and {len(self.names) - 5} more" if len(self.names) > 5 else "")
        mend = f"If you know that to be harmless, allow it by name ({self.names[0]}): it is then skipped, not run."
        if any(name.partition(".")[0] in _NEVER for name in self.names):
            mend = "Delete the file, and do not open it with another program."
        super().__init__(f"the file would run code when loaded: it asks for {wanted}. Nothing was run. {mend}")


def may_stand(module: str, name: str, allow: Iterable[str] = ()) -> bool:
    """Return whether the global `module.name` may stand in a checkpoint.

    Args:
        module, name: as in the pickle; a name with dots fetches what a module has imported, and is never a leftover.
        allow: full names the caller knows to be harmless; "*" stands for anything.
    """
    full = f"{module}.{name}"
    if full in _EXACT or (module == "builtins" and name in _PLAIN):
        return True
    if name[:1].isupper() and "." not in name:
        if any(fnmatch.fnmatchcase(full, pattern) for pattern in _LEFTOVERS):
            return True
    wanted = any(fnmatch.fnmatchcase(full, pattern) for pattern in allow)
    return wanted and "." not in name and module.partition(".")[0] not in _NEVER


DTYPES = {
    "Float": torch.float32,
    "Double": torch.float64,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
    "ComplexFloat": torch.complex64,
    "ComplexDouble": torch.complex128,
}


@dataclass(frozen=True)
class Name:
    """A global of the pickle, as in "torch._utils._rebuild_tensor_v2"; only its name, never the thing itself."""

    full: str


@dataclass(eq=False)
class Made:
    """What a call of `name` would have made, had it been run: its arguments, state and items, all inert."""

    name: str
    args: Any
    state: Any = None
    items: list = field(default_factory=list)


_KEYS = (str, bytes, int, float, complex, type(None), Name, Made, torch.dtype)


class StorageRef(NamedTuple):
    """A storage that the pickle claims: `nbytes` bytes under `key`; `dtype` is None where the bytes are untyped."""

    key: str
    dtype: torch.dtype | None
    nbytes: int


class TensorRef(NamedTuple):
    """A tensor that the pickle claims: a strided view (offset and strides in elements) of a storage."""

    storage: StorageRef
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def mapping(pairs: Any) -> dict:
    """Return a dict of pairs whose keys are plain, or tuples of plain values.

    Anything else is refused: a tuple that holds itself twice, forty times over, takes for ever to hash.
    """
    found = {}
    for key, value in pairs.items() if isinstance(pairs, dict) else pairs:
        for part in key if isinstance(key, tuple) else (key,):
            if not isinstance(part, _KEYS):
                raise CheckpointError(f"a dictionary has a {type(part).__name__} in its keys")
        found[key] = value
    return found


def _tensor(storage: StorageRef, offset: int, shape: Any, stride: Any, *more: Any) -> TensorRef:
    dtype = storage.dtype if isinstance(storage, StorageRef) else None
    if len(more) > 2 and isinstance(more[2], torch.dtype):  # _rebuild_tensor_v3 names the type itself
        dtype = more[2]
    if not isinstance(storage, StorageRef) or dtype is None:
        raise CheckpointError("a tensor has no storage, or one without a type")
    return TensorRef(storage, dtype, offset, tuple(shape), tuple(stride))


# Every call that yields a value; all others yield `Made`. The functions here are ours, under torch's names.
CALLS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor,
    "torch._utils._rebuild_parameter": lambda data, *more: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *more: data,
    "torch._tensor._rebuild_from_type_v2": lambda name, kind, args, state: call(name, args),
    "torch.nn.parameter.Parameter": lambda data, *more: data,
    "torch.Tensor": lambda *args: Made("torch.Tensor", args),
    "torch.Size": lambda shape: tuple(shape),
    "torch.device": lambda *place: Made("torch.device", place),
    "collections.OrderedDict": lambda items=(): mapping(items),
    "collections.defaultdict": lambda factory=None, items=(): mapping(items),
    "collections.Counter": lambda items=(): mapping(items),
    "builtins.set": lambda items=(): list(items),
    "builtins.frozenset": lambda items=(): list(items),
}


def call(name: Any, args: Any) -> Any:
    if not isinstance(name, Name):
        raise CheckpointError("the pickle calls something that is not a name")
    if name.full in CALLS and isinstance(args, tuple):
        return CALLS[name.full](*args)
    return Made(name.full, args)


def storage_of(pid: Any) -> StorageRef:
    """Return the storage of a persistent id: ("storage", type, key, place, elements, ...)."""
    if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage" or not isinstance(pid[1], Name):
        raise CheckpointError(f"a storage is described by {type(pid).__name__}, not as torch.save does")
    kind = pid[1].full.rpartition(".")[2].removesuffix("Storage")
    if type(pid[4]) is not int or pid[4] < 0 or not isinstance(pid[2], (str, int)):
        raise CheckpointError("a storage claims an impossible number of elements, or has no key")
    if len(pid) > 5 and pid[5] is not None:
        raise CheckpointError("a storage is a view of another, as torch wrote before 2017. Save it anew with torch")
    if kind == "Untyped":
        return StorageRef(str(pid[2]), None, pid[4])
    if kind not in DTYPES:
        raise CheckpointError(f"a storage is of type {pid[1].full}, which is not supported")
    return StorageRef(str(pid[2]), DTYPES[kind], pid[4] * DTYPES[kind].itemsize)


_TYPES = {name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}


class Pickle(NamedTuple):
    """One pickle as data: its value, the names of all its globals, and every storage it claims, by key."""

    value: Any
    names: tuple[str, ...]
    storages: dict[str, StorageRef]


class _Reader:
    """Plays the instructions of one pickle on a stack of inert values."""

    def __init__(self, allow: Iterable[str]) -> None:
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stacks under each mark
        self.memo: dict[int, Any] = {}  # a dict: a pickle may name slot four billion
        self.allow = tuple(allow)
        self.seen: dict[str, bool] = {}  # name -> may it stand in a checkpoint
        self.storages: dict[str, StorageRef] = {}

    def name(self, module: Any, name: Any) -> Any:
        if not isinstance(module, str) or not isinstance(name, str):
            raise CheckpointError("the pickle computes the name of a global")
        # Python 2 wrote other names
        module, name = _compat_pickle.NAME_MAPPING.get((module, name), (module, name))
        module = _compat_pickle.IMPORT_MAPPING.get(module, module)
        full = f"{module}.{name}"
        if module == "torch" and name in _TYPES:
            return _TYPES[name]
        self.seen[full] = full in CALLS or may_stand(module, name, self.allow)
        return Name(full)

    def since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def fill(self, items: list[Any], pairs: bool) -> None:
        target = self.stack[-1]
        if pairs and isinstance(target, dict):
            target.update(mapping(zip(items[::2], items[1::2], strict=True)))
        elif isinstance(target, Made):
            target.items.extend(items)
        elif not pairs and isinstance(target, list):
            target.extend(items)
        else:
            raise CheckpointError(f"the pickle puts items into a {type(target).__name__}")

    def step(self, code: str, arg: Any) -> None:
        """Play one instruction; the names are those of `pickletools`."""
        push, pop = self.stack.append, self.stack.pop
        if code in _PUSHED:
            push(arg)
        elif code in _MADE:
            push(_MADE[code]())
        elif code == "MARK":
            self.below.append(self.stack)
            self.stack = []
        elif code in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[arg] = self.stack[-1]
        elif code == "MEMOIZE":
            self.memo[len(self.memo)] = self.stack[-1]
        elif code in ("GET", "BINGET", "LONG_BINGET"):
            push(self.memo[arg])
        elif code == "GLOBAL":
            push(self.name(*arg.split(" ", 1)))
        elif code == "STACK_GLOBAL":
            name, module = pop(), pop()
            push(self.name(module, name))
        elif code == "REDUCE" or code == "NEWOBJ":
            args = pop()
            push(call(pop(), args))
        elif code == "NEWOBJ_EX":
            kwargs, args = pop(), pop()
            push(call(pop(), args if not kwargs else (args, kwargs)))
        elif code == "INST":
            args = tuple(self.since_mark())
            self.stack.append(call(self.name(*arg.split(" ", 1)), args))
        elif code == "OBJ":
            name, *args = self.since_mark()
            self.stack.append(call(name, tuple(args)))
        elif code == "BUILD":
            state = pop()
            if isinstance(self.stack[-1], Made):
                self.stack[-1].state = state
        elif code == "BINPERSID":
            storage = storage_of(pop())
            if self.storages.setdefault(storage.key, storage).nbytes != storage.nbytes:
                raise CheckpointError(f"two tensors claim different sizes for the same storage {storage.key}")
            push(storage)
        elif code in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(code[-1])
            self.stack[-count:] = [tuple(self.stack[-count:])]
        elif code in ("TUPLE", "LIST", "FROZENSET", "DICT"):
            items = self.since_mark()
            made = mapping(zip(items[::2], items[1::2], strict=True)) if code == "DICT" else items
            self.stack.append(tuple(made) if code == "TUPLE" else made)
        elif code in ("APPEND", "SETITEM"):
            items = [pop() for _ in range(1 if code == "APPEND" else 2)][::-1]
            self.fill(items, pairs=code == "SETITEM")
        elif code in ("APPENDS", "ADDITEMS", "SETITEMS"):
            self.fill(self.since_mark(), pairs=code == "SETITEMS")
        elif code in ("POP", "POP_MARK", "DUP"):
            self.move(code)
        elif code not in ("PROTO", "FRAME"):
            raise CheckpointError(f"the pickle uses the instruction {code}, which no checkpoint needs")

    def move(self, code: str) -> None:
        if code == "DUP":
            self.stack.append(self.stack[-1])
        elif code == "POP" and self.stack:
            self.stack.pop()
        else:
            self.since_mark()


_PUSHED = {op.name for op in pickletools.opcodes if op.arg and not op.stack_before and len(op.stack_after) == 1} - {
    "GLOBAL",
    "INST",
    "PERSID",
    "GET",
    "BINGET",
    "LONG_BINGET",
    "EXT1",
    "EXT2",
    "EXT4",
    "PUT",
}
_MADE: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": list,
}


def read_pickle(file: BinaryIO, allow: Iterable[str] = ()) -> Pickle:
    """Read one pickle as inert data.

    Args:
        file: open for reading, at the pickle's first byte; left behind its last one.
        allow: names that may stand in the pickle besides those of a checkpoint, as in "mytrainer.Config" or
            "mytrainer.*"; they become inert placeholders.

    Returns:
        The value, made of dict, list, tuple, text, bytes, numbers, None, `Name`, `Made` and `TensorRef`, with the names
        and storages it mentions.

    Raises:
        UnsafePickleError: the pickle names something that has no place in a checkpoint.
        CheckpointError: no pickle, or a damaged one.
    """
    reader, problem = _Reader(allow), None
    try:
        for op, arg, _ in pickletools.genops(file):
            if op.name == "STOP":
                break
            reader.step(op.name, arg)
        value = reader.stack.pop()
    except CheckpointError as error:
        problem = error
    except (
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        AttributeError,
        OverflowError,
        MemoryError,
        EOFError,
        RecursionError,
        struct.error,
    ) as error:
        problem = CheckpointError(f"its pickle is damaged or cut short ({error or type(error).__name__})")
        problem.__cause__ = error
    unsafe = [name for name, known in reader.seen.items() if not known]
    if unsafe:  # said first: what follows a hostile name is often nonsense
        raise UnsafePickleError(unsafe) from problem
    if problem:
        raise problem
    return Pickle(value, tuple(reader.seen), reader.storages)
