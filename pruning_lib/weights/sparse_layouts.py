"""Four ways to write down a tensor with zeros, what each costs, and where it begins to pay.

| layout | stored beside the values that are not zero | bytes for n entries, nnz not zero, b bytes each |
|---|---|---|
| dense | nothing, and the zeros too | n b |
| bitmap | one bit per entry | ceil(n / 8) + nnz b |
| gap8, gap16 | per value, how many zeros stand before it, in w = 1 or 2 bytes | (nnz + escapes) w + nnz b |

Gaps are the relative indices of Deep Compression (Han et al. 2016, section 2 and figure 2), with one difference: a gap
too large for its code is not bridged by a stored zero but by an escape, the largest code M = 2^(8w) - 1, which stands
for M zeros and no value.

An entry counts as zero where all of its bits are: -0.0 is a value, or it could not come back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "CODES", "LAYOUTS", "Stored", "break_even", "cheapest", "decode", "encode", "escape_of", "expected_bytes",
    "layouts_of", "nonzero_bits", "plain",
]  # fmt: skip

# Layout -> what its positions are made of, simplest layout first; dense has none.
CODES = {"dense": torch.uint8, "bitmap": torch.uint8, "gap8": torch.uint8, "gap16": torch.uint16}
LAYOUTS = tuple(CODES)
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def plain(tensor: Tensor) -> Tensor:
    """Return `[n]` on the CPU, entries in row-major order, without a gradient or a conjugation still to be done."""
    return tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)


def bits_of(tensor: Tensor) -> Tensor:
    """Return the entries' bits as whole numbers `[n]`, which torch compares and indexes in every type."""
    return plain(tensor).view(_BITS[tensor.element_size()])


def nonzero_bits(tensor: Tensor) -> Tensor:
    """Return bool `[n]`: which entries have a bit set. NaN, infinities and -0.0 have; 0.0, 0 and False have not."""
    return bits_of(tensor) != 0


