"""A compressed-sparse file for pruned weights: valid safetensors, exact, and never larger than the dense file by more
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
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from .._files import check_place
from .reading import DTYPE_NAMES
from .sparse_layouts import CODES, decode, encode, plain
from .sparse_plan import (
    ENDINGS,
    FORMAT,
    VERSION,
    dense_bytes,
    notes_of,
    part_names,
    plan_sparse,
    sparse_bytes,
)
from .writing import check_room, file_bytes, in_place, write_safetensors

__all__ = ["dense_bytes", "load_sparse", "plan_sparse", "save_sparse", "sparse_bytes"]


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
    pieces = [
        _piece(tensors[entry.name], entry.stored.layout, i)
        for entry in plan
        for i in range(len(entry.parts()))
    ]
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


def _notes(
    path: Path, metadata: dict[str, str]
) -> tuple[dict[str, tuple[str, tuple[int, ...]]], dict[str, str]]:
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
        raise ValueError(
            f"{path} is damaged: its notes on layouts and shapes cannot be read. Write it again."
        )
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
            raise ValueError(
                f"{path} holds {name!r} as {part.get_dtype()}, which this pruning_lib does not read."
            )
        total += math.prod(shape) * sizes[part.get_dtype()]
    if total > limit_bytes:
        raise ValueError(
            f"The tensors of {path} take {total:,} bytes in memory, more than limit_bytes={limit_bytes:,}. "
            "If you trust the file, allow more."
        )
