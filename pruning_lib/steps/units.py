"""The units of a denoiser, which are run or reused as a whole at each step; and the control that decides about them.

The hooks sit in diffusers' registry and only ask the control, so offloading, LoRA, ControlNet and compiled models go on
working around them.  Replaying a schedule, mixing by soft gates and tracing the wiring are three controls.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from diffusers.hooks import HookRegistry, ModelHook
from diffusers.hooks.hooks import BaseState, StateManager
from torch import Tensor, nn
from torch.utils import _pytree as pytree

GRAINS = ("blocks", "layers", "modules")
HOOK = "pruning_lib_steps"
Values = list[Tensor]


@dataclass(frozen=True)
class Unit:
    """A piece of a denoiser that can be reused: a backup connection to itself one step earlier (DiP-GO, Section 3.2).

    Blocks of a transformer add to a stream: reusing the stream would throw away what earlier blocks did at this step.
    """

    name: str  # the path of its module; layers of a UNet are called `<block>.layers.<number>`
    modules: tuple[str, ...]  # paths of its modules in the order of their calls; of the last one is kept:
    kind: str = "output"  # what it returns; or "contribution", what it adds to its input


def units_of(denoiser: nn.Module, grain: str = "layers") -> tuple[Unit, ...]:
    """List the units of a denoiser in the order of their calls; weights may be absent (meta).

    Args:
        denoiser: a UNet2DModel, UNet2DConditionModel, or a diffusers transformer with `transformer_blocks`.
        grain: "blocks": down, middle and up blocks, or transformer blocks, whole; "layers": a resnet with the
            transformer behind it, each down- and upsampler, and the middle block, whole; in a transformer an attention
            or a feed-forward; "modules": every resnet, transformer and sampler alone; in a transformer as "layers".

    Raises:
        TypeError: not a denoiser, or one whose blocks are not known.
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
    units = _unet_units(denoiser, grain) if hasattr(denoiser, "up_blocks") else _stack_units(denoiser, grain)
    if not units:
        raise TypeError(
            f"{type(denoiser).__name__} has neither up_blocks nor transformer_blocks, so its units are not known. "
            "Known: UNet2DModel, UNet2DConditionModel, and transformers with a list `transformer_blocks`."
        )
    return tuple(units)


