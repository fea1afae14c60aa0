"""What `slim` will write, and where every byte goes that it does not write, decided before the first is written.

Make a checkpoint smaller without pruning anything: drop what inference does not need, cast, convert to safetensors.

`slim` reads the input tensor by tensor (see `reading`), writes a new file or folder, reads that back, compares every
kept tensor, and only then moves it into place. The input is never changed. What was saved is reported per cause, and
the causes add up exactly to the difference.

`slim` for a diffusers folder: the weights of each component in one safetensors file, configurations beside it.
"""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from ..checks import nearest
from .files import Source, open_file
from .folder import File, list_folder
from .inspect import Row, charge, rows_of
from .ldm_layout import VAE_PREFIX, ldm_vae_names
from .parts import DROPPED, KEPT, PARTS, ema_name, part_of_file
from .write import Planned, check_room, file_bytes, in_place, write_safetensors

__all__ = [
    "CASTS",
    "CastError",
    "Kept",
    "Plan",
    "SlimReport",
    "make_plan",
    "slim",
    "slim_folder",
    "take_ema",
    "write_checked",
]

CASTS = {
    "keep": None,
    "float16": torch.float16,
    "fp16": torch.float16,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float32": torch.float32,
    "fp32": torch.float32,
}
ALIASES = "one tensor under two names, or two that overlap"


class CastError(ValueError):
    """A number that the wanted type cannot hold."""


@dataclass
class Kept:
    """A tensor that is kept: where it comes from, what it becomes, and what became of its elements."""

    row: Row
    planned: Planned
    flushed: int = 0

    def pieces(self) -> Iterator[Tensor]:
        """Yield its elements, cast.

        Raises:
            CastError: an element becomes infinite.
        """
        dtype, self.flushed = self.planned.dtype, 0
        for piece in self.row.source.pieces(self.row.entry):
            cast = piece.to(dtype)
            if dtype != piece.dtype and dtype.is_floating_point:
                piece = piece.float() if piece.dtype.itemsize == 1 else piece  # 8-bit types can hardly be compared
                lost = torch.isinf(cast) & torch.isfinite(piece)
                if lost.any():
                    raise CastError(
                        f"{self.planned.name} holds {float(piece[lost][0]):,.6g}, and {str(dtype)[6:]} ends at "
                        f"{torch.finfo(dtype).max:,.6g}. Nothing was written. Use bfloat16, which reaches as far as "
                        "float32, or keep the type."
                    )
                self.flushed += int(((cast == 0) & (piece != 0)).sum())
            yield cast


@dataclass
class Plan:
    """What is kept, and causes -> bytes saved; a cause that costs bytes is negative."""

    kept: list[Kept]
    causes: Counter
    dropped: dict[str, int] = field(default_factory=Counter)  # part -> tensors
    metadata: dict[str, str] = field(default_factory=dict)


def take_ema(rows: Sequence[Row]) -> list[Row]:
    """Return the rows with the EMA copy under the names of the live weights, and the live ones as a second copy.

    The copy is found by the names of LDM (`model_ema.` and no dots), by the live names inside an `ema` entry, or, for
    diffusers' `shadow_params`, which have no names, by order, where every shape fits.

    Raises:
        ValueError: no EMA copy, or one that lacks weights.
    """
    live = [row for row in rows if row.part == "unet"] or [row for row in rows if row.part in KEPT]
    averaged = [row for row in rows if row.part == "ema"]
    if not live or not averaged:
        raise ValueError("The file holds no EMA copy beside live weights. Leave weights at 'default' or 'live'.")
    listed = [row for row in averaged if "shadow_params" in row.entry.path]
    if listed:
        if [row.entry.shape for row in listed] != [row.entry.shape for row in live]:
            raise ValueError(
                f"The EMA copy is a list of {len(listed)} tensors without names, and its shapes do not follow the "
                f"{len(live)} live ones, so nobody can tell which is which."
            )
        pairs = list(zip(live, listed, strict=True))
    else:
        by_name = {key: row for row in averaged for key in (row.name, row.name.partition(".")[2])}
        by_name |= {key.removeprefix("model."): row for key, row in by_name.items()}
        names = [(row, (ema_name(row.name), row.name, row.name.removeprefix("model."))) for row in live]
        pairs = [(row, next((by_name[n] for n in options if n in by_name), None)) for row, options in names]
        missing = [row.name for row, found in pairs if found is None or found.entry.shape != row.entry.shape]
        if missing:
            raise ValueError(
                f"The EMA copy has no fitting tensor for {len(missing)} of {len(live)} weights, as {missing[0]}. "
                "Leave weights at 'default' or 'live'."
            )
    replaced = {id(row) for row, _ in pairs}
    taken = {id(found) for _, found in pairs}
    rest = [replace(row, part="live") if id(row) in replaced else row for row in rows if id(row) not in taken]
    return rest + [replace(found, part=row.part, name=row.name) for row, found in pairs]


