"""The score of LD-Pruner (arXiv 2404.11936), from the latents of the original and of a modified denoiser.

    score = || avg_orig - avg_mod ||_2  +  || std_orig - std_mod ||_2

Average and standard deviation are taken over the generated latents, one number per element of a latent; the norm runs
over all elements.  The parts are kept, so that other formulas can be tried without generating again.

A folder of finished scores: one small file for each, so that an interrupted run loses nothing but the running one.

Each file is written under another name and moved into place.  `settings.json` says what the scores belong to, and a
run with other settings, or another model, is refused.

The scores of a denoiser's operators: a table, a ranking by any formula, and the plan that follows from it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..checks import nearest
from ..denoisers import Fingerprint, denoiser_of
from ..files import check_place
from .budget import choose
from .find import Operator, Operators
from .plan import Plan

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

__all__ = ["FORMULAS", "Formula", "ScoreCache", "OperatorScore", "Scores", "checksum", "measure"]

Change = tuple[str, str]


@dataclass(frozen=True, eq=False)
class OperatorScore:
    """What was measured with some operators changed.

    Attributes:
        changes: (path, modification) pairs; empty for the original.
        avg, std: over the latents, float32, shape of one latent; None where they were not kept. The standard deviation
            divides by n - 1.
        avg_dist, std_dist: norms of the differences to the original, in units of the latents; infinite where a latent
            is not finite.
        mse: mean square of the differences between latents of the same seed, over latents and elements.
        seconds: that it took.
        skipped: why nothing had to be generated; else "".
        latents: float32 `[n, ...]`, where they were kept.
    """

    changes: tuple[Change, ...]
    avg: Tensor | None
    std: Tensor | None
    avg_dist: float
    std_dist: float
    mse: float
    seconds: float = 0.0
    skipped: str = ""
    latents: Tensor | None = None

    @property
    def is_finite(self) -> bool:
        """Whether the modified denoiser gave numbers at all."""
        return math.isfinite(self.mse)


Formula = Callable[[OperatorScore, OperatorScore], float]
# name -> worth of a change, from the original and the modified one. High: much depends on what was changed.
FORMULAS: dict[str, Formula] = {
    "paper": lambda original, modified: modified.avg_dist + modified.std_dist,
    "mean": lambda original, modified: modified.avg_dist,
    "std": lambda original, modified: modified.std_dist,
    "mse": lambda original, modified: modified.mse,
}


def measure(
    latents: Tensor, original: Tensor, changes: tuple[Change, ...] = (), *, seconds: float = 0.0, keep: bool = False
) -> OperatorScore:
    """Compare the latents of a modified denoiser with the original's, seed by seed.

    Args:
        latents, original: `[n, ...]`, n >= 2, the same seeds in the same order.
        changes: what was modified.
        seconds: that it took to generate them.
        keep: keep the latents too.

    Returns:
        The parts of the score; infinite distances where a latent is infinite or not a number.

    Raises:
        ValueError: other shapes, or fewer than two latents.
    """
    if latents.shape != original.shape or len(latents) < 2:
        raise ValueError(
            f"latents {list(latents.shape)} and original {list(original.shape)}; expected equal shapes [n, ...] with "
            "n >= 2: of fewer latents there is no standard deviation."
        )
    mine, theirs = latents.double(), original.double()  # sums of many squares
    avg, std = mine.mean(0), mine.std(0)
    kept = {"avg": avg.float(), "std": std.float(), "seconds": seconds, "latents": latents if keep else None}
    if not latents.isfinite().all():
        return OperatorScore(changes, avg_dist=math.inf, std_dist=math.inf, mse=math.inf, **kept)
    return OperatorScore(
        changes,
        avg_dist=torch.linalg.vector_norm(avg - theirs.mean(0)).item(),
        std_dist=torch.linalg.vector_norm(std - theirs.std(0)).item(),
        mse=(mine - theirs).square().mean().item(),
        **kept,
    )


def formula_of(formula: str | Formula) -> Formula:
    """Return the function of that name, or the function itself.

    Raises:
        ValueError: an unknown name.
    """
    if callable(formula):
        return formula
    if formula not in FORMULAS:
        raise ValueError(
            f"formula={formula!r} is unknown. {nearest(str(formula), FORMULAS)} Or give a function of (original, "
            "modified), both with avg and std, that returns a number."
        )
    return FORMULAS[formula]


_NUMBERS = ("avg_dist", "std_dist", "mse", "seconds")
_TENSORS = ("avg", "std", "latents")


class ScoreCache:
    """Finished scores of one setting, in a folder.

    Args:
        folder: made when absent. Default: a temporary one, which `close` removes.
        settings: JSON values that decide the scores.

    Raises:
        OSError: the folder cannot be written.
        ValueError: it holds scores of other settings.
    """

    def __init__(self, folder: str | Path | None, settings: Mapping[str, object]):
        self._own = folder is None
        self.folder = Path(tempfile.mkdtemp(prefix="operator-scores-") if folder is None else folder)
        mine = json.loads(json.dumps(settings, default=str))
        path = self.folder / "settings.json"
        check_place(path)
        if path.is_file():
            _check_settings(json.loads(path.read_text("utf-8")), mine, path)
        else:
            _write(path, lambda part: part.write_text(json.dumps(mine, indent=1) + "\n", encoding="utf-8"))

    def load(self) -> dict[tuple[Change, ...], OperatorScore]:
        """Return what is finished: changes -> score. A file that is damaged counts as not there."""
        found = {}
        for path in sorted(self.folder.glob("*.safetensors")):
            try:
                scored = read_scored(path)
            except (SafetensorError, OSError, ValueError, KeyError, TypeError):
                continue
            found[scored.changes] = scored
        return found

    def add(self, scored: OperatorScore) -> None:
        """Keep a score."""
        _write(self.folder / _name(scored.changes), lambda part: write_scored(part, scored))

    def close(self) -> None:
        """Remove the folder if it was a temporary one."""
        if self._own:
            shutil.rmtree(self.folder, ignore_errors=True)


def write_scored(path: Path, scored: OperatorScore) -> None:
    """Write a score as safetensors: tensors, and the numbers beside them."""
    tensors = {name: getattr(scored, name) for name in _TENSORS if getattr(scored, name) is not None}
    note = {name: getattr(scored, name) for name in _NUMBERS}
    note |= {"changes": scored.changes, "skipped": scored.skipped}
    save_file({k: v.contiguous() for k, v in tensors.items()}, path, {"scored": json.dumps(note)})


def read_scored(path: Path) -> OperatorScore:
    """Read what `write_scored` wrote."""
    with safe_open(path, "pt") as file:
        note = json.loads(file.metadata()["scored"])
        tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}
    changes = tuple((str(p), str(how)) for p, how in note.pop("changes"))
    return OperatorScore(changes, **{name: tensors.get(name) for name in _TENSORS}, **note)


def checksum(module: nn.Module) -> str:
    """Return a hash of all weights of a module, the same on every device; of their shapes only, where they are absent.

    Bits are added up as whole numbers, which no order of summation changes.
    """
    text = hashlib.sha256()
    for name, weight in module.state_dict().items():
        text.update(f"{name} {tuple(weight.shape)} {weight.dtype} ".encode())
        if not weight.is_meta:
            whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[weight.element_size()]
            bits = weight.detach().contiguous().view(-1).view(whole)
            # Halves are told apart, so that two weights that change places are noticed in most cases.
            sums = [part.sum(dtype=torch.int64) for part in (bits, bits[::2], bits[::7])]
            text.update(str([s.item() for s in sums]).encode())
    return text.hexdigest()[:16]


def _name(changes: tuple[Change, ...]) -> str:
    if not changes:
        return "original.safetensors"
    code = hashlib.sha256(json.dumps(changes).encode()).hexdigest()[:12]
    return f"{changes[0][0][:100]}-{code}.safetensors"


def _write(path: Path, write) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _check_settings(saved: dict, mine: dict, path: Path) -> None:
    wrong = {k: (saved.get(k), mine.get(k)) for k in {**saved, **mine} if saved.get(k) != mine.get(k)}
    if wrong:
        told = "; ".join(f"{k}: {_short(a)} there, {_short(b)} now" for k, (a, b) in wrong.items())
        raise ValueError(
            f"{path.parent} holds scores of another model or other settings ({told}). Give another folder, or call as "
            "before to go on."
        )


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


_VERSION = 1
_NUMBERS_scores = ("avg_dist", "std_dist", "mse", "seconds", "skipped")


@dataclass(frozen=True, eq=False)
class Scores:
    """What each operator of a denoiser is worth; `[path]` gives one operator's `OperatorScore`.

    Attributes:
        operators: in the order in which they run; the first modification of each is the one that was scored.
        scored: one for each operator, in the same order.
        original: average and standard deviation of the original's latents.
        sampling: the arguments that decide the latents, as `score_operators` takes them.
        denoiser: the model that was scored; None where the scores come from a file.
    """

    operators: Operators
    scored: tuple[OperatorScore, ...]
    original: OperatorScore
    sampling: Mapping[str, object]
    denoiser: nn.Module | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.scored)

    def __iter__(self) -> Iterator[OperatorScore]:
        return iter(self.scored)

    def __getitem__(self, path: str) -> OperatorScore:
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
        return [op.path for op, scored in zip(self.operators, self.scored, strict=True) if not scored.is_finite]

    def values(self, formula: str | Formula = "paper") -> dict[str, float]:
        """Return path -> score, in the order of `operators`.

        Args:
            formula: "paper", "mean", "std" or "mse" (`FORMULAS`); or a function of (original, modified), two `OperatorScore`
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
        self,
        count: int | None = None,
        *,
        formula: str | Formula = "paper",
        pipe: DiffusionPipeline | None = None,
        **budget,
    ) -> Plan:
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
            raise ValueError("These scores come from a file. Pass pipe=, the pipeline that was scored, to count on.")
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
            replace(measure(s.latents[rows], original, s.changes, keep=True), skipped=s.skipped) for s in self.scored
        )
        sampling = {**self.sampling, "num_latents": len(rows)}
        return replace(self, scored=scored, original=measure(original, original, keep=True), sampling=sampling)

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
            numbers = {name: getattr(scored, name) for name in _NUMBERS_scores}
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
            "scored": [{"changes": s.changes, **{name: getattr(s, name) for name in _NUMBERS_scores}} for s in every],
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
                raise ValueError(f"{path} has version {note['version']}; this package reads {_VERSION}. Update it.")
            operators = [Operator(**{k: _tuple(v) for k, v in row.items()}) for row in note["operators"]]
            scored = []
            for i, row in enumerate(note["scored"]):
                changes = tuple((p, how) for p, how in row.pop("changes"))
                avg, std = (tensors[n] + tensors[f"{n}_shift"][i] if tensors else None for n in ("avg", "std"))
                scored.append(OperatorScore(changes, avg, std, **row))
        except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} holds no scores: {error!r}. Expected what Scores.save wrote.") from error
        found = Operators(operators, Fingerprint(**note["base"]))
        return cls(found, tuple(scored[1:]), scored[0], note["sampling"])


def _tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value
