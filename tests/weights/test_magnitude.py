"""Magnitude masks: exact counts, ties, agreement with torch.nn.utils.prune, shares by sensitivity; N:M masks."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import pytest
import torch
from small_denoisers import build
from small_models import MODELS, bits, inputs_of, linears, run
from torch import nn
from torch.nn.utils import prune

from pruning_book.sensitivity import measure_sensitivity
from pruning_lib.weights.magnitude import (
    SCOPES,
    Sensitivity,
    allocate,
    estimate_sensitivity,
    magnitude_masks,
    prune_magnitude,
)
from pruning_lib.weights.nm import nm_mask, prune_nm, to_semi_structured
from pruning_lib.weights.select import prunable_weights


def test_by_hand_ties_are_cut_in_order_of_position() -> None:
    weight = torch.tensor([[1, -3, 2], [3, 2, -3]]) / 10
    for count, kept in ((2, [0, 1, 0, 1, 1, 1]), (4, [0, 0, 0, 1, 0, 1]), (5, [0, 0, 0, 0, 0, 1])):
        assert magnitude_masks({"w": weight}, count / 6)["w"].flatten().tolist() == list(map(bool, kept))
    masks = magnitude_masks({"a": torch.full((2, 3), -0.5), "b": torch.full((4, 2), 0.5)}, 9 / 14)  # across layers
    assert not masks["a"].any() and masks["b"].flatten().tolist() == [False] * 3 + [True] * 5


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
def test_selection_equals_sorting_also_of_neighbouring_floats_and_ties(dtype) -> None:
    one, tiny = torch.tensor(1.0, dtype=dtype), torch.finfo(dtype).smallest_normal / 4
    edges = [torch.nextafter(one, one * 2), one, -torch.nextafter(one, one * 0), -one * tiny, one * tiny / 2, one * 0]
    noise = torch.randn(2000, generator=torch.Generator().manual_seed(0)).to(dtype)
    joined = torch.cat([torch.stack(edges), noise[:994], noise[7].expand(500), noise[1500:]])
    parts = {"a": joined[:700], "b": joined[700:1200], "c": joined[1200:]}
    for count in (1, 2, 3, 777, 1400, 1999):
        wanted = torch.ones(2000, dtype=torch.bool)
        wanted[joined.abs().argsort(stable=True)[:count]] = False
        assert torch.equal(torch.cat(list(magnitude_masks(parts, count / 2000).values())), wanted), count


@pytest.mark.parametrize("name", MODELS)
def test_models_are_cut_exactly_and_restored_bit_for_bit(name) -> None:
    model = MODELS[name]()
    before, whole = bits(model), run(model)
    for scope in SCOPES if name == "unet" else ["global"]:
        with prune_magnitude(model, 0.37, scope=scope) as pruned:
            assert all((model.get_parameter(row.name) == 0).sum() == row.zeros for row in pruned.layers)
            counted = pruned.layers if scope == "layer" else [pruned]
            assert all(found.zeros == round(0.37 * found.n) for found in counted)
            assert bits(model) != before and not torch.equal(run(model), whole)
        assert bits(model) == before and torch.equal(run(model), whole)
    with prune_magnitude(model, 0.0):
        assert bits(model) == before


@pytest.mark.parametrize(("scope", "amount"), [("global", 0.63), ("layer", 0.123)])
def test_masks_agree_with_torch(scope, amount) -> None:
    ours, theirs = build(), build()
    pruned = prune_magnitude(ours, amount, scope=scope)
    layers = {name: theirs.get_submodule(name.removesuffix(".weight")) for name in pruned.masks}
    if scope == "global":
        pairs = [(layer, "weight") for layer in layers.values()]
        prune.global_unstructured(pairs, pruning_method=prune.L1Unstructured, amount=amount)
    for name, layer in layers.items():
        if scope == "layer":
            prune.l1_unstructured(layer, "weight", amount)
        assert torch.equal(pruned.masks[name], layer.weight_mask.bool()), name
        assert torch.equal(ours.get_parameter(name), layer.weight), name


def test_random_scope_depends_on_the_seed_and_not_on_sizes() -> None:
    model, masks = linears((30, 21)), []
    for seed in (5, 5, 6):
        with prune_magnitude(model, 0.37, scope="random", seed=seed) as pruned:
            masks.append(pruned.masks["0.weight"])
    assert torch.equal(masks[0], masks[1]) and not torch.equal(masks[0], masks[2])
    sizes = model[0].weight.detach().abs()
    assert abs(sizes[masks[0]].mean() - sizes[~masks[0]].mean()) < 0.3 * sizes.mean()


def test_zeros_are_shared_out_as_by_hand() -> None:
    def shares(errors, sparsity):
        found = Sensitivity(("a", "b"), (0.5, 0.9), errors, "made up")
        return tuple(allocate(found, sparsity, {"a": torch.zeros(10), "b": torch.zeros(10)}).values())

    convex = ((0.5, 2.1), (1.0, 2.2))  # per zero, a costs 0.1 then 0.4, b costs 0.2 then 0.3
    assert [shares(convex, s) for s in (0.25, 0.6, 0.8, 0.9)] == [(5, 0), (5, 7), (7, 9), (9, 9)]
    with pytest.raises(ValueError, match="allows 18"):
        shares(convex, 0.95)
    # a: the running maximum is (3, 3), its hull one line of 9 zeros at 1/3; b: 0.2, then 0.125, its hull 9 at 1/6.
    assert shares(((3.0, 1.0), (1.0, 1.5)), 0.6) == (3, 9)
    assert shares(((-1.0, -2.0), (0.1, 0.2)), 0.45) == (9, 0), "a loss that shrinks counts as no harm"


def test_estimate_is_the_energy_removed_and_survives_json() -> None:
    weights = {"w": torch.tensor([3.0, -1.0, 2.0, 0.0]), "zero": torch.zeros(4)}
    found = estimate_sensitivity(weights, (0.25, 0.5, 0.75))
    assert found.errors[0] == pytest.approx((0, 1 / 14, 5 / 14)) and found.errors[1] == (0, 0, 0)
    assert Sensitivity.from_dict(json.loads(json.dumps(asdict(found)))) == found
    for stops, errors, words in (
        ((0.9, 0.5), (), "increasing"),
        ((0.5,), ((math.nan,),), "not finite"),
        ((0.5,), ((0.1, 0.2),), "columns"),
    ):
        with pytest.raises(ValueError, match=words):
            Sensitivity(("a",), stops, errors, "made up")


def test_measured_errors_are_those_of_pruning_one_layer_by_hand() -> None:
    model = MODELS["dit"]().train()
    before = bits(model)
    found = measure_sensitivity(model, inputs_of(model), sparsities=(0.9,))
    assert bits(model) == before and model.training
    assert found.layers == tuple(prunable_weights(model).weights)
    with prune_magnitude(model, 0.5, scope="sensitivity", sensitivity=found) as pruned:
        assert pruned.zeros == round(0.5 * pruned.n)
    whole = run(model.eval())
    layer = found.layers[len(found.layers) // 2]
    weight = model.get_parameter(layer)
    with torch.no_grad():
        weight[weight.abs() <= weight.abs().flatten().sort().values[round(0.9 * weight.numel()) - 1]] = 0
    expected = ((run(model) - whole).square().sum() / whole.square().sum()).item()
    assert expected > 0 and found.errors[found.layers.index(layer)][0] == pytest.approx(expected, rel=1e-4)


def test_what_cannot_be_measured_is_refused() -> None:
    ones, zeros = {"input": torch.ones(1, 6)}, {"input": torch.zeros(1, 6)}
    for inputs, stops, words in (([], (0.5,), "empty"), (ones, (0.9, 0.5), "increasing"), (zeros, (0.5,), "nothing")):
        with pytest.raises(ValueError, match=words):
            measure_sensitivity(nn.Linear(6, 5, bias=False), inputs, sparsities=stops)


def test_wrong_arguments_are_refused_and_change_nothing() -> None:
    model = linears((6, 5), (5, 4))
    before, of_another = bits(model), estimate_sensitivity(prunable_weights(linears((6, 5))).weights)
    for sparsity, options, words in (
        *((s, {}, r"number in \[0, 1\)") for s in (1.0, -0.1, math.nan, "0.5", True)),
        (50, {}, "50 per cent is 0.5"),
        (0.5, {"scope": "globl"}, "Did you mean 'global'"),
        (0.5, {"sensitivity": of_another}, "does not use it"),
        (0.5, {"scope": "sensitivity", "sensitivity": of_another}, r"1\.weight is only in one"),
    ):
        with pytest.raises(ValueError, match=words):
            prune_magnitude(model, sparsity, **options)
        assert bits(model) == before


def test_nm_by_hand_with_ties_and_convolutions_group_their_input_channels() -> None:
    weight = torch.tensor([[0.1, -0.4, 0.3, 0.2, 5.0, -5.0, 5.0, 5.0]])
    # Of the second group's four equal ones the first are removed first.
    assert nm_mask(weight).tolist() == [[False, True, True, False, False, False, True, True]]
    assert nm_mask(weight, 1, 4).sum() == 2 and nm_mask(weight, 4, 8).tolist()[0][4:] == [True] * 4
    kernels = torch.randn(6, 8, 3, 3, generator=torch.Generator().manual_seed(0)).permute(0, 2, 3, 1)
    rows = nm_mask(kernels.reshape(54, 8)).view(kernels.shape)
    assert torch.equal(nm_mask(kernels.permute(0, 3, 1, 2)).permute(0, 2, 3, 1), rows)


def test_nm_gives_exact_shares_and_takes_them_back_and_layers_that_do_not_divide_are_left_alone() -> None:
    model = build()
    before = bits(model)
    for n, m in ((2, 4), (4, 8)):
        with prune_nm(model, n, m) as pruned:
            assert all(row.zeros * m == row.n * (m - n) for row in pruned.layers)
            assert pruned.asked == 1 - n / m and pruned.scope == f"{n}:{m}" and bits(model) != before
        assert bits(model) == before
    with prune_nm(linears((6, 4), (4, 8))) as pruned:
        assert list(pruned.masks) == ["1.weight"] and pruned.ignored["0.weight"] == "input is no multiple of 4"


def test_nm_wrong_patterns_and_inputs_that_do_not_divide_are_refused() -> None:
    for n, m in [(0, 4), (4, 4), (2.0, 4)]:
        for call in (lambda *p: prune_nm(linears((8, 4)), *p), lambda *p: nm_mask(torch.ones(4, 8), *p)):
            with pytest.raises(ValueError, match="no pattern"):
                call(n, m)
    for call in (lambda: prune_nm(linears((6, 4))), lambda: nm_mask(torch.ones(4, 6))):
        with pytest.raises(ValueError, match="of 4"):
            call()


def sparse_linear(rows: int = 32, columns: int = 64) -> nn.Sequential:
    model = linears((columns, rows), dtype=torch.float16)
    prune_nm(model).finish()
    return model


def test_what_cannot_be_packed_is_refused_and_left_as_it_was() -> None:
    for model, words in (
        (sparse_linear(), r"on 'cpu'.*compute capability 8\.0"),
        (sparse_linear().float(), "None of the 1 linear layers.*float32"),
        (sparse_linear(32, 32), "columns of 64"),
        (linears((64, 32), dtype=torch.float16), "prune_nm first"),
    ):
        before = bits(model)
        with pytest.raises(ValueError, match=words):
            to_semi_structured(model)
        assert bits(model) == before


def test_packing_takes_what_fits_on_a_gpu_that_is_new_enough(monkeypatch) -> None:
    """Up to the kernel itself: on a machine without it, the device and the packing are replaced."""
    packed = []

    class OnGpu(nn.Parameter):
        device = torch.device("cuda")

    monkeypatch.setattr(torch.sparse, "to_sparse_semi_structured", lambda w: packed.append(w.shape) or w.clone())
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
    model = nn.Sequential(*[layer for rows in (32, 16) for layer in linears((64, rows), dtype=torch.float16)])
    prune_nm(model).finish()
    model[0].weight = OnGpu(model[0].weight.detach())
    for capability in ((7, 5), (8, 0)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, capability=capability: capability)
        if capability < (8, 0):
            with pytest.raises(ValueError, match=r"Tesla T4 has compute capability 7\.5"):
                to_semi_structured(model)
    stayed = to_semi_structured(model)
    assert packed == [(32, 64)] and list(stayed) == ["1"] and "multiple of 32" in stayed["1"]
