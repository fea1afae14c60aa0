"""What the training benchmarks share: pictures of a pipeline, judged, with intervals; and results kept run by run."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pruning_lib.measure import bootstrap_interval, clip_score, frechet, psnr, retrieval_rank, ssim
from pruning_lib.zoo.gate import generate

TOP = 5
PSNR_CAP = 60.0  # equal pictures have no finite PSNR; only the unpruned model is compared with itself


@dataclass(frozen=True)
class Judged:
    """Pictures and one figure per picture.

    Attributes:
        pictures: uint8 `[n, 3, 64, 64]`.
        figures: name -> `[n]`: "ssim" and "psnr_db" against `wanted`, "clip_score", "top5" (0 or 1).
        frechet: Fréchet distance with its interval, or None where it was not asked for.
    """

    pictures: Tensor
    figures: dict[str, Tensor]
    frechet: dict | None = None

    def intervals(self) -> dict[str, dict]:
        """Return each figure's mean with its bootstrap interval."""
        found = {name: bootstrap_interval(values).to_dict() for name, values in self.figures.items()}
        return found | ({"frechet": self.frechet} if self.frechet else {})

    def means(self) -> dict[str, float]:
        """Return each figure's mean."""
        return {name: values.mean().item() for name, values in self.figures.items()}


def unit(images: Tensor) -> Tensor:
    """Return uint8 pictures as floats in [0, 1]."""
    return images.float() / 255


def judge(
    pipe, clip, prompts: Sequence[str], candidates: Sequence[str], wanted: Tensor | None, *, steps: int,
    guidance: float, seed: int = 0, real: Tensor | None = None,
) -> Judged:  # fmt: skip
    """Draw one picture per prompt and judge them.

    Args:
        pipe, clip: the model and its judge.
        prompts: picture i starts from noise of seed `seed` + i.
        candidates: all captions, for the retrieval.
        wanted: pictures to compare with, uint8, one per prompt; None: the drawn ones themselves.
        steps, guidance: of the sampler.
        real: real pictures for the Fréchet distance on mini-CLIP features.
    """
    pictures = generate(pipe, list(prompts), steps=steps, guidance=guidance, seed=seed)
    target = unit(pictures if wanted is None else wanted)
    figures = {
        "ssim": ssim(unit(pictures), target),
        "psnr_db": psnr(unit(pictures), target).clamp(max=PSNR_CAP),
        "clip_score": clip_score(clip, pictures, prompts),
        "top5": (retrieval_rank(clip, pictures, prompts, candidates) <= TOP).float(),
    }
    distance = None if real is None else frechet(pictures, real, features=clip, n_boot=100).to_dict()
    return Judged(pictures, figures, distance)


def once(path: Path, work: Callable[[], dict]) -> dict:
    """Return what `path` holds, or do the work and keep its result there: an interrupted benchmark goes on."""
    if not path.is_file():
        result = work()
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(result), encoding="utf-8")
        part.replace(path)
    return json.loads(path.read_text(encoding="utf-8"))


def spread(count: int, total: int) -> list[int]:
    """Return `count` indices spread evenly over `total`."""
    return torch.linspace(0, total - 1, count).round().long().tolist()


def tiles_of(sheet: Path) -> Tensor:
    """Return the pictures of a sheet of one row, uint8 `[n, 3, 64, 64]`."""
    pixels = torch.from_numpy(np.array(Image.open(sheet).convert("RGB")))
    return pixels.view(64, -1, 64, 3).permute(1, 3, 0, 2)
