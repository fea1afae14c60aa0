"""A budget is met by the shortest plan along the ranking, and bad ones are refused."""

from __future__ import annotations

import pytest
from tiny_denoisers import make

import pruning_lib as pl
from pruning_lib import latency
from pruning_lib.operators import budget
from pruning_lib.operators.budget import choose, reductions
from pruning_lib.operators.find import find_operators
from pruning_lib.operators.remove import pruned_copy


@pytest.fixture(scope="module")
def model():
    return make()


@pytest.fixture(scope="module")
def operators(model):
    return find_operators(model)


def test_reductions_are_those_of_the_pruned_model(model, operators):
    plan = choose(operators.paths, operators, model, count=4)
    small = pruned_copy(model, plan)
    macs, params = pl.count_macs(small).macs, sum(p.numel() for p in small.parameters())
    whole = pl.count_macs(model)
    assert reductions(model, plan) == (1 - macs / whole.macs, 1 - params / whole.params)


@pytest.mark.parametrize("name,index", [("macs_ratio", 0), ("params_ratio", 1)])
@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.6])
def test_a_ratio_is_met_and_one_operator_less_would_not_do(model, operators, name, index, ratio):
    ranking = [op.path for op in operators if op.kind in ("resnet", "transformer")]
    plan = choose(ranking, operators, model, **{name: ratio})
    assert reductions(model, plan)[index] >= ratio
    shorter = choose(ranking, operators, model, count=len(plan) - 1)
    assert reductions(model, shorter)[index] < ratio


def test_nested_operators_count_once(model, operators):
    ranking = [
        "mid_block.resnets.0.conv1",
        "mid_block.resnets.0",
        "mid_block.resnets.0.conv2",
        "mid_block.attentions.0",
    ]
    assert choose(ranking, operators, model, count=1).paths == ["mid_block.resnets.0.conv1"]
    assert choose(ranking, operators, model, count=2).paths == ["mid_block.resnets.0", "mid_block.attentions.0"]
    assert len(choose(ranking, operators, model, count=0)) == 0


def test_the_latency_budget_is_measured(model, operators, monkeypatch):
    ranking = [
        "mid_block.resnets.0",
        "mid_block.attentions.0",
        "down_blocks.0.attentions.0",
        "up_blocks.1.attentions.0",
    ]
    seen = []

    def timed(calls, **options):
        for call in calls.values():
            call()
        # A clock that charges ten for the whole model and one less for each operator that is gone.
        seen.append(len(seen))
        gone = 2 if len(seen) > 1 else 4
        return {n: latency.Latency((10.0 - gone * (n == "pruned"),) * 5, 0) for n in calls}

    monkeypatch.setattr(budget, "measure_latency", timed)
    assert len(choose(ranking, operators, model, latency_ratio=0.15)) >= 1 and len(seen) > 1
    monkeypatch.undo()
    plan = choose([op.path for op in operators.of("resnet", "transformer")], operators, model, latency_ratio=0.3)
    assert 0 < len(plan) <= 18


@pytest.mark.parametrize(
    "options,message",
    [
        ({}, "exactly one of count.*given: none"),
        ({"count": 1, "macs_ratio": 0.5}, "given: count, macs_ratio"),
        ({"count": -1}, "whole number >= 0"),
        ({"count": 500}, "at most"),
        ({"macs_ratio": 1.0}, "between 0 and 1"),
        ({"params_ratio": 0.999}, "removes 0"),
    ],
)
def test_bad_budgets(model, operators, options, message):
    with pytest.raises(ValueError, match=message):
        choose(operators.paths, operators, model, **options)


def test_a_ranking_with_a_stranger_is_refused(model, operators):
    with pytest.raises(KeyError, match="no operator here"):
        choose(["mid_block.resnets.7"], operators, model, count=1)
