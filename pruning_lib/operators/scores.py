"""The scores of a denoiser's operators: a table, a ranking by any formula, and the plan that follows from it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from .._files import check_place
from .budget import choose
from .denoiser import Base, denoiser_of
from .distance import Formula, Scored, formula_of, measure
from .find import Operator, Operators
from .plan import Plan

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

__all__ = ["Scores"]

_VERSION = 1
_NUMBERS = ("avg_dist", "std_dist", "mse", "seconds", "skipped")


@dataclass(frozen=True, eq=False)
class Scores:
    """What each operator of a denoiser is worth; `[path]` gives one operator's `Scored`.

    Attributes:
        operators: in the order in which they run; the first modification of each is the one that was scored.
        scored: one for each operator, in the same order.
        original: average and standard deviation of the original's latents.
        sampling: the arguments that decide the latents, as `score_operators` takes them.
        denoiser: the model that was scored; None where the scores come from a file.
    """

    operators: Operators
    scored: tuple[Scored, ...]
    original: Scored
    sampling: Mapping[str, object]
    denoiser: nn.Module | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.scored)

    def __iter__(self) -> Iterator[Scored]:
        return iter(self.scored)

    def __getitem__(self, path: str) -> Scored:
        operator = self.operators[path]  # names the nearest where there is none
        return self.scored[self.operators.paths.index(operator.path)]

    def __repr__(self) -> str:
        told = ", ".join(f"{key}={self.sampling.get(key)}" for key in ("num_latents", "steps"))
        return f"<Scores of {len(self)} operators of a {self.operators.base}, {told}>"

    @property
    def seconds(self) -> float:
        """Time of all generations, the original's included."""
        return self.original.seconds + sum(scored.seconds for scored in self.scored)

    @property
    def broken(self) -> list[str]:
        """Paths of operators without which the denoiser gave infinities or NaN; their scores are infinite."""
        return [
            op.path for op, scored in zip(self.operators, self.scored, strict=True) if not scored.is_finite
        ]

    def values(self, formula: str | Formula = "paper") -> dict[str, float]:
        """Return path -> score, in the order of `operators`.

        Args:
            formula: "paper", "mean", "std" or "mse" (`FORMULAS`); or a function of (original, modified), two `Scored`
                with `avg` and `std`, that returns a number: high where much depends on the operator.

        Raises:
            ValueError: an unknown formula, or a function where the parts were not kept.
        """
        worth = formula_of(formula)
        if callable(formula) and any(s.avg is None for s in (self.original, *self.scored)):
            raise ValueError(
                "These scores were saved without the averages and standard deviations, so no other formula can be "
                "tried on them. Save with parts=True."
            )
        pairs = zip(self.operators, self.scored, strict=True)
        return {op.path: worth(self.original, s) if s.is_finite else math.inf for op, s in pairs}

    def ranked(self, formula: str | Formula = "paper") -> list[str]:
        """Return the paths, lowest score first; equal ones in the order in which they run."""
        values = self.values(formula)
        return sorted(values, key=values.__getitem__)

    def lowest(
        self, count: int | None = None, *, formula: str | Formula = "paper", pipe: DiffusionPipeline | None = None,
        **budget,
    ) -> Plan:  # fmt: skip
        """Plan to change the operators of lowest score.

        Args:
            count: how many; or one of `macs_ratio`, `params_ratio`, `latency_ratio`, the share to remove; see `choose`.
            formula: as in `values`.
            pipe: that was scored; needed for a share where the scores come from a file.

        Returns:
            The plan. Operators with an infinite score are never in it.

        Raises:
            ValueError: not exactly one budget, one that cannot be met, or no model to count on.
        """
        values = self.values(formula)
        ranking = [path for path in sorted(values, key=values.__getitem__) if math.isfinite(values[path])]
        denoiser = self.denoiser if pipe is None else denoiser_of(pipe)[1]
        if denoiser is None and count is None:
            raise ValueError(
                "These scores come from a file. Pass pipe=, the pipeline that was scored, to count on."
            )
        return choose(ranking, self.operators, denoiser, count=count, **budget)

    def of(self, *kinds: str) -> Scores:
        """Return the scores of operators of these kinds."""
        chosen = self.operators.of(*kinds)
        return replace(self, operators=chosen, scored=tuple(self[path] for path in chosen.paths))

    def of_latents(self, which: Sequence[int]) -> Scores:
        """Return the scores that these latents alone would have given.

        Args:
            which: numbers of latents, at least two.

        Raises:
            ValueError: the latents were not kept (`keep_latents=True`), or fewer than two were asked for.
        """
        rows = torch.as_tensor(list(which))
        if any(s.latents is None for s in (self.original, *self.scored)):
            raise ValueError("The latents were not kept. Score with keep_latents=True.")
        original = self.original.latents[rows]
        scored = tuple(
            replace(measure(s.latents[rows], original, s.changes, keep=True), skipped=s.skipped)
            for s in self.scored
        )
        sampling = {**self.sampling, "num_latents": len(rows)}
        return replace(
            self, scored=scored, original=measure(original, original, keep=True), sampling=sampling
        )

    def table(self, formula: str | Formula = "paper", count: int | None = None) -> str:
        """Return one line per operator, lowest score first: path, kind, modification, score, its two parts, MACs."""
        values = self.values(formula)
        head = f"{'operator':<52} {'kind':<17} {'done to it':<11} {'score':>8} {'avg':>8} {'std':>8} {'MMACs':>9}"
        lines = [head]
        for path in self.ranked(formula)[:count]:
            op, scored = self.operators[path], self[path]
            lines.append(
                f"{path:<52} {op.kind:<17} {op.modifications[0]:<11} {values[path]:>8.3f} {scored.avg_dist:>8.3f} "
                f"{scored.std_dist:>8.3f} {op.macs / 1e6:>9,.2f}{'  ' + scored.skipped if scored.skipped else ''}"
            )
        return "\n".join(lines)

    def rows(self) -> list[dict[str, object]]:
        """Return one dict of plain values per operator, as records hold them; None stands for an infinite number."""
        found = []
        for op, scored in zip(self.operators, self.scored, strict=True):
            numbers = {name: getattr(scored, name) for name in _NUMBERS}
            finite = {k: None if isinstance(v, float) and math.isinf(v) else v for k, v in numbers.items()}
            score = scored.avg_dist + scored.std_dist if scored.is_finite else None
            found.append({**asdict(op), "how": op.modifications[0], "score": score, **finite})
        return found

    def save(self, path: str | Path, *, parts: bool = True) -> Path:
        """Write the scores as one safetensors file; latents are left out.

        Args:
            path: ending in .safetensors.
            parts: also write averages and standard deviations; without them the file is small.

        Raises:
            ValueError: another ending.
            OSError: the file cannot be written.
        """
        path = Path(path)
        if path.suffix != ".safetensors":
            raise ValueError(f"{path} does not end in .safetensors.")
        check_place(path)
        tensors = {}
        every = (self.original, *self.scored)
        if parts and all(s.avg is not None for s in every):
            for name in ("avg", "std"):
                start = getattr(self.original, name)
                tensors[name] = start
                # Differences are small, so half precision is enough for them.
                tensors[f"{name}_shift"] = torch.stack([getattr(s, name) - start for s in every]).half()
        note = {
            "version": _VERSION,
            "base": self.operators.base.to_dict(),
            "operators": [asdict(op) for op in self.operators],
            "scored": [
                {"changes": s.changes, **{name: getattr(s, name) for name in _NUMBERS}} for s in every
            ],
            "sampling": dict(self.sampling),
        }
        save_file(tensors, path, {"scores": json.dumps(note)})
        path.chmod(0o644)  # safetensors makes private files
        return path

    @classmethod
    def load(cls, path: str | Path) -> Scores:
        """Read what `save` wrote.

        Raises:
            OSError: no such file.
            ValueError: it holds no scores, or of a newer version.
        """
        try:
            with safe_open(path, "pt") as file:
                note = json.loads((file.metadata() or {})["scores"])
                tensors = {name: file.get_tensor(name).float() for name in file.keys()}
            if note["version"] != _VERSION:
                raise ValueError(
                    f"{path} has version {note['version']}; this package reads {_VERSION}. Update it."
                )
            operators = [Operator(**{k: _tuple(v) for k, v in row.items()}) for row in note["operators"]]
            scored = []
            for i, row in enumerate(note["scored"]):
                changes = tuple((p, how) for p, how in row.pop("changes"))
                avg, std = (
                    tensors[n] + tensors[f"{n}_shift"][i] if tensors else None for n in ("avg", "std")
                )
                scored.append(Scored(changes, avg, std, **row))
        except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(
                f"{path} holds no scores: {error!r}. Expected what Scores.save wrote."
            ) from error
        found = Operators(operators, Base(**note["base"]))
        return cls(found, tuple(scored[1:]), scored[0], note["sampling"])


def _tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value
