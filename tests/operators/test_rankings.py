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
from pruning_lib.operators.score import score_operators, score_plans
from pruning_lib.operators.scores import Scores

SAMPLING = {"num_latents": 3, "steps": 2, "guidance_scale": 2.0}
FEW = {"num_latents": 2, "steps": 1}
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


@pytest.fixture(scope="module")
def added(pipe, operators) -> dict[str, float]:
    return contributions(pipe, PROMPTS["text"], operators=operators, **SAMPLING)


def brute_force(pipe, scores: Scores, sets: list[list[str]]) -> list[float]:
    return [s.score for s in score_plans(pipe, plans=sets, progress=False, **scores.sampling)]


def test_rank_correlation_is_scipys() -> None:
    rng = np.random.default_rng(0)
    a = rng.integers(0, 6, 40).astype(float)  # many ties
    b = a + rng.normal(0, 2, 40)
    assert spearman(a, b) == pytest.approx(scipy.stats.spearmanr(a, b).statistic, abs=1e-12)
    assert spearman([1.0, 2.0, np.inf], [1, 2, 3]) == pytest.approx(1)


def test_agreement_has_an_interval_and_overlap_counts() -> None:
    rng = np.random.default_rng(0)
    a = {f"op{i}": float(i) for i in range(60)}
    close = {p: v + rng.normal(0, 6) for p, v in a.items()}
    near = rank_agreement(a, close)
    assert near.value == spearman(list(a.values()), list(close.values())) and near.n == 60
    assert 0.7 < near.low < near.value < near.high < 1
    assert rank_agreement({**a, "op3": float("inf")}, close).value < near.value
    assert [rankings.overlap(a, b, 10) for b in (a, {p: -v for p, v in a.items()}, {**a, "op0": 100.0})] == [1, 0, 0.9]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: spearman([1.0], [1.0]), "Expected two rows"),
        (lambda: spearman([1.0, 2], [1.0, 2, 3]), "Expected two rows"),
        (lambda: spearman([1.0, np.nan], [1.0, 2]), "Expected two rows"),
        (lambda: spearman([1.0, 1], [1.0, 2]), "no order"),
        (lambda: rank_agreement({"a": 1.0, "b": 2.0}, {"a": 1.0, "c": 2.0}), "2 are in one only, such as 'b'"),
        (lambda: rank_agreement({"a": 1.0, "b": 2.0}, {"a": 1.0, "b": 2.0}), "at least 3 operators"),
        (lambda: rankings.overlap({"a": 1.0}, {"a": 1.0}, 0), "count=0"),
    ],
)
def test_what_cannot_be_compared_is_refused(call, says) -> None:
    with pytest.raises(ValueError, match=says):
        call()


def test_chance_is_a_reproducible_order_of_all_and_size_an_order_by_parameters(operators) -> None:
    first = rankings.random_ranking(operators, 0)
    assert sorted(first) == sorted(operators.paths) and first == rankings.random_ranking(operators, 0)
    fronts = {rankings.random_ranking(operators, seed)[0] for seed in range(40)}
    assert len(fronts) > 25, "the first to go must be drawn from all"
    ranking = [operators[path] for path in rankings.params_ranking(operators)]
    assert ranking == sorted(ranking, key=lambda op: (op.params, op.order)) and len(ranking) == len(operators)


def test_a_branch_contributes_its_mean_size(pipe, operators, added) -> None:
    """By hand: what comes out of a self-attention is what it adds; a residual block adds output minus input."""
    attention, resnet = "up_blocks.1.attentions.1.transformer_blocks.0.attn1", "down_blocks.0.resnets.1"
    seen = {attention: [], resnet: []}
    hooks = [
        pipe.unet.get_submodule(attention).register_forward_hook(lambda m, a, out: seen[attention].append(out)),
        pipe.unet.get_submodule(resnet).register_forward_hook(lambda m, a, out: seen[resnet].append(out - a[0])),
    ]
    noise = [torch.Generator().manual_seed(i) for i in range(3)]
    pipe(PROMPTS["text"], num_inference_steps=2, guidance_scale=2.0, generator=noise, output_type="latent")
    for hook in hooks:
        hook.remove()
    assert operators[resnet].modifications[0] == "identity"
    for path, outputs in seen.items():
        assert added[path] == pytest.approx(torch.stack(outputs).abs().mean().item(), rel=1e-4)
    assert list(added) == operators.paths and min(added.values()) < 0.1 * max(added.values())


