"""Four ways to write down a tensor with zeros, what each costs, and a file that uses the cheapest for every tensor.

| layout | stored beside the values that are not zero | bytes for n entries, nnz not zero, b bytes each |
|---|---|---|
| dense | nothing, and the zeros too | n b |
| bitmap | one bit per entry | ceil(n / 8) + nnz b |
| gap8, gap16 | per value, how many zeros stand before it, in w = 1 or 2 bytes | (nnz + escapes) w + nnz b |

Gaps are the relative indices of Deep Compression (Han et al. 2016, section 2 and figure 2), with one difference: a gap
too large for its code is not bridged by a stored zero but by an escape, the largest code M = 2^(8w) - 1, which stands
for M zeros and no value.  An entry is zero where all of its bits are: -0.0 is a value, or it could not come back.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor

# Layout -> what its positions are made of, simplest layout first; dense has none.
CODES = {"dense": torch.uint8, "bitmap": torch.uint8, "gap8": torch.uint8, "gap16": torch.uint16}
LAYOUTS = tuple(CODES)
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def expected_bytes(layout: str, n: int, nnz: int, itemsize: int) -> float:
    """Return the bytes of a layout for n entries of `itemsize` bytes, nnz of them not zero, without the file's header.

    Exact for "dense" and "bitmap". Gaps depend on where the zeros are; here they are at random, each entry being zero
    with probability s = 1 - nnz / n. A gap is then g long with probability (1 - s) s^g, and needs on average s^M / (1 -
    s^M) escapes, so nnz (b + w / (1 - s^M)) bytes.

    Example:
        >>> expected_bytes("bitmap", 1000, 500, 2)
        1125
    """
    if layout == "dense":
        return n * itemsize
    if layout == "bitmap":
        return math.ceil(n / 8) + nnz * itemsize
    if nnz == 0:
        return 0
    reaches_escape = (1 - nnz / n) ** _escape(layout)
    return nnz * (itemsize + CODES[layout].itemsize / (1 - reaches_escape))


def break_even(layout: str, itemsize: int) -> float:
    """Return the share of zeros above which a layout is smaller than dense, for large tensors and without headers.

    The bitmap adds an eighth of a byte per entry and pays from 1 / (8 b); what adds w bytes per value pays from w / (b
    + w): "gap8", "gap16" (below one third of zeros no gap of gap8 is long enough to need an escape), and "index32",
    "index64", a whole index per value, as COO and CSR store it. `itemsize` is b.
    """
    if layout == "bitmap":
        return 1 / (8 * itemsize)
    width = {"gap8": 1, "gap16": 2, "index32": 4, "index64": 8}[layout]
    return width / (itemsize + width)


@dataclass(frozen=True)
class Stored:
    """What one of `LAYOUTS` writes for a tensor of `itemsize` bytes an entry.

    `positions` are the codes that say where the values are: bytes of the bitmap, or gaps with their escapes; `values`
    the entries that are written: nnz, or all of them in "dense".
    """

    layout: str
    positions: int
    values: int
    itemsize: int

    @property
    def nbytes(self) -> int:
        """Bytes of positions and values, without the file's header."""
        return self.positions * CODES[self.layout].itemsize + self.values * self.itemsize


