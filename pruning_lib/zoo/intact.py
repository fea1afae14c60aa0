"""Is a pipeline's folder whole?  Damage shows before anything is loaded, and nothing missing passes unnoticed."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch

__all__ = ["ModelUnavailableError", "check_complete", "check_not_pruned", "check_parts", "check_weights"]


class ModelUnavailableError(OSError):
    """The hub could not be reached, or it does not have the model."""


def check_parts(folder: Path) -> None:
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


def check_not_pruned(folder: Path) -> None:
    """Refuse a pipeline whose denoiser lacks operators: diffusers would fill the gaps with random weights."""
    for name in ("unet", "transformer"):
        path = folder / name / "config.json"
        if path.is_file() and '"pruning_lib"' in path.read_text("utf-8"):
            raise ValueError(
                f"The {name} in {folder} was pruned; load it with pl.load_pruned({str(folder)!r})."
            )


def check_complete(folder: Path, part: object, stored: int | None) -> None:
    """Compare numbers stored and needed: a tensor that its file lacks would be left random or empty, with no error."""
    if stored is None or not isinstance(part, torch.nn.Module):
        return
    needed = sum(parameter.numel() for parameter in part.parameters())
    if stored < needed:
        raise ModelUnavailableError(
            f"The weights in {folder} are not whole: they hold {stored:,} numbers, the model has {needed:,}. "
            "Fetch them again, or restore them from version control."
        )


def check_weights(folder: Path) -> dict[str, int]:
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
            stored[path.parent.name] = stored.get(path.parent.name, 0) + sum(
                math.prod(t["shape"]) for t in tensors
            )
            if 8 + length + max(ends, default=0) != size:
                raise ValueError(
                    f"its header asks for {8 + length + max(ends, default=0)} bytes, the file has {size}"
                )
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise ModelUnavailableError(
                f"{path} is damaged or cut short: {error}. Fetch it again, or restore it from version control."
            ) from error
    return stored
