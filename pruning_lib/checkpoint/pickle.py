"""Read a pickle as data: nothing in it is imported, looked up or called.

A pickle is a program: GLOBAL fetches any function by name, REDUCE calls it. Here `pickletools` decodes it, and it is
played on a stack of plain values. `torch.load(weights_only=True)` calls a list of trusted functions instead; it was
broken twice (CVE-2025-32434, CVE-2026-24747), and it refuses the training leftovers that real files carry.
"""

from __future__ import annotations

import _compat_pickle
import fnmatch
import pickletools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, BinaryIO, NamedTuple

import torch

from ..checks import printable

# What training programs leave beside the weights. It is read as inert data, listed in the report, and never kept.
# Of these modules only classes may stand: a library's functions, and what it imported itself, are nobody's leftovers.
LEFTOVER_CLASSES = """
    pytorch_lightning.* lightning.* lightning_fabric.* lightning_utilities.* omegaconf.* argparse.Namespace
    collections.* typing.* pathlib.* torch.optim.* numpy.dtypes.*
    torch.*Storage torch.cuda.*Storage torch.storage.*Storage
""".split()
LEFTOVERS = """
    numpy.core.multiarray.scalar numpy._core.multiarray.scalar numpy.core.multiarray._reconstruct
    numpy._core.multiarray._reconstruct numpy.dtype numpy.ndarray datetime.datetime datetime.timedelta datetime.date
    _codecs.encode collections.defaultdict collections.deque builtins.set builtins.frozenset builtins.list builtins.dict
    builtins.tuple builtins.int builtins.float builtins.complex builtins.bool builtins.str builtins.bytes
    builtins.bytearray builtins.slice builtins.range builtins.object
""".split()
# Modules whose names no caller may allow.
NEVER = """
    os posix nt sys subprocess builtins importlib runpy shutil socket ctypes pickle marshal code pty webbrowser operator
    functools types
""".split()
DTYPES = {name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
# Element types, by the names of torch's storage classes.
_STORAGES = """
    Float=float32 Double=float64 Half=float16 BFloat16=bfloat16 Long=int64 Int=int32 Short=int16 Char=int8 Byte=uint8
    Bool=bool ComplexFloat=complex64 ComplexDouble=complex128
"""
STORAGE_DTYPES = {kind: DTYPES[dtype] for kind, dtype in (pair.split("=") for pair in _STORAGES.split())}
MAX_COPIES = 2_000_000  # items that calls of a pickle may copy, of long arguments


class CheckpointError(ValueError):
    """A checkpoint that cannot be read: damaged, cut short, or not what it says it is; names of its are printable."""

    def __init__(self, message: object) -> None:
        super().__init__(printable(message))


class UnsafePickleError(CheckpointError):
    """A pickle that asks for code. `names` lists what it asked for; nothing of it was run."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = tuple(dict.fromkeys(names))
        names = [printable(name, 100) for name in self.names[:5]]
        wanted = ", ".join(names) + (f" and {len(self.names) - 5} more" if len(self.names) > 5 else "")
        mend = f"If you know that to be harmless, allow it by name ({names[0]}): it is then skipped, not run."
        if any(name.partition(".")[0] in NEVER for name in self.names):
            mend = "Delete the file, and do not open it with another program."
        super().__init__(f"the file would run code when loaded: it asks for {wanted}. Nothing was run. {mend}")


@dataclass(frozen=True)
class GlobalName:
    """A global of the pickle, as in "torch._utils._rebuild_tensor_v2"; only its name, never the thing itself."""

    full: str


@dataclass(eq=False)
class InertObject:
    """What a call of `name` would have made, had it been run: its arguments, state and items, all inert."""

    name: str
    args: Any
    state: Any = None
    items: list = field(default_factory=list)


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
    bits: tuple[str, ...] = ()  # "conj" and "neg": what is still to be done to the numbers of the storage


class Pickle(NamedTuple):
    """One pickle as data: its value, the names of all its globals, and every storage it claims, by key."""

    value: Any
    names: tuple[str, ...]
    storages: dict[str, StorageRef]


def read_pickle(file: BinaryIO, allow: Iterable[str] = ()) -> Pickle:
    """Read one pickle as inert data from a file at its first byte, which is left behind its last one.

    The value is made of dict, list, tuple, text, bytes, numbers, None, `GlobalName`, `InertObject` and `TensorRef`;
    sizes and places are claims, to be checked against the file. `allow` are names that may stand in the pickle besides
    those of a checkpoint, as in "mytrainer.Config" or "mytrainer.*"; they become inert placeholders.
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
    except Exception as error:  # the many ways in which nonsense ends, from struct.error to RecursionError
        problem = CheckpointError(f"its pickle is damaged or cut short ({error or type(error).__name__})")
        problem.__cause__ = error
    unsafe = [name for name, may_stand in reader.names.items() if not may_stand]
    if unsafe:  # said first: what follows a hostile name is often nonsense
        raise UnsafePickleError(unsafe) from problem
    if problem:
        raise problem
    return Pickle(value, tuple(reader.names), reader.storages)


# Instructions that push their argument, and those that push a value of their own.
_PUSH_ARGUMENT = {
    op.name for op in pickletools.opcodes if op.arg and not op.stack_before and len(op.stack_after) == 1
} - set("GLOBAL INST PERSID GET BINGET LONG_BINGET EXT1 EXT2 EXT4 PUT".split())
_PUSH_NEW = {"EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_DICT": dict, "EMPTY_SET": list}
_PUSH_CONSTANT = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}


