"""The Fréchet distance between two sets of images, through features that its name always says.

Heusel et al. 2017 (FID), Eq. 6: |m_a - m_b|^2 + Tr(S_a + S_b - 2 (S_a S_b)^(1/2)), with mean m and covariance S of the
features of each set.  A distance is comparable only for the same features, the same resizing and the same n.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from PIL import Image
from torch import Tensor

from .images import as_bytes
from .interval import Interval, check_level, quantile_pair, resamples

__all__ = ["FrechetResult", "RankDeficientWarning", "frechet", "frechet_distance", "frechet_interval"]

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
            with a method `features(images) -> [n, d]`, as `pl.load_clip()` returns; or such a function. Images reach it
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
        raise ValueError(
            f"features={features!r}; the only name is 'inception'. Or pass a model, or a function."
        )
    if features == "inception":
        from .inception import clean_fid_distance, inception_features

        found = inception_features(images_a, device=device), inception_features(images_b, device=device)
        value, name = clean_fid_distance(*found), name or INCEPTION
    else:
        call = getattr(features, "features", features)
        name = name or getattr(features, "features_name", None)
        if not callable(call):
            raise TypeError(
                f"features is {type(features).__name__}; expected 'inception', a model or a function."
            )
        if not name:
            raise ValueError(
                "These features have no name. Pass name='…': a Fréchet distance without it means nothing."
            )
        found = call(as_bytes(images_a)), call(as_bytes(images_b))
        value = None
    interval = frechet_interval(*found, n_boot=n_boot, level=level, seed=seed)
    shift = 0.0 if value is None else value - interval.value  # rounding, if anything; see tests
    return FrechetResult(
        interval.value + shift, max(interval.low + shift, 0.0), interval.high + shift,
        len(found[0]), len(found[1]), name, found[0].shape[1], level,
    )  # fmt: skip


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
    draws_a, draws_b = (
        resamples(len(a), n_boot=n_boot, seed=seed),
        resamples(len(b), n_boot=n_boot, seed=seed + 1),
    )
    _warn_if_few(a, b)
    rows_a, rows_b = (row for part in draws_a for row in part), (row for part in draws_b for row in part)
    found = torch.tensor(
        [_distance(a[i], b[j]) for i, j in zip(rows_a, rows_b, strict=True)], dtype=torch.float64
    )
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
