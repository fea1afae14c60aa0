"""Make a checkpoint smaller without pruning anything: drop what inference does not need, cast, convert to safetensors.

`slim` writes a new file or folder tensor by tensor, reads it back, compares every tensor, and only then moves it into
place. What is kept, and the cause of every byte that is not, are decided before; the causes add up to the difference.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import torch

from ..checks import nearest, printable
from ..files import check_place, write_whole
from .files import PAIRS, Source, open_file
from .folder import File, list_folder
from .inspect import Row, charge, rows_of, told_ids
from .parts import DROPPED, KEPT, PARTS, ema_name, live_name, part_of_file, parts_of
from .pickle import CheckpointError
from .write import NewTensor, check_room, file_bytes, write_checked

CASTS = {"keep": None, "float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
CASTS |= {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
# What stands beside a weight of few bits, in the many spellings of those who quantise.
_SCALE = re.compile(r"scale|zero|shift|absmax|amax|quant|smooth|scb", re.IGNORECASE)
CONTAINER = "container: names, shapes, pickle"


@dataclass
class SlimReport:
    """What `slim` did.

    Attributes:
        causes: cause -> bytes saved, negative where bytes were added; they add up to before - after.
        kept: tensors written, all of them read back and found equal; `params` are their elements.
        dropped: part -> tensors left out.
        flushed: elements that were not 0 and became 0 by the cast.
        names: globals that stood in the input's pickle and were not kept.
        notes: what to know, as sentences.
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
        return "\n".join(map(printable, [*lines, *(f"note: {note}" for note in self.notes)]))


def slim(
    source: str | Path,
    target: str | Path,
    *,
    weights: str = "default",
    dtype: str | torch.dtype = "keep",
    remove: Sequence[str] = (),
    aliases: str = "each",
    allow: Iterable[str] = (),
    overwrite: bool = False,
) -> SlimReport:
    """Write a checkpoint without what inference does not need.

    Args:
        source: a .safetensors, .ckpt, .pt, .pth or .bin file, or a folder of diffusers.
        target: a new .safetensors file; for a folder, a new folder in the layout of `save_pretrained`, with files of
            the default names, so that a plain `from_pretrained` loads it.
        weights: "default", what a loader would take from the input, an EMA copy where there is nothing live; "live" or
            "ema" where it holds both.
        dtype: "keep", "float16", "bfloat16" or "float32" (or "fp16", "bf16", "fp32") for floating weights. Whole
            numbers, the noise schedule, position ids and the scales of 8-bit weights keep their type.
        remove: parts to leave out, as in ("vae",).
        aliases: a tensor under two names is written under "each" of them, as every loader expects, or "once", the
            other names in the header as `safetensors.torch.save_model` has them.
        allow: see `inspect_checkpoint`.
        overwrite: whether an existing target file may be replaced; the input never is.

    Raises ValueError for wrong options or an input that cannot be read (CheckpointError), CastError for a number that
    does not fit the type, OSError where the target exists, cannot be written, or the disk has no room for it.

    Example:
        >>> print(slim("model.ckpt", "model-slim.safetensors", weights="ema", dtype="float16").table())
    """
    started = time.perf_counter()
    source, target, remove, dtype = Path(source), Path(target), tuple(remove), str(dtype).removeprefix("torch.")
    if not source.exists():
        raise FileNotFoundError(f"There is neither a file nor a folder {source}.")
    for value, allowed, what in (
        (weights, ("default", "live", "ema"), "weights"),
        (aliases, ("each", "once"), "aliases"),
        (dtype, tuple(CASTS), "dtype"),
        *((part, tuple(KEPT), "remove") for part in remove),
    ):
        if value not in allowed:
            raise ValueError(f"{what}={value!r} is not known. {nearest(str(value), allowed)}")
    # In new/../old the folder "new" may have yet to be made.
    where = target.resolve() if source.is_dir() else target.parent.resolve() / target.name
    _check_target(source, where, overwrite)
    slim_one = _slim_folder if source.is_dir() else _slim_file
    report = slim_one(source, where, weights, CASTS[dtype], remove, aliases, tuple(allow))
    report.target = target
    if sum(report.causes.values()) != report.bytes_before - report.bytes_after:
        raise RuntimeError(f"The causes do not add up: {report.causes}. This is a defect of pruning_lib.")
    report.seconds = time.perf_counter() - started
    return report


