"""The SuperNet of DiP-GO (arXiv 2410.16942, Section 3.2): a whole generation, with a gate in front of every unit.

value[t, i] = g[t, i] * new[t, i] + (1 - g[t, i]) * value[t - 1, i]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..checks import check_number, check_whole, nearest
from ..denoisers import denoiser_of
from ..processes import is_out_of_memory
from ..quality import ssim
from ..sampling import Unroll
from .replay import ByStep, Key, LastValue, hold_of, sample_and_timestep
from .schedule import Grid, Schedule, grid_of, units_for
from .units import Values, attach, caches_on

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

    By name: "ssim" for 1 - SSIM, "l1", "l2", or "ssim+l1" for their sum, of the pictures that the net decodes, as in
    the paper, h and w at least 11 for SSIM; or "latent", the mean square of the latents, with nothing decoded.
    """
    if check_loss(name) == "latent":
        return (latents.float() - wanted.float()).square().flatten(1).mean(1)
    pictures = [net.pictures(each).float() for each in (latents, wanted)]
    return sum(_OF_PICTURES[part](*pictures) for part in name.split("+"))


class SoftGates(ByStep):
    """Mixes every unit's new value with its last one: at a gate of 1 it is unpruned, at 0 reused.

    Values are handed from call to call as arguments, never hidden in modules, so a call can be checkpointed as a whole:
    then memory holds the activations of one call, and the values between calls, whatever the number of steps (Chen et
    al. 2016). With checkpointing=False the activations of all calls are kept. Calls that a schedule skips are skipped
    here, too, and answered by what `hold` makes.
    """

    def __init__(self, *, checkpointing: bool = True, schedule: Schedule | None = None, hold: Callable = LastValue):
        self.checkpointing, self.schedule, self.hold = checkpointing, schedule, hold
        self.module: nn.Module | None = None  # the denoiser
        self.calls = [] if schedule is None else schedule.grid.calls(schedule.on).tolist()
        super().__init__()
        self.begin(None)

    def begin(self, gates: Tensor | None) -> None:
        """Begin a run with gates `[T, N]`, or an untouched one. Row 0 is not used: nothing is kept yet."""
        self.restart()
        self.gates, self._mixing = gates, False
        # per stream of calls, for some pipelines make several per step
        self._caches: dict[Key, dict[tuple[int, int], Values]] = {}
        self._holds: dict[Key, LastValue] = {}

    def denoiser(self, forward: Callable[[], object], args: tuple, kwargs: dict, context: str | None) -> object:
        """Run one call as a function of its gates and of the values of the call before."""
        if self.gates is None:
            return forward()
        row, key = self.row, self.stream(context)
        if row >= len(self.gates):
            raise ValueError(f"The denoiser is called at more steps than the {len(self.gates)} that gates are for.")
        if self.schedule and not self.calls[row]:
            return self._holds[key].predict(self.schedule.grid.timesteps[row])

        processors = getattr(self.module, "attn_processors", None)  # some pipelines take theirs off at their end

        def call(gates: Tensor, before: dict | None) -> tuple[object, dict]:
            self._now, self._before, self._after, self._mixing = gates, before, {}, True
            try:
                with _with_processors(self.module, processors):
                    return forward(), self._after
            finally:
                self._mixing = False

        state = self.gates[row], self._caches.get(key)
        if self.checkpointing and torch.is_grad_enabled():
            output, self._caches[key] = checkpoint(call, *state, use_reentrant=False)
        else:
            output, self._caches[key] = call(*state)
        if self.schedule:
            hold = self._holds.setdefault(key, self.hold())
            hold.update(sample_and_timestep(args, kwargs)[0], self.schedule.grid.timesteps[row], output)
        return output

    def keeps(self, index: int) -> bool:
        return self._mixing

    def unit(self, index: int, compute: Callable[[], Values] | None) -> Values:
        """Return the mixture, and keep it for the next call."""
        values = compute()
        if not self._mixing:  # an untouched run
            return values
        key = index, self.times[index]
        if self._before is not None:
            gate = self._now[index].to(values[0].device, values[0].dtype)
            # lerp, so that a gate of 1 gives the new value bit for bit
            pairs = zip(self._before[key], values, strict=True)
            values = [torch.lerp(old.to(new.dtype), new, gate) for old, new in pairs]
        self._after[key] = values
        return values


@contextmanager
def _with_processors(module: nn.Module | None, processors: dict | None) -> Iterator[None]:
    """Compute with the attention processors of the first time, for when activations are computed again."""
    now = getattr(module, "attn_processors", None)
    if not processors or all(now.get(name) is processor for name, processor in processors.items()):
        yield
        return
    module.set_attn_processor(dict(processors))
    try:
        yield
    finally:
        module.set_attn_processor(dict(now))


