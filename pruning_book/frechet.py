"""clean-fid's own score, where it can run, and a plain reason where it cannot.

clean-fid (Parmar, Zhang and Zhu 2022) imports torchvision, and a torchvision built for another torch does not load.
So nothing here is imported before it is asked for, and all that clean-fid needs is checked before any image is read.

The Fréchet distance between two sets of images, through features that its name always says.

Heusel et al. 2017 (FID), Eq. 6: |m_a - m_b|^2 + Tr(S_a + S_b - 2 (S_a S_b)^(1/2)), with mean m and covariance S of the
features of each set.  A distance is comparable only for the same features, the same resizing and the same n.
"""

from __future__ import annotations

import inspect
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pruning_lib.checks import check_device
from pruning_lib.interval import Interval, check_level, quantile_pair, resamples
from pruning_lib.quality import as_bytes

__all__ = [
    "FrechetResult",
    "InceptionUnavailableError",
    "RankDeficientWarning",
    "clean_fid_distance",
    "clean_resize",
    "frechet",
    "frechet_distance",
    "frechet_interval",
    "inception_features",
    "torchvision_is_healthy",
]

_OFFLINE = " Without it, measure with features at hand and say so: frechet(a, b, features=pb.load_clip())."


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
        raise InceptionUnavailableError("clean-fid is not installed: pip install 'pruning-lib[fid]'." + _OFFLINE)
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
        raise InceptionUnavailableError(f"Inception's weights could not be fetched: {error}." + _OFFLINE) from error
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise InceptionUnavailableError(
            f"Inception's weights could not be read ({reason}). After an interrupted download, remove "
            "inception-2015-12-05.pt from the folder for temporary files and try again." + _OFFLINE
        ) from error


INCEPTION = "inception (clean-fid)"


class RankDeficientWarning(UserWarning):
    """A set has too few images for its covariance: the distance is far too large, and only good for equal n."""


@dataclass(frozen=True)
class FrechetResult:
    """A Fréchet distance and what it was measured with.

    Attributes:
        value: the distance, in squared units of the features; 0 for equal sets, lower is closer.
        low, high: bootstrap interval, see `frechet_interval`.
        n_a, n_b: images in each set.
        features: name of the features: "inception (clean-fid)", "mini-CLIP", ….
        dim: number of features per image.
        level: of the interval.
    """

    value: float
    low: float
    high: float
    n_a: int
    n_b: int
    features: str
    dim: int
    level: float = 0.95

    @property
    def label(self) -> str:
        """What to write beside the figure, as in "Fréchet distance, mini-CLIP features, n = 256 and 256"."""
        return f"Fréchet distance, {self.features} features, n = {self.n_a} and {self.n_b}"

    def to_dict(self) -> dict[str, object]:
        """Return the fields and the label as plain JSON types."""
        return {**asdict(self), "label": self.label}

    def __str__(self) -> str:
        return f"{self.label}: {self.value:.4g} ({self.low:.4g} to {self.high:.4g})"


