"""The units of a denoiser, which are run or reused as a whole at each step; and the control that decides about them.

The hooks sit in diffusers' registry and only ask the control, so offloading, LoRA, ControlNet and compiled models go on
working around them.  Replaying a schedule, mixing by soft gates and tracing the wiring are three controls.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise

import torch
from diffusers.hooks import HookRegistry, ModelHook
from diffusers.hooks.hooks import BaseState, HookFunctionReference, StateManager
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..capture import Call, example_call

GRAINS = ("blocks", "layers", "modules")
HOOK = "pruning_lib_steps"
Values = list[Tensor]


@dataclass(frozen=True)
class Unit:
    """A piece of a denoiser that can be reused: a backup connection to itself one step earlier (DiP-GO, Section 3.2).

    Blocks of a transformer add to streams: reusing a stream would throw away what earlier blocks did at this step. So
    of a block is kept what it adds, to each stream that goes through it.

    Attributes:
        name: the path of its module; layers of a UNet are called `<block>.layers.<number>`.
        modules: paths of its modules in the order of their calls; what the last one returns is kept.
        streams: pairs (k, j): tensor k of what the last module returns continues tensor j of what it is called with,
            and only the difference is kept.
    """

    name: str
    modules: tuple[str, ...] = field(compare=False)  # an older file tells the names alone
    streams: tuple[tuple[int, int], ...] = field(default=(), compare=False)


def units_of(denoiser: nn.Module, grain: str = "layers", *, call: Call | None = None) -> tuple[Unit, ...]:
    """List the units of a denoiser in the order of their calls, found in one call on its structure.

    Args:
        denoiser: any denoiser of diffusers that has down and up blocks, or stacks of blocks that are alike.
        grain: "blocks": down, middle and up blocks, or the blocks of a stack, whole; "layers": a resnet with what
            follows it up to the next one, each down- and upsampler, and the middle block, whole; in a stack an
            attention or a feed-forward; "modules": each of these modules alone; in a stack as "layers".
        call: what a pipeline calls it with, as `captured` returns it. Default: `example_inputs`, for known families.

    Raises:
        TypeError: not a denoiser, or one without such blocks, or of no known family where no call is given.
        ValueError: an unknown grain.

    Example:
        >>> len(units_of(pipe.unet)), units_of(pipe.unet)[0].modules
        (27, ('down_blocks.0.resnets.0', 'down_blocks.0.attentions.0'))
    """
    if grain not in GRAINS:
        raise ValueError(f"There is no grain {grain!r}. Allowed: {', '.join(map(repr, GRAINS))}.")
    if not isinstance(denoiser, nn.Module):
        hint = " Pass its denoiser: pipe.unet or pipe.transformer." if hasattr(denoiser, "components") else ""
        raise TypeError(f"Expected a diffusers denoiser (an nn.Module), got {type(denoiser).__name__}.{hint}")
    denoiser = getattr(denoiser, "_orig_mod", denoiser)  # what torch.compile wraps
    model, args, kwargs = (call or example_call(denoiser)).on(denoiser)
    ran = _observed(model, args, kwargs)
    units = _unet_units(model, ran, grain) if hasattr(model, "up_blocks") else _stack_units(model, ran, grain)
    if not units:
        raise TypeError(
            f"{type(denoiser).__name__} has neither up_blocks nor a list of blocks that are alike and called one after "
            "the other, so it has no units to reuse."
        )
    return tuple(units)


def structure_of(denoiser: nn.Module) -> str:
    """Return a hash of a denoiser's class and configuration, which LoRA and other weights do not change."""
    config = {k: v for k, v in dict(denoiser.config).items() if not k.startswith("_") and k != "quantization_config"}
    text = json.dumps([type(denoiser).__name__, config], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def tensors(tree: object) -> list[Tensor]:
    """Return the tensors of nested arguments, in order."""
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


@dataclass
class _Ran:
    """A module's call: how often it was called, and the tensors of its first call."""

    times: int
    given: list[Tensor]
    returned: list[Tensor]


def _observed(model: nn.Module, args: tuple, kwargs: dict) -> dict[str, _Ran]:
    """Run a model once and return what ran, by path, in the order in which it began."""
    ran: dict[str, _Ran] = {}

    def enter(path, module, args, kwargs):
        if path in ran:
            ran[path].times += 1
        else:
            ran[path] = _Ran(1, tensors((args, kwargs)), [])

    def leave(path, module, args, kwargs, output):
        ran[path].returned = ran[path].returned or tensors(output)

    handles = []
    for path, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(partial(enter, path), with_kwargs=True))
        handles.append(module.register_forward_hook(partial(leave, path), with_kwargs=True))
    try:
        with torch.no_grad():
            model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return ran


