"""Rankings to compare with, their agreement, and operators changed together or one after another."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch
from tiny_pipes import PROMPTS, pipe_of

from pruning_book.rivals import rankings
from pruning_book.rivals.rankings import contributions, greedy_plan, pairs_of, rank_agreement, score_together, spearman
from pruning_lib.operators.find import Operators, find_operators
from pruning_lib.operators.plan import plan_for
from pruning_lib.operators.score import score_operators, score_plans
from pruning_lib.operators.scores import Scores

SAMPLING = {"num_latents": 2, "steps": 2, "guidance_scale": 2.0}
PATHS = [
    "down_blocks.0.resnets.0",
    "down_blocks.0.resnets.0.conv2",
    "down_blocks.0.resnets.1",
    "mid_block.resnets.0",
    "mid_block.attentions.0",
    "up_blocks.1.resnets.0",
]


@pytest.fixture(scope="module")
def pipe():
    return pipe_of("text")


@pytest.fixture(scope="module")
def operators(pipe) -> Operators:
    return find_operators(pipe.unet)


@pytest.fixture(scope="module")
def scores(pipe) -> Scores:
    return score_operators(pipe, PROMPTS["text"], operators=PATHS, progress=False, **SAMPLING)


def brute_force(pipe, scores: Scores, sets: list[list[str]]) -> list[float]:
    plans = [plan_for(paths, scores.operators) for paths in sets]
    return [s.score for s in score_plans(pipe, plans=plans, progress=False, **scores.sampling)]


def test_rank_correlation_is_scipys_and_agreement_has_an_interval() -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 6, 40).astype(float)  # many ties
    y = x + rng.normal(0, 2, 40)
    assert spearman(x, y) == pytest.approx(scipy.stats.spearmanr(x, y).statistic, abs=1e-12)
    a = {f"op{i}": float(i) for i in range(60)}
    close = {p: v + rng.normal(0, 6) for p, v in a.items()}
    near = rank_agreement(a, close)
    assert near.value == spearman(list(a.values()), list(close.values())) and near.n == 60
    assert 0.7 < near.low < near.value < near.high < 1
    assert rank_agreement({**a, "op3": float("inf")}, close).value < near.value
    assert [rankings.overlap(a, b, 10) for b in (a, {p: -v for p, v in a.items()}, {**a, "op0": 100.0})] == [1, 0, 0.9]
    for compare, one, two, says in (
        (spearman, [1.0, np.nan], [1.0, 2], "Expected two rows"),
        (spearman, [1.0, 1], [1.0, 2], "no order"),
        (rank_agreement, {"a": 1.0, "b": 2.0}, {"a": 1.0, "c": 2.0}, "2 are in one only, such as 'b'"),
        (rank_agreement, {"a": 1.0, "b": 2.0}, {"a": 1.0, "b": 2.0}, "at least 3 operators"),
    ):
        with pytest.raises(ValueError, match=says):
            compare(one, two)


def test_chance_is_a_reproducible_order_of_all_and_size_an_order_by_parameters(operators) -> None:
    first = rankings.random_ranking(operators, 0)
    assert sorted(first) == sorted(operators.paths) and first == rankings.random_ranking(operators, 0)
    fronts = {rankings.random_ranking(operators, seed)[0] for seed in range(40)}
    assert len(fronts) > 25, "the first to go must be drawn from all"
    ranking = [operators[path] for path in rankings.params_ranking(operators)]
    assert ranking == sorted(ranking, key=lambda op: (op.params, op.order)) and len(ranking) == len(operators)


def test_a_branch_contributes_its_mean_size_and_no_hook_stays(operators) -> None:
    """By hand: what comes out of a self-attention is what it adds; a residual block adds output minus input."""
    pipe, attention, resnet = pipe_of("text"), f"{PATHS[4]}.transformer_blocks.0.attn1", PATHS[2]
    with torch.no_grad():  # with one weight per window, at its centre, a convolution is its own 1x1 form
        pipe.unet.conv_in.weight.mul_(torch.tensor([[0.0, 0, 0], [0, 1, 0], [0, 0, 0]]))
    added = contributions(pipe, PROMPTS["text"], operators=operators, **SAMPLING)
    assert not any(module._forward_hooks for module in pipe.unet.modules())
    seen = {attention: [], resnet: []}
    pipe.unet.get_submodule(attention).register_forward_hook(lambda m, a, out: seen[attention].append(out))
    pipe.unet.get_submodule(resnet).register_forward_hook(lambda m, a, out: seen[resnet].append(out - a[0]))
    noise = [torch.Generator().manual_seed(i) for i in range(2)]
    pipe(PROMPTS["text"][:2], num_inference_steps=2, guidance_scale=2.0, generator=noise, output_type="latent")
    for path, outputs in seen.items():
        assert added[path] == pytest.approx(torch.stack(outputs).abs().mean().item(), rel=1e-4)
    assert list(added) == operators.paths and added["conv_in"] < 1e-5 < 0.01 < added[resnet]
    pipe.unet.mid_block.register_forward_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("stop")))
    with pytest.raises(RuntimeError, match="stop"):
        contributions(pipe, ["lion"], operators=operators.of("upsampler"), **SAMPLING)
    assert not any(module._forward_hooks for module in pipe.unet.up_blocks.modules())


def test_together_is_scored_and_predicted(pipe, scores: Scores) -> None:
    assert pairs_of(["a", "a.b", "a.bc"]) == [("a.b", "a.bc")], "a longer name is not inside"
    single, sets = scores.values(), [[PATHS[2], PATHS[4]], [PATHS[3]], PATHS[2:5]]
    found = score_together(pipe, scores, sets, progress=False)
    assert [t.joint for t in found] == pytest.approx(brute_force(pipe, scores, sets))
    assert found[1].joint == found[1].sum == pytest.approx(found[1].linear, rel=1e-5) == pytest.approx(single[PATHS[3]])
    assert [t.paths for t in found] == [*map(tuple, sets)]
    assert [t.sum for t in found] == pytest.approx([sum(single[p] for p in paths) for paths in sets])
    shifts = [[getattr(scores[p], n) - getattr(scores.original, n) for p in PATHS[2:5]] for n in ("avg", "std")]
    assert found[2].linear == pytest.approx(sum(torch.stack(s).sum(0).norm().item() for s in shifts), rel=1e-5)
    assert found[2].linear < 0.999 * found[2].sum


def test_greedy_takes_what_is_best_with_those_gone_from_a_start_and_by_what_is_saved(pipe, scores, tmp_path) -> None:
    single, macs = scores.values(), {op.path: op.macs for op in scores.operators}
    for per_macs in (False, True):
        cost = macs if per_macs else dict.fromkeys(PATHS, 1)
        found = greedy_plan(pipe, scores, 2, per_macs=per_macs, folder=tmp_path, progress=False)
        first = min(PATHS, key=lambda p, cost=cost: single[p] / cost[p])
        left = [p for p in PATHS if p != first and pairs_of([p, first])]
        values = dict(zip(left, brute_force(pipe, scores, [[first, p] for p in left]), strict=True))
        price = {p: (value - single[first]) / cost[p] for p, value in values.items()}
        assert found.plan.paths == [first, min(price, key=price.get)]
        assert [r.candidates for r in found.rounds] == [0, len(left)] and found.generations == len(left)
        assert found.rounds[-1].score == pytest.approx(values[found.plan.paths[1]])
    begun = greedy_plan(pipe, scores, 3, start=[PATHS[0]], pool=3, progress=False)
    assert begun.plan.paths[0] == PATHS[0] and PATHS[1] not in begun.plan.paths and len(begun.plan) == 3
    assert [r.candidates for r in begun.rounds] == [3, 2]
    for attempt, says in (
        (lambda: greedy_plan(pipe, scores, 0), "count=0"),
        (lambda: greedy_plan(pipe, scores, 4, pool=1), "only 1 operators fit beside"),
        (lambda: score_together(pipe, scores, [PATHS[:2]]), "lies inside another"),
        (lambda: score_together(pipe, scores, [["conv_in"]]), "No operator"),
    ):
        with pytest.raises((KeyError, ValueError), match=says):
            attempt()
