"""What is in a checkpoint: parts, parameters, types, bytes, zeros and broken numbers.

Every byte of a file, or folder, is on one line of the report: a part, known by the names of its tensors, bytes of
storages that no tensor uses, or the container (names, shapes, headers). Nothing is executed; see `pickle.py`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from ..checks import printable, text_table
from .files import PAIRS, PIECE, Entry, Source, open_file
from .folder import list_folder
from .parts import PARTS, parts_of
from .pickle import CheckpointError, UnsafePickleError


@dataclass
class Row:
    """A tensor of a source, its part and its name; `charged` are the bytes of the input that are counted for it."""

    source: Source
    entry: Entry
    part: str
    name: str
    charged: int = 0

    @property
    def view(self) -> tuple:
        """Equal for two rows that are the same tensor under two names."""
        return id(self.source), self.entry.view


def rows_of(source: Source, part: str | None = None) -> list[Row]:
    """Return a source's tensors with their parts; `part` overrules what the names say."""
    told = parts_of([(entry.path, entry.shape) for entry in source.entries])
    return [Row(source, entry, part or told, name) for entry, (told, name) in zip(source.entries, told, strict=True)]


def told_ids(row: Row) -> tuple[str, str]:
    """Return what to say of position ids that are no whole numbers 0 … n - 1, and what to do: "mend", "refuse" or "".

    A merge or a cast of checkpoints leaves them a little wrong; whole numbers that increase otherwise are meant so.
    """
    old = row.entry
    if not row.name.endswith("position_ids") or not 0 < old.numel <= PIECE or old.dtype.is_complex or not old.shape:
        return "", ""
    found = torch.cat([*row.source.pieces(old)]).double().reshape(-1, old.shape[-1])
    right = torch.arange(old.shape[-1]).double().expand_as(found)
    if torch.equal(found, found.round()) and bool((found.diff() > 0).all()):
        usual = torch.equal(found, right)
        what = f"{row.name} holds {'' if usual else 'other numbers than '}0 to {old.shape[-1] - 1} in {old.dtype}."
        return what * (not usual or old.dtype.is_floating_point), ""
    place = int((found != right).flatten().nonzero()[0])
    near = bool(((found - right).abs() <= 1 + right / 128).all())
    what = f"{printable(row.name, 200)} is damaged: in place {place} it holds {found.flatten()[place]:g}"
    return what, "mend" if near else "refuse" * old.dtype.is_floating_point


def charge(rows: Sequence[Row]) -> int:
    """Share out the bytes of the storages among the rows, in their order: a tensor under two names is counted once.

    Returns the bytes of storages that belong to no row.
    """
    sources = {id(row.source): row.source for row in rows}
    left = {(which, key): size for which, source in sources.items() for key, size in source.storages.items()}
    seen = set()
    for row in rows:
        storage = id(row.source), row.entry.storage
        row.charged = 0 if row.view in seen else min(row.entry.nbytes, left[storage])
        seen.add(row.view)
        left[storage] -= row.charged
    return sum(left.values())


@dataclass
class PartReport:
    """One part of a checkpoint; a tensor under two names counts once.

    `nbytes` are those in the file, `dtypes` type -> elements, `examples` a few names. Of the `floats` elements of
    floating types, 0 where values were not read, some are `zeros`, `near_zero` (below 0.001, zeros included), `nans` or
    `infs`; `largest` is the largest finite magnitude.
    """

    tensors: int = 0
    params: int = 0
    nbytes: int = 0
    dtypes: dict[str, int] = field(default_factory=dict)
    zeros: int = 0
    near_zero: int = 0
    nans: int = 0
    infs: int = 0
    floats: int = 0
    largest: float = 0.0
    examples: list[str] = field(default_factory=list)

    @property
    def sparsity(self) -> float | None:
        """Share of floating elements that are exactly 0, None where values were not read."""
        return self.zeros / self.floats if self.floats else None


