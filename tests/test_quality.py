"""PSNR and SSIM against independent figures, CLIP score and rank against a judge whose answers are known."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from pruning_lib.quality import clip_score, psnr, retrieval_rank, ssim


def pictures(n: int = 2, height: int = 17, width: int = 23, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(seed))


def test_psnr_of_a_known_error_is_each_images_own():
    a = torch.full((3, 3, 4, 4), 0.5)
    b = a + torch.tensor([0.1, 0.01, 0]).view(3, 1, 1, 1)
    assert psnr(a, b).tolist() == pytest.approx([20.0, 40.0, float("inf")], abs=1e-3)


def test_ssim_agrees_with_scikit_image_in_every_precision():
    # structural_similarity of scikit-image 0.26.0, called as in the docstring of `ssim`, in double precision.
    y, x = torch.meshgrid(torch.arange(24.0), torch.arange(32.0), indexing="ij")
    a = torch.stack([(x + 3 * c) / 40 * 0.5 + (y * 2 + c) / 120 for c in range(3)])[None]
    b = (a * 0.8 + 0.1 + 0.05 * torch.sin(x)).clamp(0, 1)
    assert ssim(a.double(), b.double()).item() == pytest.approx(0.6768431099976197, abs=1e-9)
    with torch.autocast("cpu", torch.bfloat16):
        assert ssim(a, b).item() == pytest.approx(0.6768431, abs=1e-5) and ssim(a, b).dtype == torch.float32


def test_ssim_of_equal_reversed_and_smallest_images_its_gradient_and_that_it_need_not_look(monkeypatch):
    a, b = pictures().requires_grad_(), pictures(seed=1)
    assert ssim(a, a).tolist() == pytest.approx([1, 1]) and (ssim(a, 1 - a) < 0).all()
    assert ssim(a[..., :11, :11], b[..., :11, :11]).shape == (2,)
    with pytest.raises(ValueError, match="10 x 23 pixels; SSIM needs 11 x 11"):
        ssim(a[..., :10, :], a[..., :10, :])
    (1 - (wanted := ssim(a, b))).mean().backward()
    assert a.grad.isfinite().all() and a.grad.abs().max() > 0
    for reads in ("tolist", "item"):
        monkeypatch.setattr(torch.Tensor, reads, lambda *_: pytest.fail("the device was waited for"))
    found = ssim(a, b, check_range=False)
    monkeypatch.undo()
    assert torch.equal(found, wanted)


def test_wrong_images_are_refused():
    good = pictures()
    for wrong, said in [
        (pictures(3), r"\[2, 3, 17, 23\] and \[3, 3, 17, 23\]"),
        (good * 2 - 1, r"expected \[0, 1\].*images / 2"),
        ((good * 255).byte(), "uint8.*255"),
        (good[0], r"image\[None\]"),
        ([Image.new("RGB", (16, 16))], "output_type='pt'"),
    ]:
        for measure in (psnr, ssim):
            with pytest.raises((TypeError, ValueError), match=said):
                measure(good, wrong)


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


def test_scores_are_a_hundred_times_the_cosine_never_negative_and_ranks_count_from_one():
    score = clip_score(JUDGE, [RED] * 4, ["red", "green", "yellow", "anti-red"])
    assert score.tolist() == pytest.approx([100, 0, 100 / 2**0.5, 0], abs=1e-4)
    tensor = torch.tensor([0.8, 0.4, 0]).view(1, 3, 1, 1).expand(1, 3, 8, 8)
    forms = [tensor, (tensor * 255).round().byte(), [Image.new("RGB", (8, 8), (204, 102, 0))]]
    scores = [clip_score(JUDGE, form, ["red"]).item() for form in forms]
    assert scores[0] == scores[1] == scores[2] == pytest.approx(100 * 2 / 5**0.5, abs=1e-3)
    candidates = ["anti-red", "green", "yellow", "red"]
    rank = retrieval_rank(JUDGE, [RED, RED, RED, GREEN], ["red", "yellow", "anti-red", "green"], candidates)
    assert rank.tolist() == [1, 2, 4, 1] and rank.dtype == torch.int64


def test_wrong_prompts_and_pictures_are_refused():
    for images, prompts, said in [
        ([RED, GREEN], ["red"], "2 images and 1 prompts"),
        ([RED, GREEN, RED], "red", "one string"),
        ([RED, Image.new("RGB", (4, 4))], ["red", "red"], "2 sizes"),
        *[(wrong, [], "PIL") for wrong in ([], "lion", None)],
    ]:
        with pytest.raises((TypeError, ValueError), match=said):
            clip_score(JUDGE, images, prompts)
    for candidates, said in [(["green"], "not among the candidates, such as 'red'"), (["red", "red"], "repeats")]:
        with pytest.raises(ValueError, match=said):
            retrieval_rank(JUDGE, [RED], ["red"], candidates)
