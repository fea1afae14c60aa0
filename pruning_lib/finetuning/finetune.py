"""Train a pipeline's denoiser further on images with captions: a new concept, or what pruning has cost.

The data teach, and where a teacher is given, the model before it was pruned teaches too (`distill`).  Latents and text
states are computed once, before the first step.  Nothing here knows how a denoiser was pruned: where zeros must stay
zeros, pass what holds them as `after_step`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..checks import check_number, check_whole
from ..processes import Processes
from .denoising import DenoisingTask, noise_schedule
from .distill import Distillation, frozen
from .loop import AfterStep, FitConfig, Validate, fit, note_run, read_log

if TYPE_CHECKING:
    from accelerate import Accelerator
    from diffusers import StableDiffusionPipeline
    from PIL import Image

_DIFFERS = "other captions, batch or dropout, another teacher's weight or number of processes"


@dataclass(frozen=True)
class FinetuneLog:
    """What happened during a run.

    Attributes:
        lines: one dict per logged step, in order: "step", "seconds", "loss" (not at step 0) and what `validate` gave.
    """

    lines: list[dict[str, object]]

    def curve(self, name: str = "loss") -> tuple[list[int], list]:
        """Return the steps at which the figure `name` was noted, and its values; a KeyError where it never was."""
        noted = [line for line in self.lines if name in line]
        if not noted:
            known = sorted({key for line in self.lines for key in line} - {"step"})
            raise KeyError(f"The log has no {name!r}. It has: {', '.join(known)}.")
        return [line["step"] for line in noted], [line[name] for line in noted]


def finetune(
    pipe: StableDiffusionPipeline,
    images: Tensor | Sequence[Image.Image],
    captions: Sequence[str],
    *,
    steps: int,
    lr: float = 5e-4,
    batch: int = 16,
    seed: int = 0,
    caption_dropout: float = 0.1,
    folder: str | Path | None = None,
    teacher: StableDiffusionPipeline | nn.Module | None = None,
    distill_output: float = 0.0,
    distill_features: float = 0.0,
    checkpointing: bool = False,
    accelerator: Accelerator | None = None,
    after_step: AfterStep | None = None,
    validate: Validate | None = None,
    half_weights: bool = False,
    progress: bool = False,
    **options,
) -> FinetuneLog:
    """Train `pipe.unet` in place on the denoising loss, with the noise levels and target of the pipeline's scheduler.

    Args:
        pipe: a Stable Diffusion pipeline with one text encoder.
        images: n PIL images, uint8 `[n, 3, h, w]` or floats in [0, 1], of the size the pipeline draws.
        captions: n texts, one per image.
        steps: of the optimiser, >= 1.
        lr: peak learning rate of AdamW.
        batch: images per step and process, drawn with replacement, >= 1.
        seed: of the order of images, dropped captions, timesteps and noise.
        caption_dropout: share of captions replaced by the empty one, in [0, 1], so that guidance keeps working.
        folder: where checkpoints and the log go; the same call goes on from there. Default: a temporary one.
        teacher: the pipeline (or its denoiser) before pruning; it is asked and never changed.
        distill_output: weight of the mean square between the two answers, >= 0.
        distill_features: weight of the same between the outputs of the blocks that both have, summed, >= 0.
        checkpointing: True to compute activations again in the backward pass instead of keeping them.
        accelerator: of accelerate, to share the run between processes. Found by itself under `accelerate launch`.
            Gradients are averaged, so n processes with `batch` each take the step of one with n * `batch`; the main
            one alone writes to `folder`, which all must be able to read. The pipeline moves to its device.
        after_step: called after each step of the optimiser, as `PrunedWeights.reapply` wants to be.
        validate: called with the steps done every `validate_every` steps, 0 included; what it returns is logged, as
            `PictureValidator` does.
        half_weights: True to train weights of half precision as they are; most updates are then too small to count.
        progress: show a bar.
        options: other fields of `FitConfig`: ema, bf16, warmup, decay, weight_decay, clip, checkpoint_every, log_every,
            validate_every. Default of warmup: a tenth of the steps, 100 at most.

    Returns:
        The log. `pipe.unet` holds the averaged weights (unless ema=0) and is in evaluation mode.

    Raises:
        TypeError, ValueError: what `DenoisingTask.of` refuses, options that are unknown or out of range, weights of
            half precision, a teacher that does not fit, a folder of another run, or a loss that became NaN.

    Example:
        >>> pruned = pl.prune_magnitude(pipe.unet, sparsity=0.5)
        >>> finetune(pipe, pb.training_images(), pb.captions(), steps=200, after_step=pruned.reapply)
        >>> finetune(small, images, captions, steps=200, teacher=pipe, distill_output=1, distill_features=1)
    """
    processes = Processes.of(accelerator)
    device = processes.device or getattr(pipe, "device", "cpu")
    known = set(FitConfig.__dataclass_fields__) - {"steps", "lr", "seed", "device"}
    if wrong := sorted(set(options) - known):
        raise TypeError(f"finetune() does not know {', '.join(wrong)}. Options: {', '.join(sorted(known))}.")
    options = {"warmup": min(100, max(1, check_whole("steps", steps, 1) // 10)), **options}
    config = FitConfig(steps=steps, lr=lr, seed=seed, device=str(device), **options)
    check_whole("batch", batch, 1)
    check_number("caption_dropout", caption_dropout, "[0, 1]")
    kind = getattr(getattr(pipe, "unet", None), "dtype", None)
    if kind in (torch.float16, torch.bfloat16) and not half_weights:
        raise ValueError(
            f"The denoiser's weights are {str(kind).removeprefix('torch.')}: most updates would round to nothing. "
            "Call pipe.unet.float() first (bf16=True still computes in half precision), or pass half_weights=True "
            "to see it happen."
        )
    distillation = Distillation(_denoiser(teacher, pipe), distill_output, distill_features)
    if processes.device:
        pipe.to(processes.device)
    task = DenoisingTask.of(pipe, images, captions)

    def loss(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        drawn = task.draw(generator, batch * processes.count, caption_dropout)
        return distillation.loss(pipe.unet, drawn.share(processes.rank, processes.count))

    def run(place: Path) -> FinetuneLog:
        more = {"after_step": after_step, "validate": validate, "progress": progress, "processes": processes}
        with frozen(distillation.teacher, pipe.unet, device), checkpointed(pipe.unet, checkpointing):
            fit(pipe.unet, loss, config, place, "finetune", **more)
        return FinetuneLog(processes.from_main(read_log(place) if processes.is_main else None))

    if folder is None:
        with tempfile.TemporaryDirectory() as place:
            return run(Path(place))
    note = {"captions": list(captions), "batch": batch, "caption_dropout": caption_dropout}
    if distillation.on:
        note |= {"distill_output": distill_output, "distill_features": distill_features}
    if processes.count > 1:
        note["processes"] = processes.count
    return run(note_run(Path(folder) / "finetune.json", note, _DIFFERS, processes))


def _denoiser(teacher: object, pipe: StableDiffusionPipeline) -> nn.Module | None:
    """Return the teacher's denoiser, after checking that it predicts what the student predicts."""
    if teacher is None or isinstance(teacher, nn.Module):
        return teacher
    if not isinstance(getattr(teacher, "unet", None), nn.Module):
        raise TypeError(
            f"teacher is a {type(teacher).__name__}; expected the pipeline before pruning, or its denoiser."
        )
    if hasattr(teacher, "scheduler"):
        kinds = [noise_schedule(p.scheduler).config.prediction_type for p in (teacher, pipe)]
        if kinds[0] != kinds[1]:
            raise ValueError(f"The teacher predicts {kinds[0]!r}, the model {kinds[1]!r}; they must agree.")
    return teacher.unet


@contextmanager
def checkpointed(model: nn.Module, on: bool = True) -> Iterator[None]:
    """Switch on diffusers' gradient checkpointing (Chen et al. 2016), and restore what was set before."""
    if not on:
        yield
        return
    if not hasattr(model, "enable_gradient_checkpointing"):
        raise TypeError(
            f"{type(model).__name__} has no enable_gradient_checkpointing, as the models of diffusers do. "
            "Leave checkpointing=True out."
        )
    names = ("gradient_checkpointing", "_gradient_checkpointing_func")
    modules = [module for module in model.modules() if hasattr(module, "gradient_checkpointing")]
    before = [{name: value for name, value in vars(module).items() if name in names} for module in modules]
    try:
        model.enable_gradient_checkpointing()
        yield
    finally:
        for module, values in zip(modules, before, strict=True):
            for name in names:
                vars(module).pop(name, None)
            vars(module).update(values)
