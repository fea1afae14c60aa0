"""The pruner network and its gates: first everything is kept, gradients pass where they should."""

from __future__ import annotations

import math

import pytest
import torch

from pruning_lib.steps.gates import GateTable, PrunerNetwork, keep_probability, straight_through


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


@pytest.mark.parametrize("wrong", [{"calls": 0}, {"units": 1.5}, {"width": 10}, {"heads": 0}, {"width": True}])
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        PrunerNetwork(**{"calls": 2, "units": 2, "width": 16, "heads": 8, **wrong})
