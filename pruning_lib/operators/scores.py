"""The score of LD-Pruner (arXiv 2404.11936), from the latents of the original and of a modified denoiser.

    score = || avg_orig - avg_mod ||_2  +  || std_orig - std_mod ||_2

Average and standard deviation run over the latents, the norms over the elements of one.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..checks import nearest, text_table
from ..denoisers import Fingerprint, denoiser_of
from ..files import check_place, load_tensors, plain, reading, save_tensors, write_whole
from .budget import choose
from .find import Operator, Operators
from .plan import Plan

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from ..capture import Call

Changes = tuple[tuple[str, str], ...]
_NUMBERS = ("avg_dist", "std_dist", "mse", "seconds")
_TENSORS = ("avg", "std", "latents")


@dataclass(frozen=True, eq=False)
class OperatorScore:
    """What was measured with some operators changed.

    Attributes:
        changes: (path, modification) pairs; empty for the original.
        avg, std: over the latents, float32, shape of one latent; None where not kept. The spread divides by n - 1.
        avg_dist, std_dist: norms of the differences to the original; infinite where a latent is not finite.
        mse: mean square of the differences between latents of the same seed, over latents and elements.
        seconds: that it took.
        latents: float32 `[n, ...]`, where they were kept.
    """

    changes: Changes
    avg: Tensor | None
    std: Tensor | None
    avg_dist: float
    std_dist: float
    mse: float
    seconds: float = 0.0
    latents: Tensor | None = None

    @property
    def score(self) -> float:
        """The paper's score."""
        return self.avg_dist + self.std_dist

    @property
    def is_finite(self) -> bool:
        """Whether the modified denoiser gave numbers at all."""
        return math.isfinite(self.mse)

    def _note(self) -> dict[str, object]:
        return {"changes": self.changes, **{name: getattr(self, name) for name in _NUMBERS}}

    @classmethod
    def _of_note(cls, note: Mapping, **tensors: Tensor | None) -> OperatorScore:
        changes = tuple((str(path), str(how)) for path, how in note["changes"])
        return cls(changes, **tensors, **{name: note[name] for name in _NUMBERS})


def latent_shift(
    latents: Tensor, original: Tensor, changes: Changes = (), *, seconds: float = 0.0, keep: bool = False
) -> OperatorScore:
    """Compare latents `[n, ...]`, n >= 2, of a modified denoiser with the original's of the same seeds.

    `changes` and `seconds` are noted; `keep` keeps the latents, too.  If one is not finite, the distances are infinite.
    """
    if latents.shape != original.shape or len(latents) < 2:
        raise ValueError(
            f"latents {list(latents.shape)} and original {list(original.shape)}; expected equal shapes [n, ...] with "
            "n >= 2: of fewer latents there is no standard deviation."
        )
    mine, theirs = latents.double(), original.double()  # sums of many squares
    avg, std = mine.mean(0), mine.std(0)
    distances = [math.inf] * 3
    if latents.isfinite().all():
        shifts = avg - theirs.mean(0), std - theirs.std(0)
        distances = [torch.linalg.vector_norm(shift).item() for shift in shifts]
        distances.append((mine - theirs).square().mean().item())
    return OperatorScore(changes, avg.float(), std.float(), *distances, seconds, latents if keep else None)


Formula = Callable[["OperatorScore", "OperatorScore"], float]
# Formula -> attribute of an `OperatorScore`. High: much depends on what was changed.
FORMULAS = {"paper": "score", "mean": "avg_dist", "std": "std_dist", "mse": "mse"}


