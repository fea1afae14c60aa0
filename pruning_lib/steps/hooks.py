"""How everything in this package reaches into a running denoiser: diffusers' own hooks, and one *control* object.

`attach` puts one hook on the denoiser and one on every module of its units.  The hooks decide nothing: they ask the
control what to do.  Replaying a schedule, training soft gates and tracing the wiring are three controls.  Because the
hooks sit in diffusers' registry, offloading, LoRA, ControlNet and compiled models go on working around them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from diffusers.hooks import HookRegistry, ModelHook
from diffusers.hooks.hooks import BaseState, StateManager
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .units import Unit

HOOK = "pruning_lib_steps"
Values = list[Tensor]


class Control:
    """Decides what the units of a denoiser do. This one changes nothing; override what you need.

    The value of a unit is a list of tensors: those that its last module returns, each once; for a unit of kind
    "contribution", output minus input.
    """

    def denoiser(self, forward: Callable[[], object], args: tuple, kwargs: dict, context: str | None) -> object:
        """Run one call of the denoiser, which was made with `args` and `kwargs`.

        Where a pipeline makes several calls per step, `context` is the name of this one (`cache_context`), else None.
        """
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
        raise RuntimeError(
            "A denoiser cannot be copied while a schedule is applied or its gates are being trained. Leave that `with` "
            "block first, then copy or prune it."
        )


@contextmanager
def attach(denoiser: nn.Module, units: Sequence[Unit], control: Control) -> Iterator[None]:
    """Let `control` decide what a denoiser and its units, as `units_of` lists them, do inside a `with` block.

    Raises:
        RuntimeError: hooks of this package are in place already.

    Example:
        >>> with attach(pipe.unet, units_of(pipe.unet), Control()):
        ...     pipe("lion")
    """
    denoiser = getattr(denoiser, "_orig_mod", denoiser)
    registry = HookRegistry.check_if_exists_or_initialize(denoiser)
    if registry.get_hook(HOOK) is not None:
        raise RuntimeError(
            "A schedule is already applied to this denoiser, or its gates are being trained. Leave that `with` block "
            "first: one denoiser follows one schedule at a time."
        )
    hooks: list[tuple[nn.Module, ModelHook]] = []
    for index, unit in enumerate(units):
        *inner, last = map(denoiser.get_submodule, unit.modules)
        hooks += [(module, _InnerHook(control, index)) for module in inner]
        hooks.append((last, _LastHook(control, index, unit.kind)))
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

    Offloading keeps the forward that it found and puts that back, and a pipeline does so after every run, to offload
    anew. A hook above it would be thrown away with it, and from the second run on nobody would ask the control.
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
        def forward() -> object:
            return self.fn_ref.original_forward(*args, **kwargs)

        context = getattr(self.contexts, "_context", None) or getattr(self.contexts, "_current_context", None)
        return self.control.denoiser(forward, args, kwargs, getattr(context, "name", context))

    def reset_state(self, module: nn.Module) -> nn.Module:
        return module


class _InnerHook(ModelHook):
    """On a module whose result only the next module of the same unit reads."""

    def __init__(self, control: Control, index: int):
        super().__init__()
        self.control, self.index = control, index

    @torch.compiler.disable(recursive=False)
    def new_forward(self, module: nn.Module, *args, **kwargs):
        self.control.enters(self.index, args, kwargs)
        if self.control.skips(self.index):
            return args[0] if args else next(iter(kwargs.values()))  # read by nobody
        return self.fn_ref.original_forward(*args, **kwargs)


class _LastHook(_InnerHook):
    """On the module whose output is the unit's."""

    def __init__(self, control: Control, index: int, kind: str):
        super().__init__(control, index)
        self.kind, self._form = kind, None

    @torch.compiler.disable(recursive=False)
    def new_forward(self, module: nn.Module, *args, **kwargs):
        self.control.enters(self.index, args, kwargs)
        forward = self.fn_ref.original_forward
        entered = _stream(module, args, kwargs) if self.kind == "contribution" else None
        if self._form is not None and self.control.skips(self.index):
            return self._form.rebuild(self.control.unit(self.index, None), entered)
        computed = output = None

        def compute() -> Values:
            nonlocal computed, output
            output = forward(*args, **kwargs)
            self._form, computed = _Form.of(output, entered)
            return computed

        values = self.control.unit(self.index, compute)
        if values is computed:
            return output  # untouched, so bit for bit what the module returned
        return self._form.rebuild(values, entered)


class _Form:
    """How a module's output is put together from a unit's values."""

    def __init__(self, spec: pytree.TreeSpec, leaves: list[tuple[int | None, object]], added: bool):
        # For each leaf of the output: the number of its value, or None and what stands there instead of a tensor.
        self.spec, self.leaves, self.added = spec, leaves, added

    @classmethod
    def of(cls, output: object, entered: tuple | None) -> tuple[_Form, Values]:
        """Take an output apart: the form, and its tensors, each once (a UNet block returns its last state twice)."""
        found, spec = pytree.tree_flatten(output)
        numbers, leaves, values = {}, [], []
        for position, leaf in enumerate(found):
            if not isinstance(leaf, Tensor):
                leaves.append((None, leaf))
                continue
            if id(leaf) not in numbers:
                numbers[id(leaf)] = len(values)
                values.append(leaf if entered is None else leaf - _beside(entered, position, len(found)))
            leaves.append((numbers[id(leaf)], None))
        return cls(spec, leaves, entered is not None), values

    def rebuild(self, values: Values, entered: tuple | None) -> object:
        """Put an output together."""
        rebuilt = []
        for position, (number, constant) in enumerate(self.leaves):
            value = constant if number is None else values[number]
            if number is not None and self.added:
                value = _beside(entered, position, len(self.leaves)) + value
            rebuilt.append(value)
        return pytree.tree_unflatten(rebuilt, self.spec)


def _stream(module: nn.Module, args: tuple, kwargs: dict) -> tuple:
    """Return what entered a block: of the text and of the picture, in the order in which such blocks return them."""
    given = inspect.signature(type(module).forward).bind_partial(module, *args, **kwargs).arguments
    return given.get("encoder_hidden_states"), given["hidden_states"]


def _beside(entered: tuple, position: int, count: int) -> Tensor:
    # diffusers' blocks return the picture alone, or (text, picture).
    return entered[1] if count == 1 else entered[position]
