"""Out of memory, in words that help.

The SuperNet of DiP-GO (arXiv 2410.16942, Section 3.2): a whole generation, with a gate in front of every unit.

    value[t, i] = g[t, i] * new[t, i] + (1 - g[t, i]) * value[t - 1, i]

A unit is computed at every step, and its gate mixes what is new with what it had at the step before.  At g = 1 this is
the unpruned model, at g = 0 the unit is reused.  The values are handed from call to call as arguments, never hidden in
modules, so a call can be checkpointed as a whole: then memory holds the activations of one call, plus the values that
pass from call to call, whatever the number of steps (Chen et al. 2016).

First-order scores: how the loss would change if a gate moved a little, for all T x N gates in one backward pass.

At an open gate, minus the gradient says what shutting it would cost; at a shut one, what opening it would gain.  Both
only to first order, and with all other gates as they are: a unit behind a shut gate seems worthless.  `leak` helps:
shut gates then let a little of the new value through, and what lies behind them is seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..denoisers import denoiser_of
from ..sampling import Unroll
from .hooks import Control, attach
from .losses import check_loss, consistency
from .schedule import Grid, grid_of
from .units import list_units, structure_of

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

__all__ = ["SoftGates", "SuperNet", "explains_out_of_memory", "gate_gradients", "loss_and_gradient"]

# What PyTorch says when memory is short on a CPU; on a GPU it raises its own kind of error.
_SIGNS = ("can't allocate memory", "not enough memory", "out of memory")


@contextmanager
def explains_out_of_memory(batch: int, checkpointing: bool, bf16: bool) -> Iterator[None]:
    """Turn running out of memory into a MemoryError that says what to lower.

    Args:
        batch: prompts that were run together.
        checkpointing: whether a call's activations were computed again instead of kept.
        bf16: whether half precision was used.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        short = isinstance(error, (torch.OutOfMemoryError, MemoryError))
        if not short and not any(sign in str(error).lower() for sign in _SIGNS):
            raise
        advice = []
        if not checkpointing:
            advice.append("checkpointing=True, so that one call's activations are kept instead of all calls'")
        if batch > 1:
            advice.append(f"a smaller batch, such as batch={batch // 2} (with accumulation=2 for the same step)")
        if not bf16:
            advice.append("bf16=True")
        advice.append("loss='latent', which decodes no picture, or a smaller picture")
        raise MemoryError(
            f"Out of memory with batch={batch}, checkpointing={checkpointing}. Try {'; or '.join(advice)}."
        ) from error


Values = list[Tensor]


class SoftGates(Control):
    """Mixes every unit's new value with its last one.

    Args:
        checkpointing: True to compute a call's activations again in the backward pass instead of keeping them.
    """

    def __init__(self, *, checkpointing: bool = True):
        self.checkpointing = checkpointing
        self.begin(None)

    def begin(self, gates: Tensor | None) -> None:
        """Begin a run with gates `[T, N]`, or an untouched one. Row 0 is not used: nothing is kept yet."""
        self.gates = gates
        self._rows: dict[str | None, int] = {}
        self._caches: dict[str | None, list[Values]] = {}  # per stream of calls: some pipelines make two per step
        self._after: list[Values] = []

    def denoiser(self, forward: Callable[[], object], args: tuple, kwargs: dict, context: str | None) -> object:
        """Run one call as a function of its gates and of the values of the call before."""
        if self.gates is None:
            return forward()
        row = self._rows.get(context, 0)
        if row >= len(self.gates):
            raise ValueError(
                f"The denoiser is called more often than the {len(self.gates)} times that the gates are for."
            )
        self._rows[context] = row + 1

        def call(gates: Tensor, before: list[Values] | None) -> tuple[object, list[Values]]:
            self._now, self._before, self._after = gates, before, [[] for _ in gates]
            return forward(), self._after

        state = self.gates[row], self._caches.get(context)
        if self.checkpointing and torch.is_grad_enabled():
            output, self._caches[context] = checkpoint(call, *state, use_reentrant=False)
        else:
            output, self._caches[context] = call(*state)
        return output

    def unit(self, index: int, compute: Callable[[], Values] | None) -> Values:
        """Return the mixture, and keep it for the next call."""
        values = compute()
        if not self._after:  # an untouched run
            return values
        if self._before is not None:
            gate = self._now[index].to(values[0].device, values[0].dtype)
            # lerp, so that a gate of 1 gives the new value bit for bit
            pairs = zip(self._before[index], values, strict=True)
            values = [torch.lerp(old.to(new.dtype), new, gate) for old, new in pairs]
        self._after[index] = values
        return values