def make_plan(
    rows: Sequence[Row],
    dtype: torch.dtype | None,
    remove: Sequence[str] = (),
    aliases: str = "each",
    swapped: Sequence[tuple[Row, tuple[int, ...]]] = (),
) -> Plan:
    """Decide for every tensor whether it is kept and as what, and count the bytes of each cause.

    Args:
        rows: the tensors of one input file, their parts settled; "live" marks a live copy that EMA replaces.
        dtype: of floating weights, None to keep theirs. The noise schedule is never cast: 0.00085 would become another
            schedule.
        remove: parts to leave out besides what inference does not need.
        aliases: "each" writes a tensor under every name it has, "once" under the first, the others in the metadata.
        swapped: a VAE that takes the place of the part "vae": rows of another file, and the shapes to write.

    Raises:
        ValueError: nothing is left, or two tensors would have the same name.
    """
    dropped = {*DROPPED, *remove, "live", *(["vae"] if swapped else [])}
    order = sorted(rows, key=lambda row: row.part in dropped)  # a shared tensor is charged to those that stay
    causes: Counter = Counter({"bytes no tensor uses": charge(order)})
    plan = Plan([], causes)
    first: dict[tuple, str] = {}
    for row in order:
        if row.part in dropped:
            causes[_cause(row.part, remove, bool(swapped))] += row.charged
            plan.dropped[row.part] = plan.dropped.get(row.part, 0) + 1
            continue
        view = id(row.source), row.entry.view
        if aliases == "once" and view in first:
            plan.metadata[row.name] = first[view]
            continue
        first.setdefault(view, row.name)
        kept = _kept(row, dtype)
        plan.kept.append(kept)
        causes[ALIASES] += row.charged - row.entry.nbytes
        if kept.planned.dtype != row.entry.dtype:
            causes[f"cast {str(row.entry.dtype)[6:]} to {str(dtype)[6:]}"] += row.entry.nbytes - kept.planned.nbytes
    for row, shape in swapped:
        kept = _kept(row, dtype)
        plan.kept.append(replace(kept, planned=kept.planned._replace(shape=shape)))
        causes["VAE exchanged"] -= kept.planned.nbytes
    _check(plan)
    return plan


def _kept(row: Row, dtype: torch.dtype | None) -> Kept:
    cast = dtype is not None and row.entry.dtype.is_floating_point and row.part in KEPT and row.part != "schedule"
    return Kept(row, Planned(row.name, dtype if cast else row.entry.dtype, row.entry.shape))


def _cause(part: str, remove: Sequence[str], swapped: bool) -> str:
    if part == "vae" and swapped:
        return "VAE exchanged"
    if part == "live":
        return "live copy"
    return f"removed as asked: {PARTS[part]}" if part in remove and part not in DROPPED else PARTS[part]


