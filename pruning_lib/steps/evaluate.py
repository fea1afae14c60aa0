"""How good is a schedule?  Its generations beside the unpruned ones on a few prompts, and a count of what that cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .budget import check_budget
from .grid import Grid
from .losses import check_loss, picture_loss
from .reuse import REUSES, reusing
from .schedule import Schedule
from .unroll import Unroll

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

__all__ = ["Evaluator", "Spent", "Tally"]


class Evaluator:
    """Compares the generations of schedules with the unpruned ones.

    Args:
        pipe: a diffusers pipeline; left as it was.
        prompts: n texts or numbers of classes.
        grid: of the schedules.
        seeds: n seeds of the noise. Default: 1000, 1001, ...
        loss: one of `losses.LOSSES`; "latent" needs no decoding.
        reuse: what skipped calls hold on to, see `reuse.REUSES`.
        guidance_scale, options: of the pipeline's call.
        batch: prompts at a time, >= 1.

    Attributes:
        images: images drawn by schedules so far; a schedule that was asked for before costs nothing, and the n
            unpruned ones are not counted.

    Raises:
        ValueError: prompts, loss or reuse that do not fit.

    Example:
        >>> evaluator = Evaluator(pipe, ["lion", "pizza"], grid_of(pipe, 20), guidance_scale=3)
        >>> evaluator(uniform(evaluator.grid, 0.5)), evaluator.images
    """

    def __init__(
        self, pipe: DiffusionPipeline, prompts: Sequence, grid: Grid, *, seeds: Sequence[int] | None = None,
        loss: str = "latent", reuse: str = "output", guidance_scale: float | None = None,
        options: Mapping[str, object] | None = None, batch: int = 32,
    ):  # fmt: skip
        self.pipe, self.grid, self.loss, self.batch = pipe, grid, check_loss(loss), batch
        if reuse not in REUSES:
            raise ValueError(f"reuse={reuse!r}; allowed: {', '.join(map(repr, REUSES))}.")
        if not isinstance(batch, int) or isinstance(batch, bool) or batch < 1:
            raise ValueError(f"batch={batch!r}; it must be a whole number >= 1.")
        self.reuse = reuse
        self.unroll = Unroll(pipe, steps=grid.steps, guidance_scale=guidance_scale, options=options)
        self.prompts = self.unroll.check(prompts)
        self.seeds = self.unroll.seeds(self.prompts, seeds)
        self.images = 0
        self._known: dict[bytes, Tensor] = {}
        self._wanted: Tensor | None = None

    def __call__(self, schedule: Schedule) -> float:
        """Return the mean loss of a schedule, 0 for what equals the unpruned generation."""
        return self.per_prompt(schedule).mean().item()

    def per_prompt(self, schedule: Schedule) -> Tensor:
        """Return the loss of each prompt, `[n]`.

        Raises:
            ValueError: a schedule of another grid.
        """
        if schedule.grid != self.grid:
            raise ValueError(
                f"The schedule is of another grid than the evaluator: {schedule.grid.difference(self.grid)}."
            )
        key = schedule.live().numpy().tobytes()
        if key not in self._known:
            if self._wanted is None:
                self._wanted = self._drawn()
            with reusing(schedule, self.reuse).applied(self.pipe):
                drawn = self._drawn()
            self.images += len(self.prompts)
            self._known[key] = self._compare(drawn)
        return self._known[key]

    @torch.no_grad()
    def _drawn(self) -> Tensor:
        parts = range(0, len(self.prompts), self.batch)
        latents = [
            self.unroll.latents(self.prompts[i : i + self.batch], self.seeds[i : i + self.batch])
            for i in parts
        ]
        return torch.cat(latents)

    @torch.no_grad()
    def _compare(self, drawn: Tensor) -> Tensor:
        if self.loss == "latent":
            return (drawn.float() - self._wanted.float()).square().flatten(1).mean(1).cpu()
        pictures = self.unroll.pictures
        pairs = zip(drawn.split(self.batch), self._wanted.split(self.batch), strict=True)
        return torch.cat([picture_loss(self.loss, pictures(a), pictures(b)).cpu() for a, b in pairs])


class Spent(Exception):
    """A search has used up its images."""


class Tally:
    """Asks an evaluator on behalf of a search: within a budget of MACs, and with a limited number of images.

    Args:
        grid, keep_macs: of the schedules.
        evaluator: asked for losses.
        images: that may be drawn, at least those of one schedule.

    Attributes:
        best: the table with the lowest loss so far, and `loss`, its loss.
        trace: [images drawn, lowest loss] whenever it fell.

    Raises:
        ValueError: too few images for a single schedule, or a budget below the first call.
    """

    def __init__(self, grid: Grid, keep_macs: float, evaluator: Evaluator, images: int):
        self.grid, self.keep_macs, self.evaluator = grid, keep_macs, evaluator
        self.allowed = check_budget(grid, keep_macs)
        if not isinstance(images, int) or isinstance(images, bool) or images < len(evaluator.prompts):
            raise ValueError(
                f"images={images!r}; a single schedule draws {len(evaluator.prompts)} images, one for each prompt."
            )
        self.images, self._before, self.extra = images, evaluator.images, 0
        self.best, self.loss = None, float("inf")
        self.trace: list[list[float]] = []

    @property
    def spent(self) -> int:
        """Images drawn so far, with what was charged besides."""
        return self.evaluator.images - self._before + self.extra

    def charge(self, images: int) -> None:
        """Count work that is not a schedule's images, such as a backward pass, as so many images.

        Raises:
            Spent: it is more than what is left.
        """
        if self.spent + images > self.images:
            raise Spent
        self.extra += images

    def fits(self, on: Tensor) -> bool:
        """Say whether a table stays within the budget."""
        return self.grid.macs_of(on) <= self.allowed

    def ask(self, on: Tensor) -> float:
        """Return the loss of a table.

        Raises:
            Spent: there are no images left to find out.
            ValueError: a table over the budget.
        """
        if not self.fits(on):
            raise ValueError("A search asked for a schedule over its budget.")
        if self.spent + len(self.evaluator.prompts) > self.images:
            raise Spent
        loss = self.evaluator(self.grid.schedule(on))
        if loss < self.loss:
            self.best, self.loss = self.grid.live(on), loss
            self.trace.append([self.spent, loss])
        return loss

    def schedule(self, method: str, seed: int, **more: object) -> Schedule:
        """Return the best schedule, with its provenance."""
        return self.grid.schedule(
            self.best, method=method, keep_macs=self.keep_macs, reuse=self.evaluator.reuse, images=self.spent,
            seed=seed, loss=self.loss, trace=self.trace, **more,
        )  # fmt: skip
