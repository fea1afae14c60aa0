"""Train a pipeline's denoiser further on images with captions: a new concept, or what pruning has cost.

Latents and text states are computed once, before the first step; the autoencoder and the text encoder stay as they are.
Nothing here knows how a denoiser was pruned.  Where zeros must stay zeros, pass what holds them as `after_step`.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .denoising import DenoisingTask
from .fit import AfterStep, FitConfig, Validate, fit, read_log

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline
    from PIL import Image

__all__ = ["FinetuneLog", "finetune"]

_HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class FinetuneLog:
    """What happened during a run.

    Attributes:
        lines: one dict per logged step, in order: "step", "seconds", "loss" (not at step 0) and what `validate` gave.
    """

    lines: list[dict[str, object]]

    def curve(self, name: str = "loss") -> tuple[list[int], list]:
        """Return the steps at which the figure `name` was noted, and its values.

        Raises:
            KeyError: it was never noted.
        """
        found = [(line["step"], line[name]) for line in self.lines if name in line]
        if not found:
            known = sorted({key for line in self.lines for key in line} - {"step"})
            raise KeyError(f"The log has no {name!r}. It has: {', '.join(known)}.")
        steps, values = zip(*found, strict=True)
        return list(steps), list(values)


def finetune(
    pipe: StableDiffusionPipeline, images: Tensor | Sequence[Image.Image], captions: Sequence[str], *, steps: int,
    lr: float = 5e-4, batch: int = 16, seed: int = 0, caption_dropout: float = 0.1, folder: str | Path | None = None,
    after_step: AfterStep | None = None, validate: Validate | None = None, half_weights: bool = False,
    progress: bool = False, **options,
) -> FinetuneLog:  # fmt: skip
    """Train `pipe.unet` in place on the denoising loss, with the noise levels and target of the pipeline's scheduler.

    Args:
        pipe: a Stable Diffusion pipeline with one text encoder.
        images: n PIL images, uint8 `[n, 3, h, w]` or floats in [0, 1], of the size the pipeline draws.
        captions: n texts, one per image.
        steps: of the optimiser, >= 1.
        lr: peak learning rate of AdamW.
        batch: images per step, drawn with replacement, >= 1.
        seed: of the order of images, dropped captions, timesteps and noise.
        caption_dropout: share of captions replaced by the empty one, in [0, 1], so that guidance keeps working.
        folder: where checkpoints and the log go; the same call goes on from there. Default: a temporary one.
        after_step: called after each step of the optimiser, as `Pruned.reapply` wants to be.
        validate: called with the steps done every `validate_every` steps, 0 included; what it returns is logged.
        half_weights: True to train weights of half precision as they are; most updates are then too small to count.
        progress: show a bar.
        options: other fields of `FitConfig`: ema, bf16, warmup, decay, weight_decay, clip, checkpoint_every, log_every,
            validate_every. Default of warmup: a tenth of the steps, 100 at most.

    Returns:
        The log. `pipe.unet` holds the averaged weights (unless ema=0) and is in evaluation mode.

    Raises:
        TypeError: no Stable Diffusion pipeline with one text encoder, or an unknown option.
        ValueError: images and captions that do not match, another size, weights of half precision, a scheduler without
            noise levels, numbers out of range, or a loss that became NaN.

    Example:
        >>> pruned = pl.prune_magnitude(pipe.unet, sparsity=0.5)
        >>> finetune(pipe, pl.training_images(), pl.captions(), steps=200, after_step=pruned.reapply)
    """
    config = _config(steps, lr, seed, pipe, options)
    _check_numbers(pipe, batch, caption_dropout, half_weights)
    task = DenoisingTask.of(pipe, images, captions)

    def loss(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        return task.loss(pipe.unet, generator, batch, caption_dropout), {}

    def run(place: Path) -> FinetuneLog:
        more = {"after_step": after_step, "validate": validate, "progress": progress}
        fit(pipe.unet, loss, config, place, "finetune", **more)
        return FinetuneLog(read_log(place))

    if folder is None:
        with tempfile.TemporaryDirectory() as place:
            return run(Path(place))
    return run(_same_data(Path(folder), list(captions), batch, caption_dropout))


def _config(steps: int, lr: float, seed: int, pipe, options: dict) -> FitConfig:
    known = set(FitConfig.__dataclass_fields__) - {"steps", "lr", "seed", "device"}
    if wrong := sorted(set(options) - known):
        raise TypeError(f"finetune() does not know {', '.join(wrong)}. Options: {', '.join(sorted(known))}.")
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps={steps!r}; it must be a whole number >= 1.")
    options = {"warmup": min(100, max(1, steps // 10)), **options}
    return FitConfig(steps=steps, lr=lr, seed=seed, device=str(getattr(pipe, "device", "cpu")), **options)


def _check_numbers(pipe, batch: int, dropout: float, half_weights: bool) -> None:
    if not isinstance(batch, int) or batch < 1:
        raise ValueError(f"batch={batch!r}; it must be a whole number >= 1.")
    if not 0 <= dropout <= 1:
        raise ValueError(f"caption_dropout={dropout}; it is a share and must lie in [0, 1].")
    kind = getattr(getattr(pipe, "unet", None), "dtype", None)
    if kind in _HALF and not half_weights:
        raise ValueError(
            f"The denoiser's weights are {str(kind).removeprefix('torch.')}: most updates would round to nothing. "
            "Call pipe.unet.float() first (bf16=True still computes in half precision), or pass half_weights=True "
            "to see it happen."
        )


def _same_data(folder: Path, captions: list[str], batch: int, dropout: float) -> Path:
    """Note what a run in `folder` is trained on, and refuse to go on from a run on something else."""
    note = json.dumps({"captions": captions, "batch": batch, "caption_dropout": dropout}, ensure_ascii=False)
    path = folder / "finetune.json"
    folder.mkdir(parents=True, exist_ok=True)
    if path.is_file() and path.read_text("utf-8") != note:
        raise ValueError(
            f"{folder} holds a run with other captions, batch or dropout. Choose another folder."
        )
    path.write_text(note, encoding="utf-8")
    return folder
