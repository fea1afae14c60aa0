"""What a pipeline calls its denoiser with: one run of it recorded, its calls answered by shape instead of computed.

So the inputs need no table of models: whatever the pipeline hands on (images, masks, residuals of a ControlNet, several
texts) is there, and so are the timesteps of the run and how often each of its steps calls the denoiser.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .checks import check_whole, nearest
from .denoisers import denoiser_of, denoisers_of, example_inputs, meta_copy, on_meta

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

# What a pipeline's call may not do without, and what stands for it where nothing was given.
_PLAIN = {"prompt": "", "class_labels": [0]}


class NotStarted(ValueError):
    """A pipeline failed before it called its denoiser: something is missing that its call needs."""


@dataclass(frozen=True)
class Call:
    """The first call of a denoiser in a run, and the shape of that run.

    Attributes:
        args, kwargs: what the denoiser was called with, tensors where the run had them.
        batch: samples in that call; guidance in one call makes it two for each picture.
        timesteps: of the run's rows, as `scheduler.step` was given them.
        calls: of the denoiser in each row.
    """

    args: tuple
    kwargs: dict
    batch: int
    timesteps: tuple[float, ...]
    calls: int

    def on(self, model: nn.Module) -> tuple[nn.Module, tuple, dict]:
        """Return a model without weights and these inputs to run it on; or the real ones, if it asks for values."""
        twin, inputs = meta_copy(model), pytree.tree_map(on_meta, (self.args, self.kwargs))
        try:
            with torch.no_grad():
                twin(*inputs[0], **inputs[1])
        except (RuntimeError, NotImplementedError, TypeError, ValueError):
            return model, self.args, self.kwargs
        return twin, *inputs


def example_call(denoiser: nn.Module, *, sample_size: int | tuple[int, int] | None = None) -> Call:
    """Return a call of one sample with the inputs that a known family takes, without values; see `example_inputs`."""
    return Call((), example_inputs(denoiser, sample_size=sample_size), 1, (), 1)


def captured(pipe: DiffusionPipeline, steps: int, options: Mapping[str, object] | None = None) -> Call:
    """Run a pipeline, let its calls of the denoiser be answered by zeros, and return what it called it with.

    Texts are encoded, and pictures decoded where the pipeline must; the denoiser computes nothing, unless its forward
    asks for values, which shapes do not have.

    Args:
        pipe: a diffusers pipeline, with weights.
        steps: `num_inference_steps`, >= 1.
        options: other arguments of its call. An empty text and class 0 stand where it needs one and none is given.

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
            options[argument] = value
    if "num_inference_steps" in takes:
        options["num_inference_steps"] = steps
    options["generator"] = torch.Generator().manual_seed(0)
    rows: list[list[str]] = [[]]
    timesteps: list[float] = []
    answers = {key: _Answers(module, key, rows) for key, module in denoisers_of(pipe).items()}
    with ExitStack() as stack:
        for key, module in denoisers_of(pipe).items():
            stack.enter_context(_instead(module, answers[key]))
        stack.enter_context(_quiet(pipe))
        stack.enter_context(stepping(pipe.scheduler, lambda t: (timesteps.append(float(t)), rows.append([]))))
        stack.enter_context(torch.random.fork_rng())
        stack.enter_context(torch.no_grad())
        torch.manual_seed(0)
        try:
            to_latents(pipe, pipe, options, lambda: (timesteps.clear(), rows.__setitem__(slice(None), [[]])))
        except Exception as error:
            told = f"{type(pipe).__name__} could not be run to see what it calls its {name} with: {error}"
            if answers[name].first is None:
                raise NotStarted(f"{told} Pass what its call needs, as in options={{'image': image}}.") from error
            raise ValueError(
                f"{told} It looks into its {name} while it draws, so it cannot follow a schedule."
            ) from error
    return _call_of(pipe, name, answers[name], rows, timesteps)


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


def _call_of(pipe: DiffusionPipeline, name: str, answers: _Answers, rows: list[list[str]], timesteps: list) -> Call:
    """Check that a schedule can follow such a run."""
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
    own = [float(t) for t in pipe.scheduler.timesteps.tolist()]
    if not place_in(own, timesteps):
        raise ValueError(
            f"{told} steps its scheduler {len(timesteps)} times, and not once at each of its {len(own)} timesteps in "
            "turn (views of a panorama, jumps back in time), so rows of a schedule would have no meaning."
        )
    return Call(*answers.first, answers.batch, tuple(timesteps), max(counts))


def place_in(timesteps: Sequence[float], part: Sequence[float]) -> int | None:
    """Return where a part of some timesteps begins, plus 1; None if they do not hold it in one piece."""
    ends = range(len(timesteps) - len(part) + 1)
    close = (
        begin + 1
        for begin in ends
        if all(abs(a - b) <= 1e-3 * max(1.0, abs(b)) for a, b in zip(timesteps[begin:], part, strict=False))
    )
    return next(close, None)


class _Answers:
    """Stands in for a denoiser: notes its calls, and answers with zeros of the right shapes."""

    def __init__(self, module: nn.Module, name: str, rows: list[list[str]]):
        self.module, self.name, self.rows = module, name, rows
        self.first: tuple[tuple, dict] | None = None
        self.batch, self.told_apart = 1, False
        self._twin, self._shapes = None, {}

    def __call__(self, forward: Callable, args: tuple, kwargs: dict) -> object:
        self.rows[-1].append(self.name)
        if self.first is None:
            self.first = pytree.tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, (args, kwargs))
            sample = (*args, *kwargs.values())[0]
            self.batch = len(sample)
            registry = getattr(self.module, "_diffusers_hook", None)
            self.told_apart = registry is not None and hasattr(self.module, "cache_context")
        key = str(pytree.tree_map(lambda x: x.shape if isinstance(x, Tensor) else type(x), (args, kwargs)))
        if key not in self._shapes:
            self._twin = self._twin or meta_copy(self.module)
            inputs = pytree.tree_map(on_meta, (args, kwargs))
            try:
                self._shapes[key] = self._twin(*inputs[0], **inputs[1])
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


@contextmanager
def _instead(module: nn.Module, answers: _Answers) -> Iterator[None]:
    """Let answers stand in for a module's forward; offloading, compilation and hooks around it rest."""
    held = {key: vars(module)[key] for key in ("forward", "_compiled_call_impl") if key in vars(module)}
    forward = module.forward
    vars(module)["_compiled_call_impl"] = None
    vars(module)["forward"] = lambda *args, **kwargs: answers(forward, args, kwargs)
    try:
        yield
    finally:
        for key in ("forward", "_compiled_call_impl"):
            vars(module).pop(key, None)
        vars(module).update(held)


@contextmanager
def _quiet(pipe: DiffusionPipeline) -> Iterator[None]:
    before = vars(pipe).get("_progress_bar_config")
    pipe.set_progress_bar_config(**{**(before or {}), "disable": True})
    try:
        yield
    finally:
        vars(pipe).pop("_progress_bar_config", None)
        if before is not None:
            pipe._progress_bar_config = before


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
