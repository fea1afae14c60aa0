"""Train a pipeline's denoiser further on images with captions: a new concept, or what pruning has cost.

The data teach, and if it is given, the model before pruning teaches too, on the same noise, timesteps and captions, as
in BK-SDM (Kim et al. 2023).  Where zeros must stay zeros, pass what holds them as `after_step`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..checks import check_number, check_whole
from ..processes import Processes
from .denoising import DenoisingTask, NoisyBatch, noise_schedule
from .folder import note_run, read_log
from .loop import AfterStep, FitConfig, Validate, fit

if TYPE_CHECKING:
    from accelerate import Accelerator
    from diffusers import StableDiffusionPipeline
    from PIL import Image

_DIFFERS = "other captions, batch or dropout, another teacher's weight or number of processes"
# Where diffusers keeps the blocks of a denoiser, beside one block on its own.
_LISTS = ("down_blocks", "up_blocks", "transformer_blocks", "single_transformer_blocks")


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
        pipe, images, captions: as in `DenoisingTask.of`.
        steps, lr, seed: as in `FitConfig`.
        batch: images per step and process, drawn with replacement, >= 1.
        caption_dropout: share of captions replaced by the empty one, in [0, 1], so that guidance keeps working.
        folder: where checkpoints and the log go; the same call goes on from there. Default: a temporary one.
        teacher: the pipeline (or its denoiser) before pruning; it is asked and never changed.
        distill_output, distill_features: weights of the teacher's losses, see `Distillation`.
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
            "Call pipe.unet.float() first (bf16=True still computes in half precision), or pass half_weights=True."
        )
    distillation = Distillation(_denoiser(teacher, pipe), distill_output, distill_features)
    if processes.device:
        pipe.to(processes.device)
    task = DenoisingTask.of(pipe, images, captions)

    def loss(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        drawn = task.draw(generator, batch * processes.count, caption_dropout)
        return distillation.loss(pipe.unet, drawn.share(processes.rank, processes.count))

    with tempfile.TemporaryDirectory() as place:
        if folder is not None:
            note = {"captions": list(captions), "batch": batch, "caption_dropout": caption_dropout}
            if distillation.on:
                note |= {"distill_output": distill_output, "distill_features": distill_features}
            if processes.count > 1:
                note["processes"] = processes.count
            place = note_run(Path(folder) / "finetune.json", note, _DIFFERS, processes)
        more = {"after_step": after_step, "validate": validate, "progress": progress, "processes": processes}
        with _frozen(distillation.teacher, pipe.unet, device), _checkpointed(pipe.unet, checkpointing):
            fit(pipe.unet, loss, config, place, "finetune", **more)
        return FinetuneLog(processes.gather(read_log(place) if processes.is_main else None)[0])


@dataclass(frozen=True)
class Distillation:
    """How much a student listens to its teacher, beside the data.

    Attributes:
        teacher: the denoiser before pruning; called without gradients. None: only the data teach.
        output: weight of the mean square of (student's answer - teacher's answer), >= 0.
        features: weight of the same for the outputs of blocks, summed over the blocks that both have under the same
            path and in the same shape, >= 0; the student may lack any number of layers inside them.
    """

    teacher: nn.Module | None = None
    output: float = 0.0
    features: float = 0.0

    def __post_init__(self) -> None:
        check_number("distill_output", self.output, "[0, inf)")
        check_number("distill_features", self.features, "[0, inf)")
        if self.teacher is None and self.on:
            raise ValueError(
                "distill_output and distill_features need a teacher: pass teacher=, the pipeline before pruning."
            )
        if self.teacher is not None and not self.on:
            raise ValueError(
                "A teacher was given, but distill_output and distill_features are 0, so it would never be asked. "
                "Pass distill_output=1, say, or leave the teacher out."
            )

    @property
    def on(self) -> bool:
        """Whether a teacher is asked at all."""
        return bool(self.output or self.features)

    def loss(self, student: nn.Module, batch: NoisyBatch) -> tuple[Tensor, dict[str, float]]:
        """Return the sum of the losses of a batch, with gradients, and each part for the log."""
        if not self.on:
            return batch.loss(student), {}
        known = set(_block_paths(self.teacher)) if self.features else ()
        paths = [path for path in _block_paths(student) if path in known]
        with torch.no_grad(), _block_outputs(self.teacher, paths) as theirs:
            wanted = batch.predict(self.teacher)
        with _block_outputs(student, paths) as ours:
            answer = batch.predict(student)
        if answer.shape != wanted.shape:
            raise ValueError(
                f"The teacher answers {list(wanted.shape)} where the model answers {list(answer.shape)}. "
                "Pass the pipeline that was pruned as teacher=."
            )
        parts = {"denoising": F.mse_loss(answer, batch.target)}
        total = parts["denoising"]
        if self.output:
            parts["output"] = F.mse_loss(answer, wanted)
            total = total + self.output * parts["output"]
        if self.features:
            parts["features"] = _feature_loss(ours, theirs)
            total = total + self.features * parts["features"]
        return total, {f"{name}_loss": part.item() for name, part in parts.items()}


def _feature_loss(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> Tensor:
    common = [p for p in ours if p in theirs and ours[p].shape == theirs[p].shape]
    if not common:
        raise ValueError(
            "distill_features: the model and its teacher have no block with the same path and output shape "
            f"(model: {', '.join(ours) or 'none'}; teacher: {', '.join(theirs) or 'none'}). Use distill_output alone."
        )
    # In float32: features may exceed what half precision can square.
    return torch.stack([F.mse_loss(ours[p].float(), theirs[p].float()) for p in common]).sum()


def _block_paths(denoiser: nn.Module) -> list[str]:
    """Return the paths of a denoiser's blocks: down, up and mid blocks of a UNet, blocks of a transformer."""
    found = [f"{name}.{i}" for name in _LISTS for i in range(len(getattr(denoiser, name, None) or ()))]
    return [*found, "mid_block"] if isinstance(getattr(denoiser, "mid_block", None), nn.Module) else found


