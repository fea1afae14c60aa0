"""Where a pipeline keeps its denoiser."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

__all__ = ["denoiser_of"]

_NAMES = ("unet", "transformer")


def denoiser_of(pipe: DiffusionPipeline) -> tuple[str, nn.Module]:
    """Return the name of the component that removes noise, and the module itself.

    Raises:
        TypeError: not a pipeline, or one without `unet` and `transformer`.
    """
    for name in _NAMES:
        module = getattr(pipe, name, None)
        if isinstance(module, nn.Module) and hasattr(pipe, "components"):
            return name, getattr(module, "_orig_mod", module)  # what torch.compile wraps
    hint = (
        " It looks like a denoiser: pass the pipeline that holds it." if isinstance(pipe, nn.Module) else ""
    )
    raise TypeError(
        f"Expected a diffusers pipeline with a unet or a transformer, got {type(pipe).__name__}.{hint}"
    )
