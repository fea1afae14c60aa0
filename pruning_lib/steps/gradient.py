"""First-order scores: how the loss would change if a gate moved a little, for all T x N gates in one backward pass.

At an open gate, minus the gradient says what shutting it would cost; at a shut one, what opening it would gain.  Both
only to first order, and with all other gates as they are: a unit behind a shut gate seems worthless.  `leak` helps:
shut gates then let a little of the new value through, and what lies behind them is seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..measure.denoiser import denoiser_of
from .grid import Grid
from .losses import check_loss, consistency
from .memory import explains_out_of_memory
from .supernet import SuperNet

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

__all__ = ["gate_gradients", "loss_and_gradient"]

# Half precision rounds small gradients to 0, so the loss is multiplied before the backward pass (Micikevicius et al.
# 2018, Section 3.2), unless that makes them too large.
_SCALES = (1024.0, 1.0)


def gate_gradients(
    pipe: DiffusionPipeline, grid: Grid, on: object, prompts: Sequence, *, seeds: Sequence[int] | None = None,
    loss: str = "latent", leak: float = 0.0, batch: int = 4, guidance_scale: float | None = None,
    options: Mapping[str, object] | None = None, checkpointing: bool = True, bf16: bool = False,
) -> Tensor:  # fmt: skip
    """Return d loss / d gate at a schedule, averaged over prompts.

    Args:
        pipe: a diffusers pipeline; left as it was.
        grid: of its calls and units.
        on: bool `[T, N]`, the schedule.
        prompts: n texts or numbers of classes.
        seeds: n seeds of the noise. Default: 1000, 1001, ...
        loss: one of `losses.LOSSES`, against the unpruned generation.
        leak: what a shut gate lets through, in [0, 1).
        batch: prompts at a time, >= 1.
        guidance_scale, options: of the pipeline's call.
        checkpointing: as in `SuperNet`.
        bf16: run under bfloat16 autocast.

    Returns:
        float32 `[T, N]` on the CPU; row 0 is 0. Negative: an open gate helps, or a shut one would.

    Raises:
        ValueError: a table that does not fit the grid, no prompts, other numbers out of range, an unknown loss.
        MemoryError: out of memory, with what to do.

    Example:
        >>> grid = grid_of(pipe, 10)
        >>> worth = -gate_gradients(pipe, grid, grid.full().on, ["lion"], guidance_scale=3)
    """
    on = grid.check(on)
    check_loss(loss)
    if not isinstance(leak, (int, float)) or not 0 <= leak < 1:
        raise ValueError(f"leak={leak!r}; it is what a shut gate lets through, in [0, 1).")
    if not isinstance(batch, int) or isinstance(batch, bool) or batch < 1:
        raise ValueError(f"batch={batch!r}; it must be a whole number >= 1.")
    net = SuperNet(pipe, grid, guidance_scale=guidance_scale, options=options, checkpointing=checkpointing)
    prompts = net.unroll.check(prompts)
    seeds = net.unroll.seeds(prompts, seeds)
    gates = torch.where(on, 1.0, float(leak))
    total = torch.zeros(grid.shape)
    with net:
        for start in range(0, len(prompts), batch):
            part = prompts[start : start + batch], seeds[start : start + batch]
            total += loss_and_gradient(net, gates, *part, loss=loss, bf16=bf16)[1] * len(part[0])
    return total / len(prompts)


def loss_and_gradient(
    net: SuperNet, gates: Tensor, prompts: Sequence, seeds: Sequence[int], *, loss: str, bf16: bool = False,
    wanted: Tensor | None = None,
) -> tuple[float, Tensor]:  # fmt: skip
    """Return the mean consistency loss of a batch, and its gradient.

    Args:
        net: inside its `with` block.
        gates: float `[T, N]`.
        prompts, seeds: of the batch.
        loss: one of `losses.LOSSES`.
        bf16: run under bfloat16 autocast.
        wanted: the unpruned latents, if they are known.

    Returns:
        The loss, and float32 `[T, N]` on the CPU.

    Raises:
        MemoryError: out of memory, with what to do.
    """
    gates = gates.detach().clone().requires_grad_(True)
    denoiser = denoiser_of(net.pipe)[1]
    for scale in _SCALES if denoiser.dtype == torch.float16 else (1.0,):
        gates.grad = None
        with explains_out_of_memory(len(prompts), net.checkpointing, bf16), torch.enable_grad():
            # The denoiser's own device is where its weights wait if they are offloaded.
            with torch.autocast(net.pipe._execution_device.type, torch.bfloat16, enabled=bf16):
                wanted = net.reference(prompts, seeds) if wanted is None else wanted
                value = consistency(loss, net, net.latents(gates, prompts, seeds), wanted).mean()
            (scale * value).backward()
        found = torch.zeros_like(gates) if gates.grad is None else gates.grad / scale
        if found.isfinite().all():
            break
    return value.item(), found.float().cpu()
