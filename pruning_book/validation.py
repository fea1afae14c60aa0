"""Validation that a reader can look at: the same prompts and seeds drawn again and again while a model is trained.

The pictures are compared with those that the model drew before pruning, and judged against their prompts if a judge is
given.  What a validator returns goes into the log, where `FinetuneLog.curve("ssim")` finds it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from pruning_lib.checks import check_whole
from pruning_lib.quality import Judge, check_unit, clip_score, psnr, ssim
from pruning_lib.sampling import pictures

HIGHEST_PSNR = 100.0  # decibels; equal pictures would be infinite, and a log with infinities is not JSON


def draw(
    pipe: DiffusionPipeline,
    prompts: Sequence[str],
    seeds: Sequence[int] = (0,),
    *,
    steps: int = 10,
    guidance_scale: float = 3.0,
    batch: int = 16,
) -> Tensor:
    """Draw every prompt from every seed's noise.

    Args:
        pipe: a text-to-image pipeline; a denoiser in float32 may stand among parts in half precision, as in training.
        prompts: n texts.
        seeds: m seeds; the noise of a seed is the same for every prompt and every model.
        steps: of the sampler.
        guidance_scale: 1 or less for none.
        batch: pictures per call, >= 1.

    Returns:
        float32 `[n * m, 3, h, w]` in [0, 1] on the CPU: all seeds of the first prompt, then those of the second.
    """
    every = [(prompt, seed) for prompt in prompts for seed in seeds]
    types = {getattr(part, "dtype", None) for part in pipe.components.values() if isinstance(part, nn.Module)}
    half = types & {torch.float16, torch.bfloat16}
    mixed = half and torch.float32 in types
    with torch.autocast(pipe.device.type, half.pop()) if mixed else nullcontext():
        prompts, seeds = zip(*every, strict=True)
        return pictures(pipe, prompts, seeds, steps=steps, guidance_scale=guidance_scale, batch=batch)


class PictureValidator:
    """Draws fixed pictures, and says how close they are to the teacher's.

    Attributes:
        pictures: step -> what was drawn, `[n * m, 3, h, w]`, if they are kept.
        reference: the teacher's pictures, in the same order.

    Example:
        >>> look = PictureValidator(small, pipe, ["lion", "tomato"], steps=10)
        >>> log = pl.finetune(small, images, captions, steps=200, validate=look, validate_every=50)
        >>> log.curve("ssim")
    """

    def __init__(
        self,
        pipe: DiffusionPipeline,
        teacher: DiffusionPipeline | Tensor,
        prompts: Sequence[str],
        *,
        seeds: Sequence[int] = (0,),
        steps: int = 10,
        guidance_scale: float = 3.0,
        batch: int = 16,
        judge: Judge | None = None,
        keep: bool = False,
    ) -> None:
        """Draw the reference.

        Args:
            pipe: what is trained; it draws with the weights it has when the validator is called.
            teacher: the pipeline before pruning; or its pictures, as `draw` returns them.
            prompts: n texts, at least one.
            seeds, steps, guidance_scale, batch: as in `draw`, at least one seed.
            judge: for a CLIP score, as `pb.load_clip()` returns it.
            keep: True to keep all pictures, in `pictures`.

        Raises:
            ValueError: no prompts, no seeds, numbers out of range, or pictures of another number.
        """
        if isinstance(prompts, str) or not list(prompts):
            raise ValueError(f"prompts={prompts!r}; expected a list of at least one text.")
        if not list(seeds):
            raise ValueError("seeds is empty; give at least one, as in seeds=(0,).")
        check_whole("steps", steps, 1)
        check_whole("batch", batch, 1)
        self.pipe, self.prompts, self.seeds = pipe, list(prompts), list(seeds)
        self.how = {"steps": steps, "guidance_scale": guidance_scale, "batch": batch}
        self.judge, self.keep, self.pictures = judge, keep, {}
        if isinstance(teacher, Tensor):
            self.reference = check_unit(teacher, "teacher").cpu()
        else:
            self.reference = draw(teacher, self.prompts, self.seeds, **self.how)
        wanted = len(self.prompts) * len(self.seeds)
        if len(self.reference) != wanted:
            raise ValueError(
                f"teacher holds {len(self.reference)} pictures; {len(self.prompts)} prompts with "
                f"{len(self.seeds)} seeds make {wanted}."
            )

    def __call__(self, step: int) -> dict[str, object]:
        """Draw, and return the means over all pictures.

        Returns:
            "ssim" (at most 1), "psnr" (decibels, at most 100 each) and, with a judge, "clip" (0 to 100); "pictures",
            their number.  Where the model draws NaN the similarities are None, which is what a log can hold.
        """
        drawn = draw(self.pipe, self.prompts, self.seeds, **self.how)
        if self.keep:
            self.pictures[step] = drawn
        figures: dict[str, object] = {"pictures": len(drawn)}
        if not drawn.isfinite().all():
            return {**figures, "ssim": None, "psnr": None}
        figures["ssim"] = ssim(drawn, self.reference).mean().item()
        figures["psnr"] = psnr(drawn, self.reference).clamp(max=HIGHEST_PSNR).mean().item()
        if self.judge is not None:
            texts = [prompt for prompt in self.prompts for _ in self.seeds]
            figures["clip"] = clip_score(self.judge, drawn, texts).mean().item()
        return figures
