"""Train a pruner (DiP-GO, arXiv 2410.16942, Section 3.3): gates move, the denoiser stays.

One iteration draws a batch of prompts through the SuperNet, compares with the unpruned generation, and moves the logits
along the gradient of the gates.  Of the whole generation the optimiser sees T x N numbers; those are also all that
several processes have to exchange.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tqdm.auto import tqdm

from ..measure.denoiser import denoiser_of
from ..training.checkpoint import add_line, end_line, note_run, read_log, restore, save_checkpoint
from ..training.processes import Processes
from .budget import check_budget
from .collapse import PrunerCollapseError, collapse_message, shut_for
from .gating import Gating
from .gradient import loss_and_gradient
from .grid import Grid, grid_of
from .look import Look
from .supernet import SuperNet
from .train_config import PrunerConfig, config_of, lr_factor, within_reach
from .trained import TrainedPruner

if TYPE_CHECKING:
    from accelerate import Accelerator
    from diffusers import DiffusionPipeline

__all__ = ["train_pruner"]

_DIFFERS = "other prompts, another model, sampler or number of processes"


def train_pruner(
    pipe: DiffusionPipeline, prompts: Sequence, *, steps: int, grain: str | Grid = "layers", recipe: str = "best",
    guidance_scale: float | None = None, options: Mapping[str, object] | None = None, seed: int = 1000,
    folder: str | Path | None = None, callback: Callable[[Look], object] | None = None,
    accelerator: Accelerator | None = None, progress: bool = False, **settings,
) -> TrainedPruner:  # fmt: skip
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
        callback: called after every iteration, in the main process, with a `Look`: figures, and pictures on request.
        accelerator: of accelerate, to share a batch between processes; found by itself under `accelerate launch`.
            Gradients are averaged, so n processes with `batch` each take the step of one with n * `batch`.
        progress: show a bar with loss and share of MACs.
        settings: any field of `PrunerConfig`, in place of the recipe's: iterations, batch, accumulation, loss, alpha,
            keep_macs, optimizer, lr, temperature, leak, checkpointing, bf16 ...

    Returns:
        The trained scores; `.schedule(keep_macs=0.25)` makes a schedule of them.

    Raises:
        TypeError: not a pipeline, or an unknown setting.
        ValueError: no prompts, numbers out of range, a budget that the first call exceeds, a folder of another run, or
            a loss that is not finite.
        PrunerCollapseError: all gates shut and stayed so; the message explains it.
        MemoryError: out of memory, with what to lower.

    Example:
        >>> trained = train_pruner(pipe, ["lion", "pizza"], steps=20, guidance_scale=3)
        >>> schedule = trained.schedule(keep_macs=0.25)
    """
    processes = Processes.of(accelerator)
    denoiser_of(pipe)  # a pipeline it must be
    device = processes.device or pipe._execution_device
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 2:
        raise ValueError(
            f"steps={steps!r}; it must be a whole number >= 2: the first step is always computed."
        )
    config = config_of(recipe, steps, {**settings, "seed": seed, "device": str(device)})
    if callback is not None and not callable(callback):
        raise TypeError(
            f"callback is a {type(callback).__name__}; expected a function of one argument, a Look."
        )
    grid = grain if isinstance(grain, Grid) else grid_of(pipe, steps, grain)
    if grid.steps != steps:
        raise ValueError(f"The grid is for {grid.steps} steps, but steps={steps}.")
    net = SuperNet(
        pipe, grid, guidance_scale=guidance_scale, options=options, checkpointing=config.checkpointing
    )
    prompts = net.unroll.check(prompts)
    if config.keep_macs and "keep_macs" not in settings:
        config = within_reach(config, grid)
    for budget in config.keep_macs:
        check_budget(grid, budget)
    if processes.device:
        pipe.to(processes.device)
    note = {"prompts": prompts, "grid": grid.to_dict(), "call": net.unroll.call, "processes": processes.count}
    told = {**asdict(config), "recipe": recipe, "prompts": len(prompts), "processes": processes.count}

    def run(place: Path) -> TrainedPruner:
        gating = Gating(grid, config)
        history = _loop(net, gating, prompts, config, place, processes, callback, progress, folder)
        return TrainedPruner(grid, gating.tables(), config.keep_macs, history, told)

    if folder is None:
        with tempfile.TemporaryDirectory() as place:
            return run(Path(place))
    return run(note_run(Path(folder) / "pruner.json", note, _DIFFERS, processes))


def _loop(
    net: SuperNet, gating: Gating, prompts: list, config: PrunerConfig, place: Path, processes: Processes,
    callback: Callable | None, progress: bool, folder: object,
) -> list[dict[str, object]]:  # fmt: skip
    """Run what is missing of the iterations, and return the history."""
    kind = torch.optim.SGD if config.optimizer == "sgd" else torch.optim.AdamW
    optimizer = kind(gating.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    done, seconds = restore(place, gating, optimizer, None, config)
    processes.check_same(done, "the iteration they go on from")
    # No weights are shared: all processes begin from the same seed, or from the same checkpoint.
    history = [line for line in read_log(place) if line["step"] <= done] if done else []
    if processes.is_main:
        end_line(place)
    started = time.time() - seconds
    bar = tqdm(
        total=config.iterations, initial=done, desc="pruner", disable=not (progress and processes.is_main)
    )
    with net, bar:
        for iteration in range(done, config.iterations):
            for group in optimizer.param_groups:
                group["lr"] = config.lr * lr_factor(iteration, config)
            open_ = gating.open(iteration)
            value, gradient = _gradient(net, open_.gates, prompts, config, iteration, processes)
            if not torch.isfinite(torch.tensor(value)) or not torch.isfinite(gradient).all():
                raise ValueError(
                    f"The loss became {value} at iteration {iteration + 1}. Turn bf16 off, or lower lr ({config.lr})."
                )
            optimizer.zero_grad(set_to_none=True)
            sparsity = gating.backward(open_, gradient)
            optimizer.step()
            gating.keep_table(iteration)
            line = {
                "step": iteration + 1, "seconds": round(time.time() - started, 2), "loss": value,
                "sparsity": sparsity, **open_.figures, "lr": optimizer.param_groups[0]["lr"],
            }  # fmt: skip
            history.append(line)
            if processes.is_main:
                add_line(place, line)  # first, because a repeated line does no harm and a missing one does
                save_checkpoint(place, gating, optimizer, None, config, iteration + 1, time.time() - started)
            bar.update()
            bar.set_postfix(loss=f"{value:.4f}", macs=f"{line['macs_ratio']:.2f}")
            if callback and processes.is_main:
                callback(Look(iteration + 1, line, net.grid.schedule(open_.on), net))
            if config.on_collapse == "raise" and shut_for(history) >= config.patience:
                told = {"lr": config.lr, "alpha": config.alpha, "folder": folder}
                raise PrunerCollapseError(collapse_message(history, **told))
    return history


def _gradient(
    net: SuperNet,
    gates: torch.Tensor,
    prompts: list,
    config: PrunerConfig,
    iteration: int,
    processes: Processes,
) -> tuple[float, torch.Tensor]:
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