class _Reader:
    """Plays the instructions of one pickle on a stack of inert values."""

    def __init__(self, allow: Iterable[str]) -> None:
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stacks under each mark
        self.memo: dict[int, Any] = {}  # a dict: a pickle may name slot four billion
        self.allow = tuple(allow)
        self.copied = 0
        self.names: dict[str, bool] = {}  # name -> may it stand in a checkpoint
        self.storages: dict[str, StorageRef] = {}

    def step(self, code: str, arg: Any) -> None:
        """Play one instruction; the names are those of `pickletools`."""
        pop = self.stack.pop
        if code in _PUSH_ARGUMENT:
            self.stack.append(arg)
        elif code in _PUSH_CONSTANT:
            self.stack.append(_PUSH_CONSTANT[code])
        elif code in _PUSH_NEW:
            self.stack.append(_PUSH_NEW[code]())
        elif code == "MARK":
            self.below.append(self.stack)
            self.stack = []
        elif code in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[arg] = self.stack[-1]
        elif code == "MEMOIZE":
            self.memo[len(self.memo)] = self.stack[-1]
        elif code in ("GET", "BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[arg])
        elif code == "GLOBAL":
            self.stack.append(self.name(*arg.split(" ", 1)))
        elif code == "STACK_GLOBAL":
            name, module = pop(), pop()
            self.stack.append(self.name(module, name))
        elif code in ("REDUCE", "NEWOBJ"):
            args = pop()
            self.stack.append(self.call(pop(), args))
        elif code == "NEWOBJ_EX":
            kwargs, args = pop(), pop()
            self.stack.append(self.call(pop(), (args, kwargs) if kwargs else args))
        elif code == "INST":
            args = tuple(self.since_mark())
            self.stack.append(self.call(self.name(*arg.split(" ", 1)), args))
        elif code == "OBJ":
            name, *args = self.since_mark()
            self.stack.append(self.call(name, tuple(args)))
        elif code == "BUILD":
            state = pop()
            if isinstance(self.stack[-1], TensorRef):  # torch would make it a view of another storage
                raise CheckpointError("a tensor is changed after it was made, which torch.save never does")
            if isinstance(self.stack[-1], InertObject):
                self.stack[-1].state = state
        elif code == "BINPERSID":
            self.stack.append(self.storage(pop()))
        elif code in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(code[-1])
            self.stack[-count:] = [tuple(self.stack[-count:])]
        elif code in _COLLECT:
            items = self.since_mark()
            self.stack.append(_COLLECT[code](items))
        elif code in ("APPEND", "SETITEM"):
            items = [pop() for _ in range(1 if code == "APPEND" else 2)][::-1]
            self.fill(items, pairs=code == "SETITEM")
        elif code in ("APPENDS", "ADDITEMS", "SETITEMS"):
            self.fill(self.since_mark(), pairs=code == "SETITEMS")
        elif code == "DUP":
            self.stack.append(self.stack[-1])
        elif code == "POP" and self.stack:
            pop()
        elif code in ("POP", "POP_MARK"):
            self.since_mark()
        elif code not in ("PROTO", "FRAME"):
            raise CheckpointError(f"the pickle uses the instruction {code}, which no checkpoint needs")

    def name(self, module: Any, name: Any) -> Any:
        """Return a global as its name, or as torch's type if it is one; note whether it may stand in a checkpoint."""
        if not isinstance(module, str) or not isinstance(name, str):
            raise CheckpointError("the pickle computes the name of a global")
        # Python 2 wrote other names
        module, name = _compat_pickle.NAME_MAPPING.get((module, name), (module, name))
        module = _compat_pickle.IMPORT_MAPPING.get(module, module)
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        full = f"{module}.{name}"
        self.names[full] = full in CALLS or full in LEFTOVERS or self.is_leftover(full, module, name)
        return GlobalName(full)

    def is_leftover(self, full: str, module: str, name: str) -> bool:
        """A class of a library that leaves some, or what the caller allows; a name with dots fetches foreign things."""
        if "." in name:
            return False
        if name[:1].isupper() and any(fnmatch.fnmatchcase(full, pattern) for pattern in LEFTOVER_CLASSES):
            return True
        allowed = any(fnmatch.fnmatchcase(full, pattern) for pattern in self.allow)
        return allowed and module.partition(".")[0] not in NEVER

    def storage(self, pid: Any) -> StorageRef:
        """Return the storage of a persistent id: ("storage", type, key, place, elements, ...)."""
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage" or not isinstance(pid[1], GlobalName):
            raise CheckpointError(f"a storage is described by {type(pid).__name__}, not as torch.save does")
        _, kind, key, _, count, *view = pid
        if type(count) is not int or not 0 <= count < 2**63 or not isinstance(key, (str, int)):
            raise CheckpointError("a storage claims an impossible number of elements, or has no key")
        if view and view[0] is not None:
            raise CheckpointError("a storage is a view of another, as torch wrote before 2017. Save it anew with torch")
        short = kind.full.rpartition(".")[2].removesuffix("Storage")
        if short not in STORAGE_DTYPES and short != "Untyped":
            raise CheckpointError(f"a storage is of type {kind.full}, which is not supported")
        dtype = STORAGE_DTYPES.get(short)
        storage = StorageRef(str(key), dtype, count * (dtype.itemsize if dtype else 1))
        if self.storages.setdefault(storage.key, storage).nbytes != storage.nbytes:
            raise CheckpointError(f"two tensors claim different sizes for the same storage {storage.key}")
        return storage

    def call(self, name: Any, args: Any) -> Any:
        """Return what a call makes; what it copies is counted first, for many calls may share one argument."""
        if not isinstance(name, GlobalName):
            raise CheckpointError("the pickle calls something that is not a name")
        if name.full not in CALLS or not isinstance(args, tuple):
            return InertObject(name.full, args)
        for one in (args, *args[:4]):
            self.copied += len(one) if isinstance(one, (dict, list, tuple)) and len(one) > 8 else 0
            if self.copied > MAX_COPIES:
                raise CheckpointError(f"its calls copy more than {MAX_COPIES:,} items, as no checkpoint's do")
        made = CALLS[name.full](*args)
        return self.call(*made) if name.full.endswith("_from_type_v2") else made

    def since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def fill(self, items: list[Any], pairs: bool) -> None:
        target = self.stack[-1]
        if pairs and isinstance(target, dict):
            target.update(_pairs(items))
        elif isinstance(target, InertObject):
            target.items.extend(items)
        elif not pairs and isinstance(target, list):
            target.extend(items)
        else:
            raise CheckpointError(f"the pickle puts items into a {type(target).__name__}")


def _mapping(pairs: Any = ()) -> dict:
    # A tuple of tuples is refused: one that holds itself twice, forty times over, takes for ever to hash.
    plain = (str, bytes, int, float, complex, type(None), GlobalName, InertObject, torch.dtype)
    found = {}
    for key, value in pairs.items() if isinstance(pairs, dict) else pairs:
        parts = key if isinstance(key, tuple) else (key,)
        for part in parts if len(parts) < 65 else (parts,):
            if not isinstance(part, plain) or (isinstance(part, int) and part.bit_length() > 64):
                raise CheckpointError(f"a dictionary has a huge {type(part).__name__}, or a container, in its keys")
        found[key] = value
    return found


def _tensor(storage: StorageRef, offset: int, shape: Any, stride: Any, *more: Any) -> TensorRef:
    dtype = storage.dtype if isinstance(storage, StorageRef) else None
    if len(more) > 2 and isinstance(more[2], torch.dtype):  # _rebuild_tensor_v3 names the type itself
        dtype = more[2]
    if not isinstance(storage, StorageRef) or dtype is None:
        raise CheckpointError("a tensor has no storage, or one without a type")
    if len(shape) > 64 or len(stride) > 64:
        raise CheckpointError("a tensor has an impossible shape: more than 64 dimensions")
    bits = next((one for one in more[2:] if one is not None and not isinstance(one, torch.dtype)), {})
    has = {
        "conj": dtype.is_complex,
        "neg": not str(dtype)[6:].startswith(("bool", "uint16", "uint32", "uint64", "float8")),
    }
    if not isinstance(bits, dict) or not all(has.get(bit) or not on for bit, on in bits.items()):
        raise CheckpointError(f"a {dtype} tensor has more beside its storage than can be applied: save tensor.clone()")
    return TensorRef(storage, dtype, offset, tuple(shape), tuple(stride), tuple(bit for bit in has if bits.get(bit)))


def _pairs(items: list[Any]) -> dict:
    return _mapping(zip(items[::2], items[1::2], strict=True))


_COLLECT = {"TUPLE": tuple, "LIST": list, "FROZENSET": list, "DICT": _pairs}  # what is made of all since the mark
# Every call that yields a value; all others yield an `InertObject`. The functions are ours, under torch's names.
CALLS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor,
    "torch._utils._rebuild_parameter": lambda data, *more: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *more: data,
    "torch._tensor._rebuild_from_type_v2": lambda name, kind, args, state: (name, args),  # to be called in turn
    "torch.nn.parameter.Parameter": lambda data, *more: data,
    "torch.Tensor": lambda *args: InertObject("torch.Tensor", args),
    "torch.Size": tuple,
    "torch.device": lambda *place: InertObject("torch.device", place),
    "collections.OrderedDict": _mapping,
    "collections.defaultdict": lambda factory=None, items=(): _mapping(items),
    "collections.Counter": _mapping,
    "builtins.set": list,
    "builtins.frozenset": list,
}
