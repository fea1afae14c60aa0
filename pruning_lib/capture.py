"""What a pipeline calls its denoiser with: one run recorded, its calls answered by shape; and what a call costs.

So the inputs need no table of models: whatever the pipeline hands on (images, masks, residuals of a ControlNet, several
texts) is there, and so are the timesteps of the run and how often each of its steps calls the denoiser.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from .checks import check_whole, nearest
from .denoisers import OTHERWISE, denoiser_of, denoisers_of, example_inputs, is_known, meta_copy, on_meta

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

# What a pipeline's call may not do without, and what stands for it where nothing was given.
_PLAIN = {"prompt": "", "class_labels": [0]}


@dataclass(frozen=True)
class Call:
    """The first call of a denoiser in a run, and the shape of that run.

    Attributes:
        args, kwargs: what the denoiser was called with, tensors where the run had them.
        batch: samples in that call; guidance in one call makes it two for each picture.
        timesteps: of the run's rows, as `scheduler.step` was given them.
        twin: the denoiser without weights as it was in that call, with what the run had switched on in it; or None.
    """

    args: tuple
    kwargs: dict
    batch: int
    timesteps: tuple[float, ...]
    twin: nn.Module | None = field(default=None, repr=False)

    def on(self, model: nn.Module) -> tuple[nn.Module, tuple, dict]:
        """Return a model without weights and these inputs to run it on; or the real ones, if it asks for values."""
        twin, inputs = meta_copy(model), pytree.tree_map(on_meta, (self.args, self.kwargs))
        try:
            with torch.no_grad():
                twin(*inputs[0], **inputs[1])
        except (RuntimeError, NotImplementedError, TypeError, ValueError, AttributeError) as error:
            given = [leaf for leaf in pytree.tree_leaves((self.args, self.kwargs)) if isinstance(leaf, Tensor)]
            if any(leaf.is_meta for leaf in given):  # built, not captured
                raise ValueError(
                    f"{type(model).__name__} does not run on the inputs of its family: {str(error).rstrip('.')}. "
                    f"{OTHERWISE}"
                ) from error
            return model, self.args, self.kwargs
        return twin, *inputs


def example_call(denoiser: nn.Module, *, sample_size: int | tuple[int, int] | None = None) -> Call:
    """Return a call of one sample with the inputs that a known family takes, without values; see `example_inputs`."""
    return Call((), example_inputs(denoiser, sample_size=sample_size), 1, ())


def captured(
    pipe: DiffusionPipeline, steps: int, options: Mapping[str, object] | None = None, *, first: bool = False
) -> Call:
    """Run a pipeline, let its calls of the denoiser be answered by zeros, and return what it called it with.

    Texts are encoded, and pictures decoded where the pipeline must; the denoiser computes nothing, unless its forward
    asks for values, which shapes do not have.

    Args:
        pipe: a diffusers pipeline, with weights.
        steps: `num_inference_steps`, >= 1.
        options: other arguments of its call. An empty text and class 0 stand where it needs one and none is given.
        first: whether the first call is all that is wanted, of a run that no schedule need follow.

    Raises:
        ValueError: the pipeline cannot be called so, or its steps call the denoiser in ways that a schedule cannot
            follow; with the reason.
    """
    check_whole("steps", steps, 1)
    name, denoiser = denoiser_of(pipe)
    options = {key: value for key, value in (options or {}).items() if not key.startswith("callback")}
    takes = inspect.signature(type(pipe).__call__).parameters
    unknown = [key for key in options if key not in takes]
    if unknown:
        raise ValueError(f"{type(pipe).__name__} takes no {unknown[0]!r}. {nearest(unknown[0], takes)}")
    for argument, value in _PLAIN.items():
        given = any(key.startswith(argument) and options[key] is not None for key in options)
        if argument in takes and not given:
            options |= _embeddings(pipe, denoiser, takes) or {argument: value}
    if "num_inference_steps" in takes:
        options["num_inference_steps"] = steps
    options["generator"] = torch.Generator().manual_seed(0)
    rows: list[list[str]] = [[]]
    timesteps: list[float] = []
    answers = {key: _Answers(module, key, rows) for key, module in denoisers_of(pipe).items()}

    def stepped(timestep: object) -> None:
        timesteps.append(float(torch.as_tensor(timestep).flatten()[0]))  # some hand on one for each sample
        rows.append([])

    with ExitStack() as stack:
        stack.enter_context(as_it_was(pipe))
        for key, module in denoisers_of(pipe).items():
            stack.enter_context(_instead(module, answers[key]))
        pipe.set_progress_bar_config(**{**getattr(pipe, "_progress_bar_config", {}), "disable": True})
        stack.enter_context(stepping(pipe.scheduler, stepped))
        stack.enter_context(torch.random.fork_rng())
        stack.enter_context(torch.no_grad())
        torch.manual_seed(0)
        try:
            to_latents(pipe, pipe, options, lambda: (timesteps.clear(), rows.__setitem__(slice(None), [[]])))
        except Exception as error:
            told = f"{type(pipe).__name__} could not be run to see what it calls its {name} with: {error}"
            if answers[name].first is None:
                raise ValueError(f"{told} Pass what its call needs, as in options={{'image': image}}.") from error
            if not first:
                raise ValueError(
                    f"{told} It looks into its {name} while it draws, so it cannot follow a schedule."
                ) from error
        own = [float(t) for t in pipe.scheduler.timesteps.tolist()]
    if first and answers[name].first is not None:
        return Call(*answers[name].first, answers[name].batch, tuple(timesteps), answers[name].twin)
    return _call_of(pipe, name, answers[name], rows, timesteps, own)


def _embeddings(pipe: DiffusionPipeline, denoiser: nn.Module, takes: Collection[str]) -> dict[str, Tensor]:
    """Return embeddings to call a pipeline of a known family with that has no text encoder; else nothing."""
    if "prompt_embeds" not in takes or getattr(pipe, "text_encoder", None) is not None or not is_known(denoiser):
        return {}
    built, some = example_inputs(denoiser, device="cpu"), next(denoiser.parameters())
    pooled = built.get("pooled_projections", built.get("added_cond_kwargs", {}).get("text_embeds"))
    mask = torch.ones(built["encoder_hidden_states"].shape[:2], dtype=torch.long)
    told = {
        "prompt_embeds": built["encoder_hidden_states"],
        "pooled_prompt_embeds": pooled,
        "prompt_attention_mask": mask,
    }
    told |= {f"negative_{name}": value for name, value in told.items()}
    return {
        name: value.to(some.device, some.dtype if value.is_floating_point() else None)
        for name, value in told.items()
        if name in takes and value is not None
    }


def to_latents(pipe: DiffusionPipeline, run: Callable, options: dict[str, object], again: Callable[[], object]) -> None:
    """Call a pipeline without having it decode what it drew, where it can leave that out.

    Some refuse that, a few of them at the end only: then `again` is called, and the run is made once more.
    """
    if "output_type" not in inspect.signature(type(pipe).__call__).parameters or "output_type" in options:
        run(**options)
        return
    try:
        run(**options, output_type="latent")
    except ValueError as error:
        if "output_type" not in str(error):
            raise
        again()
        run(**options, output_type="pt")


def _call_of(
    pipe: DiffusionPipeline, name: str, answers: _Answers, rows: list[list[str]], timesteps: list, own: list[float]
) -> Call:
    """Check that a schedule can follow such a run; `own` are the timesteps that the scheduler lists."""
    told, rows = type(pipe).__name__, rows[: len(timesteps)]
    if not timesteps:
        raise ValueError(f"{told} never calls scheduler.step, so its calls cannot be told apart by steps.")
    if answers.first is None:
        raise ValueError(f"{told} did not call its {name} in this run.")
    others = sorted({other for row in rows for other in row} - {name})
    if others and any(name not in row for row in rows):
        raise ValueError(
            f"{told} calls {name} at some steps and {', '.join(others)} at others; a schedule is for one denoiser that "
            "is called at every step."
        )
    if answers.switched:
        raise ValueError(
            f"{told} changes {answers.switched} of its {name} while it draws, so rows of a schedule would differ in "
            "what they cost. Pass what keeps it, as gligen_scheduled_sampling_beta=1.0 does for GLIGEN."
        )
    counts = [row.count(name) for row in rows]
    if 0 in counts:
        raise ValueError(
            f"{told} steps its scheduler {len(rows)} times, but at {counts.count(0)} of them it does not call its "
            f"{name}."
        )
    if len(set(counts)) > 1 and not answers.told_apart:
        at = next(row for row, count in enumerate(counts) if count != counts[0])
        raise ValueError(
            f"{told} calls its {name} {counts[0]} times in its first step and {counts[at]} times in step {at + 1}, and "
            "does not say which call is which. Switch off what changes between steps."
        )
    if place_in(own, timesteps) is None:
        raise ValueError(
            f"{told} steps its scheduler {len(timesteps)} times, and not once at each of its {len(own)} timesteps in "
            "turn (views of a panorama, jumps back in time), so rows of a schedule would have no meaning."
        )
    return Call(*answers.first, answers.batch, tuple(timesteps))


def place_in(timesteps: Sequence[float], part: Sequence[float]) -> int | None:
    """Return where a part of some timesteps begins; None if they do not hold it in one piece."""
    for begin in range(len(timesteps) - len(part) + 1):
        if all(map(same_time, timesteps[begin:], part)):
            return begin
    return None


def same_time(a: float, b: float) -> bool:
    """Whether two timesteps are one, however each was rounded."""
    return abs(a - b) <= 1e-3 * max(1.0, abs(b))


class _Answers:
    """Stands in for a denoiser: notes its calls, and answers with zeros of the right shapes."""

    def __init__(self, module: nn.Module, name: str, rows: list[list[str]]):
        self.module, self.name, self.rows = module, name, rows
        self.first: tuple[tuple, dict] | None = None
        self.batch, self.told_apart = 1, False
        self._switches, self.switched = {}, ""  # what is on or off inside at the first call; what was changed later
        self._shapes = {}
        self.twin: nn.Module | None = None

    def __call__(self, forward: Callable, args: tuple, kwargs: dict) -> object:
        self.rows[-1].append(self.name)
        inside = ((path, *pair) for path, module in self.module.named_modules() for pair in vars(module).items())
        switches = {f"{path}.{key}": value for path, key, value in inside if isinstance(value, bool)}
        self._switches = self._switches or switches
        self.switched = self.switched or next((k for k in switches if switches[k] != self._switches.get(k)), "")
        if self.first is None:
            self.first = pytree.tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, (args, kwargs))
            sample = (*args, *kwargs.values())[0]
            self.batch = len(sample)
            registry = getattr(self.module, "_diffusers_hook", None)
            self.told_apart = registry is not None and hasattr(self.module, "cache_context")
        key = str(pytree.tree_map(lambda x: x.shape if isinstance(x, Tensor) else type(x), (args, kwargs)))
        if key not in self._shapes:
            self.twin = self.twin or meta_copy(self.module)
            inputs = pytree.tree_map(on_meta, (args, kwargs))
            try:
                self._shapes[key] = self.twin(*inputs[0], **inputs[1])
            except (RuntimeError, NotImplementedError, TypeError, ValueError):
                self._shapes[key] = None  # it asks for values
        if self._shapes[key] is None:
            return forward(*args, **kwargs)
        some = next(self.module.parameters())
        device = next((x.device for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)), some.device)
        return pytree.tree_map(
            lambda x: (
                torch.zeros(x.shape, dtype=some.dtype if x.is_floating_point() else x.dtype, device=device)
                if isinstance(x, Tensor)
                else x
            ),
            self._shapes[key],
        )


# Positions of the two factors in the arguments of each product; a convolution's second factor is always a weight.
_FACTORS = {"mm": (0, 1), "bmm": (0, 1), "addmm": (1, 2), "baddbmm": (1, 2)}


class MacsCounter(TorchDispatchMode):
    """Adds up each product under the innermost module that is running: [with weights, of activations]."""

    def __init__(self, model: nn.Module, stack: list):
        super().__init__()
        self.weights = {storage(tensor) for tensor in [*model.parameters(), *model.buffers()]}
        self.stack = stack  # what is running, by any name, innermost last
        self.macs: dict[object, list[int]] = defaultdict(lambda: [0, 0])

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if formula := flop_registry.get(func.overloadpacket):
            macs = formula(*args, **(kwargs or {}), out_val=out) // 2
            self.macs[self.stack[-1]][self._of_activations(func.overloadpacket.__name__, args)] += macs
        return out

    def _of_activations(self, name: str, args) -> bool:
        # A linear layer may reach us as mm, addmm or bmm, depending on strides and bias, and attention as a fused
        # operator, bmm or baddbmm, depending on the processor.  What tells them apart is whether a factor is a weight.
        if name in _FACTORS:
            return not any(storage(args[i]) in self.weights for i in _FACTORS[name])
        return "attention" in name


def storage(tensor: Tensor) -> int:
    """Return what tells memory apart, while it lives."""
    # Views of a weight (transposed, expanded) share its storage object, also on meta, where data pointers are all 0.
    return tensor.untyped_storage()._cdata


@contextmanager
def _instead(module: nn.Module, answers: _Answers) -> Iterator[None]:
    """Let answers stand in for a module's forward; offloading, compilation and everybody's hooks on it rest."""
    own, forward = vars(module), module.forward
    held = {key: own[key] for key in ("forward", "_compiled_call_impl") if key in own}
    held |= {key: hooks for key, hooks in own.items() if key.startswith("_forward") and "hooks" in key}
    own.update({key: type(hooks)() for key, hooks in held.items() if "hooks" in key})
    own["_compiled_call_impl"] = None
    own["forward"] = lambda *args, **kwargs: answers(forward, args, kwargs)
    try:
        yield
    finally:
        for key in ("forward", "_compiled_call_impl"):
            own.pop(key, None)
        own.update(held)


@contextmanager
def modules_as_they_were(model: nn.Module) -> Iterator[None]:
    """Put back what stands in a model's modules by name, such as modes, switches and processors.

    A run that ends by an error does not put its own away. What modules compute once and keep stays.
    """
    parts = [*model.modules()]
    named = [{k: v for k, v in vars(part).items() if not k.startswith("_") and k != "forward"} for part in parts]
    processors = {part: part.processor for part in parts if hasattr(part, "set_processor")}
    try:
        yield
    finally:
        for part, kept in zip(parts, named, strict=True):
            vars(part).update(kept)
        for part, processor in processors.items():
            if part.processor is not processor:
                part.set_processor(processor)  # one with weights is a module of its own


@contextmanager
def as_it_was(pipe: DiffusionPipeline) -> Iterator[None]:
    """Put back, in the end, what a run notes in its pipeline, in its scheduler and on its denoisers."""
    owners = [vars(owner) for owner in (pipe, pipe.scheduler)]
    before = [{key: list(part) if type(part) is list else part for key, part in owner.items()} for owner in owners]
    bare = [vars(module) for module in denoisers_of(pipe).values() if not hasattr(module, "_diffusers_hook")]
    try:
        with ExitStack() as stack:
            for denoiser in denoisers_of(pipe).values():
                stack.enter_context(modules_as_they_were(denoiser))
            yield
    finally:
        for owner, kept in zip(owners, before, strict=True):
            offloading = {key: owner[key] for key in ("_all_hooks",) if key in owner}  # a run puts it on anew
            owner.clear()
            owner.update(kept | offloading)
        for module in bare:  # `cache_context` makes a registry
            if "_diffusers_hook" in module and not module["_diffusers_hook"].hooks:
                del module["_diffusers_hook"]


class _Step:
    """`scheduler.step`, and somebody who is told the timestep of each call. A copy of the scheduler steps alone."""

    def __init__(self, scheduler: object, told: Callable[[float], object]):
        self.scheduler, self.told, self.step = scheduler, told, scheduler.step
        self.__signature__ = inspect.signature(self.step)  # pipelines read it

    def __call__(self, *args, **kwargs):
        result = self.step(*args, **kwargs)
        timestep = kwargs["timestep"] if "timestep" in kwargs else args[1] if len(args) > 1 else float("nan")
        self.told(timestep)
        return result

    def __deepcopy__(self, memo: dict) -> Callable:
        copied = memo.get(id(self.scheduler))
        return self if copied is None else type(copied).step.__get__(copied)


@contextmanager
def stepping(scheduler: object, told: Callable[[object], object]) -> Iterator[None]:
    """Have somebody told the timestep of every `scheduler.step`, after it; without steps it is a ValueError."""
    if not callable(getattr(scheduler, "step", None)):
        raise ValueError(
            f"{type(scheduler).__name__} has no step(), so nobody can tell which call of the denoiser belongs to which "
            "step. Use a scheduler of diffusers that has one."
        )
    had, before = "step" in vars(scheduler), vars(scheduler).get("step")
    scheduler.step = _Step(scheduler, told)
    try:
        yield
    finally:
        if had:
            scheduler.step = before
        else:
            del scheduler.step
