"""The Fréchet distance against closed forms, against clean-fid, and its interval against repeated experiments."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import linalg

import pruning_book as pb
from pruning_book.frechet import RankDeficientWarning, frechet, frechet_distance, frechet_interval


def draw(n: int, dim: int, seed: int, scale: float = 1.0, shift: float = 0.0) -> torch.Tensor:
    return shift + scale * torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def textbook(a: torch.Tensor, b: torch.Tensor) -> float:
    """Heusel et al. 2017, Eq. 6, with a matrix square root: another road than ours."""
    a, b = a.numpy(), b.numpy()
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = linalg.sqrtm(cov_a @ cov_b).real
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b - 2 * root))


def test_one_dimension_by_hand():
    a, b = torch.tensor([[0.0], [2.0]]), torch.tensor([[4.0], [10.0]])
    # means 1 and 7, variances 2 and 18: 36 + (sqrt 18 - sqrt 2)^2 = 36 + 8
    assert frechet_distance(a, b) == pytest.approx(44)


def test_exact_gaussians_of_known_covariance():
    x = draw(500, 4, 0)
    x = (x - x.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(x.T.cov())).T  # covariance is now the unit matrix
    scales, shift = torch.tensor([1.0, 2.0, 3.0, 0.5]), torch.tensor([1.0, 0.0, -2.0, 0.0])
    expected = (shift**2).sum() + ((scales - 1) ** 2).sum()
    assert frechet_distance(x, x * scales + shift) == pytest.approx(expected.item(), rel=1e-9)


@pytest.mark.parametrize("dim", [3, 40])
def test_against_the_textbook_formula(dim):
    mix = draw(dim, dim, 9)
    a, b = draw(200, dim, 0) @ mix, draw(150, dim, 1, scale=1.3, shift=0.2)
    assert frechet_distance(a, b) == pytest.approx(textbook(a, b), rel=1e-8)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-10)


def test_equal_sets_have_no_distance_even_with_few_images():
    a = draw(20, 64, 0)
    with pytest.warns(RankDeficientWarning, match="20 images for 64 features.*rank 19"):
        assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_rank_deficient_sets_are_exact_all_the_same():
    # Twenty images differ in nineteen directions only; dropping all others must not change the distance.
    a, b = draw(20, 64, 0), draw(20, 64, 1, scale=2)
    basis = torch.linalg.qr(torch.cat([a, b]).T).Q  # [64, 40]
    with pytest.warns(RankDeficientWarning):
        assert frechet_distance(a, b) == pytest.approx(frechet_distance(a @ basis, b @ basis), rel=1e-9)


def test_enough_images_do_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frechet_distance(draw(9, 8, 0), draw(9, 8, 1))


def test_interval_holds_what_a_new_sample_of_the_same_size_gives():
    n, dim = 60, 12  # few images for the features: resampling alone would lie far too high

    def pair(i):
        return draw(n, dim, 2 * i), draw(n, dim, 2 * i + 1, shift=0.3)

    expected = sum(frechet_distance(*pair(i)) for i in range(400)) / 400  # with the excess that 60 images cause
    found = [frechet_interval(*pair(5000 + i), n_boot=100, seed=i) for i in range(60)]
    held = sum(interval.low <= expected <= interval.high for interval in found)
    assert held / 60 >= 0.83  # 95 % asked for; four standard errors below it
    assert all(interval.low <= interval.value <= interval.high and interval.n == n for interval in found)


def test_interval_shrinks_with_n():
    def width(n):
        found = frechet_interval(draw(n, 4, 0), draw(n, 4, 1, shift=0.5), n_boot=100)
        return found.high - found.low

    assert width(1600) < 0.5 * width(100)


class Colours:
    """Features that can be done in one's head: the mean of each colour channel, from 0 to 255."""

    features_name = "mean colour"

    def features(self, images):
        assert images.dtype == torch.uint8
        return images.double().mean((2, 3))


def flat(n: int, seed: int) -> torch.Tensor:
    colours = torch.randint(0, 200, (n, 3, 1, 1), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return colours.expand(n, 3, 4, 4)


def test_frechet_of_images_names_its_features():
    a, b = flat(60, 0), flat(50, 1) + 20
    found = frechet(a, b, features=Colours(), n_boot=100)
    colours = Colours().features
    assert found.value == pytest.approx(frechet_distance(colours(a), colours(b)))
    assert found.low < found.value < found.high
    assert found.label == "Fréchet distance, mean colour features, n = 60 and 50"
    assert found.to_dict()["label"] == found.label and found.dim == 3
    assert "mean colour" in str(found)
    pil = [Image.fromarray(i.permute(1, 2, 0).numpy()) for i in a]
    assert frechet(pil, b, features=colours, name="mine", n_boot=100).value == found.value


def test_the_shipped_judge_is_named():
    images = pb.training_images()
    assert len(images) > 300, "the mini CLIP has 128 features"
    half = len(images) // 2
    near = frechet(images[:half], images[half:], features=pb.load_clip(), n_boot=100)
    far = frechet(images[:half], 255 - images[half:], features=pb.load_clip(), n_boot=100)
    assert near.features == "mini-CLIP" and near.dim == 128
    assert near.high < far.low


def test_bad_input():
    good = draw(10, 3, 0)
    for wrong, said in [
        (draw(10, 4, 0), "differ in width: 3 and 4"),
        (good[0], r"shape \[3\]"),
        (good[:1], r"shape \[1, 3\]"),
        (good * float("nan"), "not a number"),
    ]:
        with pytest.raises(ValueError, match=said):
            frechet_distance(good, wrong)
    with pytest.raises(ValueError, match="n_boot=5"):
        frechet_interval(good, good, n_boot=5)
    with pytest.raises(ValueError, match="only name is 'inception'"):
        frechet(flat(9, 0), flat(9, 1), features="clip")
    with pytest.raises(ValueError, match="Pass name="):
        frechet(flat(9, 0), flat(9, 1), features=lambda x: x.double().mean((2, 3)))
    with pytest.raises(TypeError, match="features is int"):
        frechet(flat(9, 0), flat(9, 1), features=3, name="three")
