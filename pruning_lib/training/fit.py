"""One resumable training loop for every model.

Each step draws its batch from a generator seeded by (seed, step), so a run that was interrupted and resumed sees the
same data as one that never stopped.  Checkpoints are written to a temporary name and moved into place, so a crash
while writing costs nothing.  The learning rate warms up, stays constant and decays over the last part of the run
("warm-up, stable, decay"): a run can be made longer later without having decayed too early.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from tqdm.auto import tqdm

from .checkpoint import add_line, end_line, read_checkpoint, read_log, restore, save_checkpoint
from .fit_config import FitConfig, lr_factor
from .processes import Processes

__all__ = ["FitConfig", "fit", "lr_factor", "read_checkpoint", "read_log"]

Loss = Callable[[torch.Generator], "tuple[Tensor, dict[str, float]]"]
AfterStep = Callable[[], object]
Validate = Callable[[int], "dict[str, object]"]


def fit(
    model: nn.Module, loss: Loss, config: FitConfig, folder: str | Path, name: str = "train", *,
    after_step: AfterStep | None = None, validate: Validate | None = None, progress: bool = True,
    processes: Processes | None = None,
) -> nn.Module:  # fmt: skip
    """Train `model` in place, or go on from the checkpoint in `folder`, and return it with averaged weights.

    Args:
        model: what the optimiser updates.
        loss: takes a generator on the CPU, draws a batch with it, returns a scalar loss and figures for the log.
        config: see `FitConfig`. On resuming only `steps`, `decay`, the device and the intervals may differ.
        folder: holds `checkpoint.pt` and `log.jsonl`; made when absent.
        name: label of the progress bar.
        after_step: called after each step of the optimiser, before the weights enter their average: the place to
            hold zeros at zero.
        validate: called with the number of steps done, while the model holds its averaged weights and is in
            evaluation mode; what it returns goes into the log.
        progress: False for no bar.
        processes: those that share the run; default: this one alone. Every one calls this, with a folder that all can
            read; each computes the loss of its own share, and the gradients are averaged. The main one gives the
            others its weights to start from, and it alone validates and writes.

    Raises:
        ValueError: the checkpoint belongs to another configuration, the processes go on from different steps, or
            the loss became NaN.
        KeyboardInterrupt: passed on, after a checkpoint was written.
    """
    folder, processes = Path(folder), processes or Processes()
    folder.mkdir(parents=True, exist_ok=True)
    model.to(config.device).train()
    processes.share_weights(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    ema = (
        EMAModel(model.parameters(), decay=config.ema, use_ema_warmup=True, power=0.75)
        if config.ema
        else None
    )
    step, seconds = restore(folder, model, optimizer, ema, config)
    processes.check_same(step, "the step they go on from")
    if processes.is_main:
        end_line(folder)
    started, stop, halt = time.time() - seconds, [], False
    bar = tqdm(total=config.steps, initial=step, desc=name, disable=not (progress and processes.is_main))

    def note(line: dict) -> None:
        if processes.is_main:
            add_line(folder, {"step": step, "seconds": round(time.time() - started, 1), **line})

    def asked() -> bool:
        return bool(validate and config.validate_every and step % config.validate_every == 0)

    def validation() -> dict[str, object]:
        if not (asked() and processes.is_main):
            return {}
        return _with_average(model, ema, lambda: validate(step))

    if step == 0 and (figures := validation()):
        note(figures)
    with _on_interrupt(lambda: stop.append(True)), bar:
        while step < config.steps and not halt:
            for group in optimizer.param_groups:
                group["lr"] = config.lr * lr_factor(step, config)
            generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
            kind = torch.device(config.device).type
            with torch.autocast(kind, torch.bfloat16, enabled=config.bf16):
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
            halt = processes.any(stop)
            if asked() or step % config.log_every == 0 or step == config.steps:
                note({"loss": shown.item(), **processes.mean_figures(figures), **validation()})
                bar.set_postfix(loss=f"{shown.item():.4f}")
            due = step % config.checkpoint_every == 0 or step == config.steps or halt
            if due and processes.is_main:
                save_checkpoint(folder, model, optimizer, ema, config, step, time.time() - started)
    if halt:
        raise KeyboardInterrupt(f"Stopped at step {step}; run the same command to go on from there.")
    if ema:
        ema.copy_to(model.parameters())
    return model.eval()


def _with_average(
    model: nn.Module, ema: EMAModel | None, call: Callable[[], dict[str, object]]
) -> dict[str, object]:
    if ema:
        ema.store(model.parameters())
        ema.copy_to(model.parameters())
    model.eval()
    try:
        return call()
    finally:
        model.train()
        if ema:
            ema.restore(model.parameters())


class _on_interrupt:
    """Let Ctrl-C and SIGTERM finish the running step, so that it can be saved."""

    def __init__(self, call: Callable[[], None]) -> None:
        self.call, self.old = call, {}

    def __enter__(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self.old[number] = signal.signal(number, lambda *_: self.call())
            except ValueError:  # not the main thread: leave signals alone
                break

    def __exit__(self, *_) -> None:
        for number, handler in self.old.items():
            signal.signal(number, handler)