def _check(plan: Plan) -> None:
    if not plan.kept:
        raise ValueError("Nothing would be left. Remove fewer parts; `inspect` says which there are.")
    count = Counter(kept.planned.name for kept in plan.kept)
    twice = [name for name, times in count.items() if times > 1]
    if twice:
        raise ValueError(
            f"{len(twice)} names stand in the file twice, as {twice[0]}, once inside a wrapper such as state_dict and "
            "once outside. Which is meant cannot be told; save the one you want."
        )


@dataclass
class SlimReport:
    """What `slim` did.

    Attributes:
        source, target: paths.
        bytes_before, bytes_after: of the file, or of all files of the folder.
        causes: cause -> bytes saved, negative where bytes were added; they add up to before - after.
        kept: tensors written, all of them read back and found equal.
        params: their elements.
        dropped: part -> tensors left out.
        flushed: elements that were not 0 and became 0 by the cast.
        names: globals that stood in the input's pickle and were not kept.
        notes: what to know, as sentences.
        seconds: duration.
    """

    source: Path
    target: Path
    bytes_before: int
    bytes_after: int
    causes: dict[str, int]
    kept: int
    params: int
    dropped: dict[str, int]
    flushed: int
    names: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def times_smaller(self) -> float:
        """Bytes before over bytes after."""
        return self.bytes_before / self.bytes_after

    def to_dict(self) -> dict[str, object]:
        """Return JSON types."""
        found = asdict(self) | {"source": str(self.source), "target": str(self.target), "names": list(self.names)}
        return found | {"times_smaller": self.times_smaller}

    def table(self) -> str:
        """Return the report as lines of text."""
        lines = [f"{'before':52s}{self.bytes_before:>16,} bytes  {self.source}"]
        lines += [f"  - {cause:48s}{saved:>16,}" for cause, saved in self.causes.items()]
        lines.append(f"{'after':52s}{self.bytes_after:>16,} bytes  {self.target}")
        lines.append(f"{self.times_smaller:.2f} times smaller; {self.kept} tensors kept, read back and compared")
        if self.flushed:
            lines.append(f"{self.flushed:,} of {self.params:,} elements became 0 by the cast")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def slim(
    source: str | Path,
    target: str | Path,
    *,
    weights: str = "default",
    dtype: str | torch.dtype = "keep",
    remove: Sequence[str] = (),
    vae: str | Path | None = None,
    aliases: str = "each",
    allow: Iterable[str] = (),
    overwrite: bool = False,
) -> SlimReport:
    """Write a checkpoint without what inference does not need.

    Args:
        source: a .safetensors, .ckpt, .pt, .pth or .bin file, or a folder of diffusers.
        target: a new .safetensors file; for a folder, a new folder in the layout of `save_pretrained`, with files of
            the default names, so that a plain `from_pretrained` loads it.
        weights: "default", what a loader would take from the input; "live" or "ema" where it holds both.
        dtype: "keep", "float16", "bfloat16" or "float32" (or "fp16", "bf16", "fp32") for floating weights. Whole
            numbers and the noise schedule keep their type.
        remove: parts to leave out, as in ("vae",).
        vae: a file (or, for a folder, a folder) with another VAE that takes the place of the one in `source`.
        aliases: a tensor under two names is written under "each" of them, as every loader expects, or "once", the
            other names in the header as `safetensors.torch.save_model` has them.
        allow: see `inspect_checkpoint`.
        overwrite: whether an existing target file may be replaced; the input never is.

    Returns:
        A `SlimReport`.

    Raises:
        ValueError: an unknown option; target and source are the same; no EMA copy; nothing left to keep.
        CastError: a number does not fit the type, with the tensor's name. A ValueError.
        CheckpointError, UnsafePickleError: the input cannot be read. ValueErrors.
        OSError: the target exists, cannot be written, or the disk has no room for it.

    Example:
        >>> print(slim("model.ckpt", "model-slim.safetensors", weights="ema", dtype="float16").table())
    """
    started = time.perf_counter()
    source, target, remove = Path(source), Path(target), tuple(remove)
    cast = _checked(source, target, weights, dtype, remove, aliases, overwrite)
    if vae is not None and target.exists() and Path(vae).exists() and target.samefile(vae):
        raise ValueError(f"{target} is the VAE to put in, which is never written over. Choose another name.")
    options = dict(weights=weights, cast=cast, remove=remove, vae=vae, aliases=aliases, allow=tuple(allow))
    if source.is_dir():
        report = slim_folder(source, target, **options)
    else:
        report = _slim_file(source, target, **options)
    report.causes = {cause: saved for cause, saved in report.causes.items() if saved}
    if sum(report.causes.values()) != report.bytes_before - report.bytes_after:
        raise RuntimeError(f"The causes do not add up: {report.causes}. This is a defect of pruning_lib.")
    report.seconds = time.perf_counter() - started
    return report