class SuperNet:
    """A pipeline's generation as a function of gates.

    Args:
        pipe: a diffusers pipeline; only hooked while it runs, and never changed.
        grid: of its calls and units, as `grid_of` lays it out; or `num_inference_steps`.
        guidance_scale: of the pipeline's call. Default: the pipeline's own.
        options: other arguments of the pipeline's call.
        checkpointing: True (the default) to compute activations again in the backward pass. Without it all calls'
            activations are kept: faster, but memory grows with the number of steps.
        control: gates that do something else at a call, such as `held_gradient.HeldGates`. Default: `SoftGates`.

    Raises:
        TypeError, ValueError: a pipeline without denoiser, or offloaded; or a grid of another denoiser.

    Example:
        >>> net = SuperNet(pipe, 10, guidance_scale=3)
        >>> gates = torch.full(net.grid.shape, 0.9, requires_grad=True)
        >>> with net:  # the backward pass, too: checkpointing calls the denoiser again
        ...     net.latents(gates, ["lion"], [0]).square().mean().backward()
        >>> gates.grad.shape
        torch.Size([10, 27])
    """

    def __init__(
        self,
        pipe: DiffusionPipeline,
        grid: Grid | int,
        *,
        guidance_scale: float | None = None,
        options: Mapping[str, object] | None = None,
        checkpointing: bool = True,
        control: SoftGates | None = None,
    ):
        _, self._denoiser = denoiser_of(pipe)
        _check_at_hand(pipe, self._denoiser)
        self.pipe, self.checkpointing = pipe, checkpointing
        self.grid = grid if isinstance(grid, Grid) else grid_of(pipe, grid)
        if structure_of(self._denoiser) != self.grid.structure:
            raise ValueError(
                f"The grid is of another denoiser, a {self.grid.class_name} of structure {self.grid.structure}; the "
                f"pipeline's is a {type(self._denoiser).__name__} of structure {structure_of(self._denoiser)}. "
                "Lay out a new one with grid_of(pipe, steps)."
            )
        self._units = list_units(self._denoiser, self.grid.grain)
        self.unroll = Unroll(pipe, steps=self.grid.steps, guidance_scale=guidance_scale, options=options)
        self._gates = SoftGates(checkpointing=checkpointing) if control is None else control
        self._open: ExitStack | None = None

    def __enter__(self) -> SuperNet:
        if self._open is not None:
            raise RuntimeError("This SuperNet is open already: one `with` block at a time.")
        with ExitStack() as stack:
            stack.enter_context(attach(self._denoiser, self._units, self._gates))
            stack.enter_context(_frozen(self.pipe))
            self._open = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._gates.begin(None)
        stack, self._open = self._open, None
        stack.close()

    @torch.no_grad()
    def reference(self, prompts: Sequence, seeds: Sequence[int]) -> Tensor:
        """Return the latents of the untouched pipeline, `[n, ...]`."""
        self._gates.begin(None)
        return self.unroll.latents(prompts, seeds)

    def latents(self, gates: Tensor, prompts: Sequence, seeds: Sequence[int]) -> Tensor:
        """Run all steps with gates, inside a `with` block of this SuperNet.

        Args:
            gates: floats `[T, N]`; 1 computes, 0 reuses, between them the two are mixed. Row 0 does not count.
            prompts: n texts or numbers of classes.
            seeds: n seeds.

        Returns:
            The latents after the last step, `[n, ...]`, differentiable in `gates`.

        Raises:
            ValueError: gates of another shape.
            RuntimeError: outside the block.
        """
        if self._open is None:
            raise RuntimeError(
                "Use a SuperNet inside `with net:`, the backward pass included: hooks must be in place when "
                "checkpointing calls the denoiser again."
            )
        if tuple(gates.shape) != self.grid.shape:
            raise ValueError(f"gates has shape {tuple(gates.shape)}; this grid needs {self.grid.shape}.")
        # All at once: gates elsewhere would be copied cell by cell, and so would their gradients, with a wait for each.
        self._gates.begin(gates.to(self.pipe._execution_device))
        return self.unroll.latents(prompts, seeds)

    def pictures(self, latents: Tensor) -> Tensor:
        """Decode latents to floats in [0, 1], `[n, 3, h, w]`, differentiably."""
        return self.unroll.pictures(latents)


def _check_at_hand(pipe: DiffusionPipeline, denoiser: nn.Module) -> None:
    """Refuse an offloaded pipeline: the backward pass needs weights that were put away after the forward pass."""
    if getattr(pipe, "_all_hooks", None) or denoiser.device.type == "meta":
        raise ValueError(
            "The pipeline is offloaded (enable_model_cpu_offload or enable_sequential_cpu_offload), which puts weights "
            "away before the backward pass comes by. Call pipe.remove_all_hooks() and pipe.to('cuda') first; "
            "checkpointing=True, half precision and loss='latent' save memory. A schedule that is found runs offloaded."
        )


@contextmanager
def _frozen(pipe: DiffusionPipeline) -> Iterator[None]:
    """Let no weight ask for a gradient: only gates are trained."""
    modules = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    asked = [p for module in modules for p in module.parameters() if p.requires_grad]
    for parameter in asked:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asked:
            parameter.requires_grad_(True)


# Half precision rounds small gradients to 0, so the loss is multiplied before the backward pass (Micikevicius et al.
# 2018, Section 3.2), unless that makes them too large.
_SCALES = (1024.0, 1.0)


def gate_gradients(
    pipe: DiffusionPipeline,
    grid: Grid,
    on: object,
    prompts: Sequence,
    *,
    seeds: Sequence[int] | None = None,
    loss: str = "latent",
    leak: float = 0.0,
    batch: int = 4,
    guidance_scale: float | None = None,
    options: Mapping[str, object] | None = None,
    checkpointing: bool = True,
    bf16: bool = False,
) -> Tensor:
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
    net: SuperNet,
    gates: Tensor,
    prompts: Sequence,
    seeds: Sequence[int],
    *,
    loss: str,
    bf16: bool = False,
    wanted: Tensor | None = None,
) -> tuple[float, Tensor]:
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
