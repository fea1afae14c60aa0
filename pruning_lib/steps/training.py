"""Train a pruner (DiP-GO, arXiv 2410.16942, Section 3.3): gates move, the denoiser stays.

One iteration draws a batch of prompts through the SuperNet, compares with the unpruned generation, and moves the logits
along the gradient of the gates.  Of the whole generation the optimiser sees T x N numbers; those are also all that
several processes have to exchange, and all that is left behind: from them schedules of any budget are made.

The trap: all gates shut within a few iterations, and none opens again.  While everything is computed the consistency
loss is 0 and flat, so only the sparsity loss pulls; gates that share a network reach one half at the same time and shut
at once; and what lies behind a shut gate is not seen, so almost nothing has a gradient any more.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..checks import check_whole
from ..denoisers import denoiser_of
from ..files import load_tensors, reading, save_tensors
from ..finetuning.loop import add_line, end_line, note_run, read_log, restore, save_checkpoint
from ..processes import Processes
from .budget import check_budget, within_budget
from .config import PrunerConfig, config_of, lr_factor, within_reach
from .gates import GatePruner
from .schedule import Grid, Schedule, grid_of
from .supernet import SuperNet, loss_and_gradient

if TYPE_CHECKING:
    from accelerate import Accelerator
    from diffusers import DiffusionPipeline


@dataclass(frozen=True)
class TrainingStep:
    """One iteration of `train_pruner`, as a callback sees it.

    Example:
        >>> def show(look):
        ...     print(look.iteration, look.figures["loss"], look.pictures(["lion"]).shape)
    """

    iteration: int  # from 1
    figures: dict[str, object]  # as in `TrainedPruner.history`
    schedule: Schedule  # the open gates
    net: SuperNet  # that is trained

    @torch.no_grad()
    def pictures(self, prompts: Sequence, seeds: Sequence[int] | None = None) -> Tensor:
        """Draw with the current gates, hard, float32 `[n, 3, h, w]` in [0, 1] on the CPU: costs one generation.

        The seeds are 0, 1, ... unless others are given.
        """
        seeds = list(range(len(prompts)) if seeds is None else seeds)
        return self.net.pictures(self.net.latents(self.schedule.on.float(), prompts, seeds)).float().cpu()


@dataclass(frozen=True, eq=False)
class TrainedPruner:
    """Scores of all cells, and how they came about.

    Attributes:
        grid: what the rows and columns are.
        tables: float64 `[K, T, N]`, one table of scores per budget trained for, in [0, 1]; the higher, the more a cell
            is worth computing. For gates of kind "probability" one table, the probabilities to keep.
        budgets: the K budgets; empty if it was trained for none.
        history: one dict per iteration: "step" (from 1), "seconds", "loss", "sparsity", "macs_ratio", "open" (share of
            open gates behind the first call), "budget", "rows" (the gates, as texts of 0 and 1), "collapsed".
        settings: of the run, as in `PrunerConfig`, with "recipe" and "prompts", how many there were.

    Example:
        >>> trained = pl.train_pruner(pipe, ["lion", "pizza"], steps=20, guidance_scale=3)
        >>> with trained.schedule(keep_macs=0.25).applied(pipe):
        ...     image = pipe("lion", num_inference_steps=20, guidance_scale=3).images[0]
    """

    grid: Grid
    tables: Tensor
    budgets: tuple[float, ...]
    history: list[dict[str, object]]
    settings: dict[str, object]

    @property
    def scores(self) -> Tensor:
        """The last table, float64 `[T, N]`."""
        return self.tables[-1]

    def scores_for(self, keep_macs: float) -> Tensor:
        """Return the table that was trained for the budget nearest to `keep_macs`, float64 `[T, N]`."""
        if not self.budgets:
            return self.scores
        ratios = [abs(math.log(budget / keep_macs)) for budget in self.budgets]
        return self.tables[ratios.index(min(ratios))]

    def schedule(self, keep_macs: float) -> Schedule:
        """Return the schedule that opens the cells of the highest scores, as many as a share of the MACs allows.

        The share lies in (0, 1] and is no less than the first call takes.
        """
        check_budget(self.grid, keep_macs)
        on = within_budget(self.scores_for(keep_macs), self.grid, keep_macs)
        told = {name: self.settings.get(name) for name in ("recipe", "seed", "iterations", "loss", "prompts")}
        return self.grid.schedule(on, method="DiP-GO", keep_macs=float(keep_macs), **told)

    def save(self, path: str | Path) -> Path:
        """Write everything to a .safetensors file."""
        told = {"grid": self.grid.to_dict(), "budgets": self.budgets}
        told |= {"history": self.history, "settings": self.settings}
        return save_tensors(path, "pruner", 1, {"tables": self.tables}, told)

    @classmethod
    def load(cls, path: str | Path) -> TrainedPruner:
        """Read what `save` wrote; another or a damaged file is a ValueError."""
        tensors, told = load_tensors(path, "pruner")
        with reading("pruner", path):
            grid, tables = Grid.from_dict(told["grid"]), tensors["tables"]
            budgets = tuple(map(float, told["budgets"]))
            if tuple(tables.shape) != (max(1, len(budgets)), *grid.shape) or not torch.isfinite(tables).all():
                raise ValueError(f"scores of shape {tuple(tables.shape)} for a grid of {grid.shape}")
            return cls(grid, tables, budgets, list(told["history"]), dict(told["settings"]))

    def __repr__(self) -> str:
        (calls, units), recipe = self.grid.shape, self.settings.get("recipe")
        return f"<TrainedPruner: {calls} calls x {units} units, recipe {recipe!r}, {len(self.history)} iterations>"


def train_pruner(
    pipe: DiffusionPipeline,
    prompts: Sequence,
    *,
    steps: int,
    grain: str | Grid = "layers",
    recipe: str = "best",
    guidance_scale: float | None = None,
    options: Mapping[str, object] | None = None,
    seed: int = 1000,
    folder: str | Path | None = None,
    callback: Callable[[TrainingStep], object] | None = None,
    accelerator: Accelerator | None = None,
    progress: bool = False,
    **settings,
) -> TrainedPruner:
    """Learn which units are worth computing at which step.

    Two recipes. "best" is ours: gates that keep to a budget, one gradient per MAC, shut gates that leak. "published"
    is the paper's and its authors' code: a network with attention, straight-through arg-max, SSIM of decoded pictures
    plus MACs with cascades, SGD at 0.1 (0.2 with two accumulated batches), the sparsity loss switched off below 0.2 of
    the MACs, always the same noise; theirs run 500 iterations at 50 steps.

    Args:
        pipe: a diffusers pipeline; left as it was.
        prompts: texts, or numbers of classes; each epoch in another order.
        steps: `num_inference_steps`, >= 2.
        grain: of the units; or a `Grid` of these steps.
        recipe: "best" or "published".
        guidance_scale, options: of the pipeline's call.
        seed: of the noise, of the order of prompts and of the network.
        folder: keeps every iteration; the same call goes on from there, to the same result. Default: nothing is kept.
        callback: called after every iteration, in the main process, with a `TrainingStep`.
        accelerator: of accelerate, to share a batch between processes; found by itself under `accelerate launch`.
            Gradients are averaged, so n processes with `batch` each take the step of one with n * `batch`.
        progress: show a bar with loss and share of MACs.
        settings: any field of `PrunerConfig`, in place of the recipe's: iterations, batch, accumulation, loss, alpha,
            keep_macs, optimizer, lr, temperature, leak, checkpointing, bf16 ...

    Raises:
        TypeError, ValueError: what does not fit, before any work; or a loss that is not finite.
        PrunerCollapseError: all gates shut and stayed so; the message explains it.
        MemoryError: out of memory, with what to lower.

    Example:
        >>> schedule = train_pruner(pipe, ["lion", "pizza"], steps=20, guidance_scale=3).schedule(keep_macs=0.25)
    """
    denoiser_of(pipe)  # a pipeline it must be
    processes = Processes.of(accelerator)
    device = processes.device or pipe._execution_device
    check_whole("steps", steps, 2)  # the first step is always computed
    config = config_of(recipe, steps, {**settings, "seed": seed, "device": str(device)})
    if callback is not None and not callable(callback):
        raise TypeError(f"callback is a {type(callback).__name__}; expected a function of a TrainingStep.")
    grid = grid_of(pipe, steps, grain)
    net = SuperNet(pipe, grid, guidance_scale=guidance_scale, options=options, checkpointing=config.checkpointing)
    prompts = net.unroll.check(prompts)
    if config.keep_macs and "keep_macs" not in settings:
        config = within_reach(config, grid)
    for budget in config.keep_macs:
        check_budget(grid, budget)
    if processes.device:
        pipe.to(processes.device)
    told = {**asdict(config), "recipe": recipe, "prompts": len(prompts), "processes": processes.count}
    gating = GatePruner(grid, config)
    with tempfile.TemporaryDirectory() as place:
        if folder is not None:
            note = {"prompts": prompts, "grid": grid.to_dict(), "call": net.unroll.call, "processes": processes.count}
            differs = "other prompts, another model, sampler or number of processes"
            place = note_run(Path(folder) / "pruner.json", note, differs, processes)
        history = _run(net, gating, prompts, Path(place), processes, callback, progress)
    return TrainedPruner(grid, gating.tables(), config.keep_macs, history, told)


def _run(
    net: SuperNet,
    gating: GatePruner,
    prompts: list,
    place: Path,
    processes: Processes,
    callback: Callable[[TrainingStep], object] | None,
    progress: bool,
) -> list[dict[str, object]]:
    """Run what is missing of the iterations, and return the history."""
    config, main = gating.config, processes.is_main
    kind = torch.optim.SGD if config.optimizer == "sgd" else torch.optim.AdamW
    optimizer = kind(gating.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    done, seconds = restore(place, gating, optimizer, None, config)
    processes.check_same(done, "the iteration they go on from")
    # No weights are shared: all processes begin from the same seed, or from the same checkpoint.
    history = [line for line in read_log(place) if line["step"] <= done] if done else []
    if main:
        end_line(place)
    started = time.time() - seconds
    bar = tqdm(total=config.iterations, initial=done, desc="pruner", disable=not (progress and main))
    with net, bar:
        for iteration in range(done, config.iterations):
            for group in optimizer.param_groups:
                group["lr"] = config.lr * lr_factor(iteration, config)
            gates, on, sparsity, figures = gating.open(iteration)
            value, gradient = _gradient(net, gates, prompts, config, iteration, processes)
            if not math.isfinite(value) or not gradient.isfinite().all():
                raise ValueError(
                    f"The loss became {value} at iteration {iteration + 1}. Turn bf16 off, or lower lr ({config.lr})."
                )
            optimizer.zero_grad(set_to_none=True)
            gating.backward(gates, gradient, sparsity)
            optimizer.step()
            gating.keep_table(iteration)
            line = {"step": iteration + 1, "seconds": round(time.time() - started, 2)}
            line |= {"loss": value, "sparsity": None if sparsity is None else sparsity.item(), **figures}
            line["lr"] = optimizer.param_groups[0]["lr"]
            history.append(line)
            if main:
                add_line(place, line)  # first, because a repeated line does no harm and a missing one does
                save_checkpoint(place, gating, optimizer, None, config, iteration + 1, time.time() - started)
            bar.update()
            bar.set_postfix(loss=f"{value:.4f}", macs=f"{line['macs_ratio']:.2f}")
            if callback and main:
                callback(TrainingStep(iteration + 1, line, net.grid.schedule(on), net))
            if config.on_collapse == "raise":
                _check_not_collapsed(history, config)
    return history


def _gradient(
    net: SuperNet, gates: Tensor, prompts: list, config: PrunerConfig, iteration: int, processes: Processes
) -> tuple[float, Tensor]:
    """Return the consistency loss and its gradient, averaged over batches and processes."""
    gates = gates.detach().to(config.device)
    total, losses = torch.zeros_like(gates, device="cpu"), []
    for part in range(config.accumulation):
        first = ((iteration * config.accumulation + part) * processes.count + processes.rank) * config.batch
        chosen = [_prompt(first + i, len(prompts), config.seed) for i in range(config.batch)]
        seeds = [config.seed + (0 if config.same_noise else i) for i in chosen]
        texts = [prompts[i] for i in chosen]
        value, gradient = loss_and_gradient(net, gates, texts, seeds, loss=config.loss, bf16=config.bf16)
        total += gradient / config.accumulation
        losses.append(value / config.accumulation)
    mean = processes.mean_figures({"loss": sum(losses)})["loss"]
    return mean, processes.mean(total.to(config.device)).cpu()


def _prompt(position: int, count: int, seed: int) -> int:
    """Return which prompt stands at a position of an endless list: all of them, in another order each time."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + position // count)
    return torch.randperm(count, generator=generator)[position % count].item()


class PrunerCollapseError(RuntimeError):
    """Training has shut all gates and does not open them again."""


def _check_not_collapsed(history: Sequence[dict[str, object]], config: PrunerConfig) -> None:
    shut = 0  # iterations, up to the last one, with nothing but the first call left
    while shut < len(history) and history[-1 - shut]["collapsed"]:
        shut += 1
    if shut < config.patience:
        return
    before = ", ".join(f"{line['macs_ratio']:.2f}" for line in history[-shut - 4 : len(history) - shut + 1])
    alpha, lr = config.alpha, config.lr
    raise PrunerCollapseError(
        f"The pruner has collapsed: since iteration {history[-shut]['step']} all gates behind the first call are shut. "
        f"The kept share of MACs went {before}. While all gates are open the consistency loss is 0 and only the "
        f"sparsity loss (alpha={alpha:g}) pulls, on all of them alike, until they shut together; behind shut gates "
        "there is no gradient to open them again. Use recipe='best', whose gates keep to a budget; or a lower lr (now "
        f"{lr:g}, try {lr / 10:g}); or a lower alpha (try {alpha / 10:g}); or leak=0.25. Pass on_collapse='go on' to "
        "watch it; a run with a folder keeps what was trained so far."
    )
