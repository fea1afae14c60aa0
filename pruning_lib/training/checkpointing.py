"""Gradient checkpointing for the time of a training run: less memory, one more forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

__all__ = ["checkpointed"]


@contextmanager
def checkpointed(model: nn.Module, on: bool = True) -> Iterator[None]:
    """Switch on diffusers' gradient checkpointing (Chen et al. 2016), and restore what was set before.

    Raises:
        TypeError: the model has none.
    """
    if not on:
        yield
        return
    if not hasattr(model, "enable_gradient_checkpointing"):
        raise TypeError(
            f"{type(model).__name__} has no enable_gradient_checkpointing, as the models of diffusers do. "
            "Leave checkpointing=True out."
        )
    names = ("gradient_checkpointing", "_gradient_checkpointing_func")
    before = {
        module: {name: vars(module)[name] for name in names if name in vars(module)}
        for module in model.modules()
        if hasattr(module, "gradient_checkpointing")
    }
    try:
        model.enable_gradient_checkpointing()
        yield
    finally:
        for module, values in before.items():
            for name in names:
                vars(module).pop(name, None)
            vars(module).update(values)
