"""Modifications that change nothing, as the weights prove without a single generation.

A residual branch whose last layer holds only zeros adds nothing, whatever its input, as long as that is finite.  So
its removal changes nothing, and neither does any change inside it.  Pruned models have such branches, and so have
models that are trained from zero-initialised ones.
"""

from __future__ import annotations

from torch import nn

__all__ = ["why_no_change"]

_ENDS = {  # class of a residual branch -> its last layer, and what of it is not part of the branch
    "ResnetBlock2D": ("conv2", ("conv_shortcut", "upsample", "downsample")),
    "Transformer2DModel": ("proj_out", ()),
    "FeedForward": ("net.2", ()),
    "Attention": ("to_out.0", ()),
}


def why_no_change(denoiser: nn.Module, path: str, how: str) -> str:
    """Return why a modification cannot change any output, or "" where that is not certain.

    Args:
        denoiser: the unchanged model.
        path: of the operator.
        how: the modification.
    """
    module = denoiser.get_submodule(path)
    if how in ("pointwise", "low rank") and _is_zero(module, with_bias=False):
        return "all weights of the layer are zero"
    if how in ("identity", "zero", "shortcut"):
        if _is_silent(module) or _is_silent_block(module):
            return "the last layer of the branch is zero"
    parts = path.split(".")
    for depth in range(1, len(parts)):
        outer, inner = ".".join(parts[:depth]), ".".join(parts[depth:])
        branch = denoiser.get_submodule(outer)
        if not _is_silent(branch):
            continue
        end, outside = _ENDS[type(branch).__name__]
        if not f"{end}.".startswith(f"{inner}.") and inner.split(".")[0] not in outside:
            return f"{outer} ends in a layer of zeros"
    return ""


def _is_silent(branch: nn.Module) -> bool:
    end, _ = _ENDS.get(type(branch).__name__, ("", ()))
    if not end or getattr(branch, "output_scale_factor", 1) != 1 or getattr(branch, "rescale_output_factor", 1) != 1:
        return False
    try:
        return _is_zero(branch.get_submodule(end), with_bias=True)
    except AttributeError:
        return False


def _is_silent_block(block: nn.Module) -> bool:
    """A transformer block whose branches are all silent."""
    if type(block).__name__ != "BasicTransformerBlock":
        return False
    branches = [getattr(block, name, None) for name in ("attn1", "attn2", "ff")]
    return all(_is_silent(branch) for branch in branches if branch is not None)


def _is_zero(layer: nn.Module, *, with_bias: bool) -> bool:
    if not isinstance(layer, (nn.Conv2d, nn.Linear)):
        return False
    tensors = [layer.weight, *([layer.bias] if with_bias and layer.bias is not None else [])]
    return not any(t.is_meta or t.any() for t in tensors)
