"""clean-fid's own score, where it can run, and a plain reason where it cannot.

clean-fid (Parmar, Zhang and Zhu 2022) imports torchvision, and a torchvision built for another torch does not load.
So nothing here is imported before it is asked for, and all that clean-fid needs is checked before any image is read.
"""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .device import check_device
from .images import as_bytes

__all__ = [
    "InceptionUnavailableError",
    "clean_fid_distance",
    "clean_resize",
    "inception_features",
    "torchvision_is_healthy",
]

_OFFLINE = " Without it, measure with features at hand and say so: frechet(a, b, features=pl.load_clip())."


class InceptionUnavailableError(RuntimeError):
    """clean-fid cannot run here; the message says why and what to do."""


def torchvision_is_healthy() -> bool:
    """Return True if torchvision can be imported beside this torch, its operators included.

    A torchvision that is there and broken also breaks transformers and diffusers; uninstall it, or install the one
    made for your torch.
    """
    if find_spec("torchvision") is None:
        return False
    try:
        import torchvision  # noqa: F401

        return hasattr(torch.ops.torchvision, "nms")
    except Exception:  # a broken binary can raise anything: RuntimeError, OSError, ImportError, AttributeError
        return False


def clean_resize(images: Tensor | Sequence[Image.Image], size: int = 299) -> Tensor:
    """Resize as clean-fid does: bicubic with antialiasing, one float channel at a time, never rounded to 8 bits.

    Args:
        images: PIL images of one size, uint8 `[n, 3, h, w]`, or floats in [0, 1].
        size: side of the result in pixels, >= 1; Inception takes 299.

    Returns:
        float32 `[n, 3, size, size]` in [0, 255].

    Raises:
        TypeError, ValueError: other images, or size < 1.
    """
    if not isinstance(size, int) or size < 1:
        raise ValueError(f"size={size!r}; it must be a whole number of pixels >= 1.")
    channels = as_bytes(images).flatten(0, 1).numpy().astype(np.float32)
    small = [np.asarray(Image.fromarray(c).resize((size, size), Image.Resampling.BICUBIC)) for c in channels]
    return torch.from_numpy(np.stack(small)).clamp(0, 255).reshape(-1, 3, size, size)


def inception_features(
    images: Tensor | Sequence[Image.Image],
    *,
    device: str | torch.device = "cpu",
    extractor: Callable[[Tensor], Tensor] | None = None,
    batch: int = 32,
) -> Tensor:
    """Return clean-fid's features of the images, computed by clean-fid from PNG files, as its own score does.

    Args:
        images: PIL images of one size, uint8 `[n, 3, h, w]`, or floats in [0, 1].
        device: where the network runs.
        extractor: another network in place of Inception: float `[n, 3, 299, 299]` in [0, 255] -> `[n, d]`.
        batch: images per call, >= 1.

    Returns:
        float `[n, d]`; d is 2,048 for Inception. Its weights (about 95 MB) are fetched on first use.

    Raises:
        InceptionUnavailableError: see `require_clean_fid`; or Inception's weights cannot be fetched or read.
        TypeError, ValueError: other images, or an unknown device.
    """
    pixels, device = as_bytes(images), check_device(device)
    fid = require_clean_fid()
    extractor = extractor or _inception(device)
    with tempfile.TemporaryDirectory(prefix="pruning-lib-") as folder:
        for i, image in enumerate(pixels.permute(0, 2, 3, 1).numpy()):
            Image.fromarray(image).save(Path(folder) / f"{i:06d}.png", compress_level=1)
        found = fid.get_folder_features(
            folder, extractor, num_workers=0, batch_size=batch, device=device, mode="clean", verbose=False
        )
    return torch.from_numpy(found)


def clean_fid_distance(features_a: Tensor, features_b: Tensor) -> float:
    """Return the distance by clean-fid's own formula, as its `compute_fid` applies it to two folders.

    Args:
        features_a, features_b: `[n, d]` and `[m, d]`.

    Raises:
        InceptionUnavailableError: see `require_clean_fid`.
    """
    fid = require_clean_fid()
    a, b = (np.asarray(x) for x in (features_a, features_b))
    return float(fid.frechet_distance(a.mean(0), np.cov(a, rowvar=False), b.mean(0), np.cov(b, rowvar=False)))


def require_clean_fid():
    """Return the module `cleanfid.fid`.

    Raises:
        InceptionUnavailableError: clean-fid is missing, torchvision is missing or broken, or SciPy is too new for it.
    """
    if find_spec("cleanfid") is None:
        raise InceptionUnavailableError(
            "clean-fid is not installed: pip install 'pruning-lib[fid]'." + _OFFLINE
        )
    if not torchvision_is_healthy():
        state = "is not installed" if find_spec("torchvision") is None else "does not load"
        raise InceptionUnavailableError(
            f"clean-fid needs torchvision, which {state} beside torch {torch.__version__}. Install the version "
            "made for this torch from the same index as torch itself; another build would break diffusers too."
            + _OFFLINE
        )
    import scipy.linalg

    if "disp" not in inspect.signature(scipy.linalg.sqrtm).parameters:
        raise InceptionUnavailableError(
            f"clean-fid calls sqrtm(disp=...), which SciPy {scipy.__version__} no longer has: pip install 'scipy<1.18'."
        )
    from cleanfid import fid

    return fid


def _inception(device: torch.device) -> Callable[[Tensor], Tensor]:
    from cleanfid.features import build_feature_extractor

    try:
        return build_feature_extractor("clean", device=device, use_dataparallel=False)
    except OSError as error:  # urllib's errors are OSErrors
        raise InceptionUnavailableError(
            f"Inception's weights could not be fetched: {error}." + _OFFLINE
        ) from error
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise InceptionUnavailableError(
            f"Inception's weights could not be read ({reason}). After an interrupted download, remove "
            "inception-2015-12-05.pt from the folder for temporary files and try again." + _OFFLINE
        ) from error