def layouts_of(tensor: Tensor, *, hopeless: bool = True) -> list[Stored]:
    """Return what each layout would write for this very tensor, of any shape, in the order of `LAYOUTS`.

    Counting gaps takes time: with `hopeless` False they are left out where one entry in eight is a value, for they cost
    at least a byte per value and the bitmap an eighth of a byte per entry.
    """
    kept = _bits(tensor) != 0
    n, nnz, item = kept.numel(), int(kept.sum()), tensor.element_size()
    found = [Stored("dense", 0, n, item), Stored("bitmap", math.ceil(n / 8), nnz, item)]
    if hopeless or 8 * nnz < n:
        gaps = _gaps(kept)
        found += [Stored(name, nnz + int((gaps // _escape(name)).sum()), nnz, item) for name in ("gap8", "gap16")]
    return found


def cheapest(tensor: Tensor, overhead: int = 0) -> Stored:
    """Return the smallest layout, the simpler of equals; all but "dense" cost `overhead` bytes on top."""
    found = layouts_of(tensor, hopeless=False)  # simplest first, and min takes the first of equals
    return min(found, key=lambda stored: stored.nbytes + (stored.layout != "dense") * overhead)


def encode(tensor: Tensor, layout: str) -> tuple[Tensor, Tensor]:
    """Return where the values of a tensor, read in row-major order, are, and the values `[nnz]`, of its dtype.

    Positions of a "bitmap" are uint8 `[ceil(n / 8)]`, the first entry in the highest bit; of "gap8" and "gap16" codes,
    uint8 or uint16 `[nnz + escapes]`.
    """
    bits = _bits(tensor)
    kept = bits != 0
    values = bits[kept].view(tensor.dtype)
    if layout == "bitmap":
        return torch.from_numpy(np.packbits(kept.numpy())), values
    gaps, escape = _gaps(kept), _escape(layout)
    codes = np.full(len(gaps) + int((gaps // escape).sum()), escape, np.uint8 if layout == "gap8" else np.uint16)
    codes[np.cumsum(gaps // escape + 1) - 1] = gaps % escape  # a value's own code comes after its escapes
    return torch.from_numpy(codes), values


def decode(positions: Tensor, values: Tensor, layout: str, shape: tuple[int, ...]) -> Tensor:
    """Return the dense tensor that `encode` was given."""
    n, codes = math.prod(shape), positions.numpy()
    if layout == "bitmap":
        where = np.flatnonzero(np.unpackbits(codes, count=n))
    else:
        is_value = codes != _escape(layout)
        ends = np.cumsum(codes.astype(np.int64) + is_value)  # a value takes a place of its own, an escape does not
        where = ends[is_value] - 1
    dense = torch.zeros(n, dtype=_BITS[values.element_size()])
    dense[torch.from_numpy(where)] = _bits(values)
    return dense.view(values.dtype).reshape(shape)


def _bits(tensor: Tensor) -> Tensor:
    """Return the entries' bits as whole numbers `[n]` on the CPU, in row-major order; torch can index these."""
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return plain.view(_BITS[tensor.element_size()])


def _gaps(kept: Tensor) -> np.ndarray:
    """Return int64 `[nnz]`: zeros between each value and the one before it."""
    return np.diff(np.flatnonzero(kept.numpy()), prepend=-1) - 1


def _escape(layout: str) -> int:
    """Return the code of "gap8" or "gap16" that stands for as many zeros as it says, and no value."""
    return int(torch.iinfo(CODES[layout]).max)


def _parts(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return what a file holds, and the notes of its header.

    A dense tensor keeps its name; another becomes `name#bitmap` (or `#gap8`, `#gap16`) and `name#values`, and is noted:
    "sparse": '{"name": ["bitmap", [768, 96]]}'.  What is in under several names is written once, and noted in "same".
    """
    held, sparse, same, first = {}, {}, {}, {}
    for name in sorted(tensors):
        tensor, shape = tensors[name].detach(), list(tensors[name].shape)
        place = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and first.setdefault(place, name) != name:  # empty tensors have no address of their own
            same[name] = first[place]
            continue
        # What the header grows by if the tensor is not stored dense: a second entry, two endings, and the note.
        overhead = 130 + 2 * len(json.dumps(name)) + len(json.dumps(shape))
        layout = cheapest(tensor, overhead).layout
        if layout == "dense":
            held[name] = tensor.cpu().clone(memory_format=torch.contiguous_format)
        else:
            held[f"{name}#{layout}"], held[f"{name}#values"] = encode(tensor, layout)
            sparse[name] = [layout, shape]
    notes = {"format": "pruning-lib-sparse", "version": "1", "sparse": _json(sparse), "same": _json(same)}
    return held, notes


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def sparse_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Return the size in bytes of the file that `save_sparse` would write, without writing it."""
    return len(safetensors.torch.save(*_parts(tensors)))


def save_sparse(tensors: Mapping[str, Tensor], path: str | Path) -> Path:
    """Write tensors in a file for any safetensors reader, each in the layout that is smallest for it; return the file.

    `tensors` is name -> dense tensor of any shape, dtype and device, as `module.state_dict()` returns them.

    Example:
        >>> save_sparse(pipe.unet.state_dict(), "unet.safetensors")
        >>> pipe.unet.load_state_dict(load_sparse("unet.safetensors"))
    """
    held, notes = _parts(tensors)
    safetensors.torch.save_file(held, path, notes)
    return Path(path)


def load_sparse(path: str | Path) -> dict[str, Tensor]:
    """Read what `save_sparse` wrote: name -> bit-equal dense tensor on the CPU, ordered by name; else a ValueError."""
    with safe_open(path, framework="pt") as file:
        notes, held = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}
    if (notes.get("format"), notes.get("version")) != ("pruning-lib-sparse", "1"):
        raise ValueError(f"{path} is no compressed-sparse file. Read it with safetensors.torch.load_file.")
    for name, (layout, shape) in json.loads(notes["sparse"]).items():
        held[name] = decode(held.pop(f"{name}#{layout}"), held.pop(f"{name}#values"), layout, tuple(shape))
    for name, other in json.loads(notes["same"]).items():
        held[name] = held[other]
    return dict(sorted(held.items()))
