"""The SuperNet of DiP-GO (arXiv 2410.16942, Section 3.2): a whole generation, with a gate in front of every unit.

    value[t, i] = g[t, i] * new[t, i] + (1 - g[t, i]) * value[t - 1, i]

At g = 1 this is the unpruned model, at g = 0 the unit is reused.  The values are handed from call to call as arguments,
never hidden in modules, so a call can be checkpointed as a whole: then memory holds the activations of one call, plus
the values that pass from call to call, whatever the number of steps (Chen et al. 2016).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..checks import check_number, check_whole, nearest
from ..denoisers import denoiser_of
from ..processes import is_out_of_memory
from ..quality import ssim
from ..sampling import Unroll
from .hooks import Control, attach
from .replay import LastValue, hold_of, sample_and_timestep
from .schedule import Grid, grid_of, units_for

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

Values = list[Tensor]

LOSSES = ("ssim", "l1", "l2", "ssim+l1", "latent")
_OF_PICTURES = {
    "ssim": lambda a, b: 1 - ssim(a, b, check_range=False),  # decoded pictures are clamped
    "l1": lambda a, b: (a - b).abs().mean((1, 2, 3)),
    "l2": lambda a, b: (a - b).square().mean((1, 2, 3)),
}


def check_loss(name: str) -> str:
    """Return `name` if it is one of `LOSSES`; else ValueError."""
    if name not in LOSSES:
        raise ValueError(f"There is no loss {name!r}. {nearest(str(name), LOSSES)}")
    return name


def consistency(name: str, net: SuperNet | Unroll, latents: Tensor, wanted: Tensor) -> Tensor:
    """Compare latents `[n, ...]` with the unpruned ones, differentiably (Section 3.3): `[n]`, 0 where they are equal.

    Args:
        name: "ssim" for 1 - SSIM, "l1", "l2", or "ssim+l1" for their sum, of the decoded pictures as in the paper, h
            and w at least 11 for SSIM; or "latent", the mean square of the latents, for which nothing is decoded.
        net: whose autoencoder decodes.
        latents, wanted: of the gated and of the unpruned generation.
    """
    if check_loss(name) == "latent":
        return (latents.float() - wanted.float()).square().flatten(1).mean(1)
    pictures = [net.pictures(each).float() for each in (latents, wanted)]
    return sum(_OF_PICTURES[part](*pictures) for part in name.split("+"))


class SoftGates(Control):
    """Mixes every unit's new value with its last one; `checkpointing` as in `SuperNet`."""

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
            raise ValueError(f"The denoiser is called more often than the {len(self.gates)} times that gates are for.")
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


class HardGates(SoftGates):
    """Gates at the rows of a schedule that call the denoiser; at the others a hold answers, as in the schedule's run.

    `hold` makes what answers, as `replay.hold_of` returns it.
    """

    def __init__(self, grid: Grid, on: Tensor, hold: Callable = LastValue):
        super().__init__()
        self.calls, self.timesteps, self.hold = grid.calls(on).tolist(), grid.timesteps, hold

    def begin(self, gates: Tensor | None) -> None:
        super().begin(gates)
        self._holds: dict[str | None, object] = {}

    def denoiser(self, forward: Callable[[], object], args: tuple, kwargs: dict, context: str | None) -> object:
        row = self._rows.get(context, 0)
        if self.gates is None or row >= len(self.calls):
            return super().denoiser(forward, args, kwargs, context)
        if not self.calls[row]:
            self._rows[context] = row + 1
            return self._holds[context].predict(self.timesteps[row])
        output = super().denoiser(forward, args, kwargs, context)
        hold = self._holds.setdefault(context, self.hold())
        hold.update(sample_and_timestep(args, kwargs)[0], self.timesteps[row], output)
        return output


