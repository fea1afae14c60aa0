"""PSNR and SSIM against independent sums, CLIP score and rank against a judge whose answers are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image

from pruning_lib.quality import clip_score, psnr, retrieval_rank, ssim


def pictures(n: int = 2, height: int = 17, width: int = 23, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(seed))


def fixed_pair() -> tuple[torch.Tensor, torch.Tensor]:
    """A pair without random numbers, so that its score can be written down."""
    y, x = torch.meshgrid(torch.arange(24.0), torch.arange(32.0), indexing="ij")
    a = torch.stack([(x + 3 * c) / 40 * 0.5 + (y * 2 + c) / 120 for c in range(3)])[None]
    return a, (a * 0.8 + 0.1 + 0.05 * torch.sin(x)).clamp(0, 1)


def ssim_by_loops(a: np.ndarray, b: np.ndarray) -> float:
    """Wang et al. 2004 read aloud: every window that fits, moments by weighted sums about the mean."""
    place = np.arange(11) - 5
    weight = np.exp(-(place[:, None] ** 2 + place[None, :] ** 2) / (2 * 1.5**2))
    weight /= weight.sum()
    scores = []
    for channel_a, channel_b in zip(a, b, strict=True):
        for y in range(a.shape[1] - 10):
            for x in range(a.shape[2] - 10):
                p, q = channel_a[y : y + 11, x : x + 11], channel_b[y : y + 11, x : x + 11]
                mp, mq = (weight * p).sum(), (weight * q).sum()
                vp, vq = (weight * (p - mp) ** 2).sum(), (weight * (q - mq) ** 2).sum()
                cov = (weight * (p - mp) * (q - mq)).sum()
                scores.append((2 * mp * mq + 1e-4) * (2 * cov + 9e-4) / ((mp**2 + mq**2 + 1e-4) * (vp + vq + 9e-4)))
    return float(np.mean(scores))


def test_psnr_of_a_known_error():
    a = torch.full((2, 3, 4, 4), 0.5)
    b = a + torch.tensor([0.1, 0.01]).view(2, 1, 1, 1)
    assert psnr(a, b).tolist() == pytest.approx([20.0, 40.0], abs=1e-3)
    assert math.isinf(psnr(a, a)[0])


def test_psnr_is_each_images_own():
    a, b = pictures(3), pictures(3, seed=1)
    alone = [psnr(a[i : i + 1], b[i : i + 1]).item() for i in range(3)]
    assert psnr(a, b).tolist() == pytest.approx(alone)
    assert len(set(alone)) == 3


def test_ssim_against_plain_loops():
    a, b = pictures(), (pictures() + 0.3 * pictures(seed=1)) / 1.3
    expected = [ssim_by_loops(p.double().numpy(), q.double().numpy()) for p, q in zip(a, b, strict=True)]
    assert ssim(a.double(), b.double()).tolist() == pytest.approx(expected, abs=1e-12)
    assert ssim(a, b).tolist() == pytest.approx(expected, abs=1e-5)  # single precision


def test_ssim_agrees_with_scikit_image():
    # structural_similarity(a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1,
    # channel_axis=0) of scikit-image 0.26.0 on these pictures in double precision.
    a, b = fixed_pair()
    assert ssim(a.double(), b.double()).item() == pytest.approx(0.6768431099976197, abs=1e-9)


def test_ssim_of_equal_reversed_and_smallest_images():
    a = pictures()
    assert ssim(a, a).tolist() == pytest.approx([1, 1])
    assert (ssim(a, 1 - a) < 0).all()
    assert ssim(a[..., :11, :11], a[..., :11, :11]).shape == (2,)
    with pytest.raises(ValueError, match="10 x 23 pixels; SSIM needs 11 x 11"):
        ssim(a[..., :10, :], a[..., :10, :])


def test_ssim_has_a_gradient():
    a = pictures().requires_grad_()
    (1 - ssim(a, pictures(seed=1))).mean().backward()
    assert a.grad.isfinite().all() and a.grad.abs().max() > 0


@pytest.mark.parametrize("measure", [psnr, ssim])
@pytest.mark.parametrize(
    ("a", "b", "error", "said"),
    [
        (pictures(), pictures(3), ValueError, r"\[2, 3, 17, 23\] and \[3, 3, 17, 23\]"),
        (pictures() * 2 - 1, pictures(), ValueError, r"expected \[0, 1\].*images / 2"),
        (pictures() * 255, pictures(), ValueError, r"expected \[0, 1\]"),
        (pictures() * float("nan"), pictures(), ValueError, "nan"),
        ((pictures() * 255).byte(), pictures(), TypeError, "uint8.*255"),
        (pictures()[0], pictures()[0], ValueError, r"image\[None\]"),
        (pictures()[:0], pictures()[:0], ValueError, r"\[0, 3, 17, 23\]"),
        ([Image.new("RGB", (16, 16))], pictures(), TypeError, "output_type='pt'"),
    ],
    ids=["sizes", "model range", "0 to 255", "nan", "uint8", "one image", "none", "PIL"],
)
def test_wrong_images_are_refused(measure, a, b, error, said):
    with pytest.raises(error, match=said):
        measure(a, b)


class ColourJudge:
    """Embeds an image by its mean colour and a text by the colour it names: cosines can be done in one's head."""

    names = {"red": (1, 0, 0), "green": (0, 1, 0), "yellow": (1, 1, 0), "anti-red": (-1, 0, 0)}

    def embed_images(self, images):
        assert images.dtype == torch.uint8
        return torch.nn.functional.normalize(images.float().mean((2, 3)), dim=-1)

    def embed_texts(self, texts):
        return torch.nn.functional.normalize(torch.tensor([self.names[t] for t in texts]).float(), dim=-1)