def _check_target(source: Path, target: Path, overwrite: bool) -> None:
    if target.exists() and target.samefile(source):
        raise ValueError(f"{target} is the input, which is never written over. Choose another name.")
    if source.is_dir():
        both = ((target, source), (source.resolve(), target))
        if any(above.exists() and outer.exists() and above.samefile(outer) for a, outer in both for above in a.parents):
            raise ValueError(f"{target} and {source} lie inside each other. Choose a target elsewhere.")
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise FileExistsError(f"{target} is there already. Choose a folder that is not.")
    elif target.suffix != ".safetensors":
        raise ValueError(f"{target} does not end in .safetensors, the only format that is written.")
    elif target.exists() and not overwrite:
        raise FileExistsError(f"{target} is there already. Choose another name, or overwrite it (--overwrite).")


def _slim_file(source: Path, target: Path, weights, cast, remove, aliases, allow) -> SlimReport:
    opened = open_file(source, allow)
    rows = rows_of(opened)
    rows, alone = (rows, "") if weights == "live" else ema_alone(rows)
    if weights == "ema" and not alone:
        rows = take_ema(rows)
    plan = make_plan([opened], rows, cast, remove, aliases)
    notes = [*opened.notes, *([alone] if alone else []), *plan.notes]
    if weights == "default" and plan.dropped["ema"] and not alone:
        notes.append("An EMA copy was dropped; weights='ema' would keep it instead of the live weights.")
        if not any(row.part == "unet" for row in rows):
            notes.append("The file held no live denoiser, so none is left.")
    check_place(target)
    _check_target(source, target, overwrite=True)  # once more, now that its folder is there
    check_room(target.parent, plan.nbytes)
    with write_whole(target) as temporary:
        write_checked(temporary, plan.kept, plan.metadata)
    return _report(source, target, opened.nbytes, target.stat().st_size, [plan], opened.names, notes)


def _slim_folder(source: Path, target: Path, weights, cast, remove, aliases, allow) -> SlimReport:
    """Write the folder that a plain `from_pretrained` loads: each component's weights in one file, and its texts."""
    files = list_folder(source, weights)
    rest = SlimPlan()  # what becomes of the files that hold no weights to keep
    opened: dict[str, list[Source]] = {}  # new file -> the files, shards perhaps, that go into it
    configs, left, away = {}, [], set()
    for file in files:
        component = file.new_name.rpartition("/")[0]
        part = part_of_file(component, "") if component else None
        if part in remove:
            away.add(component)
            rest.causes[_cause(part, remove)] += file.nbytes
        elif file.role == "weights":
            opened.setdefault(_new_name(file), []).append(open_file(source / file.name, allow))
        elif file.role == "config":
            configs[file.name] = file.new_name
        else:
            left += [file.name] * (file.role == "other")
            others = {"index": CONTAINER, "other": "files that are not part of the model"}
            rest.causes[others.get(file.role) or _cause(file.role, remove)] += file.nbytes
    if not opened:
        raise ValueError("Nothing would be left. Remove fewer parts.")
    plans = {}
    for name, sources in opened.items():
        part = part_of_file(name.rpartition("/")[0], "")
        plans[name] = make_plan(sources, [row for one in sources for row in rows_of(one, part)], cast, remove, aliases)
    index = _struck(source / "model_index.json", away)

    target.parent.mkdir(parents=True, exist_ok=True)
    _check_target(source, target, overwrite=False)  # once more, now that its folder is there
    needed = sum(plan.nbytes for plan in plans.values()) + sum((source / name).stat().st_size for name in configs)
    check_room(target.parent, needed)
    with write_whole(target) as temporary:
        for name, plan in plans.items():
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            write_checked(temporary / name, plan.kept, plan.metadata)
        for name, new in configs.items():
            (temporary / new).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, temporary / new)
        if index:
            (temporary / "model_index.json").write_text(index, "utf-8")
    for name, new in configs.items():
        rest.causes[CONTAINER] += (source / name).stat().st_size - (target / new).stat().st_size
    before = sum(file.nbytes for file in files)
    after = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    names = tuple({name: None for sources in opened.values() for one in sources for name in one.names})
    notes = [note for plan in plans.values() for note in plan.notes]
    if left:
        shown = ", ".join(printable(name, 100) for name in left[:5])
        notes.append(f"{len(left)} files that no loader of diffusers reads were left out, as {shown}.")
    return _report(source, target, before, after, [*plans.values(), rest], names, notes)


