"""The values a pickle is made of when nothing in it is run, and the few calls that are understood.

The names are those of torch's functions; what stands behind them here are functions of ours that take down what the
pickle claims. Sizes and places are checked later, against the file; see `reading.check_view`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from .pickle_names import CheckpointError

__all__ = ["CALLS", "Made", "Name", "StorageRef", "TensorRef", "call", "mapping", "storage_of"]

DTYPES = {
    "Float": torch.float32, "Double": torch.float64, "Half": torch.float16, "BFloat16": torch.bfloat16,
    "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
    "Bool": torch.bool, "ComplexFloat": torch.complex64, "ComplexDouble": torch.complex128,
}  # fmt: skip


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
        raise CheckpointError(
            "a storage is a view of another, as torch wrote before 2017. Save it anew with torch"
        )
    if kind == "Untyped":
        return StorageRef(str(pid[2]), None, pid[4])
    if kind not in DTYPES:
        raise CheckpointError(f"a storage is of type {pid[1].full}, which is not supported")
    return StorageRef(str(pid[2]), DTYPES[kind], pid[4] * DTYPES[kind].itemsize)
