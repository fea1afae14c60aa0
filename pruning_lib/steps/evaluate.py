"""How good is a schedule?  Its generations beside the unpruned ones on a few prompts, and a count of what that cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from ..checks import check_whole
from ..files import load_json, plain, reading, save_json
from ..processes import is_out_of_memory
from ..sampling import Unroll
from .budget import check_budget
from .replay import hold_of
from .schedule import Grid, Schedule, encode_table
from .supernet import check_loss, consistency

WORTH_COST = 4  # a backward pass with checkpointing: forward, forward again, and backward, which is two of them


class Known:
    """What was found out about tables: in memory and, given a folder, in its file `search.json`."""

    def __init__(self, folder: str | Path | None = None, about: Mapping[str, object] | None = None):
        self.path = Path(folder) / "search.json" if folder else None
        self.found: dict[str, dict[str, list | None]] = {"losses": {}, "gradients": {}}
        self.about = plain(about)
        if self.path and self.path.exists():
            told = load_json(self.path, "search")
            with reading("search", self.path):
                differs = [name for name in self.about if told["about"][name] != self.about[name]]
                self.found = {kind: dict(told[kind]) for kind in self.found}
            if differs:
                raise ValueError(f"{folder} holds a search with other {', '.join(differs)}. Choose another folder.")
        self._save()

    def _save(self) -> None:
        if self.path:
            save_json(self.path, "search", 1, {"about": self.about, **self.found})

    @property
    def evaluations(self) -> int:
        """How many are known, gradients counted as a search is charged for them."""
        return len(self.found["losses"]) + WORTH_COST * len(self.found["gradients"])

    def find(self, kind: str, on: Tensor, ask: Callable[[], Tensor | None]) -> Tensor | None:
        """Return what is known of this kind about a table, or ask, and keep the answer."""
        cells, found = "".join(encode_table(on)), self.found[kind]
        if cells not in found:
            answer = ask()
            found[cells] = None if answer is None else answer.tolist()
            self._save()
        return None if found[cells] is None else torch.tensor(found[cells])


class Evaluator:
    """Judges schedules: their generations beside the unpruned ones, from the same noise.

    Args:
        pipe, prompts, grid, seeds, loss, batch, sampling: as in `gate_gradients`; the pipeline is left as it was.
        hold: what skipped calls answer, whatever a schedule says, one of `replay.HOLDS`.

    Attributes:
        images: drawn by schedules so far; one that was asked for before costs nothing, and neither do the unpruned.

    Example:
        >>> evaluator = Evaluator(pipe, ["lion", "pizza"], grid_of(pipe, 20), guidance_scale=3)
        >>> evaluator(uniform(evaluator.grid, 0.5)), evaluator.images
    """

    def __init__(
        self,
        pipe: DiffusionPipeline,
        prompts: Sequence,
        grid: Grid,
        *,
        seeds: Sequence[int] | None = None,
        loss: str = "latent",
        hold: str = "value",
        batch: int = 32,
        **sampling: object,
    ):
        hold_of(hold, pipe.scheduler)  # refuses what this scheduler cannot do
        self.pipe, self.grid, self.hold = pipe, grid, hold
        self.loss, self.batch = check_loss(loss), check_whole("batch", batch, 1)
        self.unroll = Unroll(pipe, steps=grid.steps, **sampling)
        self.prompts = self.unroll.check(prompts)
        self.seeds = self.unroll.seeds(self.prompts, seeds)
        self.images, self.known, self._asked = 0, Known(), set()

    def __call__(self, schedule: Schedule) -> float:
        """Return the loss of a schedule, the mean over prompts; 0 for what equals the unpruned generation."""
        if schedule.grid != self.grid:
            difference = schedule.grid.difference(self.grid)
            raise ValueError(f"The schedule is of another grid than the evaluator: {difference}.")
        live = schedule.live()
        losses = self.known.find("losses", live, lambda: self._judge(schedule))
        key = live.numpy().tobytes()
        if key not in self._asked:
            self._asked.add(key)
            self.images += len(self.prompts)
        return losses.mean().item()

    @cached_property
    def wanted(self) -> Tensor:
        """The unpruned latents, `[n, ...]`; drawn when first asked for."""
        return self._draw()

    @torch.no_grad()
    def _draw(self) -> Tensor:
        parts = [slice(i, i + self.batch) for i in range(0, len(self.prompts), self.batch)]
        try:
            return torch.cat([self.unroll.latents(self.prompts[part], self.seeds[part]) for part in parts])
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise MemoryError(
                f"Out of memory with batch={self.batch}. Try batch={max(1, self.batch // 2)}, half precision, an "
                "offloaded pipeline, or a smaller picture."
            ) from error

    @torch.no_grad()
    def _judge(self, schedule: Schedule) -> Tensor:
        wanted = self.wanted
        with schedule.holding(self.hold).applied(self.pipe):
            drawn = self._draw()
        batch = len(drawn) if self.loss == "latent" else self.batch  # pictures are large
        pairs = zip(drawn.split(batch), wanted.split(batch), strict=True)
        return torch.cat([consistency(self.loss, self.unroll, *pair).cpu() for pair in pairs])


class BudgetExhausted(Exception):
    """A search has used up its images."""


class SearchBudget:
    """Asks an evaluator on behalf of a search: within a share of the MACs, and with a limited number of images."""

    def __init__(self, grid: Grid, keep_macs: float, evaluator: Evaluator, images: int):
        self.grid, self.keep_macs, self.evaluator = grid, keep_macs, evaluator
        self.allowed = check_budget(grid, keep_macs)
        if check_whole("images", images, 1) < len(evaluator.prompts):
            raise ValueError(f"images={images}; a single schedule draws {len(evaluator.prompts)}, one for each prompt.")
        self.images, self._before, self._charged = images, evaluator.images, 0
        self.best, self.loss = None, float("inf")  # the table with the lowest loss so far
        self.trace: list[list[float]] = []  # [images drawn, lowest loss] whenever it fell

    @property
    def spent(self) -> int:
        """Images drawn so far, with what was charged besides."""
        return self.evaluator.images - self._before + self._charged

    def charge(self, images: int) -> None:
        """Count other work, such as a backward pass, as so many images; BudgetExhausted if that is too many."""
        if self.spent + images > self.images:
            raise BudgetExhausted
        self._charged += images

    def fits(self, on: Tensor) -> bool:
        """Say whether a table stays within the budget."""
        return self.grid.macs_of(on) <= self.allowed

    def ask(self, on: Tensor) -> float:
        """Return the loss of a table within the budget; BudgetExhausted without images left to find out."""
        if not self.fits(on):
            raise ValueError("A search asked for a schedule over its budget.")
        if self.spent + len(self.evaluator.prompts) > self.images:
            raise BudgetExhausted
        loss = self.evaluator(self.grid.schedule(on))
        if loss < self.loss:
            self.best, self.loss = self.grid.live(on), loss
            self.trace.append([self.spent, loss])
        return loss

    def schedule(self, method: str, seed: int, **more: object) -> Schedule:
        """Return the best schedule, with its provenance."""
        if self.best is None:
            raise ValueError("No picture could be compared: the latents hold numbers that are not finite.")
        told = {"keep_macs": self.keep_macs, "images": self.spent, "seed": seed, "loss": self.loss, "trace": self.trace}
        return self.grid.schedule(self.best, hold=self.evaluator.hold, method=method, **told, **more)