def _checked(source, target, weights, dtype, remove, aliases, overwrite) -> torch.dtype | None:
    if not source.exists():
        raise FileNotFoundError(f"There is neither a file nor a folder {source}.")
    for value, allowed, what in (
        (weights, ("default", "live", "ema"), "weights"),
        (aliases, ("each", "once"), "aliases"),
        (str(dtype).removeprefix("torch."), tuple(CASTS), "dtype"),
        *((part, tuple(KEPT), "remove") for part in remove),
    ):
        if value not in allowed:
            raise ValueError(f"{what}={value!r} is not known. {nearest(str(value), allowed)}")
    if target.exists() and target.samefile(source):
        raise ValueError(f"{target} is the input, which is never written over. Choose another name.")
    if source.is_dir():
        if target.resolve().is_relative_to(source.resolve()) or source.resolve().is_relative_to(target.resolve()):
            raise ValueError(f"{target} and {source} lie inside each other. Choose a target elsewhere.")
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise FileExistsError(f"{target} is there already. Choose a folder that is not.")
    else:
        if target.suffix != ".safetensors":
            raise ValueError(f"{target} does not end in .safetensors, the only format that is written.")
        if target.exists() and not overwrite:
            raise FileExistsError(f"{target} is there already. Choose another name, or overwrite it (--overwrite).")
    return CASTS[str(dtype).removeprefix("torch.")]


def _slim_file(source: Path, target: Path, *, weights, cast, remove, vae, aliases, allow) -> SlimReport:
    opened = open_file(source, allow)
    rows = rows_of(opened)
    if weights == "ema":
        rows = take_ema(rows)
    swapped = _vae_rows(Path(vae), rows, allow) if vae is not None else ()
    plan = make_plan(rows, cast, remove, aliases, swapped)
    metadata = {**opened.metadata, **plan.metadata, "format": "pt"}
    after = file_bytes([kept.planned for kept in plan.kept], metadata)
    target.parent.mkdir(parents=True, exist_ok=True)
    check_room(target.parent, after)
    with in_place(target) as temporary:
        write_checked(temporary, plan.kept, metadata)
        after = temporary.stat().st_size
    tensors = sum(kept.planned.nbytes for kept in plan.kept)
    plan.causes["container: names, shapes, pickle"] += opened.nbytes - sum(opened.storages.values()) - (after - tensors)
    notes = list(opened.notes)
    if weights == "default" and plan.dropped.get("ema"):
        notes.append("An EMA copy was dropped; weights='ema' would keep it instead of the live weights.")
        if not any(kept.row.part == "unet" for kept in plan.kept):
            notes.append("The file held no live denoiser, so none is left.")
    return report_of(source, target, opened.nbytes, after, [plan], opened.names, notes)


