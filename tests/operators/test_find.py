"""Every operator is found, with the figures of its module, in each family; a budget takes as few as it needs."""

from __future__ import annotations

import pytest
from tiny_denoisers import DENOISERS, make
from torch import nn

import pruning_lib as pl
from pruning_lib import latency
from pruning_lib.operators import budget
from pruning_lib.operators.budget import choose, reductions
from pruning_lib.operators.find import DEFAULT_KINDS, KINDS, find_operators
from pruning_lib.operators.remove import pruned_copy


@pytest.mark.parametrize("name", DENOISERS)
def test_figures_are_those_of_the_modules(name):
    model = make(name)
    costs, operators = pl.count_macs(model), find_operators(model, tuple(KINDS))
    assert len(operators) > 20
    for op in operators:
        module = model.get_submodule(op.path)
        assert op.module == type(module).__name__ and op.modifications
        assert (op.params, op.macs) == (sum(p.numel() for p in module.parameters()), costs.modules[op.path].macs)
    assert [op.order for op in operators] == list(range(len(operators)))
    assert len(set(operators.paths)) == len(operators)


def test_the_kinds_of_a_small_unet_are_counted_by_hand_and_a_selection_is_read():
    # Down: 2 + 2 resnets; mid: 2; up: 3 + 3.  Transformers: 2 down, 1 mid, 3 up.
    model = make()
    every, operators = find_operators(model, tuple(KINDS)), find_operators(model)
    kinds = [op.kind for op in every]
    wanted = dict.fromkeys(("transformer", "self-attention", "cross-attention", "feed-forward"), 6)
    wanted |= {"resnet": 12, "downsampler": 1, "upsampler": 1}
    wanted["convolution"] = 2 * 12 + 2  # two in each resnet, conv_in, conv_out; none inside the samplers
    wanted["norm"] = 2 * 12 + 6 + 3 * 6 + 1
    assert {kind: kinds.count(kind) for kind in wanted} == wanted
    assert operators.paths == [op.path for op in every if op.kind in DEFAULT_KINDS]
    assert operators[0] is operators[operators.paths[0]] and list(operators[2:4]) == [operators[2], operators[3]]
    assert operators[0] in operators and operators[0].path in operators
    assert operators.of("resnet", "norm").paths == [op.path for op in operators if op.kind == "resnet"]


def test_shapes_follow_the_stream_and_the_size_asked_for_also_without_weights():
    model, path = make("unet"), "down_blocks.1.resnets.0"
    op = find_operators(model, ["resnet"])[path]
    assert (op.in_shape, op.out_shape) == ((1, 8, 4, 4), (1, 16, 4, 4))
    assert not any(module._forward_hooks for module in model.modules())
    assert find_operators(model.to("meta"), "resnet", sample_size=16)[path].in_shape == (1, 8, 8, 8)


def test_transformers_have_blocks_of_their_own_kinds():
    block = "transformer_blocks.0"
    operators = find_operators(make("dit"))
    assert operators[f"{block}.attn1"].kind == "self-attention" and operators[f"{block}.ff"].kind == "feed-forward"
    assert find_operators(make("pixart"))[f"{block}.attn2"].kind == "cross-attention"
    # A transformer adds what attention gives to the stream; in a UNet without text, attention does so itself.
    assert operators[f"{block}.attn1"].modifications == ("zero",)
    assert {op.modifications for op in find_operators(make("unet"), ["self-attention"])} == {("identity",)}
    # The first block of DiT lends its embedding to the output layer.
    assert block not in operators and "transformer_blocks.1" in operators
    with pytest.raises(KeyError, match=r"cannot be removed: .*norm1\.emb.* called from outside"):
        operators[block]
    # A norm goes with a branch where nobody else reads it: PixArt's second is that of the feed-forward.
    assert find_operators(make())[f"mid_block.attentions.0.{block}.attn2"].norms == (
        f"mid_block.attentions.0.{block}.norm2",
    )
    assert find_operators(make("pixart"))[f"{block}.attn2"].norms == ()


def test_bad_input():
    with pytest.raises(ValueError, match="kind of operator 'conv'.*convolution"):
        find_operators(make("unet"), ["conv"])
    with pytest.raises(TypeError, match=r"not of a known family.*pass the pipeline to.*find_operators"):
        find_operators(nn.Linear(2, 2))
    with pytest.raises(KeyError, match="mid_block.resnets.0"):
        find_operators(make("unet"))["mid_block.resnet.0"]


MODEL = make("unet")
OPERATORS = find_operators(MODEL)
RANKING = [op.path for op in OPERATORS if op.kind in ("resnet", "self-attention")]


def test_ratios_are_met_and_one_operator_less_would_not_do():
    whole = pl.count_macs(MODEL)
    for index, budgeted in enumerate(({"macs_ratio": 0.1}, {"params_ratio": 0.5})):
        plan = choose(RANKING, OPERATORS, MODEL, **budgeted)
        shorter = choose(RANKING, OPERATORS, MODEL, count=len(plan) - 1)
        (ratio,) = budgeted.values()
        assert reductions(MODEL, plan)[index] >= ratio > reductions(MODEL, shorter)[index]
    small = pl.count_macs(pruned_copy(MODEL, plan))
    assert reductions(MODEL, plan) == (1 - small.macs / whole.macs, 1 - small.params / whole.params)


def test_nested_operators_count_once():
    resnet, attention = "mid_block.resnets.0", "mid_block.attentions.0"
    ranking = [f"{resnet}.conv1", resnet, f"{resnet}.conv2", attention]
    for count, paths in enumerate(([], [f"{resnet}.conv1"], [resnet, attention])):
        assert choose(ranking, OPERATORS, MODEL, count=count).paths == paths


def test_the_latency_budget_is_measured(monkeypatch):
    """By a clock that knows how many parameters are gone, of models that do run."""
    copies = []

    def timed(calls, **options):
        assert all(call() is not None for call in calls.values())
        params = {"whole": MODEL.num_parameters(), "pruned": copies[-1].num_parameters()}
        return {name: latency.Latency((1e-3 * params[name],) * 5, 0) for name in calls}

    monkeypatch.setattr(budget, "pruned_copy", lambda *given: copies.append(pruned_copy(*given)) or copies[-1])
    monkeypatch.setattr(budget, "measure_latency", timed)
    plan = choose(RANKING, OPERATORS, MODEL, latency_ratio=0.15)
    assert plan == choose(RANKING, OPERATORS, MODEL, params_ratio=0.15)


def test_bad_budgets():
    for options, message in (
        ({}, "exactly one of count.*given: none"),
        ({"count": 1, "macs_ratio": 0.5}, "given: count, macs_ratio"),
        ({"count": -1}, "whole number >= 0"),
        ({"count": 500}, "at most"),
        ({"macs_ratio": 1.0}, r"macs_ratio=1\.0.*\(0, 1\)"),
        ({"params_ratio": 0.999}, "removes 0"),
    ):
        with pytest.raises(ValueError, match=message):
            choose(RANKING, OPERATORS, MODEL, **options)
    with pytest.raises(KeyError, match="no operator here"):
        choose(["mid_block.resnets.7"], OPERATORS, MODEL, count=1)