def expected_bytes(layout: str, n: int, nnz: int, itemsize: int) -> float:
    """Return the bytes of a layout, without the file's header.

    Exact for "dense" and "bitmap". Gaps depend on where the zeros are; here they are at random, each entry being zero
    with probability s = 1 - nnz / n. A gap is then g long with probability (1 - s) s^g, and needs on average
    s^M / (1 - s^M) escapes, so nnz (b + w / (1 - s^M)) bytes.

    Args:
        layout: one of `LAYOUTS`.
        n: entries, >= 0.
        nnz: entries that are not zero, 0 to n.
        itemsize: bytes of one entry, b; 2 for float16, 4 for float32.

    Raises:
        ValueError: an unknown layout, or counts out of range.

    Example:
        >>> expected_bytes("bitmap", 1000, 500, 2)
        1125
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout={layout!r}; allowed: {', '.join(map(repr, LAYOUTS))}.")
    if not 0 <= nnz <= n or itemsize < 1:
        raise ValueError(f"n={n}, nnz={nnz}, itemsize={itemsize}; expected 0 <= nnz <= n and itemsize >= 1.")
    if layout == "dense":
        return n * itemsize
    if layout == "bitmap":
        return math.ceil(n / 8) + nnz * itemsize
    if nnz == 0:
        return 0
    reaches_escape = (1 - nnz / n) ** escape_of(layout)
    return nnz * (itemsize + CODES[layout].itemsize / (1 - reaches_escape))


def break_even(layout: str, itemsize: int) -> float:
    """Return the share of zeros above which a layout is smaller than dense, for large tensors and without headers.

    A layout that adds a bytes per entry pays from a / b: 1 / (8 b) for the bitmap. One that adds w bytes per value pays
    from w / (b + w): below one third of zeros for gap8 no gap is long enough to need an escape.

    Args:
        layout: "bitmap", "gap8", "gap16"; or "index32", "index64": a whole index per value, as COO and CSR store it.
        itemsize: bytes of one entry, b.

    Raises:
        ValueError: another layout.
    """
    widths = {"gap8": 1, "gap16": 2, "index32": 4, "index64": 8}
    if layout == "bitmap":
        return 1 / (8 * itemsize)
    if layout not in widths:
        raise ValueError(f"layout={layout!r}; allowed: 'bitmap', {', '.join(map(repr, widths))}.")
    return widths[layout] / (itemsize + widths[layout])


@dataclass(frozen=True)
class Stored:
    """What one layout writes for one tensor.

    Attributes:
        layout: one of `LAYOUTS`.
        positions: codes that say where the values are; bytes of the bitmap, or gaps with their escapes.
        values: entries that are written: nnz, or all of them in "dense".
        itemsize: bytes of one entry.
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
    """Return what each layout would write for this very tensor, in the order of `LAYOUTS`.

    Args:
        tensor: dense, of any shape.
        hopeless: False leaves out what cannot be the smallest, because counting gaps takes time: they cost at least one
            byte per value, the bitmap an eighth of a byte per entry, so gaps lose where one entry in eight is a value.
    """
    kept = nonzero_bits(tensor)
    n, nnz, item = kept.numel(), int(kept.sum()), tensor.element_size()
    found = [Stored("dense", 0, n, item), Stored("bitmap", math.ceil(n / 8), nnz, item)]
    if hopeless or 8 * nnz < n:
        gaps = _gaps(kept)
        for name in ("gap8", "gap16"):
            found.append(Stored(name, nnz + int((gaps // escape_of(name)).sum()), nnz, item))
    return found


def cheapest(tensor: Tensor, overhead: int = 0) -> Stored:
    """Return the smallest layout for this tensor; of equals, the simpler one.

    Args:
        tensor: dense, of any shape.
        overhead: bytes that every layout but "dense" costs on top, as a file's header does.
    """
    found = layouts_of(tensor, hopeless=False)  # simplest first, and min takes the first of equals
    return min(found, key=lambda s: s.nbytes + (s.layout != "dense") * overhead)


def escape_of(layout: str) -> int:
    """Return the code of "gap8" or "gap16" that stands for as many zeros as it says, and no value."""
    return int(torch.iinfo(CODES[layout]).max)


def encode(tensor: Tensor, layout: str) -> tuple[Tensor, Tensor]:
    """Return where the values are, and the values.

    Args:
        tensor: dense, of any shape; read in row-major order.
        layout: "bitmap", "gap8" or "gap16".

    Returns:
        Positions: uint8 `[ceil(n / 8)]`, first entry in the highest bit; or codes, uint8 or uint16 `[nnz + escapes]`.
        Values: `[nnz]`, of the tensor's dtype.
    """
    kept = nonzero_bits(tensor)
    values = bits_of(tensor)[kept].view(tensor.dtype)
    if layout == "bitmap":
        return torch.from_numpy(np.packbits(kept.numpy())), values
    gaps, escape = _gaps(kept), escape_of(layout)
    codes = np.full(
        len(gaps) + int((gaps // escape).sum()), escape, np.uint8 if layout == "gap8" else np.uint16
    )
    codes[np.cumsum(gaps // escape + 1) - 1] = gaps % escape  # a value's own code comes after its escapes
    return torch.from_numpy(codes), values


def decode(positions: Tensor, values: Tensor, layout: str, shape: tuple[int, ...]) -> Tensor:
    """Return the dense tensor that `encode` was given.

    Raises:
        ValueError: positions and values that do not belong together, or not to this shape.
    """
    n, nnz = math.prod(shape), values.numel()
    if positions.dtype != CODES[layout] or positions.ndim != 1 or values.ndim != 1:
        raise ValueError(
            f"{layout} positions are {positions.dtype} {list(positions.shape)} with values {list(values.shape)}; "
            f"expected {CODES[layout]} positions, and both of one dimension"
        )
    where = _from_bitmap(positions.numpy(), n) if layout == "bitmap" else _from_codes(positions.numpy(), n)
    if len(where) != nnz:
        raise ValueError(f"{layout} positions name {len(where)} entries, but there are {nnz} values")
    dense = torch.zeros(n, dtype=_BITS[values.element_size()])
    dense[torch.from_numpy(where)] = bits_of(values)
    return dense.view(values.dtype).reshape(shape)


def _gaps(kept: Tensor) -> np.ndarray:
    """Return int64 `[nnz]`: zeros between each value and the one before it."""
    return np.diff(np.flatnonzero(kept.numpy()), prepend=-1) - 1


def _from_bitmap(bytes_: np.ndarray, n: int) -> np.ndarray:
    if len(bytes_) != math.ceil(n / 8):
        raise ValueError(f"a bitmap of {len(bytes_)} bytes does not fit {n} entries")
    bits = np.unpackbits(bytes_)
    if bits[n:].any():
        raise ValueError(f"the bitmap names an entry past the last of {n}")
    return np.flatnonzero(bits)


def _from_codes(codes: np.ndarray, n: int) -> np.ndarray:
    escape = np.iinfo(codes.dtype).max
    if len(codes) and codes[-1] == escape:
        raise ValueError("the last gap has no value after it")
    ends = np.cumsum(
        codes.astype(np.int64) + (codes != escape)
    )  # a value takes a place of its own, an escape does not
    if len(ends) and ends[-1] > n:
        raise ValueError(f"a gap leads to entry {ends[-1] - 1}, past the last of {n}")
    return ends[codes != escape] - 1