class SuperNet:
    """A pipeline's generation as a function of gates.

    Args:
        pipe: a diffusers pipeline with its weights in place, not offloaded; only hooked while it runs.
        grid: of its calls and units, as `grid_of` lays it out; or `num_inference_steps`.
        checkpointing: compute activations again in the backward pass. Without it all calls' activations are kept:
            faster, but memory grows with the number of steps.
        control: gates that do something else at a call, such as `HardGates`. Default: `SoftGates(checkpointing)`.
        sampling: `guidance_scale` and `options`, as in `Unroll`.

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
        checkpointing: bool = True,
        control: SoftGates | None = None,
        **sampling: object,
    ):
        _, self._denoiser = denoiser_of(pipe)
        if is_offloaded(pipe):
            raise ValueError(
                "The pipeline is offloaded (enable_model_cpu_offload or enable_sequential_cpu_offload), which puts "
                "weights away before the backward pass comes by. Call pipe.remove_all_hooks() and pipe.to('cuda') "
                "first; checkpointing=True, half precision and loss='latent' save memory. A schedule that is found "
                "runs offloaded."
            )
        self.pipe = pipe
        self.grid = grid if isinstance(grid, Grid) else grid_of(pipe, grid)
        self._units = units_for(self.grid, self._denoiser)
        self.unroll = Unroll(pipe, steps=self.grid.steps, **sampling)
        self.control = control or SoftGates(checkpointing=checkpointing)
        self._open: ExitStack | None = None

    def __enter__(self) -> SuperNet:
        if self._open is not None:
            raise RuntimeError("This SuperNet is open already: one `with` block at a time.")
        with ExitStack() as stack:
            stack.enter_context(attach(self._denoiser, self._units, self.control))
            stack.enter_context(_frozen(self.pipe))
            self._open = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self.control.begin(None)
        stack, self._open = self._open, None
        stack.close()

    @torch.no_grad()
    def reference(self, prompts: Sequence, seeds: Sequence[int]) -> Tensor:
        """Return the latents of the untouched pipeline, `[n, ...]`."""
        self.control.begin(None)
        return self.unroll.latents(prompts, seeds)

    def latents(self, gates: Tensor, prompts: Sequence, seeds: Sequence[int]) -> Tensor:
        """Run all steps with gates, inside a `with` block; return the last latents `[n, ...]`, differentiable in them.

        Args:
            gates: floats `[T, N]`; 1 computes, 0 reuses, between them the two are mixed. Row 0 does not count.
            prompts, seeds: n texts or numbers of classes, and n seeds.
        """
        if self._open is None:
            raise RuntimeError(
                "Use a SuperNet inside `with net:`, the backward pass included: hooks must be in place when "
                "checkpointing calls the denoiser again."
            )
        if tuple(gates.shape) != self.grid.shape:
            raise ValueError(f"gates has shape {tuple(gates.shape)}; this grid needs {self.grid.shape}.")
        # All at once: gates elsewhere would be copied cell by cell, and so would their gradients, with a wait for each.
        self.control.begin(gates.to(self.pipe._execution_device))
        return self.unroll.latents(prompts, seeds)

    def pictures(self, latents: Tensor) -> Tensor:
        """Decode latents to floats in [0, 1], `[n, 3, h, w]`, differentiably."""
        return self.unroll.pictures(latents)


def is_offloaded(pipe: DiffusionPipeline) -> bool:
    """Whether a pipeline puts its weights away between calls."""
    return bool(getattr(pipe, "_all_hooks", None)) or denoiser_of(pipe)[1].device.type == "meta"


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


def gate_gradients(
    pipe: DiffusionPipeline,
    grid: Grid,
    on: object,
    prompts: Sequence,
    *,
    seeds: Sequence[int] | None = None,
    loss: str = "latent",
    leak: float = 0.0,
    hold: str | None = None,
    batch: int = 4,
    bf16: bool = False,
    wanted: Tensor | None = None,
    checkpointing: bool = True,
    **sampling: object,
) -> Tensor:
    """Return d loss / d gate at a schedule, averaged over prompts: all T x N of them from one backward pass.

    At an open gate, minus the gradient says what shutting it would cost; at a shut one, what opening it would gain.
    Both only to first order, and with all other gates as they are: a unit behind a shut gate seems worthless, unless
    shut gates leak.

    Args:
        pipe, grid, checkpointing, sampling: as in `SuperNet`.
        on: bool `[T, N]`, the schedule.
        prompts, seeds: n texts or numbers of classes, and n seeds of the noise. Default: 1000, 1001, ...
        loss: one of `LOSSES`, against the unpruned generation.
        leak: what a shut gate lets through, in [0, 1).
        hold: one of `replay.HOLDS`, to skip the calls that the schedule skips. Default: every call is made.
        batch: prompts at a time, >= 1.
        bf16: run under bfloat16 autocast.
        wanted: the unpruned latents, if they are known.

    Returns:
        float32 `[T, N]` on the CPU; row 0 is 0. Negative: an open gate helps, or a shut one would.

    Raises:
        MemoryError: out of memory, with what to lower.

    Example:
        >>> grid = grid_of(pipe, 10)
        >>> worth = -gate_gradients(pipe, grid, grid.full().on, ["lion"], guidance_scale=3)
    """
    on = grid.check(on)
    check_loss(loss)
    check_number("leak", leak, "[0, 1)")
    check_whole("batch", batch, 1)
    control = SoftGates() if hold is None else HardGates(grid, on, hold_of(hold, pipe.scheduler))
    control.checkpointing = checkpointing
    net = SuperNet(pipe, grid, control=control, **sampling)
    prompts = net.unroll.check(prompts)
    seeds = net.unroll.seeds(prompts, seeds)
    gates, total = torch.where(on, 1.0, float(leak)), torch.zeros(grid.shape)
    with net:
        for start in range(0, len(prompts), batch):
            part = slice(start, start + batch)
            known = None if wanted is None else wanted[part]
            found = loss_and_gradient(net, gates, prompts[part], seeds[part], loss=loss, bf16=bf16, wanted=known)
            total += found[1] * len(prompts[part])
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
    """Return the mean loss of one batch at float gates `[T, N]`, and its gradient, float32 `[T, N]` on the CPU.

    The `net` is inside its `with` block; see `gate_gradients`.
    """
    gates = gates.detach().clone().requires_grad_(True)
    # Half precision rounds small gradients to 0, so the loss is multiplied before the backward pass (Micikevicius et
    # al. 2018, Section 3.2), unless that makes them too large.
    for scale in (1024.0, 1.0) if denoiser_of(net.pipe)[1].dtype == torch.float16 else (1.0,):
        gates.grad = None
        with explains_out_of_memory(len(prompts), net.control.checkpointing, bf16), torch.enable_grad():
            # The denoiser's own device is where its weights wait if they are offloaded.
            with torch.autocast(net.pipe._execution_device.type, torch.bfloat16, enabled=bf16):
                wanted = net.reference(prompts, seeds) if wanted is None else wanted
                value = consistency(loss, net, net.latents(gates, prompts, seeds), wanted).mean()
            (scale * value).backward()
        found = torch.zeros_like(gates) if gates.grad is None else gates.grad / scale
        if found.isfinite().all():
            break
    return value.item(), found.float().cpu()


@contextmanager
def explains_out_of_memory(batch: int, checkpointing: bool, bf16: bool) -> Iterator[None]:
    """Turn running out of memory, with these settings, into a MemoryError that says what to lower."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        advice = {
            "checkpointing=True, so that one call's activations are kept instead of all calls'": not checkpointing,
            f"a smaller batch, such as batch={batch // 2} (with accumulation=2 for the same step)": batch > 1,
            "bf16=True": not bf16,
            "loss='latent', which decodes no picture, or a smaller picture": True,
        }
        words = "; or ".join(word for word, helps in advice.items() if helps)
        raise MemoryError(f"Out of memory with batch={batch}, checkpointing={checkpointing}. Try {words}.") from error
