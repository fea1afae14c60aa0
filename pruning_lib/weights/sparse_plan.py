"""What a compressed-sparse file will hold, before it is written: layouts, order, header, size.

Every number follows from the header that is really written, so a size is exact and costs no file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .sparse_layouts import CODES, LAYOUTS, Stored, cheapest, plain

__all__ = [
    "ENDINGS", "FORMAT", "ITEMSIZE", "VERSION", "SparseEntry", "dense_bytes", "header_bytes", "ordered_parts",
    "part_names", "plan_sparse", "same_tensors", "sparse_bytes",
]  # fmt: skip

FORMAT, VERSION = "pruning-lib-sparse", "1"
_DTYPES = {
    torch.bool: "BOOL", torch.uint8: "U8", torch.int8: "I8", torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2", torch.int16: "I16", torch.uint16: "U16", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int32: "I32", torch.uint32: "U32", torch.float32: "F32", torch.complex64: "C64", torch.float64: "F64",
    torch.int64: "I64", torch.uint64: "U64",
}  # fmt: skip
ENDINGS = tuple(f"#{part}" for part in (*LAYOUTS[1:], "values"))  # of names that the file keeps for itself
ITEMSIZE = {name: dtype.itemsize for dtype, name in _DTYPES.items()}


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

    def parts(self) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
        """Return (name, dtype, shape) of what the file holds for it."""
        if self.stored.layout == "dense":
            return [(self.name, self.dtype, self.shape)]
        where, values = part_names(self.name, self.stored.layout)
        return [
            (where, CODES[self.stored.layout], (self.stored.positions,)),
            (values, self.dtype, (self.stored.values,)),
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
    return _file_bytes(plan, header_bytes(plan, same_tensors(tensors)))


def dense_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Return the size in bytes of a plain safetensors file of these tensors, zeros and all, without writing it.

    Args, Raises: as `plan_sparse`. What is in under several names is counted once.
    """
    plan = [
        SparseEntry(name, tuple(t.shape), t.dtype, Stored("dense", 0, t.numel(), t.element_size()))
        for name, t in ((name, tensors[name]) for name in _owners(tensors))
    ]
    return _file_bytes(plan, header_bytes(plan, None))


def _file_bytes(plan: list[SparseEntry], header: bytes) -> int:
    return len(header) + sum(entry.stored.nbytes for entry in plan)


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
        if tensor.layout != torch.strided or tensor.is_meta or tensor.dtype not in _DTYPES:
            known = ", ".join(str(dtype).removeprefix("torch.") for dtype in _DTYPES)
            raise ValueError(
                f"{name!r} is {tensor.dtype} with layout {tensor.layout} on {tensor.device}. The file takes dense "
                f"tensors with values (tensor.to_dense()) of {known}."
            )
    same = same_tensors(tensors)
    return [name for name in sorted(tensors) if name not in same]


def same_tensors(tensors: Mapping[str, Tensor]) -> dict[str, str]:
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


def ordered_parts(plan: list[SparseEntry]) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
    """Return (name, dtype, shape) of everything in the file, in its order."""
    parts = [part for entry in plan for part in entry.parts()]
    return sorted(parts, key=lambda part: (-part[1].itemsize, part[0]))


def header_bytes(plan: list[SparseEntry], same: dict[str, str] | None) -> bytes:
    """Return the first bytes of the file: the length of the header, and the header, padded to 8 bytes.

    Args:
        plan: what the file will hold.
        same: name -> the name under which its tensor is stored; None for a plain file, without metadata.
    """
    header: dict[str, object] = {}
    if same is not None:
        sparse = {e.name: [e.stored.layout, list(e.shape)] for e in plan if e.stored.layout != "dense"}
        notes = {"sparse": _json(sparse), "same": _json(same)}
        header["__metadata__"] = {"format": FORMAT, "version": VERSION, **notes}
    end = 0
    for name, dtype, shape in ordered_parts(plan):
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _DTYPES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = _json(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
