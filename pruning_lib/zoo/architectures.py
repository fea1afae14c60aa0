"""Denoisers as structure only: known architectures on the meta device, for counting without weights.

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
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn

from .._text import nearest
from .models import models_folder

__all__ = ["architectures", "denoiser_config", "denoiser_on_meta"]

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
        raise ValueError(
            f"{path} is not valid JSON: {error}. Restore the file that diffusers wrote."
        ) from error
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
