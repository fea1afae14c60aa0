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

What a compressed-sparse file will hold, before it is written: layouts, notes, size.

The size follows from the header that will really be written, so it is exact and costs no file.

A compressed-sparse file for pruned weights: valid safetensors, exact, and never larger than the dense file by more
than a note.

Each tensor is stored in the cheapest of the layouts of `sparse_layouts`.  A dense one keeps its name; another becomes
two entries, `name#bitmap` (or `#gap8`, `#gap16`) and `name#values`.  The metadata of the header, which safetensors
wants as text, says which, and which names are one and the same tensor:

    {"format": "pruning-lib-sparse", "same": '{}', "sparse": '{"name": ["bitmap", [768, 96]]}', "version": "1"}

Any safetensors reader can open the file; `load_sparse` puts the zeros back.  Equal tensors make equal bytes, in
whatever order they are given.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pruning_lib.checkpoint.files import DTYPE_NAMES
from pruning_lib.checkpoint.write import Planned, check_room, file_bytes, in_place, write_safetensors
from pruning_lib.files import check_place

__all__ = [
    "CODES",
    "ENDINGS",
    "FORMAT",
    "LAYOUTS",
    "SparseEntry",
    "Stored",
    "VERSION",
    "break_even",
    "cheapest",
    "decode",
    "dense_bytes",
    "encode",
    "escape_of",
    "expected_bytes",
    "layouts_of",
    "load_sparse",
    "nonzero_bits",
    "notes_of",
    "part_names",
    "plain",
    "plan_sparse",
    "save_sparse",
    "sparse_bytes",
]

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
    codes = np.full(len(gaps) + int((gaps // escape).sum()), escape, np.uint8 if layout == "gap8" else np.uint16)
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
    ends = np.cumsum(codes.astype(np.int64) + (codes != escape))  # a value takes a place of its own, an escape does not
    if len(ends) and ends[-1] > n:
        raise ValueError(f"a gap leads to entry {ends[-1] - 1}, past the last of {n}")
    return ends[codes != escape] - 1


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


def save_sparse(tensors: Mapping[str, Tensor], path: str | Path) -> Path:
    """Write tensors in the compressed-sparse layout; the file appears whole or not at all.

    One tensor at a time is copied, so the peak of memory is near the largest of them. A file of that name is replaced.

    Args:
        tensors: as for `plan_sparse`. What shares storage, shape and strides is written once, and shares
            them again after loading; other views are written each for itself.
        path: the file; its folder is created.

    Returns:
        The file.

    Raises:
        TypeError, ValueError: as `plan_sparse`.
        OSError: the place cannot be written to, or is a folder.

    Example:
        >>> masks = pl.prune_magnitude(pipe.unet, sparsity=0.7)
        >>> save_sparse(pipe.unet.state_dict(), "unet.safetensors")
        >>> pipe.unet.load_state_dict(load_sparse("unet.safetensors"))
    """
    path, plan = Path(path), plan_sparse(tensors)
    check_place(path)
    planned = [part for entry in plan for part in entry.parts()]
    pieces = [_piece(tensors[entry.name], entry.stored.layout, i) for entry in plan for i in range(len(entry.parts()))]
    notes = notes_of(plan, tensors)
    check_room(path.parent, file_bytes(planned, notes))
    with in_place(path) as temporary:
        write_safetensors(temporary, planned, pieces, notes)
    return path


def _piece(tensor: Tensor, layout: str, part: int) -> Iterator[Tensor]:
    """Yield one part of a tensor, encoded when its turn to be written has come."""
    yield plain(tensor) if layout == "dense" else encode(tensor, layout)[part]


def load_sparse(path: str | Path, *, limit_bytes: int = 2**36) -> dict[str, Tensor]:
    """Read what `save_sparse` wrote: bit-equal tensors on the CPU, ordered by name.

    Args:
        path: the file.
        limit_bytes: the most that the tensors may take in memory, because a few bytes can describe any number of zeros.

    Returns:
        name -> dense tensor, ready for `module.load_state_dict`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no compressed-sparse file, another version, a damaged file, or one that would take too much memory.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        with safe_open(path, framework="pt") as file:
            sparse, same = _notes(path, file.metadata() or {})
            return _read(path, file, sparse, same, limit_bytes)
    except SafetensorError as error:
        raise ValueError(
            f"{path} is no valid safetensors file: {error}. It may be cut short; write or copy it again."
        ) from error


def _notes(path: Path, metadata: dict[str, str]) -> tuple[dict[str, tuple[str, tuple[int, ...]]], dict[str, str]]:
    """Return which tensors are not dense, name -> (layout, shape), and which are the same as another."""
    if metadata.get("format") != FORMAT:
        raise ValueError(
            f"{path} is no compressed-sparse file: its format is {metadata.get('format')!r}, not {FORMAT!r}. "
            "Read a plain safetensors file with safetensors.torch.load_file."
        )
    if metadata.get("version") != VERSION:
        raise ValueError(
            f"{path} has version {metadata.get('version')!r} of {FORMAT}; this pruning_lib reads {VERSION!r}. "
            "Use the pruning_lib it was written with."
        )
    try:
        sparse, same = json.loads(metadata["sparse"]), json.loads(metadata["same"])
        found = {name: (layout, tuple(shape)) for name, (layout, shape) in sparse.items()}
        fits = all(
            layout in CODES and layout != "dense" and all(type(side) is int and side >= 0 for side in shape)
            for layout, shape in found.values()
        ) and all(isinstance(other, str) for other in same.values())
    except (KeyError, TypeError, ValueError, AttributeError):
        fits = False
    if not fits:
        raise ValueError(f"{path} is damaged: its notes on layouts and shapes cannot be read. Write it again.")
    return found, same


def _read(path: Path, file, sparse: dict, same: dict[str, str], limit_bytes: int) -> dict[str, Tensor]:
    def damaged(why: str) -> ValueError:
        return ValueError(f"{path} is damaged: {why}. Write or copy it again.")

    parts = {part: name for name, (layout, _) in sparse.items() for part in part_names(name, layout)}
    held = set(file.keys())
    if missing := sorted(set(parts) - held):
        raise damaged(f"it lacks {', '.join(missing[:3])}")
    names = sorted((held - set(parts)) | set(sparse))
    if lost := sorted(set(same.values()) - set(names)) or sorted(set(same) & set(names)):
        raise damaged(
            f"it says of {lost[0]!r} that it is another tensor, or that another is it, and holds no such thing"
        )
    if twice := sorted(held & set(sparse)):
        raise damaged(f"{twice[0]!r} is in it twice, dense and with positions")
    if stray := sorted(name for name in held - set(parts) if name.endswith(ENDINGS)):
        raise damaged(f"{stray[0]!r} belongs to no tensor")
    _check_memory(path, file, sparse, names, limit_bytes)
    found = {}
    for name in names:
        if name not in sparse:
            found[name] = file.get_tensor(name)
            continue
        layout, shape = sparse[name]
        where, values = (file.get_tensor(part) for part in part_names(name, layout))
        try:
            found[name] = decode(where, values, layout, shape)
        except ValueError as error:
            raise damaged(f"{name}: {error}") from error
    found.update({name: found[other] for name, other in same.items()})
    return dict(sorted(found.items()))


def _check_memory(path: Path, file, sparse: dict, names: list[str], limit_bytes: int) -> None:
    total, sizes = 0, {code: dtype.itemsize for dtype, code in DTYPE_NAMES.items()}
    for name in names:
        part = file.get_slice(part_names(name, sparse[name][0])[1] if name in sparse else name)
        shape = sparse[name][1] if name in sparse else part.get_shape()
        if part.get_dtype() not in sizes:
            raise ValueError(f"{path} holds {name!r} as {part.get_dtype()}, which this pruning_lib does not read.")
        total += math.prod(shape) * sizes[part.get_dtype()]
    if total > limit_bytes:
        raise ValueError(
            f"The tensors of {path} take {total:,} bytes in memory, more than limit_bytes={limit_bytes:,}. "
            "If you trust the file, allow more."
        )
