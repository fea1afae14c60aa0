"""One resumable training loop for every model.

Each step draws its batch from a generator seeded by (seed, step), so a resumed run sees the same data as one that never
stopped.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..checks import check_device, check_number, check_whole
from ..processes import Processes
from .folder import add_line, end_line, restore, save_checkpoint

Loss = Callable[[torch.Generator], "tuple[Tensor, dict[str, float]]"]
AfterStep = Callable[[], object]
Validate = Callable[[int], "dict[str, object]"]


@dataclass(frozen=True)
class FitConfig:
    """How to train.

    Attributes:
        steps: optimiser steps in all, > 0. May grow when a run is resumed.
        lr: peak learning rate of AdamW.
        warmup: steps of linear warm-up.
        decay: share of `steps` at the end over which the rate falls to zero, in [0, 1].
        weight_decay: of AdamW.
        ema: decay of the moving average of the weights; 0 turns it off.
        clip: largest norm of the gradient.
        seed: of data order, noise and initialisation.
        device: where to train, for example "cpu" or "cuda".
        bf16: run the forward pass under bfloat16 autocast.
        checkpoint_every: steps between checkpoints; an interruption loses at most these.
        log_every: steps between lines of the log.
        validate_every: steps between validations, the first before training; 0 for none.
    """

    steps: int
    lr: float = 1e-3
    warmup: int = 100
    decay: float = 0.3
    weight_decay: float = 0.01
    ema: float = 0.999
    clip: float = 1.0
    seed: int = 0
    device: str = "cpu"
    bf16: bool = False
    checkpoint_every: int = 200
    log_every: int = 20
    validate_every: int = 0

    def __post_init__(self) -> None:
        check_device(self.device)
        for name in ("steps", "checkpoint_every", "log_every"):
            check_whole(name, getattr(self, name), 1)
        check_number("lr", self.lr, "(0, inf)")
        check_number("decay", self.decay, "[0, 1]")


def lr_factor(step: int, config: FitConfig) -> float:
    """Return what the peak rate is multiplied by at `step`, from 0: warm-up, stable, decay."""
    up = min(1.0, (step + 1) / max(1, config.warmup))
    down = (config.steps - step) / max(1.0, config.decay * config.steps)
    return up * min(1.0, down)


def fit(
    model: nn.Module,
    loss: Loss,
    config: FitConfig,
    folder: str | Path,
    name: str = "train",
    *,
    after_step: AfterStep | None = None,
    validate: Validate | None = None,
    progress: bool = True,
    processes: Processes | None = None,
) -> nn.Module:
    """Train `model` in place, or go on from the checkpoint in `folder`, and return it with averaged weights.

    Args:
        model: what the optimiser updates.
        loss: takes a generator on the CPU, draws a batch with it, returns a scalar loss and figures for the log.
        config: see `FitConfig`. On resuming only `steps`, `decay`, the device and the intervals may differ.
        folder: holds `checkpoint.pt` and `log.jsonl`; made when absent.
        name: label of the progress bar.
        after_step: called after each step of the optimiser, before the weights enter their average: the place to
            hold zeros at zero.
        validate: called with the number of steps done, while the model holds its averaged weights in evaluation mode;
            what it returns goes into the log.
        progress: False for no bar.
        processes: those that share the run; default: this one alone. Every one calls this, with a folder that all can
            read, and with the loss of its own share. The main one alone validates and writes.

    Raises:
        ValueError: a checkpoint that is damaged or of another configuration, or a loss that became NaN.
        KeyboardInterrupt: passed on, after a checkpoint was written.
    """
    folder, processes = Path(folder), processes or Processes()
    folder.mkdir(parents=True, exist_ok=True)
    model.to(config.device).train()
    processes.share_weights(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    ema = EMAModel(model.parameters(), decay=config.ema, use_ema_warmup=True, power=0.75) if config.ema else None
    step, seconds = restore(folder, model, optimizer, ema, config)
    processes.check_same(step, "the step they go on from")
    if processes.is_main:
        end_line(folder)
    started, halt = time.time() - seconds, False

    def is_due(every: int) -> bool:
        return bool(every) and step % every == 0

    def note(figures: dict) -> None:
        """Validate where that is due, and write a line of the log."""
        if validate and is_due(config.validate_every):
            with _averaged(model, ema):
                figures = {**figures, **validate(step)}
        if figures:
            add_line(folder, {"step": step, "seconds": round(time.time() - started, 1), **figures})

    if step == 0 and processes.is_main:
        note({})
    bar = tqdm(total=config.steps, initial=step, desc=name, disable=not (progress and processes.is_main))
    with _interrupts() as interrupts, bar:
        while step < config.steps and not halt:
            for group in optimizer.param_groups:
                group["lr"] = config.lr * lr_factor(step, config)
            generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
            with torch.autocast(torch.device(config.device).type, torch.bfloat16, enabled=config.bf16):
                value, figures = loss(generator)
            shown = processes.mean(value)
            if not torch.isfinite(shown):
                raise ValueError(f"The loss became {shown.item()} at step {step}. Lower lr ({config.lr}).")
            value.backward()
            processes.average_gradients(model)
            nn.utils.clip_grad_norm_(model.parameters(), config.clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if after_step:
                after_step()
            if ema:
                ema.step(model.parameters())
            step += 1
            bar.update()
            halt, last = processes.any(interrupts), step == config.steps
            if last or is_due(config.log_every) or (validate and is_due(config.validate_every)):
                figures = {"loss": shown.item(), **processes.mean_figures(figures)}
                if processes.is_main:
                    note(figures)
                bar.set_postfix(loss=f"{shown.item():.4f}")
            if processes.is_main and (last or halt or is_due(config.checkpoint_every)):
                save_checkpoint(folder, model, optimizer, ema, config, step, time.time() - started)
    if halt:
        raise KeyboardInterrupt(f"Stopped at step {step}; run the same command to go on from there.")
    if ema:
        ema.copy_to(model.parameters())
    return model.eval()


@contextmanager
def _averaged(model: nn.Module, ema: EMAModel | None) -> Iterator[None]:
    """Let the model hold its averaged weights, in evaluation mode."""
    if ema:
        ema.store(model.parameters())
        ema.copy_to(model.parameters())
    model.eval()
    try:
        yield
    finally:
        model.train()
        if ema:
            ema.restore(model.parameters())


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Collect Ctrl-C and SIGTERM, so that the running step can be finished and saved."""
    seen: list[int] = []
    handlers = {}
    with suppress(ValueError):  # not the main thread: leave signals alone
        for number in (signal.SIGINT, signal.SIGTERM):
            handlers[number] = signal.signal(number, lambda number, _: seen.append(number))
    try:
        yield seen
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
