"""Sensitivities and the zeros that follow from them."""

from __future__ import annotations

import itertools
import json
import math

import pytest
import torch
from small_models import MODELS, bits, inputs_of, linears, unet
from torch import nn

from pruning_lib.weights.magnitude import prune_magnitude
from pruning_lib.weights.select import prunable_weights
from pruning_lib.weights.sensitivity import Sensitivity, allocate, estimate_sensitivity, measure_sensitivity


def fake(n: int) -> dict[str, torch.Tensor]:
    return {name: torch.zeros(n) for name in "ab"}


def test_allocation_by_hand() -> None:
    # Slopes per zero, 10 weights each: a costs 0.1 then 0.4 a zero, b costs 0.2 then 0.3.
    found = Sensitivity(("a", "b"), (0.5, 0.9), ((0.5, 2.1), (1.0, 2.2)), "made up")
    assert allocate(found, 0.25, fake(10)) == {"a": 5, "b": 0}
    assert allocate(found, 0.50, fake(10)) == {"a": 5, "b": 5}
    assert allocate(found, 0.60, fake(10)) == {"a": 5, "b": 7}
    assert allocate(found, 0.80, fake(10)) == {"a": 7, "b": 9}
    assert allocate(found, 0.90, fake(10)) == {"a": 9, "b": 9}
    with pytest.raises(ValueError, match="allows 18"):
        allocate(found, 0.95, fake(10))


def test_allocation_is_the_best_there_is_for_convex_curves() -> None:
    generator = torch.Generator().manual_seed(0)
    stops = (0.25, 0.5, 0.75)
    for _ in range(20):
        steps = torch.rand(3, 3, generator=generator).sort(dim=1).values  # increasing slopes: convex
        errors = steps.cumsum(1).tolist()
        found = Sensitivity(tuple("abc"), stops, tuple(map(tuple, errors)), "made up")
        weights = {name: torch.zeros(4) for name in "abc"}
        curves = [[0.0, *row] for row in errors]
        for wanted in range(10):
            given = allocate(found, wanted / 12, weights)
            assert sum(given.values()) == wanted
            cost = sum(curve[given[name]] for name, curve in zip("abc", curves, strict=True))
            best = min(
                sum(curve[k] for curve, k in zip(curves, ks, strict=True))
                for ks in itertools.product(range(4), repeat=3)
                if sum(ks) == wanted
            )
            assert cost == pytest.approx(best)


def test_curves_that_fall_or_bend_back_are_straightened() -> None:
    found = Sensitivity(("a", "b"), (0.5, 0.9), ((3.0, 1.0), (1.0, 1.5)), "made up")
    # a: the running maximum is (3, 3), its hull one line of 9 zeros at 1/3; b: 0.2, then 0.125, its hull 9 at 1/6.
    assert allocate(found, 0.45, fake(10)) == {"a": 0, "b": 9}
    assert allocate(found, 0.60, fake(10)) == {"a": 3, "b": 9}


def test_loss_that_shrinks_when_pruned_counts_as_no_harm() -> None:
    found = Sensitivity(("a", "b"), (0.5, 0.9), ((-1.0, -2.0), (0.1, 0.2)), "made up")
    assert allocate(found, 0.45, fake(10)) == {"a": 9, "b": 0}