@contextmanager
def _block_outputs(denoiser: nn.Module, paths: list[str]) -> Iterator[dict[str, Tensor]]:
    """Yield path -> what the module there returned in the last call (of several tensors the first), as it runs."""
    found: dict[str, Tensor] = {}

    def keep(path: str, module: nn.Module, args: object, output: object) -> None:
        first = output[0] if isinstance(output, (tuple, list)) else getattr(output, "sample", output)
        if isinstance(first, Tensor):
            found[path] = first

    handles = [denoiser.get_submodule(path).register_forward_hook(partial(keep, path)) for path in paths]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _denoiser(teacher: object, pipe: StableDiffusionPipeline) -> nn.Module | None:
    """Return the teacher's denoiser, after checking that it predicts what the student predicts."""
    if teacher is None or isinstance(teacher, nn.Module):
        return teacher
    if not isinstance(getattr(teacher, "unet", None), nn.Module):
        name = type(teacher).__name__
        raise TypeError(f"teacher is a {name}; expected the pipeline before pruning, or its denoiser.")
    if hasattr(teacher, "scheduler"):
        kinds = [noise_schedule(p.scheduler).config.prediction_type for p in (teacher, pipe)]
        if kinds[0] != kinds[1]:
            raise ValueError(f"The teacher predicts {kinds[0]!r}, the model {kinds[1]!r}; they must agree.")
    return teacher.unet


@contextmanager
def _frozen(teacher: nn.Module | None, student: nn.Module, device: str | torch.device) -> Iterator[None]:
    """Hold a teacher ready on `device` in evaluation mode, and leave it as it was found."""
    if teacher is None:
        yield
        return
    own = {id(parameter) for parameter in student.parameters()}
    shared = [name for name, parameter in teacher.named_parameters() if id(parameter) in own]
    if shared:
        raise ValueError(
            f"The teacher shares {len(shared)} weights with the model that is trained, such as {shared[0]}: it would "
            "change with it. Prune a copy, as pl.remove_operators does, or copy.deepcopy the pipeline first."
        )
    place, modes = next(teacher.parameters()).device, {m: m.training for m in teacher.modules()}
    try:
        teacher.to(device).eval()
        yield
    finally:
        teacher.to(place)
        for module, training in modes.items():
            module.training = training


@contextmanager
def _checkpointed(model: nn.Module, on: bool) -> Iterator[None]:
    """Switch on diffusers' gradient checkpointing (Chen et al. 2016), and restore what was set before."""
    if not on:
        yield
        return
    if not hasattr(model, "enable_gradient_checkpointing"):
        raise TypeError(f"{type(model).__name__} has no enable_gradient_checkpointing. Leave checkpointing=True out.")
    before = {m: m.gradient_checkpointing for m in model.modules() if hasattr(m, "gradient_checkpointing")}
    try:
        model.enable_gradient_checkpointing()
        yield
    finally:
        for module, was in before.items():
            module.gradient_checkpointing = was
