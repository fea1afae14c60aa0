"""Measured sensitivities: the errors of pruning one layer by hand, and a model left as it was."""

from __future__ import annotations

import pytest
import torch
from small_models import MODELS, bits, inputs_of, linears, run
from torch import nn

from pruning_book.sensitivity import measure_sensitivity
from pruning_lib.weights.magnitude import prune_magnitude
from pruning_lib.weights.select import prunable_weights


@pytest.mark.parametrize("name", MODELS)
def test_errors_are_those_of_pruning_one_layer_by_hand(name) -> None:
    model = MODELS[name]().train(name == "unet")
    before = bits(model)
    found = measure_sensitivity(model, inputs_of(name), sparsities=(0.9,))
    assert bits(model) == before and model.training is (name == "unet")
    assert found.layers == tuple(prunable_weights(model).weights)
    whole = run(name, model.eval())
    layer = found.layers[len(found.layers) // 2]
    weight = model.get_parameter(layer)
    with torch.no_grad():
        weight[weight.abs() <= weight.abs().flatten().sort().values[round(0.9 * weight.numel()) - 1]] = 0
    expected = ((run(name, model) - whole).square().sum() / whole.square().sum()).item()
    assert found.errors[found.layers.index(layer)][0] == pytest.approx(expected, rel=1e-4, abs=1e-12)
    assert any(error > 0 for row in found.errors for error in row)


def test_a_layer_that_matters_more_keeps_more() -> None:
    first, second = linears((20, 20), (20, 20))
    second.load_state_dict(first.state_dict())
    loud = nn.Sequential(first, nn.Tanh(), second)
    inputs = {"input": torch.randn(64, 20, generator=torch.Generator().manual_seed(1))}
    found = measure_sensitivity(loud, [inputs, inputs], sparsities=(0.3, 0.6, 0.9))
    with prune_magnitude(loud, 0.5, scope="sensitivity", sensitivity=found) as pruned:
        share = {row.name: row.sparsity for row in pruned.layers}
        assert pruned.zeros == 400
    worse = max(found.layers, key=lambda name: found.errors[found.layers.index(name)][1])
    assert share[worse] < 0.5 < max(share.values())


@pytest.mark.parametrize(
    ("inputs", "sparsities", "words"),
    [
        ([], (0.5,), "empty"),
        ({"input": torch.ones(1, 6)}, (0.9, 0.5), "increasing"),
        ({"input": torch.zeros(1, 6)}, (0.5,), "mean nothing"),
    ],
)
def test_wrong_arguments_are_refused(inputs, sparsities, words) -> None:
    with pytest.raises(ValueError, match=words):
        measure_sensitivity(nn.Linear(6, 5, bias=False), inputs, sparsities=sparsities)
