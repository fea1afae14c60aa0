"""What benchmarks share: pictures, judged, with intervals; what was measured beside what was promised; kept results."""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pruning_book.frechet import frechet
from pruning_lib.interval import bootstrap_interval
from pruning_lib.latency import Latency, ratio
from pruning_lib.quality import clip_score, psnr, retrieval_rank, ssim
from zoo.acceptance import generate

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
    pipe,
    clip,
    prompts: Sequence[str],
    candidates: Sequence[str],
    wanted: Tensor | None,
    *,
    steps: int,
    guidance: float,
    seed: int = 0,
    real: Tensor | None = None,
) -> Judged:
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
        write_whole(path, json.dumps(work()))
    return json.loads(path.read_text(encoding="utf-8"))


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def peak_mib(device: torch.device) -> float:
    """Return the most memory used so far: of the GPU's tensors, or of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status")  # ru_maxrss is inherited from the process that started this one
    if status.is_file():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        return int(lines["VmHWM"].split()[0]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def compared(base: Latency, latency: Latency, macs_ratio: float) -> dict:
    """Return measured beside promised speed, of at least two rounds."""
    faster = ratio(base, latency)
    return {
        "latency": latency.to_dict(),
        "times_as_fast": faster.to_dict(),
        "promised": 1 / macs_ratio,
        "reached": faster.value * macs_ratio,
    }


def spread(count: int, total: int) -> list[int]:
    """Return `count` indices spread evenly over `total`."""
    return torch.linspace(0, total - 1, count).round().long().tolist()


def tiles_of(sheet: Path) -> Tensor:
    """Return the pictures of a sheet of one row, uint8 `[n, 3, 64, 64]`."""
    pixels = torch.from_numpy(np.array(Image.open(sheet).convert("RGB")))
    return pixels.view(64, -1, 64, 3).permute(1, 3, 0, 2)
