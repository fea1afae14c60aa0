"""Learning from the model as it was before it was pruned, beside learning from data.

Three losses are added up, each on the same noise, timesteps and captions, as BK-SDM does (Kim et al. 2023): the
student's answer against the target, against the teacher's answer, and the outputs of its blocks against the teacher's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..checks import check_number
from .denoising import NoisyBatch

# Where diffusers keeps the blocks of a denoiser, beside one block on its own.
_LISTS = ("down_blocks", "up_blocks", "transformer_blocks", "single_transformer_blocks")


def block_paths(denoiser: nn.Module) -> list[str]:
    """Return the paths of a denoiser's blocks: down, up and mid blocks of a UNet, blocks of a transformer."""
    found = [f"{name}.{i}" for name in _LISTS for i in range(len(getattr(denoiser, name, None) or ()))]
    if isinstance(getattr(denoiser, "mid_block", None), nn.Module):
        found.append("mid_block")
    return found


@contextmanager
def block_outputs(denoiser: nn.Module, paths: list[str]) -> Iterator[dict[str, Tensor]]:
    """Yield path -> what the module there returned in the last call (of several tensors the first), as it runs."""
    found: dict[str, Tensor] = {}

    def keep(path: str):
        def hook(module: nn.Module, args: object, output: object) -> None:
            first = output[0] if isinstance(output, (tuple, list)) else getattr(output, "sample", output)
            if isinstance(first, Tensor):
                found[path] = first

        return hook

    handles = [denoiser.get_submodule(path).register_forward_hook(keep(path)) for path in paths]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class Distillation:
    """How much a student listens to its teacher.

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
        known = set(block_paths(self.teacher)) if self.features else ()
        paths = [path for path in block_paths(student) if path in known]
        with torch.no_grad(), block_outputs(self.teacher, paths) as theirs:
            wanted = batch.predict(self.teacher)
        with block_outputs(student, paths) as ours:
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
            f"(model: {', '.join(ours) or 'none'}; teacher: {', '.join(theirs) or 'none'}). "
            "Use distill_output alone."
        )
    # In float32: features may exceed what half precision can square.
    return torch.stack([F.mse_loss(ours[p].float(), theirs[p].float()) for p in common]).sum()


@contextmanager
def frozen(teacher: nn.Module | None, student: nn.Module, device: str | torch.device) -> Iterator[None]:
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
