"""Magnitude masks: exact counts, ties, agreement with torch.nn.utils.prune, shares by sensitivity, and refusals."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import asdict

import pytest
import torch
from small_models import MODELS, bits, linears, run, unet
from torch import nn
from torch.nn.utils import prune

from pruning_lib.weights.magnitude import (
    SCOPES,
    Sensitivity,
    allocate,
    estimate_sensitivity,
    magnitude_masks,
    prune_magnitude,
    smallest_removed,
)
from pruning_lib.weights.select import prunable_weights

TENTHS = [[9, -1, 4, -7, 2], [-3, 8, -2, 5, -6], [1, -9, 3, -4, 7], [-5, 2, -8, 6, -1], [4, -3, 7, -2, 9]]
MATRIX = torch.tensor(TENTHS) / 10


def test_by_hand_with_ties_cut_in_order_of_position() -> None:
    # 10 of 25: three of 0.1, four of 0.2 make seven, and the first three of the 0.3 fill up; the matrix has three.
    mask = magnitude_masks({"w": MATRIX}, 0.4)["w"]
    assert torch.equal(mask, MATRIX.abs() > 0.31)
    # 9 of 25: only the first two of the three 0.3 go, which are at (1, 0) and (2, 2).
    mask = magnitude_masks({"w": MATRIX}, 0.36)["w"]
    assert (~mask).sum() == 9
    assert not mask[1, 0] and not mask[2, 2] and mask[4, 1]
    masks = magnitude_masks({"a": torch.full((2, 3), -0.5), "b": torch.full((4, 2), 0.5)}, 9 / 14)  # across layers
    assert not masks["a"].any() and masks["b"].flatten().tolist() == [False] * 3 + [True] * 5


TYPED = [(scope, torch.float32) for scope in SCOPES] + [("global", torch.float16), ("layer", torch.bfloat16)]


@pytest.mark.parametrize("name", MODELS)
def test_every_model_in_every_scope_is_cut_exactly_and_restored_bit_for_bit(name) -> None:
    for (scope, dtype), sparsity in itertools.product(TYPED, (0.0, 0.37, 0.9)):
        model = MODELS[name]().to(dtype)
        before = bits(model)
        with prune_magnitude(model, sparsity, scope=scope) as pruned:
            assert all((model.get_parameter(row.name) == 0).sum() == row.zeros for row in pruned.layers)
            if scope == "layer":
                assert all(row.zeros == round(sparsity * row.n) for row in pruned.layers)
            else:
                assert pruned.zeros == round(sparsity * pruned.n)
            assert (bits(model) == before) == (pruned.zeros == 0)
        assert bits(model) == before


@pytest.mark.parametrize("name", MODELS)
def test_zero_sparsity_changes_no_output_and_half_does(name) -> None:
    model = MODELS[name]()
    whole = run(name, model)
    for sparsity, same in ((0.0, True), (0.5, False)):
        with prune_magnitude(model, sparsity):
            assert torch.equal(run(name, model), whole) is same
    assert torch.equal(run(name, model), whole)


@pytest.mark.parametrize(("scope", "amount"), [("global", 0.63), ("layer", 0.1), ("layer", 0.123), ("layer", 0.99)])
def test_masks_agree_with_torch(scope, amount) -> None:
    ours, theirs = unet(), unet()
    pruned = prune_magnitude(ours, amount, scope=scope)
    layers = {name: theirs.get_submodule(name.removesuffix(".weight")) for name in pruned.masks}
    if scope == "global":
        pairs = [(layer, "weight") for layer in layers.values()]
        prune.global_unstructured(pairs, pruning_method=prune.L1Unstructured, amount=amount)
    else:
        for layer in layers.values():
            prune.l1_unstructured(layer, "weight", amount)
    for name, layer in layers.items():
        assert torch.equal(pruned.masks[name], layer.weight_mask.bool()), name
        assert torch.equal(ours.get_parameter(name), layer.weight), name


def test_random_scope_depends_on_the_seed_only() -> None:
    model = linears((30, 21))
    masks = []
    for seed in (5, 5, 6):
        with prune_magnitude(model, 0.37, scope="random", seed=seed) as pruned:
            masks.append(pruned.masks["0.weight"])
    assert torch.equal(masks[0], masks[1]) and not torch.equal(masks[0], masks[2])
    # A control must not look at sizes: removed and kept weights are equally large, within chance.
    sizes = model[0].weight.detach().abs()
    assert abs(sizes[masks[0]].mean() - sizes[~masks[0]].mean()) < 0.3 * sizes.mean()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
def test_neighbouring_floats_are_told_apart(dtype) -> None:
    one = torch.tensor(1.0, dtype=dtype)
    above, below = torch.nextafter(one, one * 2), torch.nextafter(one, one * 0)
    tiny = torch.finfo(dtype).smallest_normal / 4  # subnormal
    weight = torch.stack([above, one, -below, one * -tiny, one * tiny / 2, one * 0])
    order = [5, 4, 3, 2, 1, 0]  # smallest first
    parts = {"a": weight[:2], "b": weight[2:]}  # more than one tensor: the selection by digits
    for count in range(6):
        mask = torch.cat(list(magnitude_masks(parts, count / 6).values()))
        assert torch.equal(mask, magnitude_masks({"w": weight}, count / 6)["w"])
        assert sorted((~mask).nonzero().flatten().tolist()) == sorted(order[:count])


def test_mixed_types_share_one_threshold() -> None:
    weights = {"half": torch.tensor([0.5, 2.0]).half(), "double": torch.tensor([1.0, 0.25]).double()}
    masks = magnitude_masks(weights, 0.5)
    assert masks["half"].tolist() == [False, True] and masks["double"].tolist() == [True, False]


def test_selection_equals_sorting_for_many_keys() -> None:
    generator = torch.Generator().manual_seed(0)
    keys = [torch.randint(0, 2**31 - 1, (1000,), generator=generator, dtype=torch.int32) for _ in range(3)]
    keys[1][:500] = keys[0][7]  # many ties
    joined = torch.cat(keys)
    for count in (0, 1, 777, 1400, 2999, 3000):
        masks = smallest_removed({str(i): lambda k=k: k for i, k in enumerate(keys)}, count)
        removed = ~torch.cat(list(masks.values()))
        wanted = torch.zeros(3000, dtype=torch.bool)
        wanted[joined.argsort(stable=True)[:count]] = True
        assert torch.equal(removed, wanted), count


def test_channels_last_weights_keep_their_positions() -> None:
    plain = nn.Conv2d(8, 6, 3)
    last = nn.Conv2d(8, 6, 3).to(memory_format=torch.channels_last)
    last.load_state_dict(plain.state_dict())
    assert not last.weight.is_contiguous()
    with prune_magnitude(plain, 0.6) as a, prune_magnitude(last, 0.6) as b:
        assert torch.equal(a.masks["weight"], b.masks["weight"])
        assert torch.equal(plain.weight, last.weight)
    assert torch.equal(plain.weight, last.weight)


def test_peak_memory_stays_near_one_tensor() -> None:
    """Beside the masks, the work needs a few copies of one tensor, not of all of them."""
    from torch.profiler import ProfilerActivity, profile

    weights = {str(i): torch.randn(250_000) for i in range(20)}  # 1 MB each
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        magnitude_masks(weights, 0.5)
    moments = [e for e in found.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = list(itertools.accumulate(e.nbytes() for e in sorted(moments, key=lambda e: e.start_ns())))
    assert 5_000_000 <= max(held) < 5_000_000 + 16 * 1_000_000


def layers(n: int) -> dict[str, torch.Tensor]:
    return {name: torch.zeros(n) for name in "ab"}


def test_zeros_are_shared_out_as_by_hand() -> None:
    # Slopes per zero, 10 weights each: a costs 0.1 then 0.4 a zero, b costs 0.2 then 0.3.
    found = Sensitivity(("a", "b"), (0.5, 0.9), ((0.5, 2.1), (1.0, 2.2)), "made up")
    for sparsity, a, b in ((0.25, 5, 0), (0.5, 5, 5), (0.6, 5, 7), (0.8, 7, 9), (0.9, 9, 9)):
        assert allocate(found, sparsity, layers(10)) == {"a": a, "b": b}
    with pytest.raises(ValueError, match="allows 18"):
        allocate(found, 0.95, layers(10))
    bent = Sensitivity(("a", "b"), (0.5, 0.9), ((3.0, 1.0), (1.0, 1.5)), "made up")
    # a: the running maximum is (3, 3), its hull one line of 9 zeros at 1/3; b: 0.2, then 0.125, its hull 9 at 1/6.
    assert allocate(bent, 0.45, layers(10)) == {"a": 0, "b": 9} and allocate(bent, 0.6, layers(10)) == {"a": 3, "b": 9}
    better = Sensitivity(("a", "b"), (0.5, 0.9), ((-1.0, -2.0), (0.1, 0.2)), "made up")
    assert allocate(better, 0.45, layers(10)) == {"a": 9, "b": 0}, "a loss that shrinks counts as no harm"


def test_shares_are_the_best_there_are_for_convex_curves() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.zeros(4) for name in "abc"}
    for _ in range(20):
        steps = torch.rand(3, 3, generator=generator).sort(dim=1).values  # increasing slopes: convex
        errors = steps.cumsum(1).tolist()
        found = Sensitivity(tuple("abc"), (0.25, 0.5, 0.75), tuple(map(tuple, errors)), "made up")
        curves = [[0.0, *row] for row in errors]

        def cost(counts, curves=curves) -> float:
            return sum(curve[k] for curve, k in zip(curves, counts, strict=True))

        for wanted in range(10):
            given = allocate(found, wanted / 12, weights).values()
            assert sum(given) == wanted
            others = [counts for counts in itertools.product(range(4), repeat=3) if sum(counts) == wanted]
            assert cost(given) == pytest.approx(min(map(cost, others)))


def test_estimate_is_the_energy_removed_and_survives_json() -> None:
    weights = {"w": torch.tensor([3.0, -1.0, 2.0, 0.0]), "zero": torch.zeros(4)}
    found = estimate_sensitivity(weights, (0.25, 0.5, 0.75))
    assert found.errors[0] == pytest.approx((0, 1 / 14, 5 / 14)) and found.errors[1] == (0, 0, 0)
    assert Sensitivity.from_dict(json.loads(json.dumps(asdict(found)))) == found


@pytest.mark.parametrize(
    ("stops", "errors", "words"),
    [
        *((stops, (), "increasing") for stops in ((), (0.5, 0.5), (0.9, 0.5), (0.0, 0.5), (0.5, 1.0))),
        ((0.5,), ((math.nan,),), "not finite"),
        ((0.5,), ((0.1, 0.2),), "columns"),
    ],
)
def test_sensitivities_that_make_no_sense_are_refused(stops, errors, words) -> None:
    with pytest.raises(ValueError, match=words):
        Sensitivity(("a",), stops, errors, "made up")


@pytest.mark.parametrize(
    ("sparsity", "options", "error", "words"),
    [
        *((s, {}, ValueError, r"must lie in \[0, 1\)") for s in (1, 1.0, -0.1, math.nan, math.inf)),
        (50, {}, ValueError, "50 per cent is 0.5"),
        *((s, {}, TypeError, "give a number") for s in ("0.5", True, None, [0.5])),
        (0.5, {"scope": "globl"}, ValueError, "Did you mean 'global'"),
        (0.5, {"sensitivity": "estimated"}, ValueError, "does not use it"),
        (0.5, {"scope": "sensitivity", "sensitivity": "of another"}, ValueError, r"1\.weight is only in one"),
    ],
)
def test_wrong_arguments_are_refused_and_change_nothing(sparsity, options, error, words) -> None:
    model = linears((6, 5), (5, 4))
    before, given = bits(model), options.get("sensitivity")
    if given:
        measured = model if given == "estimated" else linears((6, 5))
        options = {**options, "sensitivity": estimate_sensitivity(prunable_weights(measured).weights)}
    with pytest.raises(error, match=words):
        prune_magnitude(model, sparsity, **options)
    assert bits(model) == before