def report_of(source, target, before, after, plans: list[Plan], names, notes) -> SlimReport:
    """Put together what several plans did."""
    causes: dict[str, int] = {}
    dropped: dict[str, int] = {}
    for plan in plans:
        for into, found in ((causes, plan.causes), (dropped, plan.dropped)):
            for key, value in found.items():
                into[key] = into.get(key, 0) + value
    kept = [one for plan in plans for one in plan.kept]
    params, flushed = sum(one.row.entry.numel for one in kept), sum(one.flushed for one in kept)
    return SlimReport(source, target, before, after, causes, len(kept), params, dropped, flushed, names, notes)


def write_checked(path: Path, kept: Sequence[Kept], metadata: dict[str, str]) -> None:
    """Write tensors, read the file back, and compare each with its source, bit for bit.

    Raises:
        OSError: a tensor came back different; the disk is broken.
    """
    write_safetensors(path, [one.planned for one in kept], [one.pieces() for one in kept], metadata)
    written = open_file(path)
    by_name = {entry.path[0]: entry for entry in written.entries}
    for one in kept:
        entry = by_name[one.planned.name]
        same = entry.shape == one.planned.shape and entry.dtype == one.planned.dtype
        pairs = zip(one.pieces(), written.pieces(entry), strict=True)
        if not same or not all(torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in pairs):
            raise OSError(
                f"{one.planned.name} came back from the disk different from what was written. Check the disk."
            )


def _vae_rows(path: Path, rows: Sequence[Row], allow) -> list[tuple[Row, tuple[int, ...]]]:
    """Return the VAE of another file under the names of this one, with the shapes this one has."""
    found = [row for row in rows_of(open_file(path, allow)) if row.part == "vae"]
    charge(found)
    bare = [(row, row.name.removeprefix(VAE_PREFIX).removeprefix("vae.")) for row in found]
    renamed = ldm_vae_names([name for _, name in bare])
    old = {row.name: row.entry for row in rows if row.part == "vae"}
    if any("mid_block" in name or "down_blocks" in name for name in old):
        renamed = {name: name for name in renamed}
    prefix = VAE_PREFIX if not old or any(name.startswith(VAE_PREFIX) for name in old) else ""
    taken = []
    for row, name in bare:
        new = prefix + renamed[name]
        shape = old[new].shape if new in old else row.entry.shape
        if ".attn_1." in new and len(row.entry.shape) == 2:
            shape = (*row.entry.shape, 1, 1)  # LDM has 1x1 convolutions where diffusers has matrices
        taken.append((Row(row.source, row.entry, "vae", new), shape))
    shapes = {row.name: shape for row, shape in taken}
    sizes = {name: entry.shape for name, entry in old.items()}
    wrong = sorted(name for name in {*shapes, *sizes} if old and shapes.get(name) != sizes.get(name))
    if not taken or wrong:
        what = f"{len(wrong)} tensors differ, as {wrong[0]}" if taken else "it holds no tensor of a VAE"
        raise ValueError(f"The VAE in {path} does not fit: {what}. Give a VAE of the same architecture.")
    return taken