def _blocks(model: nn.Module, ran: dict[str, _Ran]) -> list[str]:
    """Return the outermost members of lists, and the middle block, that ran, in order."""

    def outermost(module: nn.Module, path: str) -> Iterator[str]:
        for name, child in module.named_children():
            inner = f"{path}.{name}" if path else name
            if isinstance(child, (nn.ModuleList, nn.Sequential)) and inner not in ran:
                yield from outermost(child, inner)
            elif isinstance(module, (nn.ModuleList, nn.Sequential)) or name == "mid_block":
                yield inner

    places = {path: place for place, path in enumerate(ran)}
    return sorted((path for path in outermost(model, "") if path in ran), key=places.__getitem__)


def _unet_units(unet: nn.Module, ran: dict[str, _Ran], grain: str) -> list[Unit]:
    units: list[Unit] = []
    for block in _blocks(unet, ran):
        inner = [path for path in ran if re.fullmatch(rf"{re.escape(block)}\.\w+\.\d+", path)]
        kinds = [path[len(block) + 1 :].split(".")[0] for path in inner]
        resnets = [kind.startswith("resnets") for kind in kinds]
        if grain == "blocks" or (grain == "layers" and block == "mid_block") or not any(resnets):
            units.append(Unit(block, (block,)))
            continue
        groups: list[list[str]] = []
        for path, kind, resnet in zip(inner, kinds, resnets, strict=True):
            sampler = kind.endswith("samplers")
            if grain == "modules" or not groups or resnet or sampler:
                groups.append([path])
            else:
                groups[-1].append(path)
        layer = 0
        for group in groups:
            if grain == "layers" and ".resnets" in group[0][len(block) :]:
                units.append(Unit(f"{block}.layers.{layer}", tuple(group)))
                layer += 1
            else:
                units.append(Unit(group[-1], tuple(group)))
    return units


def _stack_units(model: nn.Module, ran: dict[str, _Ran], grain: str) -> list[Unit]:
    stacks: dict[str, list[str]] = {}
    for path in _blocks(model, ran):
        stacks.setdefault(path.rpartition(".")[0], []).append(path)
    streams: dict[str, tuple[tuple[int, int], ...]] = {}
    for paths in stacks.values():
        alike = len({type(model.get_submodule(path)) for path in paths}) == 1
        if alike and all(ran[path].times == 1 for path in paths):
            goes_on = {pair for a, b in pairwise(paths) for pair in _passed_on(ran[a], ran[b])}
            streams |= {path: _streams(ran[path], sorted(goes_on)) for path in paths}
    units: list[Unit] = []
    for path in sorted(streams, key=list(ran).index):
        branches = _branches(model.get_submodule(path), path, ran) if grain != "blocks" else []
        units += [Unit(branch, (branch,)) for branch in branches] or [Unit(path, (path,), streams[path])]
    return units


def _passed_on(before: _Ran, after: _Ran) -> list[tuple[int, int]]:
    """Return which tensors of one block's output the next block is given, as they are."""
    return [(k, j) for k, a in enumerate(before.returned) for j, b in enumerate(after.given) if a is b]