@pytest.mark.parametrize("name", list(MODELS))
def test_measured_errors_are_those_of_pruning_one_layer_by_hand(name) -> None:
    model, inputs = MODELS[name](), inputs_of(name)
    before = bits(model)
    found = measure_sensitivity(model, inputs, sparsities=(0.9,))
    assert bits(model) == before and not model.training
    assert found.layers == tuple(prunable_weights(model).weights)

    def run() -> torch.Tensor:
        with torch.no_grad():
            return model(**inputs)[0] if name != "vae" else model(**inputs).sample

    whole = run()
    name_of = found.layers[len(found.layers) // 2]
    weight = model.get_parameter(name_of)
    with torch.no_grad():
        cut = weight.abs().flatten().sort().values[round(0.9 * weight.numel()) - 1]
        weight[weight.abs() <= cut] = 0
    expected = ((run() - whole).square().sum() / whole.square().sum()).item()
    assert found.errors[found.layers.index(name_of)][0] == pytest.approx(expected, rel=1e-4, abs=1e-12)
    assert any(error > 0 for row in found.errors for error in row)


def test_a_layer_that_matters_more_keeps_more() -> None:
    model = linears((20, 20), (20, 20))
    with torch.no_grad():
        model[0].weight.copy_(torch.randn(20, 20, generator=torch.Generator().manual_seed(0)))
        model[1].weight.copy_(model[0].weight)
    inputs = {"input": torch.randn(64, 20, generator=torch.Generator().manual_seed(1))}
    loud = nn.Sequential(model[0], nn.Tanh(), model[1])
    found = measure_sensitivity(loud, inputs, sparsities=(0.3, 0.6, 0.9))
    with prune_magnitude(loud, 0.5, scope="sensitivity", sensitivity=found) as pruned:
        share = {row.name: row.sparsity for row in pruned.layers}
        assert pruned.zeros == 400
    worse = max(found.layers, key=lambda name: found.errors[found.layers.index(name)][1])
    assert share[worse] < 0.5 < max(share.values())


def test_loss_in_place_of_inputs() -> None:
    model, inputs = linears((6, 5), (5, 4)), torch.randn(16, 6, generator=torch.Generator().manual_seed(0))

    def loss() -> torch.Tensor:
        return model(inputs).square().mean()

    found = measure_sensitivity(model, loss=loss, sparsities=(0.5,))
    whole = loss().item()
    with torch.no_grad(), prune_magnitude(model, 0.5, scope="layer", ignore=["0.weight", "biases"]):
        assert found.errors[1][0] == pytest.approx(loss().item() - whole)
    assert found.unit == "growth of the loss"


def test_estimate_is_the_energy_removed() -> None:
    weights = {"w": torch.tensor([3.0, -1.0, 2.0, 0.0]), "zero": torch.zeros(4)}
    found = estimate_sensitivity(weights, (0.25, 0.5, 0.75))
    assert found.errors[0] == pytest.approx((0, 1 / 14, 5 / 14)) and found.errors[1] == (0, 0, 0)


def test_sparsity_is_exact_for_every_model_and_stop() -> None:
    model = unet()
    for sparsity in (0.01, 0.333, 0.5, 0.9, 0.98):
        with prune_magnitude(model, sparsity, scope="sensitivity") as pruned:
            assert pruned.zeros == round(sparsity * pruned.n)


def test_sensitivity_survives_json() -> None:
    found = estimate_sensitivity(prunable_weights(unet()).weights, (0.5, 0.9))
    assert Sensitivity.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_wrong_arguments_are_refused() -> None:
    model = linears((6, 5))
    with pytest.raises(ValueError, match="Give either"):
        measure_sensitivity(model)
    with pytest.raises(ValueError, match="not both"):
        measure_sensitivity(model, {}, loss=lambda: 0.0)
    with pytest.raises(ValueError, match="empty"):
        measure_sensitivity(model, [])
    for stops in ((), (0.5, 0.5), (0.9, 0.5), (0.0, 0.5), (0.5, 1.0)):
        with pytest.raises(ValueError, match="increasing"):
            measure_sensitivity(model, {"input": torch.ones(1, 6)}, sparsities=stops)
    with pytest.raises(ValueError, match="mean nothing"):
        measure_sensitivity(nn.Linear(6, 5, bias=False), {"input": torch.zeros(1, 6)})
    with pytest.raises(ValueError, match="not finite"):
        Sensitivity(("a",), (0.5,), ((math.nan,),), "made up")
    with pytest.raises(ValueError, match="columns"):
        Sensitivity(("a",), (0.5,), ((0.1, 0.2),), "made up")


def test_sensitivity_of_other_layers_is_refused() -> None:
    found = estimate_sensitivity(prunable_weights(linears((6, 5))).weights)
    with pytest.raises(ValueError, match=r"1\.weight is only in one"):
        prune_magnitude(linears((6, 5), (5, 4)), 0.5, scope="sensitivity", sensitivity=found)


def test_training_mode_is_kept() -> None:
    model = linears((6, 5)).train()
    measure_sensitivity(model, {"input": torch.ones(1, 6)}, sparsities=(0.5,))
    assert model.training
