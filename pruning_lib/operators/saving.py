"""Load a pruned pipeline again: build the base without weights, carry out its plans, then read the weights.

Saving is diffusers' own `save_pretrained`: the plans lie in the denoiser's config.json, beside the weights.  diffusers
alone cannot load such a folder: it warns that weights are missing and fills them with random numbers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from .plan import Plan
from .remove import CONFIG_KEY, change_operators

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

__all__ = ["load_pruned", "load_pruned_denoiser"]


def load_pruned(folder: str | Path, *, dtype: torch.dtype = torch.float32, **options) -> DiffusionPipeline:
    """Load a pipeline that `remove_operators` made and `save_pretrained` wrote.

    Args:
        folder: of the pipeline, with a model_index.json.
        dtype: of the weights of all components.
        options: passed on to diffusers' `from_pretrained`.

    Returns:
        The pipeline, bit for bit as it was saved, in evaluation mode, on the CPU.

    Raises:
        OSError: no such folder or files.
        ValueError: the denoiser there was not pruned by this package, or the plans, the configuration and the weights
            do not fit one another.

    Example:
        >>> small.save_pretrained("small-sd")
        >>> small = pl.load_pruned("small-sd")
    """
    from diffusers import DiffusionPipeline  # here: it brings half of diffusers and transformers

    from .._quiet import quietly

    folder = Path(folder)
    index = folder / "model_index.json"
    if not index.is_file():
        raise OSError(
            f"{folder} has no model_index.json, so it is no saved pipeline. Give the folder save_pretrained wrote."
        )
    parts = json.loads(index.read_text("utf-8"))
    name = next((n for n in ("unet", "transformer") if parts.get(n, [None])[0]), None)
    if name is None:
        raise ValueError(f"The pipeline in {folder} has neither unet nor transformer.")
    denoiser = load_pruned_denoiser(folder / name, dtype=dtype)
    with quietly():
        return DiffusionPipeline.from_pretrained(folder, **{name: denoiser}, torch_dtype=dtype, **options)


def load_pruned_denoiser(folder: str | Path, *, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Load the denoiser alone, from the folder with its config.json; see `load_pruned`."""
    import diffusers
    from accelerate import init_empty_weights

    folder = Path(folder)
    path = folder / "config.json"
    if not path.is_file():
        raise OSError(f"{folder} has no config.json.")
    config = json.loads(path.read_text("utf-8"))
    done = config.pop(CONFIG_KEY, None)
    if done is None:
        raise ValueError(
            f"{path} holds no plan: this denoiser was not pruned here. Load it with from_pretrained."
        )
    cls = getattr(diffusers, str(config.get("_class_name")), None)
    if cls is None:
        raise ValueError(
            f"{path} names the class {config.get('_class_name')!r}, which diffusers does not have."
        )
    with init_empty_weights(include_buffers=False):  # tables of positions are computed, not saved
        denoiser = cls.from_config(config).eval()
    try:
        for plan in done["plans"]:
            change_operators(denoiser, Plan.from_dict(plan))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"The plans in {path} do not fit the configuration there: {error}") from error
    weights = _weights(folder)
    _check_weights(denoiser, weights, folder)
    denoiser.load_state_dict(weights, strict=False, assign=True)
    denoiser.register_to_config(_name_or_path=str(folder))
    return nn.Module.to(denoiser, dtype)  # diffusers' own `to` warns about half precision on a CPU


def _weights(folder: Path) -> dict[str, Tensor]:
    files = sorted(folder.glob("diffusion_pytorch_model*.safetensors"))
    if not files:
        raise OSError(
            f"{folder} has no diffusion_pytorch_model*.safetensors. Save with safe_serialization=True."
        )
    found = {}
    for file in files:  # one, or the shards of one
        found.update(load_file(file))
    return found


def _check_weights(denoiser: nn.Module, weights: dict[str, Tensor], folder: Path) -> None:
    wanted = denoiser.state_dict()
    extra = [name for name in weights if name not in wanted]
    wrong = [n for n, w in weights.items() if n in wanted and w.shape != wanted[n].shape]
    tied = {id(p) for n, p in denoiser.named_parameters(remove_duplicate=False) if n in weights}
    missing = [n for n, p in denoiser.named_parameters() if n not in weights and id(p) not in tied]
    for what, names in (("unknown", extra), ("of another shape", wrong), ("missing", missing)):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ValueError(
                f"The weights in {folder} do not fit the plan in its config.json: {what}: "
                f"{', '.join(names[:3])}{more}. Take both from the same save_pretrained."
            )