def _streams(block: _Ran, goes_on: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Return which of its inputs each output of a block continues: as between blocks, else the first of its shape."""
    given, returned = block.given, block.returned
    same = [(k, j) for k, j in goes_on if k < len(returned) and j < len(given) and returned[k].shape == given[j].shape]
    for k, tensor in enumerate(returned):
        if k not in {k for k, _ in same}:
            taken = {j for _, j in same}
            same += [(k, j) for j, x in enumerate(given) if x.shape == tensor.shape and j not in taken][:1]
    return tuple(sorted(same))


def _branches(block: nn.Module, path: str, ran: dict[str, _Ran]) -> list[str]:
    """Return a block's attentions and feed-forwards, if they are all it does: what is called once, and is no norm."""
    parts = {name: child for name, child in block.named_children() if f"{path}.{name}" in ran}
    heavy = {
        name
        for name, child in parts.items()
        if next(child.children(), None) is not None and "Norm" not in type(child).__name__
    }
    if any(name not in heavy and isinstance(child, (nn.Linear, nn.Conv2d)) for name, child in parts.items()):
        return []
    return [inner for inner in ran if inner.rpartition(".")[0] == path and inner.rpartition(".")[2] in heavy]


class Control:
    """Decides what the units of a denoiser do. This one changes nothing; override what you need.

    A unit's value is a list of tensors: those that its last module returns, each once, or what it adds to its streams.
    Some modules run several times in a call, in chunks; `times[index]` says how often unit `index` has begun in this
    call, so 1 in its first run.
    """

    times: Counter[int]  # of the call that is running; `attach` makes it

    def denoiser(self, forward: Callable[[], object], args: tuple, kwargs: dict, context: str | None) -> object:
        """Run one call of the denoiser; of several per step, `context` is the name of this one (`cache_context`)."""
        return forward()

    def enters(self, index: int, args: tuple, kwargs: dict) -> None:
        """Take note of what a module of unit `index` is called with."""

    def skips(self, index: int) -> bool:
        """Say whether unit `index` need not be computed in this call. Asked once per module of the unit."""
        return False

    def keeps(self, index: int) -> bool:
        """Say whether the value of unit `index` is kept, and so must be out of reach of what changes it in place."""
        return True

    def unit(self, index: int, compute: Callable[[], Values] | None) -> Values:
        """Return the value of unit `index`. `compute` runs it; None when `skips` said so."""
        return compute()

    def __deepcopy__(self, memo: dict) -> Control:
        # diffusers' hooks hold the module they were put on, so a copy would run the original's layers.
        raise RuntimeError(
            "A denoiser cannot be copied while a schedule is applied or its gates are being trained. Leave that `with` "
            "block first, then copy or prune it."
        )


@contextmanager
def attach(denoiser: nn.Module, units: Sequence[Unit], control: Control) -> Iterator[None]:
    """Let `control` decide what a denoiser and its units, as `units_of` lists them, do inside a `with` block.

    Where hooks of this package are in place already, a RuntimeError.
    """
    denoiser = getattr(denoiser, "_orig_mod", denoiser)
    others = {module for module in denoiser.modules() if hasattr(module, "_diffusers_hook")}
    registry = HookRegistry.check_if_exists_or_initialize(denoiser)
    if registry.get_hook(HOOK) is not None:
        told = "A schedule is already applied to this denoiser, or its gates are being trained."
        raise RuntimeError(f"{told} Leave that `with` block first.")
    control.times = Counter()
    hooks: list[tuple[nn.Module, ModelHook]] = []
    for index, unit in enumerate(units):
        for path in unit.modules:
            streams = dict(unit.streams) if path == unit.modules[-1] else None
            hooks.append((denoiser.get_submodule(path), _UnitHook(control, index, streams)))
    hooks.append((denoiser, _DenoiserHook(control)))
    hooked: list[nn.Module] = []
    try:
        for module, hook in hooks:
            with _inside_offloading(module):
                HookRegistry.check_if_exists_or_initialize(module).register_hook(hook, HOOK)
            hook.fn_ref.__class__ = _Reference
            hooked.append(module)
        registry.invalidate_child_registries_cache()
        yield
    finally:
        for module in hooked:
            _take_off(module, registered=module in others)
        if hasattr(denoiser, "_diffusers_hook"):  # another's hook is still there
            denoiser._diffusers_hook.invalidate_child_registries_cache()


def caches_on(denoiser: nn.Module) -> list[str]:
    """Return the names of others' hooks that answer from what they keep, so that a call cannot be made twice."""
    registries = [module._diffusers_hook for module in denoiser.modules() if hasattr(module, "_diffusers_hook")]
    hooks = [pair for registry in registries for pair in registry.hooks.items()]
    return sorted({name for name, hook in hooks if hook._is_stateful and name != HOOK})


def _take_off(module: nn.Module, *, registered: bool) -> None:
    """Remove this package's hook, and every attribute that was not there before it; `registered` others' registry."""
    registry = HookRegistry.check_if_exists_or_initialize(module)
    above = [ref for ref in registry._fn_refs if ref.original_forward is not None]
    for ref in above:
        ref.__class__ = _Reference
    with _inside_offloading(module) as offloaded:
        registry.remove_hook(HOOK, recurse=False)
    for ref in above:
        ref.__class__ = HookFunctionReference
    if not registry.hooks:
        if not registered:
            del module._diffusers_hook
        own = getattr(vars(module).get("forward"), "__func__", None) is type(module).forward
        if own and not offloaded:
            del module.forward


@contextmanager
def _inside_offloading(module: nn.Module) -> Iterator[bool]:
    """Put hooks on, or take them off, below accelerate's; yields whether the module is offloaded.

    After every run accelerate puts the forward back that it found: a hook above its own would be lost with it.
    """
    if "_old_forward" not in vars(module):
        yield False
        return
    offloading, module.forward = module.forward, module._old_forward
    try:
        yield True
    finally:
        module._old_forward, module.forward = module.forward, offloading


class _Reference(HookFunctionReference):
    """Of a hook that decides itself what to run: when one below it is taken off, diffusers would cut it out as well."""

    @property
    def forward(self) -> Callable:
        return vars(self)["forward"]

    @forward.setter
    def forward(self, below: Callable) -> None:
        self.original_forward = below


class _Context(BaseState):
    def reset(self) -> None:
        pass  # nothing is held: the registry only tells the context's name


class _DenoiserHook(ModelHook):
    _is_stateful = True  # so that diffusers tells it the context of a call

    def __init__(self, control: Control):
        super().__init__()
        self.control, self.contexts = control, StateManager(_Context)

    # The decisions are plain Python over tables and must not be traced; what they run is compiled on its own.
    @torch.compiler.disable(recursive=False)
    def new_forward(self, module: nn.Module, *args, **kwargs):
        context = getattr(self.contexts, "_context", None) or getattr(self.contexts, "_current_context", None)
        forward, name = self.fn_ref.original_forward, getattr(context, "name", context)

        def run() -> object:
            self.control.times.clear()
            # lists of their own: some denoisers take their inputs off them, and checkpointing calls once more
            own_args, own_kwargs = pytree.tree_map(lambda leaf: leaf, (args, kwargs))
            return forward(*own_args, **own_kwargs)

        return self.control.denoiser(run, args, kwargs, name)

    def reset_state(self, module: nn.Module) -> nn.Module:
        return module


class _UnitHook(ModelHook):
    """On a module of a unit; `streams` are the unit's on its last module, and None where only the next one reads."""

    def __init__(self, control: Control, index: int, streams: dict[int, int] | None):
        super().__init__()
        self.control, self.index, self.streams, self._form = control, index, streams, None

    @torch.compiler.disable(recursive=False)
    def new_forward(self, module: nn.Module, *args, **kwargs):
        control, index, forward = self.control, self.index, self.fn_ref.original_forward
        control.enters(index, args, kwargs)
        if self.streams is None:
            return next(iter((*args, *kwargs.values()))) if control.skips(index) else forward(*args, **kwargs)
        control.times[index] += 1
        entered = tensors((args, kwargs)) if self.streams else []
        if self._form is not None and control.skips(index):
            return self._put_together(control.unit(index, None), entered)
        computed = output = None

        def compute() -> Values:
            nonlocal computed, output
            output = forward(*args, **kwargs)
            computed = self._take_apart(output, entered) if control.keeps(index) else []
            return computed

        values = control.unit(index, compute)
        # what is untouched is, bit for bit, what the module returned
        return output if values is computed else self._put_together(values, entered)

    def _take_apart(self, output: object, entered: list[Tensor]) -> Values:
        """Return the values of an output, each once (a UNet block returns its last state twice), and note its form.

        The form says for each leaf the number of its value and of the input that it is added to, or what stands there.
        """
        found, spec = pytree.tree_flatten(output)
        numbers, leaves, values = {}, [], []
        for leaf in found:
            if not isinstance(leaf, Tensor):
                leaves.append((None, None, leaf))
                continue
            known = id(leaf) in numbers
            before = self.streams.get(len(numbers))
            if before is not None and entered[before].shape != leaf.shape:  # a cache may answer in another order
                before = None
            number, before = numbers.setdefault(id(leaf), (len(values), before))
            if not known:
                # FreeU and adapters write into what a block returned, so what is kept is a copy
                own = leaf.clone() if before is None else leaf
                values.append(own if before is None else leaf - entered[before])
            leaves.append((number, before, None))
        self._form = spec, leaves
        return values

    def _put_together(self, values: Values, entered: list[Tensor]) -> object:
        spec, leaves = self._form
        own = {number: values[number].clone() for number, before, _ in leaves if number is not None and before is None}
        rebuilt = [
            constant if number is None else own[number] if before is None else entered[before] + values[number]
            for number, before, constant in leaves
        ]
        return pytree.tree_unflatten(rebuilt, spec)
