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

MODEL = make("unet")
OPERATORS = find_operators(MODEL)
RANKING = [op.path for op in OPERATORS if op.kind in ("resnet", "self-attention")]


def test_reductions_are_those_of_the_pruned_model():
    plan = choose(OPERATORS.paths, OPERATORS, MODEL, count=4)
    small, whole = pl.count_macs(pruned_copy(MODEL, plan)), pl.count_macs(MODEL)
    assert reductions(MODEL, plan) == (1 - small.macs / whole.macs, 1 - small.params / whole.params)


@pytest.mark.parametrize(("name", "index", "ratio"), [("macs_ratio", 0, 0.1), ("params_ratio", 1, 0.5)])
def test_a_ratio_is_met_and_one_operator_less_would_not_do(name, index, ratio):
    plan = choose(RANKING, OPERATORS, MODEL, **{name: ratio})
    shorter = choose(RANKING, OPERATORS, MODEL, count=len(plan) - 1)
    assert reductions(MODEL, plan)[index] >= ratio > reductions(MODEL, shorter)[index]


def test_nested_operators_count_once():
    resnet, attention = "mid_block.resnets.0", "mid_block.attentions.0"
    ranking = [f"{resnet}.conv1", resnet, f"{resnet}.conv2", attention]
    assert choose(ranking, OPERATORS, MODEL, count=1).paths == [f"{resnet}.conv1"]
    assert choose(ranking, OPERATORS, MODEL, count=2).paths == [resnet, attention]
    assert len(choose(ranking, OPERATORS, MODEL, count=0)) == 0


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "exactly one of count.*given: none"),
        ({"count": 1, "macs_ratio": 0.5}, "given: count, macs_ratio"),
        ({"count": -1}, "whole number >= 0"),
        ({"count": 500}, "at most"),
        ({"macs_ratio": 1.0}, "between 0 and 1"),
        ({"params_ratio": 0.999}, "removes 0"),
        ({"ranking": ["mid_block.resnets.7"], "count": 1}, "no operator here"),
    ],
)
def test_bad_budgets(options, message):
    with pytest.raises((ValueError, KeyError), match=message):
        choose(**{"ranking": RANKING, "operators": OPERATORS, "denoiser": MODEL, **options})