def test_what_cannot_be_removed_is_compared_with_its_cheaper_form(operators, added) -> None:
    """A convolution with one weight per window at its centre is its own 1x1 form and contributes nothing."""
    pipe = pipe_of("text")
    assert operators["conv_in"].modifications[0] == "pointwise" and added["conv_in"] > 0.01
    with torch.no_grad():
        pipe.unet.conv_in.weight.mul_(torch.tensor([[0.0, 0, 0], [0, 1, 0], [0, 0, 0]]))
    flat = contributions(pipe, ["lion"], operators=operators[:3], **FEW)
    assert flat["conv_in"] < 1e-5 < 0.01 < flat[operators[1].path]


def test_no_hook_stays_behind_also_when_a_run_fails(pipe, operators) -> None:
    some = operators.of("resnet", "upsampler")
    fail = pipe.unet.mid_block.register_forward_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("stop")))
    with pytest.raises(RuntimeError, match="stop"):
        contributions(pipe, ["lion"], operators=some, **FEW)
    fail.remove()
    assert not any(module._forward_hooks for module in pipe.unet.modules())


def test_together_is_scored_and_predicted(pipe, scores: Scores) -> None:
    assert pairs_of(["a", "a.b", "a.bc"]) == [("a.b", "a.bc")], "a longer name is not inside"
    single, sets = scores.values(), [[PATHS[2], PATHS[4]], [PATHS[3]], PATHS[2:5]]
    found = score_together(pipe, scores, sets, progress=False)
    assert [t.joint for t in found] == pytest.approx(brute_force(pipe, scores, sets))
    assert found[1].joint == found[1].sum == pytest.approx(found[1].linear) == pytest.approx(single[PATHS[3]])
    for together, paths in zip(found, sets, strict=True):
        assert together.paths == tuple(paths)
        assert together.sum == pytest.approx(sum(single[p] for p in paths))
        assert together.linear <= together.sum * (1 + 1e-6)
    shifts = [[getattr(scores[p], n) - getattr(scores.original, n) for p in PATHS[2:5]] for n in ("avg", "std")]
    assert found[2].linear == pytest.approx(sum(torch.stack(s).sum(0).norm().item() for s in shifts), rel=1e-5)
    assert found[2].linear < 0.999 * found[2].sum


def test_greedy_takes_what_is_best_with_those_gone(pipe, scores: Scores, tmp_path) -> None:
    found = greedy_plan(pipe, scores, 3, folder=tmp_path, progress=False)
    order = [scores.ranked()[0]]
    for _ in range(2):
        left = [p for p in PATHS if all(pairs_of([p, q]) for q in order) and p not in order]
        values = brute_force(pipe, scores, [[*order, p] for p in left])
        order.append(left[values.index(min(values))])
    assert found.plan.paths == order
    assert found.rounds[0].candidates == 0 and found.generations == sum(r.candidates for r in found.rounds)
    assert found.rounds[-1].score == pytest.approx(brute_force(pipe, scores, [order])[0])
    assert greedy_plan(pipe, scores, 3, folder=tmp_path, progress=False) == found


def test_greedy_from_a_start_and_by_what_is_saved(pipe, scores: Scores) -> None:
    begun = greedy_plan(pipe, scores, 3, start=[PATHS[0]], pool=3, progress=False)
    assert begun.plan.paths[0] == PATHS[0] and PATHS[1] not in begun.plan.paths and len(begun.plan) == 3
    assert [r.candidates for r in begun.rounds] == [3, 2]
    saving = greedy_plan(pipe, scores, 2, per_macs=True, progress=False)
    single, macs = scores.values(), {op.path: op.macs for op in scores.operators}
    first = min(PATHS, key=lambda p: single[p] / macs[p])
    left = [p for p in PATHS if p != first and pairs_of([p, first])]
    values = brute_force(pipe, scores, [[first, p] for p in left])
    second = min(left, key=lambda p: (values[left.index(p)] - single[first]) / macs[p])
    assert saving.plan.paths == [first, second]


@pytest.mark.parametrize(
    ("attempt", "kind", "says"),
    [
        (lambda *given: greedy_plan(*given, 0), ValueError, "count=0"),
        (lambda *given: greedy_plan(*given, 2, pool=-1), ValueError, "pool=-1"),
        (lambda *given: greedy_plan(*given, 6, progress=False), ValueError, "only 5 operators fit beside"),
        (lambda *given: score_together(*given, [PATHS[:2]]), ValueError, "lies inside another"),
        (lambda *given: score_together(*given, [["conv_in"]]), KeyError, "No operator"),
    ],
)
def test_wrong_numbers_and_sets_are_refused(pipe, scores: Scores, attempt, kind, says) -> None:
    with pytest.raises(kind, match=says):
        attempt(pipe, scores)


def test_scores_without_parts_predict_nothing(pipe, scores: Scores, tmp_path) -> None:
    small = Scores.load(scores.save(tmp_path / "s.safetensors", parts=False))
    with pytest.raises(ValueError, match="parts=True"):
        score_together(pipe, small, [PATHS[2:4]])
