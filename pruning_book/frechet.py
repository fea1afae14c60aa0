"""The Fréchet distance between two sets of images, through features that its name always says.

Heusel et al. 2017 (FID), Eq. 6: |m_a - m_b|^2 + Tr(S_a + S_b - 2 (S_a S_b)^(1/2)), with mean m and covariance S of the
features of each set.  A distance is comparable only for the same features, the same resizing and the same n.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from pruning_lib.checks import check_device, check_number
from pruning_lib.interval import Interval, quantile_pair, resamples
from pruning_lib.quality import as_bytes


class RankDeficientWarning(UserWarning):
    """A set has too few images for its covariance: the distance is far too large, and only good for equal n."""


@dataclass(frozen=True)
class FrechetResult:
    """A Fréchet distance, in squared units of the features, its interval, and what it was measured with.

    `n_a` and `n_b` are the images of each set, `features` the name of the features, as in "inception (clean-fid)",
    `dim` their number per image, `level` that of the interval; see `frechet_interval`.
    """

    value: float
    low: float
    high: float
    n_a: int
    n_b: int
    features: str
    dim: int
    level: float = 0.95

    def to_dict(self) -> dict[str, object]:
        """Return the fields, and a label to write beside the figure, as plain JSON types."""
        return {**asdict(self), "label": f"Fréchet distance, {self.features} features, n = {self.n_a} and {self.n_b}"}


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
        features: "inception" for those of clean-fid, which needs a healthy torchvision and a download; an object with a
            method `features(images) -> [n, d]`, as `pb.load_clip()` returns; or such a function. Images reach it as
            uint8.
        name: of the features, for the label. Default: the object's `features_name`; a function needs one.
        n_boot, level, seed: of the interval.
        device: for Inception only; where clean-fid cannot run, a RuntimeError says what to do.
    """
    if isinstance(features, str):
        if features != "inception":
            raise ValueError(f"features={features!r}; the only name is 'inception'. Or pass a model, or a function.")
        extract, name = _Inception(device), name or "inception (clean-fid)"
    else:
        extract = getattr(features, "features", features)
        name = name or getattr(features, "features_name", None)
    if not callable(extract):
        raise TypeError(f"features is {type(features).__name__}; expected 'inception', a model or a function.")
    if not name:
        raise ValueError("These features have no name. Pass name='…': a Fréchet distance without it means nothing.")
    a, b = extract(as_bytes(images_a)), extract(as_bytes(images_b))
    found = frechet_interval(a, b, n_boot=n_boot, level=level, seed=seed)
    return FrechetResult(found.value, found.low, found.high, len(a), len(b), name, a.shape[1], level)


def frechet_distance(features_a: Tensor, features_b: Tensor) -> float:
    """Return the Fréchet distance, >= 0, between two sets of features, each taken as a Gaussian.

    With R_a the triangular factor of the centred features (S_a = R_a' R_a, and likewise for b), the trace of (S_a
    S_b)^(1/2) is the sum of the singular values of R_a R_b'. That form never squares anything, so it holds for singular
    covariances, where a matrix square root drifts or turns complex. It agrees with clean-fid's formula.

    `features_a` and `features_b` are `[n, d]` and `[m, d]`, n and m >= 2; other shapes and values that are not finite
    are a ValueError. A `RankDeficientWarning` says that n or m does not exceed d. Computed in float64 on the CPU.
    """
    return _distance(*_checked(features_a, features_b))


def frechet_interval(
    features_a: Tensor, features_b: Tensor, *, n_boot: int = 200, level: float = 0.95, seed: int = 0
) -> Interval:
    """Return `frechet_distance` with an interval for the chance of both samples; its n is that of the smaller set.

    Both sets are drawn again, `n_boot` >= 100 times, with replacement. The distance grows when images are few (Chong
    and Forsyth 2020), and a resample holds fewer different ones, so resampled distances lie too high; they are moved
    down by their mean excess. The interval therefore says how far a new sample *of the same size* would move the
    figure; the excess that this size itself causes stays in. Compare distances of equal n only.
    """
    check_number("level", level, "(0, 1)")
    a, b = _checked(features_a, features_b)
    rows_a = chain.from_iterable(resamples(len(a), n_boot=n_boot, seed=seed))
    rows_b = chain.from_iterable(resamples(len(b), n_boot=n_boot, seed=seed + 1))
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


def _checked(*sets: Tensor) -> list[Tensor]:
    """Return both sets in float64 on the CPU; warn where they have too few images."""
    sets = [torch.as_tensor(x).detach().to("cpu", torch.float64) for x in sets]
    for which, x in zip(("first", "second"), sets, strict=True):
        if x.ndim != 2 or len(x) < 2 or x.shape[1] < 1:
            raise ValueError(f"The {which} features have shape {list(x.shape)}; expected [n, d] with n >= 2.")
        if not x.isfinite().all():
            raise ValueError(f"The {which} features hold values that are infinite or not a number.")
    dim, other = (x.shape[1] for x in sets)
    if dim != other:
        raise ValueError(f"The features differ in width, {dim} and {other}: both sets go through the same network.")
    fewest = min(map(len, sets))
    if fewest <= dim:
        why = f"{fewest} images for {dim} features: a covariance of that many images has rank {fewest - 1} at most, "
        why += "and the distance comes out far too large. Use more images, or compare only distances of the same n."
        warnings.warn(why, RankDeficientWarning, stacklevel=3)
    return sets


class _Inception:
    """The features of clean-fid (Parmar, Zhang and Zhu 2022): its own network on PNG files, as for its own score."""

    def __init__(self, device: str | torch.device):
        self.device, offline = check_device(device), "measure with features at hand and say so: features=pb.load_clip()"
        try:
            from cleanfid import features, fid
        except Exception as error:  # a torchvision built for another torch can raise anything
            raise RuntimeError(
                f"clean-fid cannot be imported ({error}). Install it: pip install 'pruning-lib[fid]', with the "
                f"torchvision made for torch {torch.__version__}: another would break diffusers too. Or {offline}."
            ) from error
        try:
            self.network = features.build_feature_extractor("clean", device=self.device, use_dataparallel=False)
        except (OSError, RuntimeError) as error:  # urllib's errors are OSErrors; a damaged file is a RuntimeError
            reason = str(error).strip().partition("\n")[0]
            raise RuntimeError(
                f"Inception's weights could not be fetched or read ({reason}). After an interrupted download, remove "
                f"inception-2015-12-05.pt from the folder for temporary files and try again. Or {offline}."
            ) from error
        self.of_folder = fid.get_folder_features

    def __call__(self, images: Tensor) -> Tensor:
        with tempfile.TemporaryDirectory(prefix="pruning-lib-") as folder:
            for i, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
                Image.fromarray(image).save(Path(folder) / f"{i:06d}.png", compress_level=1)
            options = {"num_workers": 0, "batch_size": 32, "device": self.device, "mode": "clean", "verbose": False}
            return torch.from_numpy(self.of_folder(folder, self.network, **options))