def frechet(
    images_a: Tensor | Sequence[Image.Image],
    images_b: Tensor | Sequence[Image.Image],
    *,
    features: object,
    name: str | None = None,
    n_boot: int = 200,
    level: float = 0.95,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> FrechetResult:
    """Measure the Fréchet distance between two sets of images.

    Args:
        images_a, images_b: PIL images of one size, uint8 `[n, 3, h, w]`, or floats in [0, 1]; n >= 2, better thousands.
        features: "inception" for clean-fid's own score, which needs a healthy torchvision and a download; an object
            with a method `features(images) -> [n, d]`, as `pb.load_clip()` returns; or such a function. Images reach it
            as uint8 `[n, 3, h, w]`.
        name: of the features, for the label. Default: the object's `features_name`; a function needs one.
        n_boot, level, seed: of the interval.
        device: for Inception only; other features run where they are.

    Returns:
        A `FrechetResult`.

    Raises:
        InceptionUnavailableError: `features="inception"` where clean-fid cannot run; the message says what to do.
        TypeError, ValueError: other images or features, or a function without a name.

    Warns:
        RankDeficientWarning: a set has no more images than features.
    """
    if isinstance(features, str) and features != "inception":
        raise ValueError(f"features={features!r}; the only name is 'inception'. Or pass a model, or a function.")
    if features == "inception":
        found = inception_features(images_a, device=device), inception_features(images_b, device=device)
        value, name = clean_fid_distance(*found), name or INCEPTION
    else:
        call = getattr(features, "features", features)
        name = name or getattr(features, "features_name", None)
        if not callable(call):
            raise TypeError(f"features is {type(features).__name__}; expected 'inception', a model or a function.")
        if not name:
            raise ValueError("These features have no name. Pass name='…': a Fréchet distance without it means nothing.")
        found = call(as_bytes(images_a)), call(as_bytes(images_b))
        value = None
    interval = frechet_interval(*found, n_boot=n_boot, level=level, seed=seed)
    shift = 0.0 if value is None else value - interval.value  # rounding, if anything; see tests
    return FrechetResult(
        interval.value + shift,
        max(interval.low + shift, 0.0),
        interval.high + shift,
        len(found[0]),
        len(found[1]),
        name,
        found[0].shape[1],
        level,
    )


def frechet_distance(features_a: Tensor, features_b: Tensor) -> float:
    """Return the Fréchet distance between two sets of features, each taken as a Gaussian.

    With R_a the triangular factor of the centred features (S_a = R_a' R_a, and likewise for b), the trace of
    (S_a S_b)^(1/2) is the sum of the singular values of R_a R_b'. That form never squares anything, so it holds for
    singular covariances, where a matrix square root drifts or turns complex. It agrees with clean-fid's formula.

    Args:
        features_a, features_b: finite, `[n, d]` and `[m, d]`, n and m >= 2. Computed in float64 on the CPU.

    Returns:
        The distance, >= 0, in squared units of the features.

    Raises:
        TypeError, ValueError: other types or shapes, or values that are not finite.

    Warns:
        RankDeficientWarning: n or m does not exceed d.
    """
    a, b = _checked(features_a, features_b)
    _warn_if_few(a, b)
    return _distance(a, b)


def frechet_interval(
    features_a: Tensor, features_b: Tensor, *, n_boot: int = 200, level: float = 0.95, seed: int = 0
) -> Interval:
    """Return the Fréchet distance with an interval for the chance of both samples.

    Both sets are drawn again with replacement. The distance grows when images are few (Chong and Forsyth 2020), and a
    resample holds fewer different ones, so resampled distances lie too high; they are moved down by their mean excess.
    The interval therefore says how far a new sample *of the same size* would move the figure; the excess that this
    size itself causes stays in. Compare distances of equal n only.

    Args:
        features_a, features_b: as in `frechet_distance`.
        n_boot: resamples, >= 100.
        level: between 0 and 1.
        seed: of the resampling.

    Returns:
        An `Interval`; its n is that of the smaller set.

    Raises:
        TypeError, ValueError: as `frechet_distance`, or options out of range.

    Warns:
        RankDeficientWarning: as `frechet_distance`.
    """
    a, b = _checked(features_a, features_b)
    check_level(level)
    draws_a, draws_b = (resamples(len(a), n_boot=n_boot, seed=seed), resamples(len(b), n_boot=n_boot, seed=seed + 1))
    _warn_if_few(a, b)
    rows_a, rows_b = (row for part in draws_a for row in part), (row for part in draws_b for row in part)
    found = torch.tensor([_distance(a[i], b[j]) for i, j in zip(rows_a, rows_b, strict=True)], dtype=torch.float64)
    value = _distance(a, b)
    low, high = quantile_pair(found - found.mean() + value, level)
    return Interval(value, max(min(low, value), 0.0), max(high, value), min(len(a), len(b)), level)


def _distance(a: Tensor, b: Tensor) -> float:
    mean_a, mean_b = a.mean(0), b.mean(0)
    root_a = torch.linalg.qr((a - mean_a) / (len(a) - 1) ** 0.5, mode="r").R  # [min(n, d), d]
    root_b = torch.linalg.qr((b - mean_b) / (len(b) - 1) ** 0.5, mode="r").R
    product = torch.linalg.svdvals(root_a @ root_b.T).sum()
    distance = (mean_a - mean_b).square().sum() + root_a.square().sum() + root_b.square().sum() - 2 * product
    return max(distance.item(), 0.0)  # rounding can leave -1e-13


def _checked(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    checked = []
    for which, x in (("first", a), ("second", b)):
        x = torch.as_tensor(x).detach().to("cpu", torch.float64)
        if x.ndim != 2 or len(x) < 2 or x.shape[1] < 1:
            raise ValueError(f"The {which} features have shape {list(x.shape)}; expected [n, d] with n >= 2.")
        if not x.isfinite().all():
            raise ValueError(f"The {which} features hold values that are infinite or not a number.")
        checked.append(x)
    if checked[0].shape[1] != checked[1].shape[1]:
        raise ValueError(
            f"The features differ in width: {checked[0].shape[1]} and {checked[1].shape[1]}. "
            "Both sets must go through the same network."
        )
    return checked[0], checked[1]


def _warn_if_few(a: Tensor, b: Tensor) -> None:
    fewest, dim = min(len(a), len(b)), a.shape[1]
    if fewest <= dim:
        warnings.warn(
            f"{fewest} images for {dim} features: a covariance of that many images has rank {fewest - 1} at most, and "
            "the distance comes out far too large. Use more images, or compare only distances of the same n.",
            RankDeficientWarning,
            stacklevel=3,
        )
