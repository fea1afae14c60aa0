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


def test_psnr_of_a_known_error_is_each_images_own():
    a = torch.full((2, 3, 4, 4), 0.5)
    b = a + torch.tensor([0.1, 0.01]).view(2, 1, 1, 1)
    assert psnr(a, b).tolist() == pytest.approx([20.0, 40.0], abs=1e-3)
    assert math.isinf(psnr(a, a)[0])


def test_ssim_against_plain_loops():
    a, b = pictures(), (pictures() + 0.3 * pictures(seed=1)) / 1.3
    expected = [ssim_by_loops(p.double().numpy(), q.double().numpy()) for p, q in zip(a, b, strict=True)]
    assert ssim(a.double(), b.double()).tolist() == pytest.approx(expected, abs=1e-12)
    assert ssim(a, b).tolist() == pytest.approx(expected, abs=1e-5)  # single precision
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ssim(a, b), ssim(a.clone(), b.clone())) and ssim(a, b).dtype == torch.float32
        assert ssim(a, b).tolist() == pytest.approx(expected, abs=1e-5)


def test_ssim_agrees_with_scikit_image():
    # structural_similarity(a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1,
    # channel_axis=0) of scikit-image 0.26.0 on these pictures, without random numbers, in double precision.
    y, x = torch.meshgrid(torch.arange(24.0), torch.arange(32.0), indexing="ij")
    a = torch.stack([(x + 3 * c) / 40 * 0.5 + (y * 2 + c) / 120 for c in range(3)])[None]
    b = (a * 0.8 + 0.1 + 0.05 * torch.sin(x)).clamp(0, 1)
    assert ssim(a.double(), b.double()).item() == pytest.approx(0.6768431099976197, abs=1e-9)


def test_ssim_of_equal_reversed_and_smallest_images_and_its_gradient():
    a = pictures().requires_grad_()
    assert ssim(a, a).tolist() == pytest.approx([1, 1])
    assert (ssim(a, 1 - a) < 0).all()
    assert ssim(a[..., :11, :11], a[..., :11, :11]).shape == (2,)
    with pytest.raises(ValueError, match="10 x 23 pixels; SSIM needs 11 x 11"):
        ssim(a[..., :10, :], a[..., :10, :])
    (1 - ssim(a, pictures(seed=1))).mean().backward()
    assert a.grad.isfinite().all() and a.grad.abs().max() > 0


def test_a_loss_does_not_look_at_the_values(monkeypatch):
    a, b = pictures(), pictures(seed=1)
    wanted = ssim(a, b)
    monkeypatch.setattr(torch.Tensor, "tolist", lambda *_: pytest.fail("the device was waited for"))
    monkeypatch.setattr(torch.Tensor, "item", lambda *_: pytest.fail("the device was waited for"))
    found = ssim(a, b, check_range=False)
    monkeypatch.undo()
    assert torch.equal(found, wanted)
    with pytest.raises(ValueError, match="differ in shape"):
        ssim(a, b[:1], check_range=False)


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [
        (pictures(), pictures(3), r"\[2, 3, 17, 23\] and \[3, 3, 17, 23\]"),
        (pictures() * 2 - 1, pictures(), r"expected \[0, 1\].*images / 2"),
        (pictures() * 255, pictures(), r"expected \[0, 1\]"),
        (pictures() * float("nan"), pictures(), "nan"),
        ((pictures() * 255).byte(), pictures(), "uint8.*255"),
        (pictures()[0], pictures()[0], r"image\[None\]"),
        (pictures()[:0], pictures()[:0], r"\[0, 3, 17, 23\]"),
        ([Image.new("RGB", (16, 16))], pictures(), "output_type='pt'"),
    ],
)
def test_wrong_images_are_refused(a, b, said):
    for measure in (psnr, ssim):
        with pytest.raises((TypeError, ValueError), match=said):
            measure(a, b)


class ColourJudge:
    """Embeds an image by its mean colour and a text by the colour it names: cosines can be done in one's head."""

    names = {"red": (1, 0, 0), "green": (0, 1, 0), "yellow": (1, 1, 0), "anti-red": (-1, 0, 0)}

    def embed_images(self, images):
        assert images.dtype == torch.uint8
        return torch.nn.functional.normalize(images.float().mean((2, 3)), dim=-1)

    def embed_texts(self, texts):
        return torch.nn.functional.normalize(torch.tensor([self.names[t] for t in texts]).float(), dim=-1)


JUDGE = ColourJudge()
RED, GREEN = Image.new("RGB", (8, 8), (255, 0, 0)), Image.new("RGB", (8, 8), (0, 255, 0))


def test_clip_score_is_a_hundred_times_the_cosine_and_never_negative():
    score = clip_score(JUDGE, [RED, RED, RED, RED], ["red", "green", "yellow", "anti-red"])
    assert score.tolist() == pytest.approx([100, 0, 100 / 2**0.5, 0], abs=1e-4)
    tensor = torch.tensor([0.8, 0.4, 0]).view(1, 3, 1, 1).expand(1, 3, 8, 8)
    forms = [tensor, (tensor * 255).round().byte(), [Image.new("RGB", (8, 8), (204, 102, 0))]]
    scores = [clip_score(JUDGE, form, ["red"]).item() for form in forms]
    assert scores[0] == scores[1] == scores[2] == pytest.approx(100 * 2 / 5**0.5, abs=1e-3)


def test_retrieval_rank():
    candidates = ["anti-red", "green", "yellow", "red"]
    rank = retrieval_rank(JUDGE, [RED, RED, RED, GREEN], ["red", "yellow", "anti-red", "green"], candidates)
    assert rank.tolist() == [1, 2, 4, 1] and rank.dtype == torch.int64


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: clip_score(JUDGE, [RED, GREEN], ["red"]), "2 images and 1 prompts"),
        (lambda: clip_score(JUDGE, [RED, GREEN, RED], "red"), "one string"),
        (lambda: clip_score(JUDGE, [RED, Image.new("RGB", (4, 4))], ["red", "red"]), "2 sizes"),
        (lambda: retrieval_rank(JUDGE, [RED], ["red"], ["green"]), "not among the candidates, such as 'red'"),
        (lambda: retrieval_rank(JUDGE, [RED], ["red"], ["red", "red"]), "drop the repeats"),
        *[(lambda no=no: clip_score(JUDGE, no, []), "PIL") for no in ([], "lion", ["lion"], None)],
    ],
)
def test_wrong_prompts_and_pictures_are_refused(call, said):
    with pytest.raises((TypeError, ValueError), match=said):
        call()