@dataclass(frozen=True, eq=False)
class Scores:
    """What each operator of a denoiser is worth; `[path]` gives one operator's `OperatorScore`.

    Attributes:
        operators: in the order in which they run; the first modification of each is the one that was scored.
        scored, original: one `OperatorScore` for each operator, in the same order, and that of the unchanged denoiser.
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
        return self.scored[self.operators.paths.index(self.operators[path].path)]  # names the nearest if there is none

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
        """Return path -> score, in the order of `operators`, by a formula: one of `FORMULAS`, or a function.

        The function is given (original, modified), two `OperatorScore` with `avg` and `std`, and returns a number: high
        where much depends on the operator. Another name is a ValueError, and so is a function where no parts were kept.
        """
        if not callable(formula) and formula not in FORMULAS:
            raise ValueError(f"formula={formula!r} is unknown. {nearest(str(formula), FORMULAS)}")
        if callable(formula) and any(s.avg is None for s in (self.original, *self.scored)):
            raise ValueError("These scores hold no averages and standard deviations. Score the operators again.")

        def worth(modified: OperatorScore) -> float:
            return formula(self.original, modified) if callable(formula) else getattr(modified, FORMULAS[formula])

        pairs = zip(self.operators, self.scored, strict=True)
        return {op.path: worth(s) if s.is_finite else math.inf for op, s in pairs}

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
        call: Call | None = None,
        **budget,
    ) -> Plan:
        """Plan to change the operators of lowest score; never those whose score is infinite.

        `count` says how many, or one of `macs_ratio`, `params_ratio` and `latency_ratio` the share to remove; errors as
        in `choose`. `formula` is as in `values`; `pipe`, that was scored, is needed for a share of scores from a file,
        and if its family is not known, `call`, as `find_operators(pipe).call` is.
        """
        values = self.values(formula)
        ranking = [path for path in self.ranked(formula) if math.isfinite(values[path])]
        denoiser = self.denoiser if pipe is None else denoiser_of(pipe)[1]
        if denoiser is None and count is None:
            raise ValueError("These scores come from a file. Pass pipe=, the pipeline that was scored, to count on.")
        known, call = self.operators, call or self.operators.call
        return choose(ranking, Operators(known, known.base, known.refused, call), denoiser, count=count, **budget)

    def of(self, *kinds: str) -> Scores:
        """Return the scores of operators of these kinds."""
        chosen = self.operators.of(*kinds)
        return replace(self, operators=chosen, scored=tuple(self[path] for path in chosen.paths))

    def of_latents(self, which: Sequence[int]) -> Scores:
        """Return the scores that these latents alone, two or more, would have given; `keep_latents=True` keeps them."""
        rows, every = torch.as_tensor(list(which)), (self.original, *self.scored)
        if any(s.latents is None for s in every):
            raise ValueError("The latents were not kept. Score with keep_latents=True.")
        start = self.original.latents[rows]
        original, *scored = (latent_shift(s.latents[rows], start, s.changes, keep=True) for s in every)
        sampling = {**self.sampling, "num_latents": len(rows)}
        return replace(self, scored=tuple(scored), original=original, sampling=sampling)

    def table(self, formula: str | Formula = "paper", count: int | None = None) -> str:
        """Return one line per operator, lowest score first: path, kind, modification, score, its two parts, MACs."""
        values, rows = self.values(formula), []
        for path in self.ranked(formula)[:count]:
            op, scored = self.operators[path], self[path]
            numbers = [f"{number:.3f}" for number in (values[path], scored.avg_dist, scored.std_dist)]
            rows.append([path, op.kind, op.modifications[0], *numbers, f"{op.macs / 1e6:,.2f}"])
        return text_table(["operator", "kind", "done to it", "score", "avg", "std", "MMACs"], rows, left=3)

    def rows(self) -> list[dict[str, object]]:
        """Return one dict of plain values per operator, as records hold them; None stands for an infinite number."""
        found = []
        for op, scored in zip(self.operators, self.scored, strict=True):
            numbers = {name: getattr(scored, name) for name in ("score", *_NUMBERS)}
            finite = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
            found.append({**asdict(op), "how": op.modifications[0], **finite})
        return found

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file, with the averages and spreads and without the latents."""
        tensors, every = {}, (self.original, *self.scored)
        for name in ("avg", "std") if self.original.avg is not None else ():
            start = tensors[name] = getattr(self.original, name)
            # Differences are small, so half precision is enough for them.
            tensors[f"{name}_shift"] = torch.stack([getattr(s, name) - start for s in every]).half()
        data = {
            "base": self.operators.base.to_dict(),
            "operators": [asdict(op) for op in self.operators],
            "scored": [s._note() for s in every],
            "sampling": dict(self.sampling),
        }
        return save_tensors(path, "scores", 1, tensors, data)

    @classmethod
    def load(cls, path: str | Path) -> Scores:
        """Read what `save` wrote; OSError where there is no file, ValueError where it holds no scores."""
        tensors, note = load_tensors(path, "scores")
        with reading("scores", path):
            rows = [{k: tuple(v) if isinstance(v, list) else v for k, v in row.items()} for row in note["operators"]]
            operators, every = Operators([Operator(**row) for row in rows], Fingerprint(**note["base"])), []
            for i, row in enumerate(note["scored"]):
                kept = {n: tensors[n] + tensors[f"{n}_shift"][i].float() if tensors else None for n in ("avg", "std")}
                every.append(OperatorScore._of_note(row, **kept))
            return cls(operators, tuple(every[1:]), every[0], note["sampling"])


class ScoreCache:
    """A folder of finished scores, one small file for each, so that an interrupted run loses only the running one.

    `folder` is made when absent; None is a temporary one, which `close` removes. `settings` are JSON values that decide
    the scores: a folder with others is a ValueError.
    """

    def __init__(self, folder: str | Path | None, settings: Mapping[str, object]):
        self._own = folder is None
        self.folder = Path(tempfile.mkdtemp(prefix="operator-scores-") if folder is None else folder)
        mine, path = plain(settings), self.folder / "settings.json"
        check_place(path)
        if not path.is_file():
            with write_whole(path) as part:
                part.write_text(json.dumps(mine, indent=1) + "\n", "utf-8")
        saved = json.loads(path.read_text("utf-8"))
        wrong = [k for k in {**saved, **mine} if saved.get(k) != mine.get(k)]
        if wrong:
            told = [f"{k}: {json.dumps(saved.get(k))[:60]} there, {json.dumps(mine.get(k))[:60]} now" for k in wrong]
            what = f"{self.folder} holds scores of another model or other settings ({'; '.join(told)})"
            raise ValueError(f"{what}. Give another folder, or call as before to go on.")

    def load(self) -> dict[Changes, OperatorScore]:
        """Return what is finished: changes -> score. A file that is damaged counts as not there."""
        found = {}
        for path in sorted(self.folder.glob("*.safetensors")):
            try:
                tensors, note = load_tensors(path, "scored")
                with reading("scored", path):
                    scored = OperatorScore._of_note(note, **{name: tensors.get(name) for name in _TENSORS})
            except (OSError, ValueError):
                continue
            found[scored.changes] = scored
        return found

    def add(self, scored: OperatorScore) -> None:
        """Keep a score."""
        name = "original"
        if scored.changes:
            code = hashlib.sha256(json.dumps(scored.changes).encode()).hexdigest()[:12]
            name = f"{scored.changes[0][0][:100]}-{code}"
        kept = {key: tensor for key in _TENSORS if (tensor := getattr(scored, key)) is not None}
        save_tensors(self.folder / f"{name}.safetensors", "scored", 1, kept, scored._note())

    def close(self) -> None:
        """Remove the folder if it was a temporary one."""
        if self._own:
            shutil.rmtree(self.folder, ignore_errors=True)


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
