"""`load`: one call for the shipped model, the papers' models, any hub id and any local folder.

This is the only place of the package that may reach for a hub.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import DiffusionPipeline

from .._quiet import quietly
from .._text import nearest
from ..measure.device import check_device
from .intact import ModelUnavailableError, check_complete, check_not_pruned, check_parts, check_weights
from .models import MODELS, models_folder

__all__ = ["ModelUnavailableError", "load"]


def load(
    name: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    revision: str | None = None,
) -> DiffusionPipeline:
    """Load a pipeline by short name, local folder or hub id.

    Args:
        name: a name of `pl.models()`, a folder that `save_pretrained` wrote, or a hub id "owner/name".
        device: where the pipeline goes, for example "cpu", "cuda" or "cuda:1".
        dtype: of the weights. Default: float32 on a CPU, float16 elsewhere.
        revision: commit or branch on the hub. Default: the pinned one of a short name, else "main". Only for models
            that come from the hub.

    Returns:
        A diffusers pipeline in evaluation mode, with its progress bar off.

    Raises:
        TypeError: a name that is neither text nor a path.
        ValueError: an unknown short name (the nearest is suggested), device or dtype; or a folder for `pl.load_pruned`.
        FileNotFoundError: a folder without `model_index.json`.
        ModelUnavailableError: the hub cannot be reached or refuses, or a file of the folder is missing or damaged.
    """
    if not isinstance(name, (str, Path)):
        raise TypeError(f"A model is asked for by its name or folder, not by {name!r}.")
    device, dtype = _checked(device, dtype)
    with quietly():
        pipe = _load(name, dtype, revision)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def _load(name: str | Path, dtype: torch.dtype, revision: str | None) -> DiffusionPipeline:
    info = MODELS.get(str(name))
    folder = None
    if info and not info.repo:
        folder = models_folder() / info.name
    elif not info and str(name) and Path(name).is_dir():
        folder = Path(name)
    if folder and revision:
        raise ValueError(
            f"revision={revision!r} was given, but {str(name)!r} lies on this disk; revisions belong to the hub. "
            "Leave revision out, or give a hub id."
        )
    if folder:
        return _from_folder(folder, dtype)
    if info:
        return _from_hub(info.repo, revision or info.revision, dtype, info.memory_gib)
    if _looks_like_repo(str(name)):
        return _from_hub(str(name), revision or "main", dtype, None)
    raise ValueError(
        f"Unknown model {str(name)!r}. {nearest(str(name), MODELS)} "
        "Also allowed: a folder written by save_pretrained, or a hub id such as 'owner/name'."
    )


def _checked(device, dtype) -> tuple[torch.device, torch.dtype]:
    device = check_device(device)
    allowed = (torch.float32, torch.float16, torch.bfloat16)
    if dtype is not None and dtype not in allowed:
        raise ValueError(
            f"dtype={dtype!r} is not a type for weights. Allowed: {', '.join(map(str, allowed))}."
        )
    return device, dtype or (torch.float32 if device.type == "cpu" else torch.float16)


def _looks_like_repo(name: str) -> bool:
    parts = name.split("/")
    return len(parts) == 2 and all(parts) and not name.startswith((".", "~"))


def _from_folder(folder: Path, dtype: torch.dtype) -> DiffusionPipeline:
    if not (folder / "model_index.json").is_file():
        raise FileNotFoundError(
            f"{folder} has no model_index.json, so it is not a diffusers pipeline. "
            "Pass the folder that pipe.save_pretrained() wrote."
        )
    check_parts(folder)
    check_not_pruned(folder)
    stored = check_weights(folder)
    try:
        pipe = DiffusionPipeline.from_pretrained(folder, torch_dtype=dtype, local_files_only=True)
    except (OSError, ValueError, RuntimeError, TypeError, AttributeError, KeyError) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ModelUnavailableError(
            f"{folder} could not be loaded: {reason.rstrip('.')}. Fetch it again, or restore it from version control."
        ) from error
    for name, part in pipe.components.items():
        check_complete(folder / name, part, stored.get(name))
    return pipe


def _from_hub(repo: str, revision: str, dtype: torch.dtype, memory: float | None) -> DiffusionPipeline:
    # Offline, requests fail deep inside huggingface_hub in many ways; a reader needs one answer: what, why, what now.
    try:
        return DiffusionPipeline.from_pretrained(repo, revision=revision, torch_dtype=dtype)
    except (ImportError, MemoryError):  # not the hub's doing, and they say what to do
        raise
    except Exception as error:  # among them errors of network libraries, which are no OSError
        need = f" It needs about {memory:g} GiB of memory in half precision." if memory else ""
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelUnavailableError(
            f"Could not load {repo!r} (revision {revision}) from the Hugging Face hub: {reason}\n"
            f"Check the network and the id; behind a login, run `hf auth login`.{need} "
            "Without a network, use pl.load('emoji-sd'), or a folder you downloaded before."
        ) from error
