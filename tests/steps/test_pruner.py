"""The pruner network, its gates, and the losses: first everything is kept, gradients pass where they should."""

from __future__ import annotations

import math

import pytest
import torch

from pruning_lib.steps.gates import GateTable, PrunerNetwork, keep_probability, straight_through
from pruning_lib.steps.supernet import LOSSES, consistency


class Undecoded:
    """Stands in for a SuperNet whose latents are pictures."""

    def pictures(self, latents):
        return latents


def loss(name: str, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return consistency(name, Undecoded(), a, b)


@pytest.mark.parametrize("make", [lambda: PrunerNetwork(4, 6, width=16), lambda: GateTable(4, 6)])
def test_at_first_every_gate_keeps_with_the_same_probability(make):
    logits = make()()
    assert logits.shape == (4, 6, 2)
    wanted = math.e / (1 + math.e)  # logits 0 and 1
    assert torch.allclose(keep_probability(logits), torch.full((4, 6), wanted))


def test_the_network_couples_its_gates_and_the_table_does_not():
    torch.manual_seed(0)
    for net, coupled in ((PrunerNetwork(3, 4, width=16), True), (GateTable(3, 4), False)):
        before = keep_probability(net()).detach()
        optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
        keep_probability(net())[1, 2].backward()  # shut one gate
        optimizer.step()
        moved = (keep_probability(net()).detach() - before).abs() > 1e-6
        assert moved[1, 2] and bool(moved.all()) == coupled and moved.sum() in (1, 12)


def test_attention_reaches_the_units_of_a_call_and_no_other_call():
    torch.manual_seed(0)  # of few random ReLUs all may be shut
    net = PrunerNetwork(3, 4, width=64)
    torch.nn.init.normal_(net.head[-1].weight)
    (gradient,) = torch.autograd.grad(net()[1, 2].sum(), net.queries)
    reached = gradient.abs().sum(-1) > 0
    assert reached[1].all() and not reached[0].any() and not reached[2].any()


def test_gates_are_hard_in_value_and_soft_in_gradient():
    probability = torch.tensor([[0.1, 0.9], [0.4, 0.6]], requires_grad=True)
    gates = straight_through(probability)
    assert gates.tolist() == [[1, 1], [0, 1]], "the first row is always open"
    gates.backward(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert probability.grad.tolist() == [[1, 2], [3, 4]]
    on = torch.tensor([[True, True], [True, False]])
    assert straight_through(probability, on, leak=0.25)[1].tolist() == pytest.approx([1, 0.25])


def test_temperature_sharpens():
    logits = torch.tensor([0.0, 1.0])
    assert keep_probability(logits, 0.1) > 0.99 > keep_probability(logits) > keep_probability(logits, 10) > 0.5


def pair(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.rand(2, 3, 16, 16, generator=draw), torch.rand(2, 3, 16, 16, generator=draw)


def test_losses_by_hand():
    a, b = torch.zeros(1, 3, 12, 12), torch.full((1, 3, 12, 12), 0.5)
    assert loss("l1", a, b).item() == pytest.approx(0.5)
    assert loss("l2", a, b).item() == loss("latent", a, b).item() == pytest.approx(0.25)
    constant = 1e-4 / (0.25 + 1e-4)  # without variance, SSIM compares the means: K1^2 / (0.5^2 + K1^2)
    assert loss("ssim", a, b).item() == pytest.approx(1 - constant, rel=1e-3)
    a, b = pair()
    assert torch.allclose(loss("ssim+l1", a, b), loss("ssim", a, b) + loss("l1", a, b))


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_zero_where_pictures_are_equal_and_its_gradient_that_of_finite_differences(name):
    a, b = pair(1)
    assert loss(name, a, a).abs().max() < 1e-6 and loss(name, a, b).shape == (2,)
    x = a.clone().requires_grad_(True)
    loss(name, x, b).sum().backward()
    way = 0.1 * torch.randn(a.shape, generator=torch.Generator().manual_seed(2))
    ahead, behind = (loss(name, (a + step * way).clamp(0, 1), b).sum() for step in (0.01, -0.01))
    assert ((ahead - behind) / 0.02).item() == pytest.approx((x.grad * way).sum().item(), rel=0.05, abs=1e-3)


@pytest.mark.parametrize("name", ["sim", "l1+ssim", ""])
def test_other_losses_are_refused(name):
    with pytest.raises(ValueError, match="There is no loss.*ssim"):
        loss(name, *pair())
