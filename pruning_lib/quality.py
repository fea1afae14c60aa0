"""How close two images are (PSNR, SSIM), and how well an image fits its words (CLIP score, retrieval rank).

Images are floats in [0, 1], `[n, 3, h, w]`, where they are compared with each other, and 8 bits where a network judges
them.  All figures come one per image; put `bootstrap_interval` around them before quoting a mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

_SLACK = 1e-3  # rounding of half precision at 1; model ranges such as [-1, 1] overshoot by far more
WINDOW, SIGMA, C1, C2 = 11, 1.5, 0.01**2, 0.03**2  # Wang et al. 2004, section III-C


def check_unit(images: Tensor, name: str, *, check_range: bool = True) -> Tensor:
    """Return `images` as float32, or float64 if it was that, after checking that it is `[n, 3, h, w]` in [0, 1]."""
    if not isinstance(images, Tensor) or not images.is_floating_point():
        given = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(
            f"{name} is {given}; expected a tensor [n, 3, h, w] of floats in [0, 1]. "
            "Ask the pipeline for output_type='pt', or divide 8-bit images by 255."
        )
    _check_shape(images, name)
    if check_range:
        low, high = torch.stack(images.detach().aminmax()).tolist()  # one wait for the device, not two
        if not (-_SLACK <= low and high <= 1 + _SLACK):  # also catches NaN
            raise ValueError(
                f"{name} has values from {low:.4g} to {high:.4g}; expected [0, 1]. "
                "From the model's range [-1, 1]: (images / 2 + 0.5).clamp(0, 1)."
            )
    return images if images.dtype == torch.float64 else images.float()


def _check_shape(images: Tensor, name: str) -> None:
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
        raise ValueError(f"{name} has shape {list(images.shape)}; expected [n, 3, h, w]. For one image, image[None].")


def _pair(a: Tensor, b: Tensor, check_range: bool = True) -> tuple[Tensor, Tensor]:
    """Check two sets of images to be compared one by one; both come back on the device of `a`, in one dtype."""
    a = check_unit(a, "the first set of images", check_range=check_range)
    b = check_unit(b, "the second set of images", check_range=check_range)
    if a.shape != b.shape:
        raise ValueError(
            f"The sets differ in shape: {list(a.shape)} and {list(b.shape)}. Image i is compared with image i, "
            "so both need the same number and size."
        )
    dtype = torch.promote_types(a.dtype, b.dtype)
    return a.to(dtype), b.to(a.device, dtype)


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio of each pair of images: -10 log10 of the mean squared error.

    `a` and `b` are floats in [0, 1], `[n, 3, h, w]`; the result is in decibels, `[n]`, infinite where two are equal.
    """
    a, b = _pair(a, b)
    return -10 * (a - b).square().mean((1, 2, 3)).log10()


def ssim(a: Tensor, b: Tensor, *, check_range: bool = True) -> Tensor:
    """Return the mean structural similarity of each pair of images (Wang et al. 2004, Eq. 13 and 14).

    The authors' own convention, computed for each colour channel and averaged. The same as scikit-image's
    `structural_similarity(a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1,
    channel_axis=0)`, over the positions where the whole window of 11 x 11 pixels lies inside the image.

    Args:
        a, b: floats in [0, 1], `[n, 3, h, w]`, h and w at least 11. Differentiable in both.
        check_range: False to trust that the values are in [0, 1], as in a loss: looking at them waits for a GPU.

    Returns:
        `[n]`, at most 1, which means equal; negative where structure is reversed.
    """
    a, b = _pair(a, b, check_range)
    n, channels, height, width = a.shape
    if min(height, width) < WINDOW:
        raise ValueError(f"The images have {height} x {width} pixels; SSIM needs {WINDOW} x {WINDOW} at least.")
    offsets = torch.arange(WINDOW, dtype=torch.float64, device="cpu") - WINDOW // 2
    line = torch.exp(-offsets.square() / (2 * SIGMA**2))
    line = (line / line.sum()).to(a.device, a.dtype)

    def blur(x: Tensor) -> Tensor:
        # Variances are small differences of squares. Under autocast a convolution would round them to half precision.
        with torch.autocast(x.device.type, enabled=False):
            return F.conv2d(F.conv2d(x, line.view(1, 1, -1, 1)), line.view(1, 1, 1, -1))

    a, b = a.reshape(n * channels, 1, height, width), b.reshape(n * channels, 1, height, width)
    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    covariance = blur(a * b) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + C1) / (mean_a**2 + mean_b**2 + C1)
    structure = (2 * covariance + C2) / (var_a + var_b + C2)
    return (luminance * structure).reshape(n, -1).mean(1)


