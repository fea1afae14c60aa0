"""What `slim` will write, and where every byte goes that it does not write, decided before the first is written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from .checkpoint import Row, charge
from .parts import DROPPED, KEPT, PARTS, ema_name
from .writing import Planned

__all__ = ["CASTS", "CastError", "Kept", "Plan", "make_plan", "take_ema"]

CASTS = {
    "keep": None, "float16": torch.float16, "fp16": torch.float16, "bfloat16": torch.bfloat16, "bf16": torch.bfloat16,
    "float32": torch.float32, "fp32": torch.float32,
}  # fmt: skip
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
                piece = (
                    piece.float() if piece.dtype.itemsize == 1 else piece
                )  # 8-bit types can hardly be compared
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
        raise ValueError(
            "The file holds no EMA copy beside live weights. Leave weights at 'default' or 'live'."
        )
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
            causes[f"cast {str(row.entry.dtype)[6:]} to {str(dtype)[6:]}"] += (
                row.entry.nbytes - kept.planned.nbytes
            )
    for row, shape in swapped:
        kept = _kept(row, dtype)
        plan.kept.append(replace(kept, planned=kept.planned._replace(shape=shape)))
        causes["VAE exchanged"] -= kept.planned.nbytes
    _check(plan)
    return plan


def _kept(row: Row, dtype: torch.dtype | None) -> Kept:
    cast = (
        dtype is not None
        and row.entry.dtype.is_floating_point
        and row.part in KEPT
        and row.part != "schedule"
    )
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