def slim_folder(
    source: Path, target: Path, *, weights: str, cast: torch.dtype | None, remove, vae, aliases: str, allow
) -> SlimReport:
    """Write the folder that a plain `from_pretrained` loads; see `slim`."""
    files = list_folder(source, weights)
    before = sum(file.nbytes for file in files)
    away = {file.component for file in files if part_of_file(file.component, "") in remove and file.component}
    swap = Path(vae) if vae is not None else None
    if swap is not None and not (swap / "config.json").is_file():
        raise ValueError(f"{swap} is no folder of a VAE: it has no config.json. Give one that diffusers wrote.")
    if swap is not None:
        away.add("vae")

    other: Counter = Counter()
    components: dict[str, list[Source]] = {}
    configs: list[tuple[Path, str]] = []
    for file in files:
        if file.component in away:
            part = part_of_file(file.component, "")
            exchanged = swap is not None and file.component == "vae"
            other["VAE exchanged" if exchanged else f"removed as asked: {PARTS[part]}"] += file.nbytes
        elif file.role == "weights":
            components.setdefault(_output(file), []).append(open_file(source / file.name, allow))
        elif file.role == "config":
            configs.append((source / file.name, file.name))
        else:
            other[_cause_slim_folder(file)] += file.nbytes
    if swap is not None:
        for file in list_folder(swap):
            if file.role == "weights":
                components.setdefault(_output(file, "vae/"), []).append(open_file(swap / file.name, allow))
            elif file.role == "config" and file.name == "config.json":
                configs.append((swap / file.name, "vae/config.json"))
    if not components:
        raise ValueError("Nothing would be left. Remove fewer parts.")

    plans = {name: _plan(name, opened, cast, remove, aliases) for name, opened in components.items()}
    metadata = {name: {**plan.metadata, **components[name][0].metadata, "format": "pt"} for name, plan in plans.items()}
    needed = sum(file_bytes([k.planned for k in plan.kept], metadata[name]) for name, plan in plans.items())
    target.parent.mkdir(parents=True, exist_ok=True)
    check_room(target.parent, needed + sum(path.stat().st_size for path, _ in configs))
    with in_place(target, folder=True) as temporary:
        for name, plan in plans.items():
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            write_checked(temporary / name, plan.kept, metadata[name])
        for path, name in configs:
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, temporary / name)
        _forget(temporary / "model_index.json", away - ({"vae"} if swap is not None else set()))
        sizes = {p.relative_to(temporary).as_posix(): p.stat().st_size for p in temporary.rglob("*") if p.is_file()}

    _account(plans, components, sizes, other, swap)
    for path, name in configs:
        own = path.stat().st_size if swap is None or swap not in path.parents else 0
        other["VAE exchanged" if own == 0 else "container: names, shapes, pickle"] += own - sizes[name]
    plans[""] = Plan([], other)
    names = tuple({name: None for opened in components.values() for one in opened for name in one.names})
    return report_of(source, target, before, sum(sizes.values()), list(plans.values()), names, [])


def _output(file: File, folder: str = "") -> str:
    """Return where the weights of a component go, under the names that loaders expect."""
    component = file.component.removesuffix("_ema")
    stem = PurePosixPath(file.name).name.partition(".")[0].partition("-")[0]
    name = "diffusion_pytorch_model" if stem == "diffusion_pytorch_model" else "model"
    return f"{folder}{component + '/' if component else ''}{name}.safetensors"


def _plan(name: str, opened: list[Source], cast: torch.dtype | None, remove, aliases: str) -> Plan:
    component = name.rpartition("/")[0]
    rows: list[Row] = [row for one in opened for row in rows_of(one, part_of_file(component, ""))]
    return make_plan(rows, cast, remove, aliases)


def _account(plans: dict[str, Plan], components, sizes: dict[str, int], other: Counter, swap: Path | None) -> None:
    """Add what the containers take, and book an exchanged VAE under one cause."""
    for name, plan in plans.items():
        tensors = sum(kept.planned.nbytes for kept in plan.kept)
        if swap is not None and name.startswith("vae/"):
            plan.causes.clear()
            other["VAE exchanged"] -= sizes[name]
            continue
        held = sum(one.nbytes - sum(one.storages.values()) for one in components[name])
        plan.causes["container: names, shapes, pickle"] += held - (sizes[name] - tensors)


def _cause_slim_folder(file: File) -> str:
    return {
        "live": "live copy",
        "index": "container: names, shapes, pickle",
        "other": "files that are not part of the model",
    }.get(file.role) or PARTS[file.role]


def _forget(index: Path, components: set[str]) -> None:
    """Strike removed components from `model_index.json`, as diffusers does for those that are None."""
    if not components or not index.is_file():
        return
    config = json.loads(index.read_text("utf-8"))
    for name in components & config.keys():
        config[name] = [None, None]
    if "safety_checker" in components:
        config["requires_safety_checker"] = False
    index.write_text(json.dumps(config, indent=2) + "\n", "utf-8")
