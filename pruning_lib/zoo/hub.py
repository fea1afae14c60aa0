"""`load`: one call for the shipped model, the papers' models, any hub id and any local folder.

This is the only place of the package that may reach for a hub.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from .._text import nearest
from ..measure.device import check_device
from .models import MODELS, models_folder

__all__ = ["ModelUnavailableError", "load"]


class ModelUnavailableError(OSError):
    """The hub could not be reached, or it does not have the model."""


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
        ValueError: an unknown short name (the nearest is suggested), device or dtype.
        FileNotFoundError: a folder without `model_index.json`.
        ModelUnavailableError: the hub cannot be reached or refuses, or a file of the folder is missing or damaged.
    """
    if not isinstance(name, (str, Path)):
        raise TypeError(f"A model is asked for by its name or folder, not by {name!r}.")
    device, dtype = _checked(device, dtype)
    with _quietly():
        pipe = _load(name, dtype, revision)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def _load(name: str | Path, dtype: torch.dtype, revision: str | None) -> DiffusionPipeline:
    info = MODELS.get(str(name))
    local = bool(info and not info.repo) or bool(not info and str(name) and Path(name).is_dir())
    if revision and local:
        raise ValueError(
            f"revision={revision!r} was given, but {str(name)!r} lies on this disk; revisions belong to the hub. "
            "Leave revision out, or give a hub id."
        )
    if info and not info.repo:
        return _from_folder(models_folder() / info.name, dtype)
    if info:
        return _from_hub(info.repo, revision or info.revision, dtype, info.memory_gib)
    if local:
        return _from_folder(Path(name), dtype)
    if _looks_like_repo(str(name)):
        return _from_hub(str(name), revision or "main", dtype, None)
    raise ValueError(
        f"Unknown model {str(name)!r}. {nearest(str(name), MODELS)} "
        "Also allowed: a folder written by save_pretrained, or a hub id such as 'owner/name'."
    )


@contextmanager
def _quietly() -> Iterator[None]:
    """Hold back progress bars and notes about optional packages: a reader asked for a model, not for a log."""
    old = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled(), diffusers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    diffusers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            # the newest diffusers prefers `dtype`; the older ones we also support know only `torch_dtype`
            warnings.filterwarnings("ignore", message=".*torch_dtype", category=FutureWarning)
            yield
    finally:
        transformers_logging.set_verbosity(old)
        if bars[0]:
            transformers_logging.enable_progress_bar()
        if bars[1]:
            diffusers_logging.enable_progress_bar()


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
    _check_parts(folder)
    stored = _check_weights(folder)
    try:
        pipe = DiffusionPipeline.from_pretrained(folder, torch_dtype=dtype, local_files_only=True)
    except (OSError, ValueError, RuntimeError, TypeError, AttributeError, KeyError) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ModelUnavailableError(
            f"{folder} could not be loaded: {reason.rstrip('.')}. Fetch it again, or restore it from version control."
        ) from error
    for name, part in pipe.components.items():
        _check_complete(folder / name, part, stored.get(name))
    return pipe


def _check_parts(folder: Path) -> None:
    """Check that the pipeline's index can be read and every part it names has its folder; some load as None if not."""
    path = folder / "model_index.json"
    try:
        index = json.loads(path.read_text("utf-8"))
        parts = [name for name, kind in index.items() if isinstance(kind, list) and all(kind)]
    except (ValueError, AttributeError) as error:
        raise ModelUnavailableError(
            f"{path} is damaged: {error}. Fetch it again, or restore it from version control."
        ) from error
    missing = [name for name in parts if not (folder / name).is_dir()]
    if missing:
        raise ModelUnavailableError(
            f"{folder} lacks {', '.join(missing)}, which its model_index.json names. "
            "Fetch it again, or restore it from version control."
        )


def _check_complete(folder: Path, part: object, stored: int | None) -> None:
    """Compare numbers stored and needed: a tensor that its file lacks would be left random or empty, with no error."""
    if stored is None or not isinstance(part, torch.nn.Module):
        return
    needed = sum(parameter.numel() for parameter in part.parameters())
    if stored < needed:
        raise ModelUnavailableError(
            f"The weights in {folder} are not whole: they hold {stored:,} numbers, the model has {needed:,}. "
            "Fetch them again, or restore them from version control."
        )


def _check_weights(folder: Path) -> dict[str, int]:
    """Read every safetensors header and compare it with the file's length: damage shows before anything is loaded.

    Returns:
        Part of the pipeline -> how many numbers its files hold.
    """
    stored: dict[str, int] = {}
    for path in sorted(folder.glob("*/*.safetensors")):
        size = path.stat().st_size
        try:
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                if length > size:
                    raise ValueError("its header is longer than the file")
                header = json.loads(file.read(length))
            tensors = [tensor for key, tensor in header.items() if key != "__metadata__"]
            ends = [tensor["data_offsets"][1] for tensor in tensors]
            stored[path.parent.name] = stored.get(path.parent.name, 0) + sum(math.prod(t["shape"]) for t in tensors)
            if 8 + length + max(ends, default=0) != size:
                raise ValueError(
                    f"its header asks for {8 + length + max(ends, default=0)} bytes, the file has {size}"
                )
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise ModelUnavailableError(
                f"{path} is damaged or cut short: {error}. Fetch it again, or restore it from version control."
            ) from error
    return stored


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
