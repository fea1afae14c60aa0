"""Magnitude masks: exact counts, ties, agreement with torch.nn.utils.prune, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from small_models import MODELS, bits, inputs_of, linears, unet
from torch import nn
from torch.nn.utils import prune

from pruning_lib.weights.magnitude import SCOPES, magnitude_masks, prune_magnitude, smallest_removed
from pruning_lib.weights.select import prunable_weights

MATRIX = torch.tensor(
    [
        [0.9, -0.1, 0.4, -0.7, 0.2],
        [-0.3, 0.8, -0.2, 0.5, -0.6],
        [0.1, -0.9, 0.3, -0.4, 0.7],
        [-0.5, 0.2, -0.8, 0.6, -0.1],
        [0.4, -0.3, 0.7, -0.2, 0.9],
    ]
)


def test_matrix_by_hand_with_ties_cut_in_order_of_position() -> None:
    # 10 of 25: three of 0.1, four of 0.2 make seven, and the first three of the 0.3 fill up; the matrix has three.
    mask = magnitude_masks({"w": MATRIX}, 0.4)["w"]
    assert torch.equal(mask, MATRIX.abs() > 0.31)
    # 9 of 25: only the first two of the three 0.3 go, which are at (1, 0) and (2, 2).
    mask = magnitude_masks({"w": MATRIX}, 0.36)["w"]
    assert (~mask).sum() == 9
    assert not mask[1, 0] and not mask[2, 2] and mask[4, 1]


TYPED = [(scope, torch.float32) for scope in SCOPES] + [("global", torch.float16), ("layer", torch.bfloat16)]


@pytest.mark.parametrize("name", list(MODELS))
@pytest.mark.parametrize(("scope", "dtype"), TYPED, ids=str)
def test_every_model_in_every_scope_is_cut_exactly_and_restored_bit_for_bit(name, scope, dtype) -> None:
    model = MODELS[name]().to(dtype)
    before = bits(model)
    for sparsity in (0.0, 0.37, 0.9):
        with prune_magnitude(model, sparsity, scope=scope) as pruned:
            zeros = {row.name: int((model.get_parameter(row.name) == 0).sum()) for row in pruned.layers}
            assert zeros == {row.name: row.zeros for row in pruned.layers}
            if scope == "layer":
                assert all(row.zeros == round(sparsity * row.n) for row in pruned.layers)
            else:
                assert pruned.zeros == round(sparsity * pruned.n)
            assert (bits(model) == before) == (pruned.zeros == 0)
        assert bits(model) == before


@pytest.mark.parametrize("name", list(MODELS))
def test_zero_sparsity_changes_no_output_and_half_does(name) -> None:
    model, inputs = MODELS[name](), inputs_of(name)

    def run() -> torch.Tensor:
        with torch.no_grad():
            torch.manual_seed(0)
            return model(**inputs)[0]

    whole = run()
    with prune_magnitude(model, 0.0):
        assert torch.equal(run(), whole)
    with prune_magnitude(model, 0.5):
        assert not torch.equal(run(), whole)
    assert torch.equal(run(), whole)


def test_global_scope_agrees_with_torch() -> None:
    ours, theirs = unet(), unet()
    assert bits(ours) == bits(theirs)
    names = list(prunable_weights(ours).weights)
    pruned = prune_magnitude(ours, 0.63)
    pairs = [(theirs.get_submodule(name.rpartition(".")[0]), "weight") for name in names]
    prune.global_unstructured(pairs, pruning_method=prune.L1Unstructured, amount=0.63)
    for name, (module, _) in zip(names, pairs, strict=True):
        assert torch.equal(pruned.masks[name], module.weight_mask.bool()), name
        assert torch.equal(ours.get_parameter(name), module.weight)


@pytest.mark.parametrize("amount", [0.1, 0.5, 0.123, 0.99])
def test_layer_scope_agrees_with_torch(amount) -> None:
    ours, theirs = unet(), unet()
    pruned = prune_magnitude(ours, amount, scope="layer")
    for name, mask in pruned.masks.items():
        module = theirs.get_submodule(name.rpartition(".")[0])
        prune.l1_unstructured(module, "weight", amount)
        assert torch.equal(mask, module.weight_mask.bool()), name


def test_random_scope_removes_as_many_as_torch_and_depends_on_the_seed_only() -> None:
    ours, theirs = linears((30, 21)), linears((30, 21))
    prune.random_unstructured(theirs[0], "weight", 0.37)
    with prune_magnitude(ours, 0.37, scope="random", seed=5) as pruned:
        first = pruned.masks["0.weight"]
    assert (~first).sum() == (theirs[0].weight_mask == 0).sum()
    with prune_magnitude(ours, 0.37, scope="random", seed=5) as pruned:
        assert torch.equal(pruned.masks["0.weight"], first)
    with prune_magnitude(ours, 0.37, scope="random", seed=6) as pruned:
        assert not torch.equal(pruned.masks["0.weight"], first)
    # A control must not look at sizes: removed and kept weights are equally large, within chance.
    sizes = ours[0].weight.detach().abs()
    assert abs(sizes[first].mean() - sizes[~first].mean()) < 0.3 * sizes.mean()


def test_all_equal_weights_are_cut_in_order_across_layers() -> None:
    model = linears((3, 2), (2, 4))
    for parameter in model.parameters():
        nn.init.constant_(parameter, -0.5)
    with prune_magnitude(model, 9 / 14) as pruned:
        assert not pruned.masks["0.weight"].any()
        assert pruned.masks["1.weight"].flatten().tolist() == [False] * 3 + [True] * 5


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=str)
def test_neighbouring_floats_are_told_apart(dtype) -> None:
    one = torch.tensor(1.0, dtype=dtype)
    above, below = torch.nextafter(one, one * 2), torch.nextafter(one, one * 0)
    tiny = torch.finfo(dtype).smallest_normal / 4  # subnormal
    weight = torch.stack([above, one, -below, one * -tiny, one * tiny / 2, one * 0])
    assert len(weight.abs().unique()) == 6
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
        masks = smallest_removed({str(i): lambda k=k: k for i, k in enumerate(keys)}, count, 32)
        removed = ~torch.cat(list(masks.values()))
        wanted = torch.zeros(3000, dtype=torch.bool)
        wanted[joined.argsort(stable=True)[:count]] = True
        assert torch.equal(removed, wanted), count


def test_non_contiguous_and_channels_last_weights_keep_their_positions() -> None:
    plain = nn.Conv2d(8, 6, 3)
    last = nn.Conv2d(8, 6, 3).to(memory_format=torch.channels_last)
    last.load_state_dict(plain.state_dict())
    assert not last.weight.is_contiguous()
    with prune_magnitude(plain, 0.6) as a, prune_magnitude(last, 0.6) as b:
        assert torch.equal(a.masks["weight"], b.masks["weight"])
        assert torch.equal(plain.weight, last.weight)
    assert torch.equal(plain.weight, last.weight)


@pytest.mark.parametrize("sparsity", [1, 1.0, -0.1, 50, math.nan, math.inf])
def test_sparsity_out_of_range_is_refused(sparsity) -> None:
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\)"):
        prune_magnitude(linears((3, 2)), sparsity)


@pytest.mark.parametrize("sparsity", ["0.5", True, None, [0.5]])
def test_sparsity_of_another_type_is_refused(sparsity) -> None:
    with pytest.raises(TypeError, match="give a number"):
        prune_magnitude(linears((3, 2)), sparsity)


def test_per_cents_are_recognised() -> None:
    with pytest.raises(ValueError, match="50 per cent is 0.5"):
        prune_magnitude(linears((3, 2)), 50)


def test_unknown_scope_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="Did you mean 'global'"):
        prune_magnitude(linears((3, 2)), 0.5, scope="globl")


def test_sensitivity_without_its_scope_is_refused() -> None:
    from pruning_lib.weights.sensitivity import estimate_sensitivity

    model = linears((3, 2))
    found = estimate_sensitivity(prunable_weights(model).weights)
    with pytest.raises(ValueError, match="does not use it"):
        prune_magnitude(model, 0.5, sensitivity=found)


def test_refusals_change_nothing() -> None:
    model = linears((4, 3), (3, 2))
    with torch.no_grad():
        model[1].weight[0, 0] = math.nan
    before = bits(model)
    with pytest.raises(ValueError, match=r"1\.weight holds NaN"):
        prune_magnitude(model, 0.5)
    assert bits(model) == before


def test_infinite_and_meta_and_quantised_weights_are_refused() -> None:
    model = linears((4, 3))
    with torch.no_grad():
        model[0].weight[0, 0] = math.inf
    with pytest.raises(ValueError, match="NaN or infinite"):
        prune_magnitude(model, 0.5)
    with pytest.raises(ValueError, match="meta device"):
        prune_magnitude(linears((4, 3)).to("meta"), 0.5)
    whole = nn.Linear(2, 2)
    whole.weight = nn.Parameter(torch.ones(2, 2, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match="int8"):
        prune_magnitude(whole, 0.5)


def test_peak_memory_stays_near_one_tensor() -> None:
    """Beside masks and removed values, the work needs a few copies of one tensor, not of all of them."""
    import tracemalloc  # does not see tensors; torch's own profiler does

    from torch.profiler import ProfilerActivity, profile

    tracemalloc.stop()
    weights = {str(i): torch.randn(250_000) for i in range(20)}  # 1 MB each
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        masks = magnitude_masks(weights, 0.5)
    moments = [e for e in found.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(moments, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    assert sum(mask.numel() for mask in masks.values()) == 5_000_000
    assert 5_000_000 <= peak < 5_000_000 + 16 * 1_000_000, peak