@dataclass
class CheckpointReport:
    """What `inspect_checkpoint` found in a file, or in all files of a folder.

    Attributes:
        kind: "safetensors", "torch zip", "torch legacy" or "folder".
        parts: part -> `PartReport`; the names are those of `parts.PARTS`.
        unused: bytes of storages that no tensor uses, as when a slice of a large tensor was saved.
        container: bytes that are no tensor: names, shapes, headers; in a folder, configurations and other files.
        others: entries that are no tensors, shortly.
        names: the globals that a pickle mentions.
        files: of a folder: name, what it is for, bytes.
        notes: what to know, as sentences.
    """

    path: Path
    kind: str
    nbytes: int
    parts: dict[str, PartReport] = field(default_factory=dict)
    unused: int = 0
    container: int = 0
    others: dict[str, str] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    files: list[dict[str, object]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, object]:
        """Return JSON types."""
        found = asdict(self)
        found["path"] = str(self.path)
        for name, part in self.parts.items():
            found["parts"][name] = {"what": PARTS[name], **found["parts"][name], "sparsity": part.sparsity}
        return json.loads(json.dumps(found))

    def table(self) -> str:
        """Return the report as lines of text."""
        head = ["part", "types", "tensors", "params", "MB", "zeros", "<.001", "broken"]
        rows = []
        for name in (name for name in PARTS if name in self.parts):
            part, values = self.parts[name], ["", "", ""]
            if part.floats:
                values = [f"{100 * count / part.floats:.2f} %" for count in (part.zeros, part.near_zero)]
                values.append(f"{part.nans} NaN, {part.infs} Inf" if part.nans or part.infs else "-")
            sizes = [f"{part.tensors:,}", f"{part.params:,}", f"{part.nbytes / 1e6:,.2f}"]
            rows.append([PARTS[name], ", ".join(part.dtypes), *sizes, *values])
        rest = {"bytes no tensor uses": self.unused, "container, names, other files": self.container}
        rows += [[what, "", "", "", f"{nbytes / 1e6:,.2f}", "", "", ""] for what, nbytes in rest.items() if nbytes]
        lines = [f"{self.path}: {self.kind}, {self.nbytes / 1e6:,.2f} MB", *text_table(head, rows, left=2).split("\n")]
        if self.others:
            others = [f"{printable(key, 100)} ({printable(what, 100)})" for key, what in list(self.others.items())[:8]]
            lines.append("no tensors: " + "; ".join(others))
        return "\n".join(map(printable, [*lines, *(f"note: {note}" for note in self.notes)]))


def inspect_checkpoint(path: str | Path, *, values: bool = True, allow: Iterable[str] = ()) -> CheckpointReport:
    """Say what is in a checkpoint.

    Args:
        path: a .safetensors, .ckpt, .pt, .pth or .bin file, or a folder that diffusers or its training scripts wrote.
        values: also read every element for the counts of zeros and broken numbers; without, only headers are read.
        allow: names of globals that may stand in a pickle besides the usual; they are skipped, never run.

    Raises CheckpointError, a ValueError, for a file that is empty, damaged, cut short or no checkpoint;
    UnsafePickleError, one of them, for a pickle that would run code, of which nothing was run.

    Example:
        >>> print(inspect_checkpoint("model.ckpt").table())
    """
    path, allow = Path(path), tuple(allow)
    if not path.exists():
        raise FileNotFoundError(f"There is neither a file nor a folder {path}.")
    rows: list[Row] = []
    if path.is_dir():
        files = list_folder(path)
        report = CheckpointReport(path, "folder", sum(file.nbytes for file in files))
        report.files = [{"file": f.name, "for": f.role, "bytes": f.nbytes} for f in files]
        for file in (file for file in files if file.holds_tensors):
            try:
                source = open_file(path / file.name, allow)
            except UnsafePickleError:
                raise
            except CheckpointError as error:
                if file.role != "copy":
                    raise
                report.notes.append(f"No loader needs it, and it cannot be read: {error}.")
                continue
            rows += rows_of(source, file.part)
            report.notes += [f"{file.name}: {note}" for note in source.notes if file.suffix != ".pkl"]
    else:
        source = open_file(path, allow)
        report = CheckpointReport(path, source.kind, source.nbytes, others=source.others, names=source.names)
        report.notes += source.notes
        rows = rows_of(source)
    _fill(report, rows, values)
    return report


def _fill(report: CheckpointReport, rows: list[Row], values: bool) -> None:
    report.unused = charge(rows)
    counted, again = set(), Counter()
    for row in rows:
        part = report.parts.setdefault(row.part, PartReport())
        if row.view in counted:
            again[row.part] += 1
            continue
        counted.add(row.view)
        part.tensors += 1
        part.params += row.entry.params
        part.nbytes += row.charged
        dtype = str(row.entry.dtype).removeprefix("torch.")
        part.dtypes[dtype] = part.dtypes.get(dtype, 0) + row.entry.params
        if len(part.examples) < 3:
            part.examples.append(row.name)
        if values and row.entry.dtype.is_floating_point and row.entry.dtype != PAIRS:
            _count(part, row)
        said, todo = told_ids(row) if values else ("", "")
        report.notes += [f"{said}; `slim` {todo}s it." if todo else said] if said else []
    report.container = report.nbytes - report.unused - sum(part.nbytes for part in report.parts.values())
    report.notes += [f"{count} tensors of the {PARTS[part]} stand under two names." for part, count in again.items()]
    for name, part in report.parts.items():
        if part.nans or part.infs:
            report.notes.append(f"The {PARTS[name]} holds {part.nans} NaN and {part.infs} infinite elements.")


def _count(part: PartReport, row: Row) -> None:
    for piece in row.source.pieces(row.entry):
        piece = piece.float() if piece.dtype.itemsize < 4 else piece
        size = piece.abs()
        finite = torch.isfinite(size)
        part.floats += size.numel()
        part.zeros += int((size == 0).sum())
        part.near_zero += int((size < 1e-3).sum())
        part.nans += int(torch.isnan(size).sum())
        part.infs += int(torch.isinf(size).sum())
        part.largest = max(part.largest, float(size.where(finite, 0).max()))
