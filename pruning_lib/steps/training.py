"""Train a pruner (DiP-GO, arXiv 2410.16942, Section 3.3): gates move, the denoiser stays.

One iteration draws a batch of prompts through the SuperNet, compares with the unpruned generation, and moves the logits
along the gradient of the gates: T x N numbers, all that several processes have to exchange, and all that is left.
"""

from __future__ import annotations

import itertools
import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers import DiffusionPipeline
from torch import Tensor
from tqdm.auto import tqdm

from ..checks import check_whole
from ..denoisers import denoiser_of
from ..files import load_tensors, reading, save_tensors
from ..finetuning.folder import add_line, end_line, note_run, read_log, restore, save_checkpoint
from ..processes import Processes
from .budget import check_budget, whole_calls, within_budget
from .gates import GatePruner, PrunerConfig, config_of
from .schedule import Grid, Schedule, grid_of
from .supernet import SuperNet, loss_and_gradient


@dataclass(frozen=True)
class TrainingStep:
    """One iteration of `train_pruner`, as a callback sees it."""

    iteration: int  # from 1
    figures: dict[str, object]  # as in `TrainedPruner.history`
    schedule: Schedule  # the open gates
    net: SuperNet  # that is trained

    @torch.no_grad()
    def pictures(self, prompts: Sequence) -> Tensor:
        """Draw with the current gates, hard, and seeds 0, 1, ...: float32 `[n, 3, h, w]` in [0, 1] on the CPU."""
        latents = self.net.latents(self.schedule.on.float(), prompts, list(range(len(prompts))))
        return self.net.pictures(latents).float().cpu()


@dataclass(frozen=True, eq=False)
class TrainedPruner:
    """Scores of all cells, in [0, 1]: the higher, the more a cell is worth computing; and how they came about.

    A line of the history, one for each iteration, holds "step" (from 1), "seconds", "loss", "sparsity", "macs_ratio",
    "open" (share of open gates behind the first call), "budget", "rows" (the gates, as texts of 0 and 1), "collapsed".
    """

    grid: Grid
    tables: Tensor  # float64 `[K, T, N]`, one for each budget; or one, the probabilities to keep, without a budget
    budgets: tuple[float, ...]  # the K shares of MACs that it was trained for
    history: list[dict[str, object]]
    settings: dict[str, object]  # of the run, as in `PrunerConfig`, with "recipe" and "prompts", how many there were

    @property
    def scores(self) -> Tensor:
        """The last table, float64 `[T, N]`."""
        return self.tables[-1]

    def scores_for(self, keep_macs: float) -> Tensor:
        """Return the table that was trained for the budget nearest to `keep_macs`, float64 `[T, N]`."""
        ratios = [abs(math.log(budget / keep_macs)) for budget in self.budgets]
        return self.tables[ratios.index(min(ratios))] if ratios else self.scores

    def schedule(self, keep_macs: float) -> Schedule:
        """Return the schedule of the highest scores within a share of the MACs in (0, 1], at least the first call's."""
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
        guidance_scale, options: of the pipeline's call.
        seed: of the noise, of the order of prompts and of the network.
        folder: keeps every iteration; the same call goes on from there, to the same result. Default: nothing is kept.
        callback: called after every iteration, in the main process, with a `TrainingStep`.
        accelerator: of accelerate, to share a batch between processes; found by itself under `accelerate launch`.
            Gradients are averaged, so n processes with `batch` each take the step of one with n * `batch`.
        progress: show a bar with loss and share of MACs.
        settings: any field of `PrunerConfig`, in place of the recipe's.

    Raises:
        TypeError, ValueError: what does not fit, before any work; or a loss that is not finite.
        PrunerCollapseError, MemoryError: all gates shut and stayed so; out of memory. The message says what to change.

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
    call = {**(options or {}), **({} if guidance_scale is None else {"guidance_scale": guidance_scale})}
    grid = grid_of(pipe, steps, grain, options=call)
    net = SuperNet(pipe, grid, guidance_scale=guidance_scale, options=options, checkpointing=config.checkpointing)
    prompts = net.unroll.check(prompts)
    if config.keep_macs and "keep_macs" not in settings:  # those that the first call leaves room for
        least = grid.macs_ratio(whole_calls(grid, [0]))
        reached = tuple(budget for budget in config.keep_macs if budget > least * 1.05)
        config = replace(config, keep_macs=reached or ((1 + least) / 2,))
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
    tables = gating.kept_tables.clone()
    tables[:, 0] = 1.0  # the first call, which is always computed
    return TrainedPruner(grid, tables, config.keep_macs, history, told)


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
            optimizer.param_groups[0]["lr"] = config.rate(iteration)
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
            line = {"step": iteration + 1, "seconds": round(time.time() - started, 2), "loss": value}
            line |= {"sparsity": None if sparsity is None else sparsity.item(), **figures}
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
    total, loss = torch.zeros_like(gates, device="cpu"), 0.0
    for part in range(config.accumulation):
        first = ((iteration * config.accumulation + part) * processes.count + processes.rank) * config.batch
        chosen = [_prompt(first + i, len(prompts), config.seed) for i in range(config.batch)]
        seeds = [config.seed + (0 if config.same_noise else i) for i in chosen]
        texts = [prompts[i] for i in chosen]
        value, gradient = loss_and_gradient(net, gates, texts, seeds, loss=config.loss, bf16=config.bf16)
        total += gradient / config.accumulation
        loss += value / config.accumulation
    return processes.mean_figures({"loss": loss})["loss"], processes.mean(total.to(config.device)).cpu()


def _prompt(position: int, count: int, seed: int) -> int:
    """Return which prompt stands at a position of an endless list: all of them, in another order each time."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + position // count)
    return torch.randperm(count, generator=generator)[position % count].item()


class PrunerCollapseError(RuntimeError):
    """Training has shut all gates, within a few iterations, and does not open them again."""


def _check_not_collapsed(history: Sequence[dict[str, object]], config: PrunerConfig) -> None:
    # Iterations, up to the last one, with nothing but the first call left:
    shut = len(list(itertools.takewhile(lambda line: line["collapsed"], reversed(history))))
    if shut < config.patience:
        return
    before = ", ".join(f"{line['macs_ratio']:.2f}" for line in history[-shut - 4 : len(history) - shut + 1])
    alpha, lr = config.alpha, config.lr
    raise PrunerCollapseError(
        f"The pruner has collapsed: since iteration {history[-shut]['step']} all gates behind the first call are shut. "
        f"The kept share of MACs went {before}. While all are open only the sparsity loss (alpha={alpha:g}) pulls, on "
        "all alike; behind shut gates there is no gradient. Use recipe='best', whose gates keep to a budget; or a "
        f"lower lr (now {lr:g}, try {lr / 10:g}); or a lower alpha (try {alpha / 10:g}); or leak=0.25. Pass "
        "on_collapse='go on' to watch it; a run with a folder keeps what was trained so far."
    )
