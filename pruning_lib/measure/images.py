"""Images as the yardsticks take them: one check, two forms.

Floats in [0, 1], `[n, 3, h, w]`, where images are compared with each other; 8 bits, where a network judges them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

__all__ = ["as_bytes", "check_pair", "check_unit"]

_SLACK = 1e-3  # rounding of half precision at 1; model ranges such as [-1, 1] overshoot by far more


def check_unit(images: Tensor, name: str) -> Tensor:
    """Return `images` as float32, or float64 if it was that, after checking that it is `[n, 3, h, w]` in [0, 1].

    Raises:
        TypeError: not a floating-point tensor.
        ValueError: another shape, no image, or values outside [0, 1].
    """
    if not isinstance(images, Tensor):
        raise TypeError(
            f"{name} is {type(images).__name__}; expected a tensor [n, 3, h, w] with values in [0, 1]. "
            "Ask the pipeline for output_type='pt'."
        )
    if not images.is_floating_point():
        raise TypeError(
            f"{name} has dtype {images.dtype}; expected floats in [0, 1]. Divide 8-bit images by 255."
        )
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
        raise ValueError(
            f"{name} has shape {list(images.shape)}; expected [n, 3, h, w]. For one image, image[None]."
        )
    low, high = images.min().item(), images.max().item()
    if not (-_SLACK <= low and high <= 1 + _SLACK):  # also catches NaN
        raise ValueError(
            f"{name} has values from {low:.4g} to {high:.4g}; expected [0, 1]. "
            "From the model's range [-1, 1]: (images / 2 + 0.5).clamp(0, 1)."
        )
    return images if images.dtype == torch.float64 else images.float()


def check_pair(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Check two sets of images to be compared one by one; both come back on the device of `a`, in one dtype.

    Raises:
        TypeError, ValueError: as `check_unit`, or shapes that differ.
    """
    a, b = check_unit(a, "the first set of images"), check_unit(b, "the second set of images")
    if a.shape != b.shape:
        raise ValueError(
            f"The sets differ in shape: {list(a.shape)} and {list(b.shape)}. Image i is compared with image i, "
            "so both need the same number and size."
        )
    dtype = torch.promote_types(a.dtype, b.dtype)
    return a.to(dtype), b.to(a.device, dtype)


def as_bytes(images: Tensor | Sequence[Image.Image]) -> Tensor:
    """Return images as uint8 `[n, 3, h, w]` on the CPU.

    Args:
        images: PIL images of one size; uint8 `[n, 3, h, w]`; or floats in [0, 1] of that shape, rounded to 8 bits.

    Raises:
        TypeError, ValueError: anything else.
    """
    if isinstance(images, Tensor):
        if images.dtype == torch.uint8:
            if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
                raise ValueError(f"The images have shape {list(images.shape)}; expected [n, 3, h, w].")
            return images.cpu()
        return (check_unit(images, "the set of images").clamp(0, 1) * 255).round().to("cpu", torch.uint8)
    if isinstance(images, (str, bytes)) or not isinstance(images, Sequence):
        raise TypeError(
            f"Expected a list of PIL images or a tensor [n, 3, h, w]; got {type(images).__name__}."
        )
    if not images or not all(isinstance(image, Image.Image) for image in images):
        kinds = sorted({type(image).__name__ for image in images})
        raise TypeError(f"Expected a list of PIL images; got {', '.join(kinds) or 'an empty list'}.")
    sizes = {image.size for image in images}
    if len(sizes) > 1:
        raise ValueError(
            f"The images have {len(sizes)} sizes, such as {sorted(sizes)[:2]}; make them equal first."
        )
    arrays = np.stack([np.asarray(image.convert("RGB")) for image in images])
    return torch.from_numpy(arrays).permute(0, 3, 1, 2).contiguous()
