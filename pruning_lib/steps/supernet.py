"""The SuperNet of DiP-GO (arXiv 2410.16942, Section 3.2): a whole generation, with a gate in front of every unit.

    value[t, i] = g[t, i] * new[t, i] + (1 - g[t, i]) * value[t - 1, i]

A unit is computed at every step, and its gate mixes what is new with what it had at the step before.  At g = 1 this is
the unpruned model, at g = 0 the unit is reused.  The values are handed from call to call as arguments, never hidden in
modules, so a call can be checkpointed as a whole: then memory holds the activations of one call, plus the values that
pass from call to call, whatever the number of steps (Chen et al. 2016).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..measure.denoiser import denoiser_of
from .grid import Grid, grid_of
from .hooks import Control, attach
from .units import list_units, structure_of
from .unroll import Unroll

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

__all__ = ["SoftGates", "SuperNet"]

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
        self._caches: dict[
            str | None, list[Values]
        ] = {}  # per stream of calls: some pipelines make two per step
        self._after: list[Values] = []

    def denoiser(
        self, forward: Callable[[], object], args: tuple, kwargs: dict, context: str | None
    ) -> object:
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
        self, pipe: DiffusionPipeline, grid: Grid | int, *, guidance_scale: float | None = None,
        options: Mapping[str, object] | None = None, checkpointing: bool = True, control: SoftGates | None = None,
    ):  # fmt: skip
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
