"""A pickle read as data: nothing in it is imported, looked up or called.

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
import pickletools
import struct
from collections.abc import Callable, Iterable
from typing import Any, BinaryIO, NamedTuple

import torch

from .pickle_names import CheckpointError, UnsafePickleError, may_stand
from .pickle_values import CALLS, Made, Name, StorageRef, call, mapping, storage_of

__all__ = ["Pickle", "read_pickle"]


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
    "GLOBAL", "INST", "PERSID", "GET", "BINGET", "LONG_BINGET", "EXT1", "EXT2", "EXT4", "PUT",
}  # fmt: skip
_MADE: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False,
    "EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_DICT": dict, "EMPTY_SET": list,
}  # fmt: skip


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
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, MemoryError, EOFError,
            RecursionError, struct.error) as error:  # fmt: skip
        problem = CheckpointError(f"its pickle is damaged or cut short ({error or type(error).__name__})")
        problem.__cause__ = error
    unsafe = [name for name, known in reader.seen.items() if not known]
    if unsafe:  # said first: what follows a hostile name is often nonsense
        raise UnsafePickleError(unsafe) from problem
    if problem:
        raise problem
    return Pickle(value, tuple(reader.seen), reader.storages)