def as_bytes(images: Tensor | Sequence[Image.Image]) -> Tensor:
    """Return images as uint8 `[n, 3, h, w]` on the CPU.

    Args:
        images: PIL images of one size; uint8 `[n, 3, h, w]`; or floats in [0, 1] of that shape, rounded to 8 bits.
    """
    if isinstance(images, Tensor):
        if images.dtype != torch.uint8:
            images = (check_unit(images, "the set of images").clamp(0, 1) * 255).round()
        _check_shape(images, "the set of images")
        return images.to("cpu", torch.uint8)
    kinds = sorted({type(image).__name__ for image in images}) if isinstance(images, Sequence) else []
    if not kinds or not all(isinstance(image, Image.Image) for image in images):
        given = ", ".join(kinds) or repr(images)
        raise TypeError(f"Expected a list of PIL images or a tensor [n, 3, h, w]; got {given}.")
    sizes = {image.size for image in images}
    if len(sizes) > 1:
        raise ValueError(f"The images have {len(sizes)} sizes, such as {sorted(sizes)[:2]}; make them equal first.")
    arrays = np.stack([np.asarray(image.convert("RGB")) for image in images])
    return torch.from_numpy(arrays).permute(0, 3, 1, 2).contiguous()


def with_texts(images: Tensor | Sequence[Image.Image], texts: Sequence[str], what: str = "prompt") -> Tensor:
    """Return images as `as_bytes` does, after checking that there is one text for each, a `what`."""
    pixels = as_bytes(images)
    if isinstance(texts, str) or len(texts) != len(pixels):
        given = "one string" if isinstance(texts, str) else f"{len(texts)} {what}s"
        raise ValueError(f"{len(pixels)} images and {given} were given; expected a list with one {what} per image.")
    return pixels


class Judge(Protocol):
    """What `clip_score` and `retrieval_rank` need: both methods return unit vectors `[n, d]` of one space."""

    def embed_images(self, images: Tensor) -> Tensor:
        """Embed uint8 images `[n, 3, h, w]`."""

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Embed n texts."""


def clip_score(clip: Judge, images: Tensor | Sequence[Image.Image], prompts: Sequence[str]) -> Tensor:
    """Return how well each image fits its prompt: 100 max(cos, 0) of their CLIP vectors.

    Hessel et al. 2021, Eq. 1, with the factor 100 that text-to-image papers use in place of their 2.5. Scores of
    different judges cannot be compared, so name the judge beside the figure.

    Args:
        clip: the judge, as `pb.load_clip()` returns it.
        images: n PIL images of one size, uint8 `[n, 3, h, w]`, or floats in [0, 1] of that shape.
        prompts: n texts, one per image.

    Returns:
        `[n]`, from 0 to 100, on the CPU.
    """
    cosine = (clip.embed_images(with_texts(images, prompts)) * clip.embed_texts(list(prompts))).sum(1)
    return 100 * cosine.clamp(0, 1).cpu()


def retrieval_rank(
    clip: Judge, images: Tensor | Sequence[Image.Image], prompts: Sequence[str], candidates: Sequence[str]
) -> Tensor:
    """Return at which place each image's own prompt comes when all candidates are ordered by how well they fit.

    Args:
        clip, images, prompts: as in `clip_score`.
        candidates: the texts to choose from, without repeats; every prompt must be one of them.

    Returns:
        int64 `[n]`; 1 is best, `len(candidates)` worst.
    """
    pixels = with_texts(images, prompts)
    place = {text: i for i, text in enumerate(candidates)}
    if len(place) != len(candidates):
        raise ValueError(f"The {len(candidates)} candidates hold only {len(place)} different texts; drop the repeats.")
    missing = [text for text in prompts if text not in place]
    if missing:
        raise ValueError(f"{len(missing)} prompts are not among the candidates, such as {missing[0]!r}. Add them.")
    likeness = clip.embed_images(pixels) @ clip.embed_texts(list(candidates)).T
    own = torch.tensor([place[text] for text in prompts], device=likeness.device)
    return ((likeness > likeness.gather(1, own[:, None])).sum(1) + 1).cpu()