def _new_name(file: File) -> str:
    """Return where the weights of a component go, under the names that loaders expect."""
    folder, slash, name = file.new_name.rpartition("/")
    stem = "diffusion_pytorch_model" if name.startswith("diffusion_pytorch_model") else "model"
    return f"{folder}{slash}{stem}.safetensors"


def _struck(index: Path, components: set[str]) -> str:
    """Return `model_index.json` without the removed components, as diffusers writes those that are None."""
    if not components or not index.is_file():
        return ""
    try:
        config = json.loads(index.read_text("utf-8"))
    except ValueError:
        config = None
    if not isinstance(config, dict):
        raise CheckpointError(f"{index} is damaged: it does not name components. Restore it, or remove no parts")
    for name in components & config.keys():
        config[name] = [None, None]
    if "safety_checker" in components:
        config["requires_safety_checker"] = False
    return json.dumps(config, indent=2) + "\n"


@dataclass
class SlimPlan:
    """What one new file will hold, and causes -> bytes saved; a cause that costs bytes is negative."""

    kept: list[NewTensor] = field(default_factory=list)
    causes: Counter = field(default_factory=Counter)
    dropped: Counter = field(default_factory=Counter)  # part -> tensors
    metadata: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        """Of the new file."""
        return file_bytes(self.kept, self.metadata)


def ema_alone(rows: list[Row]) -> tuple[list[Row], str]:
    """Return the rows with an EMA copy of which there are no live weights as these, and what was done, "" if nothing.

    A CheckpointError says that what is averaged is not there, and cannot be told from the names of the copy.
    """
    averaged = [row for row in rows if row.part == "ema"]
    have, shapes = {row.part for row in rows}, {row.entry.shape for row in rows if row.part in KEPT}
    named = [(row, name) for row in averaged if (name := live_name(row.name))]
    told = parts_of([((name,), row.entry.shape) for row, name in named])
    new = {id(row): replace(row, part=part, name=name) for (row, _), (part, name) in zip(named, told, strict=True)}
    strange = {*DROPPED, "schedule", *(["other"] if shapes else [])}
    known = {key for key, row in new.items() if row.part not in strange}
    new = {key: new[key] for key in known if new[key].part not in have}
    left = [row for row in averaged if id(row) not in known and row.entry.numel > 1]  # the rest are counters
    if (new and left) or ("unet" not in have and any(row.entry.shape not in shapes for row in left)):
        raise CheckpointError(
            f"It holds an EMA copy of weights that are not there, and names as {left[0].name} do not say what they are "
            "of. Save it under the names of the live weights, or leave it out with weights='live'"
        )
    done = f"No live {' and '.join(sorted({PARTS[row.part] for row in new.values()}))}: the EMA copy took its place."
    return [new.get(id(row), row) for row in rows], done if new else ""


