"""What a compressed-sparse file will hold, before it is written: layouts, notes, size.

The size follows from the header that will really be written, so it is exact and costs no file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .reading import DTYPE_NAMES
from .sparse_layouts import CODES, LAYOUTS, Stored, cheapest, plain
from .writing import Planned, file_bytes

__all__ = [
    "ENDINGS", "FORMAT", "VERSION", "SparseEntry", "dense_bytes", "notes_of", "part_names", "plan_sparse",
    "sparse_bytes",
]  # fmt: skip

FORMAT, VERSION = "pruning-lib-sparse", "1"
ENDINGS = tuple(f"#{part}" for part in (*LAYOUTS[1:], "values"))  # of names that the file keeps for itself


@dataclass(frozen=True)
class SparseEntry:
    """How one tensor is stored.

    Attributes:
        name: the tensor's name.
        shape: of the tensor.
        dtype: of the tensor.
        stored: its layout, with the counts that decide its bytes.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    stored: Stored

    def parts(self) -> list[Planned]:
        """Return what the file holds for it: the tensor itself; or positions, then values."""
        if self.stored.layout == "dense":
            return [Planned(self.name, self.dtype, self.shape)]
        where, values = part_names(self.name, self.stored.layout)
        return [
            Planned(where, CODES[self.stored.layout], (self.stored.positions,)),
            Planned(values, self.dtype, (self.stored.values,)),
        ]


def plan_sparse(tensors: Mapping[str, Tensor]) -> list[SparseEntry]:
    """Choose the cheapest layout for every tensor; one that is in under several names appears once, under the first.

    Args:
        tensors: name -> dense tensor of any shape, dtype and device, as `module.state_dict()` returns them.

    Raises:
        TypeError: no mapping of names to tensors.
        ValueError: names that the file keeps for itself; tensors without values (meta), of a sparse layout, or of a
            dtype that safetensors does not hold.
    """
    return [_entry(name, tensors[name]) for name in _owners(tensors)]


def sparse_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Return the size in bytes of the file that `save_sparse` would write, without writing it.

    Args, Raises: as `plan_sparse`.
    """
    plan = plan_sparse(tensors)
    return file_bytes([part for entry in plan for part in entry.parts()], notes_of(plan, tensors))


def dense_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Return the size in bytes of a plain safetensors file of these tensors, zeros and all, without writing it.

    Args, Raises: as `plan_sparse`. What is in under several names is counted once.
    """
    owners = {name: tensors[name] for name in _owners(tensors)}
    return file_bytes([Planned(name, t.dtype, tuple(t.shape)) for name, t in owners.items()], {})


def notes_of(plan: list[SparseEntry], tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the metadata of the file: format, version, which tensors are not dense, and which are another's twin."""
    sparse = {e.name: [e.stored.layout, list(e.shape)] for e in plan if e.stored.layout != "dense"}
    return {"format": FORMAT, "version": VERSION, "sparse": _json(sparse), "same": _json(_same(tensors))}


def part_names(name: str, layout: str) -> tuple[str, str]:
    """Return the names under which the file holds positions and values of a tensor that is not stored dense."""
    return f"{name}#{layout}", f"{name}#values"


def _owners(tensors: Mapping[str, Tensor]) -> list[str]:
    """Check the tensors, and return the names in order, without those that repeat another's tensor."""
    if not isinstance(tensors, Mapping) or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise TypeError(
            f"Expected {{name: tensor}}, as module.state_dict() returns it; got {type(tensors).__name__} with "
            f"{', '.join(sorted({type(t).__name__ for t in getattr(tensors, 'values', list)()})) or 'nothing'}."
        )
    for name, tensor in tensors.items():
        if not isinstance(name, str) or name == "__metadata__" or name.endswith(ENDINGS):
            raise ValueError(
                f"A tensor is named {name!r}; names are text, and neither '__metadata__' nor with an ending of the "
                f"file's own ({', '.join(ENDINGS)}). "
                "Rename it; what comes from a compressed-sparse file is read with load_sparse."
            )
        if tensor.layout != torch.strided or tensor.is_meta or tensor.dtype not in DTYPE_NAMES:
            known = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPE_NAMES)
            raise ValueError(
                f"{name!r} is {tensor.dtype} with layout {tensor.layout} on {tensor.device}. The file takes dense "
                f"tensors with values (tensor.to_dense()) of {known}."
            )
    same = _same(tensors)
    return [name for name in sorted(tensors) if name not in same]


def _same(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return name -> the first name of the same tensor: same storage, place in it, shape, strides and dtype."""
    first: dict[tuple, str] = {}
    found = {}
    for name in sorted(tensors):
        t = tensors[name]
        key = (t.device, t.data_ptr(), t.shape, t.stride(), t.dtype)
        if t.numel() and first.setdefault(key, name) != name:  # empty tensors have no address of their own
            found[name] = first[key]
    return found


def _entry(name: str, tensor: Tensor) -> SparseEntry:
    # What the header grows by if the tensor is not stored dense: a second entry, two endings, and the note.
    overhead = 130 + 2 * len(json.dumps(name)) + len(json.dumps(list(tensor.shape)))
    return SparseEntry(name, tuple(tensor.shape), tensor.dtype, cheapest(plain(tensor), overhead))


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
