"""Consistency losses: zero where pictures are equal, differentiable, and the numbers that hand arithmetic gives."""

from __future__ import annotations

import pytest
import torch

from pruning_lib.quality import ssim
from pruning_lib.steps.losses import LOSSES, check_loss, picture_loss

PICTURES = [name for name in LOSSES if name != "latent"]


def pair(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.rand(2, 3, 16, 16, generator=draw), torch.rand(2, 3, 16, 16, generator=draw)


@pytest.mark.parametrize("name", PICTURES)
def test_equal_pictures_cost_nothing_and_others_something(name):
    a, b = pair()
    assert picture_loss(name, a, a).abs().max() < 1e-6
    assert (picture_loss(name, a, b) > 0.05).all() and picture_loss(name, a, b).shape == (2,)


def test_the_numbers_by_hand():
    a, b = torch.zeros(1, 3, 12, 12), torch.full((1, 3, 12, 12), 0.5)
    assert picture_loss("l1", a, b).item() == pytest.approx(0.5)
    assert picture_loss("l2", a, b).item() == pytest.approx(0.25)
    a, b = pair()
    both = picture_loss("ssim", a, b) + picture_loss("l1", a, b)
    assert torch.allclose(picture_loss("ssim+l1", a, b), both)
    assert torch.allclose(picture_loss("ssim", a, b), 1 - ssim(a, b))


@pytest.mark.parametrize("name", PICTURES)
def test_the_gradient_is_that_of_finite_differences(name):
    a, b = (x.double() for x in pair(1))
    x = a.clone().requires_grad_(True)
    picture_loss(name, x, b).sum().backward()
    way = torch.randn(a.shape, generator=torch.Generator().manual_seed(2)).double()
    step = 1e-3
    ahead, behind = (picture_loss(name, (a + s * way * 0.1).clamp(0, 1), b).sum() for s in (step, -step))
    wanted = (x.grad * way * 0.1).sum().item()
    assert ((ahead - behind) / (2 * step)).item() == pytest.approx(wanted, rel=0.05, abs=1e-3)


@pytest.mark.parametrize("name", ["sim", "SSIM", "l1+ssim", "latent", ""])
def test_other_names_are_refused(name):
    with pytest.raises(ValueError, match="ssim"):
        picture_loss(name, *pair())
    if name != "latent":
        with pytest.raises(ValueError, match="There is no loss"):
            check_loss(name)