class SuperNet:
    """A pipeline's generation as a function of gates.

    Args:
        pipe: a diffusers pipeline with its weights in place, not offloaded; only hooked while it runs.
        grid: of its calls and units, as `grid_of` lays it out; or `num_inference_steps`.
        checkpointing: compute activations again in the backward pass, as in `SoftGates`.
        schedule: skip the calls that it skips, and answer them by its hold. Default: every call is made.
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
        schedule: Schedule | None = None,
        **sampling: object,
    ):
        _, self._denoiser = denoiser_of(pipe)
        if is_offloaded(pipe):
            raise ValueError(
                "The pipeline is offloaded and puts weights away before the backward pass comes by. Call "
                "pipe.remove_all_hooks() and pipe.to('cuda') first; checkpointing=True, half precision and "
                "loss='latent' save memory. A schedule that is found runs offloaded."
            )
        if checkpointing and (caches := caches_on(self._denoiser)):
            raise ValueError(
                f"A cache is enabled on the denoiser ({', '.join(caches)}), and checkpointing calls it a second time, "
                "when it answers otherwise. Call its disable_cache() first, or pass checkpointing=False."
            )
        self.pipe = pipe
        self.unroll = Unroll(pipe, steps=grid.steps if isinstance(grid, Grid) else grid, **sampling)
        self.grid = grid if isinstance(grid, Grid) else grid_of(pipe, grid, options=self.unroll.options)
        self._units = units_for(self.grid, self._denoiser)
        hold = LastValue if schedule is None else hold_of(schedule.hold, pipe.scheduler)
        self.control = SoftGates(checkpointing=checkpointing, schedule=schedule, hold=hold)
        self._open: ExitStack | None = None

    def __enter__(self) -> SuperNet:
        if self._open is not None:
            raise RuntimeError("This SuperNet is open already: one `with` block at a time.")
        with ExitStack() as stack:
            stack.enter_context(attach(self._denoiser, self._units, self.control))
            self.unroll.stepped, self.control.module = self.control.stepped, self._denoiser
            self.unroll.again = lambda: self.control.begin(self.control.gates)
            modules = [part for part in self.pipe.components.values() if isinstance(part, nn.Module)]
            for parameter in [p for module in modules for p in module.parameters() if p.requires_grad]:
                parameter.requires_grad_(False)  # only gates are trained
                stack.callback(parameter.requires_grad_, True)
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

        Gates are floats `[T, N]`: 1 computes, 0 reuses, between them the two are mixed. Row 0 does not count.
        """
        if self._open is None:
            raise RuntimeError("Use a SuperNet inside `with net:`, the backward pass included, which calls it again.")
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
        loss: one of `LOSSES`, against the unpruned generation, whose latents may be given as `wanted`.
        leak: what a shut gate lets through, in [0, 1).
        hold: one of `replay.HOLDS`, to skip the calls that the schedule skips. Default: every call is made.
        batch: prompts at a time, >= 1; where memory runs out, a MemoryError says what to lower.

    Returns:
        float32 `[T, N]` on the CPU; row 0 is 0.
    """
    on = grid.check(on)
    check_loss(loss)
    check_number("leak", leak, "[0, 1)")
    check_whole("batch", batch, 1)
    schedule = None if hold is None else grid.schedule(on, hold=hold)
    net = SuperNet(pipe, grid, checkpointing=checkpointing, schedule=schedule, **sampling)
    prompts = net.unroll.check(prompts)
    seeds = net.unroll.seeds(prompts, seeds)
    gates, total = torch.where(on, 1.0, float(leak)), torch.zeros(grid.shape)
    with net:
        for start in range(0, len(prompts), batch):
            part = slice(start, start + batch)
            known = None if wanted is None else wanted[part]
            _, found = loss_and_gradient(net, gates, prompts[part], seeds[part], loss=loss, wanted=known)
            total += found * len(prompts[part])
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
            _backward(net, scale * value)
        found = torch.zeros_like(gates) if gates.grad is None else gates.grad / scale
        if found.isfinite().all():
            break
    return value.item(), found.float().cpu()


def _backward(net: SuperNet, loss: Tensor) -> None:
    """Take the gradient, or say why this pipeline gives none."""
    try:
        loss.backward()
    except RuntimeError as error:
        if not any(
            words in str(error) for words in ("does not require grad", "inplace operation", "Recomputed values")
        ):
            raise
        raise ValueError(
            f"No gradient comes through the steps of {type(net.pipe).__name__}: it draws tokens, or changes its "
            "latents in place. Use search_schedule, which needs none."
        ) from error


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