def structure_of(denoiser: nn.Module) -> str:
    """Return a hash of a denoiser's class and configuration, which LoRA and other weights do not change."""
    config = {k: v for k, v in dict(denoiser.config).items() if not k.startswith("_") and k != "quantization_config"}
    text = json.dumps([type(denoiser).__name__, config], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _unet_units(unet: nn.Module, grain: str) -> list[Unit]:
    blocks = [(f"down_blocks.{i}", block) for i, block in enumerate(unet.down_blocks)]
    blocks += [("mid_block", unet.mid_block)] if unet.mid_block is not None else []
    blocks += [(f"up_blocks.{i}", block) for i, block in enumerate(unet.up_blocks)]
    units: list[Unit] = []
    for path, block in blocks:
        middle = path == "mid_block"
        if grain == "blocks" or (grain == "layers" and middle):
            units.append(Unit(path, (path,)))
            continue
        attentions = getattr(block, "attentions", None) or []
        for j in range(len(block.resnets)):
            modules = [f"{path}.resnets.{j}"]
            beside = j - 1 if middle else j  # the middle block begins with a resnet, and then attention comes first
            if 0 <= beside < len(attentions) and attentions[beside] is not None:
                modules.insert(0 if middle else 1, f"{path}.attentions.{beside}")
            if grain == "layers":
                units.append(Unit(f"{path}.layers.{j}", tuple(modules)))
            else:
                units += [Unit(module, (module,)) for module in modules]
        for kind in ("downsamplers", "upsamplers"):
            names = [f"{path}.{kind}.{j}" for j in range(len(getattr(block, kind, None) or []))]
            units += [Unit(name, (name,)) for name in names]
    return units


def _stack_units(model: nn.Module, grain: str) -> list[Unit]:
    units: list[Unit] = []
    for stack in ("transformer_blocks", "single_transformer_blocks"):
        for i, block in enumerate(getattr(model, stack, None) or []):
            path, parts = f"{stack}.{i}", dict(block.named_children())
            if grain == "blocks" or "ff" not in parts:  # a block without branches of its own is one unit
                units.append(Unit(path, (path,), "contribution"))
                continue
            # What a branch returns is what is added to the stream, scaled by a gate of the current timestep.
            branches = [f"{path}.{name}" for name in ("attn", "attn1", "attn2", "ff", "ff_context") if name in parts]
            units += [Unit(branch, (branch,)) for branch in branches]
    return units


class Control:
    """Decides what the units of a denoiser do. This one changes nothing; override what you need.

    A unit's value is a list of tensors: those that its last module returns, each once, or what it adds to its input.
    """

    def denoiser(self, forward: Callable[[], object], args: tuple, kwargs: dict, context: str | None) -> object:
        """Run one call of the denoiser; of several per step, `context` is the name of this one (`cache_context`)."""
        return forward()

    def enters(self, index: int, args: tuple, kwargs: dict) -> None:
        """Take note of what a module of unit `index` is called with."""

    def skips(self, index: int) -> bool:
        """Say whether unit `index` need not be computed in this call. Asked once per module of the unit."""
        return False

    def unit(self, index: int, compute: Callable[[], Values] | None) -> Values:
        """Return the value of unit `index`. `compute` runs it; None when `skips` said so."""
        return compute()

    def __deepcopy__(self, memo: dict) -> Control:
        # diffusers' hooks hold the module they were put on, so a copy would run the original's layers.
        told = "A denoiser cannot be copied while a schedule is applied or its gates are being trained."
        raise RuntimeError(f"{told} Leave that `with` block first.")


@contextmanager
def attach(denoiser: nn.Module, units: Sequence[Unit], control: Control) -> Iterator[None]:
    """Let `control` decide what a denoiser and its units, as `units_of` lists them, do inside a `with` block.

    Where hooks of this package are in place already, a RuntimeError.
    """
    denoiser = getattr(denoiser, "_orig_mod", denoiser)
    registry = HookRegistry.check_if_exists_or_initialize(denoiser)
    if registry.get_hook(HOOK) is not None:
        told = "A schedule is already applied to this denoiser, or its gates are being trained."
        raise RuntimeError(f"{told} Leave that `with` block first.")
    hooks: list[tuple[nn.Module, ModelHook]] = []
    for index, unit in enumerate(units):
        for path, kind in zip(unit.modules, [None] * (len(unit.modules) - 1) + [unit.kind], strict=True):
            hooks.append((denoiser.get_submodule(path), _UnitHook(control, index, kind)))
    hooks.append((denoiser, _DenoiserHook(control)))
    hooked: list[nn.Module] = []
    try:
        for module, hook in hooks:
            with _inside_offloading(module):
                HookRegistry.check_if_exists_or_initialize(module).register_hook(hook, HOOK)
            hooked.append(module)
        registry.invalidate_child_registries_cache()
        yield
    finally:
        for module in hooked:
            _take_off(module)
        if hasattr(denoiser, "_diffusers_hook"):  # another's hook is still there
            denoiser._diffusers_hook.invalidate_child_registries_cache()


def _take_off(module: nn.Module) -> None:
    """Remove this package's hook, and every attribute that was not there before it."""
    registry = HookRegistry.check_if_exists_or_initialize(module)
    with _inside_offloading(module) as offloaded:
        registry.remove_hook(HOOK, recurse=False)
    if not registry.hooks:
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
        return self.control.denoiser(lambda: forward(*args, **kwargs), args, kwargs, name)

    def reset_state(self, module: nn.Module) -> nn.Module:
        return module


class _UnitHook(ModelHook):
    """On a module of a unit; `kind` is the unit's on its last module, and None where only the next module reads."""

    def __init__(self, control: Control, index: int, kind: str | None):
        super().__init__()
        self.control, self.index, self.kind, self._form = control, index, kind, None

    @torch.compiler.disable(recursive=False)
    def new_forward(self, module: nn.Module, *args, **kwargs):
        control, index, forward = self.control, self.index, self.fn_ref.original_forward
        control.enters(index, args, kwargs)
        if self.kind is None:
            return next(iter((*args, *kwargs.values()))) if control.skips(index) else forward(*args, **kwargs)
        entered = _stream(module, args, kwargs) if self.kind == "contribution" else None
        if self._form is not None and control.skips(index):
            return _put_together(self._form, control.unit(index, None), entered)
        computed = output = None

        def compute() -> Values:
            nonlocal computed, output
            output = forward(*args, **kwargs)
            self._form, computed = _take_apart(output, entered)
            return computed

        values = control.unit(index, compute)
        # what is untouched is, bit for bit, what the module returned
        return output if values is computed else _put_together(self._form, values, entered)


# How an output is put together: for each of its leaves the number of a value, or None and what stands there instead.
_Form = tuple[pytree.TreeSpec, list[tuple[int | None, object]]]


def _take_apart(output: object, entered: tuple | None) -> tuple[_Form, Values]:
    """Return an output's form and its tensors, each once (a UNet block returns its last state twice)."""
    found, spec = pytree.tree_flatten(output)
    numbers, leaves, values = {}, [], []
    for leaf, before in zip(found, _beside(entered, len(found)), strict=True):
        if isinstance(leaf, Tensor) and id(leaf) not in numbers:
            numbers[id(leaf)] = len(values)
            values.append(leaf if before is None else leaf - before)
        number = numbers.get(id(leaf))
        leaves.append((number, leaf if number is None else None))
    return (spec, leaves), values


def _put_together(form: _Form, values: Values, entered: tuple | None) -> object:
    spec, leaves = form
    rebuilt = []
    for (number, constant), before in zip(leaves, _beside(entered, len(leaves)), strict=True):
        value = constant if number is None else values[number]
        rebuilt.append(value if number is None or before is None else before + value)
    return pytree.tree_unflatten(rebuilt, spec)


def _stream(module: nn.Module, args: tuple, kwargs: dict) -> tuple:
    """Return what entered a block: of the text and of the picture."""
    given = inspect.signature(type(module).forward).bind_partial(module, *args, **kwargs).arguments
    return given.get("encoder_hidden_states"), given["hidden_states"]


def _beside(entered: tuple | None, count: int) -> Sequence[Tensor | None]:
    """Return what each of so many outputs is added to: such blocks return the picture alone, or (text, picture)."""
    return [None] * count if entered is None else entered[-count:]
