"""Make a checkpoint smaller without pruning anything: drop what inference does not need, cast, convert to safetensors.

`slim` reads the input tensor by tensor (see `reading`), writes a new file or folder, reads that back, compares every
kept tensor, and only then moves it into place. The input is never changed. What was saved is reported per cause, and
the causes add up exactly to the difference.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from .._text import nearest
from .checkpoint import Row, charge, rows_of
from .ldm_layout import VAE_PREFIX, ldm_vae_names
from .parts import KEPT
from .reading import open_file
from .slim_plan import CASTS, Kept, Plan, make_plan, take_ema
from .writing import check_room, file_bytes, in_place, write_safetensors

__all__ = ["SlimReport", "slim", "write_checked"]


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
        found = asdict(self) | {
            "source": str(self.source),
            "target": str(self.target),
            "names": list(self.names),
        }
        return found | {"times_smaller": self.times_smaller}

    def table(self) -> str:
        """Return the report as lines of text."""
        lines = [f"{'before':52s}{self.bytes_before:>16,} bytes  {self.source}"]
        lines += [f"  - {cause:48s}{saved:>16,}" for cause, saved in self.causes.items()]
        lines.append(f"{'after':52s}{self.bytes_after:>16,} bytes  {self.target}")
        lines.append(
            f"{self.times_smaller:.2f} times smaller; {self.kept} tensors kept, read back and compared"
        )
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
        from .slim_folder import slim_folder

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
        if target.resolve().is_relative_to(source.resolve()) or source.resolve().is_relative_to(
            target.resolve()
        ):
            raise ValueError(f"{target} and {source} lie inside each other. Choose a target elsewhere.")
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise FileExistsError(f"{target} is there already. Choose a folder that is not.")
    else:
        if target.suffix != ".safetensors":
            raise ValueError(f"{target} does not end in .safetensors, the only format that is written.")
        if target.exists() and not overwrite:
            raise FileExistsError(
                f"{target} is there already. Choose another name, or overwrite it (--overwrite)."
            )
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
    plan.causes["container: names, shapes, pickle"] += (
        opened.nbytes - sum(opened.storages.values()) - (after - tensors)
    )
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
    return SlimReport(
        source, target, before, after, causes, len(kept), params, dropped, flushed, names, notes
    )


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