RED, GREEN = Image.new("RGB", (8, 8), (255, 0, 0)), Image.new("RGB", (8, 8), (0, 255, 0))


def test_clip_score_is_a_hundred_times_the_cosine_and_never_negative():
    score = clip_score(ColourJudge(), [RED, RED, RED, RED], ["red", "green", "yellow", "anti-red"])
    assert score.tolist() == pytest.approx([100, 0, 100 / 2**0.5, 0], abs=1e-4)


def test_all_forms_of_an_image_score_alike():
    tensor = torch.zeros(1, 3, 8, 8)
    tensor[:, 0], tensor[:, 1] = 0.8, 0.4
    forms = [tensor, (tensor * 255).round().byte(), [Image.new("RGB", (8, 8), (204, 102, 0))]]
    scores = [clip_score(ColourJudge(), form, ["red"]).item() for form in forms]
    assert scores[0] == scores[1] == scores[2] == pytest.approx(100 * 2 / 5**0.5, abs=1e-3)


def test_retrieval_rank():
    candidates = ["anti-red", "green", "yellow", "red"]
    rank = retrieval_rank(ColourJudge(), [RED, RED, RED, GREEN], ["red", "yellow", "anti-red", "green"], candidates)
    assert rank.tolist() == [1, 2, 4, 1] and rank.dtype == torch.int64


def test_wrong_prompts_are_refused():
    judge = ColourJudge()
    with pytest.raises(ValueError, match="2 images and 1 prompts"):
        clip_score(judge, [RED, GREEN], ["red"])
    with pytest.raises(ValueError, match="one string"):
        clip_score(judge, [RED, GREEN, RED], "red")
    with pytest.raises(ValueError, match="not among the candidates, such as 'red'"):
        retrieval_rank(judge, [RED], ["red"], ["green"])
    with pytest.raises(ValueError, match="drop the repeats"):
        retrieval_rank(judge, [RED], ["red"], ["red", "red"])
    with pytest.raises(ValueError, match="2 sizes"):
        clip_score(judge, [RED, Image.new("RGB", (4, 4))], ["red", "red"])
    for nothing in ([], "lion", ["lion"], None):
        with pytest.raises(TypeError, match="PIL"):
            clip_score(judge, nothing, [])