def take_ema(rows: Sequence[Row]) -> list[Row]:
    """Return the rows with the EMA copy under the names of the live weights, and those as the part "live".

    The copy is found by the names of LDM (`model_ema.` and no dots), by the live names inside an `ema` entry, or, for
    diffusers' `shadow_params`, which have no names, by order, where every shape fits.
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
        copies = listed
    else:
        by_name = {key: row for row in averaged for key in (row.name, row.name.partition(".")[2])}
        by_name |= {key.removeprefix("model."): row for key, row in by_name.items()}
        names = [(ema_name(row.name), row.name, row.name.removeprefix("model.")) for row in live]
        copies = [next((by_name[name] for name in options if name in by_name), None) for options in names]
        pairs = zip(live, copies, strict=True)
        missing = [row.name for row, copy in pairs if copy is None or copy.entry.shape != row.entry.shape]
        if missing:
            raise CheckpointError(
                f"The EMA copy has no fitting tensor for {len(missing)} of {len(live)} weights, as {missing[0]}. "
                "Leave weights at 'default' or 'live'."
            )
    replaced, taken = {id(row) for row in live}, {id(row) for row in copies}
    rest = [replace(row, part="live") if id(row) in replaced else row for row in rows if id(row) not in taken]
    return rest + [replace(copy, part=row.part, name=row.name) for row, copy in zip(live, copies, strict=True)]


def make_plan(
    sources: Sequence[Source], rows: Sequence[Row], dtype: torch.dtype | None, remove: Sequence[str], aliases: str
) -> SlimPlan:
    """Decide for every tensor of `sources`, which become one file, whether it is kept and as what; count what is saved.

    The noise schedule is never cast: 0.00085 would become another schedule.
    """
    dropped = {*DROPPED, *remove, "live"}
    order = sorted(rows, key=lambda row: row.part in dropped)  # a shared tensor is charged to those that stay
    plan = SlimPlan(causes=Counter({"bytes no tensor uses": charge(order)}))
    plan.metadata = {key: text for source in reversed(sources) for key, text in source.metadata.items()}
    first: dict[tuple, str] = {}
    few = [row for row in rows if row.entry.dtype.itemsize == 1 or not row.entry.dtype.is_floating_point]
    quantised = {row.name.rpartition(".")[0] for row in few if row.name.endswith("weight")}
    scales = 0
    for row in order:
        if row.part in dropped:
            plan.causes[_cause(row.part, remove)] += row.charged
            plan.dropped[row.part] += 1
        elif aliases == "once" and row.view in first:
            plan.metadata[row.name] = first[row.view]
        else:
            first.setdefault(row.view, row.name)
            old = row.entry
            module, _, kind = row.name.rpartition(".")
            scale = bool(_SCALE.search(kind)) and module.removesuffix(".weight") in quantised
            said, todo = told_ids(row)
            fixed = scale or bool(said) or row.part == "schedule" or old.dtype == PAIRS or kind.startswith("scaled_")
            cast = dtype is not None and old.dtype.is_floating_point and not fixed
            kept = NewTensor(row.name, dtype if cast else old.dtype, old.shape, partial(row.source.pieces, old))
            if todo == "refuse":
                raise CheckpointError(
                    f"{said}, far from a whole number in its place. Remove its part, or take the ids from another file"
                )
            if todo == "mend":
                ids = torch.arange(old.shape[-1]).expand(old.shape).reshape(-1)
                kept.dtype, kept.read = torch.int64, partial(list, [ids])
                plan.notes.append(f"{said}; the whole numbers from 0 on were written.")
            scales += scale and dtype is not None
            plan.kept.append(kept)
            plan.causes["one tensor under two names, or two that overlap"] += row.charged - old.nbytes
            if kept.dtype != old.dtype:
                plan.causes[f"cast {str(old.dtype)[6:]} to {str(kept.dtype)[6:]}"] += old.nbytes - kept.nbytes
    if scales:
        plan.notes.append(f"{scales} scales of quantised weights kept their type, so that they still fit these.")
    if not plan.kept:
        raise ValueError("Nothing would be left. Remove fewer parts; `inspect` says which there are.")
    twice = [name for name, count in Counter(one.name for one in plan.kept).items() if count > 1]
    if twice:
        raise CheckpointError(
            f"{len(twice)} names stand in the file twice, as {twice[0]}, once inside a wrapper such as "
            "state_dict and once outside. Which is meant cannot be told; save the one you want."
        )
    tag = plan.metadata.setdefault("format", "pt")
    plain = [row for row in rows if row.part not in dropped and row.name == ".".join(row.entry.path)]
    same = len(plan.kept) == len(plain) == len(rows) and not any(cause.startswith("cast") for cause in plan.causes)
    if tag not in ("pt", "np", "tf", "flax", "mlx") and not same:
        raise CheckpointError(
            f"The file calls its format {tag!r}: its tensors are no plain weights, and cannot be cast or "
            "removed one by one. Read it with the program that wrote it, and save plain weights"
        )
    old_container = sum(source.nbytes - sum(source.storages.values()) for source in sources)
    plan.causes[CONTAINER] = old_container - (plan.nbytes - sum(one.nbytes for one in plan.kept))
    return plan


def _cause(part: str, remove: Sequence[str]) -> str:
    if part == "live":
        return "live copy"
    return f"removed as asked: {PARTS[part]}" if part in remove else PARTS[part]


def _report(source, target, before: int, after: int, plans: list[SlimPlan], names, notes) -> SlimReport:
    causes, dropped = Counter(), Counter()
    for plan in plans:
        causes.update(plan.causes)  # not "+", which loses what is negative
        dropped.update(plan.dropped)
    kept = [one for plan in plans for one in plan.kept]
    params, flushed = sum(math.prod(one.shape) for one in kept), sum(one.flushed for one in kept)
    saved = {cause: saved for cause, saved in causes.items() if saved}
    return SlimReport(source, target, before, after, saved, len(kept), params, dict(dropped), flushed, names, notes)
