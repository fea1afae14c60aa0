"""Operators changed together: whether scores add up, and choosing one after another."""

from __future__ import annotations

import pytest
import torch
from tiny_pipes import PROMPTS, pipe_of

from pruning_book.rivals.rankings import greedy_plan, pairs_of, score_together
from pruning_lib.operators.score import score_operators, score_plans
from pruning_lib.operators.scores import Scores

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
def scores(pipe) -> Scores:
    return score_operators(
        pipe, PROMPTS["text"], operators=PATHS, num_latents=3, steps=2, guidance_scale=2.0, progress=False
    )


def brute_force(pipe, scores: Scores, sets: list[list[str]]) -> list[float]:
    options = {k: v for k, v in scores.sampling.items() if k != "prompts"}
    found = score_plans(pipe, scores.sampling["prompts"], sets, progress=False, **options)
    return [s.avg_dist + s.std_dist for s in found]


def test_pairs_leave_out_what_lies_inside(scores: Scores) -> None:
    pairs = pairs_of(PATHS)
    assert len(pairs) == 6 * 5 // 2 - 1 and (PATHS[0], PATHS[1]) not in pairs
    assert pairs_of(["a.b", "a.bc"]) == [("a.b", "a.bc")], "a longer name is not inside"


def test_together_is_scored_and_predicted(pipe, scores: Scores) -> None:
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


def test_wrong_sets_are_refused(pipe, scores: Scores, tmp_path) -> None:
    with pytest.raises(ValueError, match="lies inside another"):
        score_together(pipe, scores, [PATHS[:2]])
    with pytest.raises(KeyError, match="No operator"):
        score_together(pipe, scores, [["conv_in"]])
    small = Scores.load(scores.save(tmp_path / "s.safetensors", parts=False))
    with pytest.raises(ValueError, match="parts=True"):
        score_together(pipe, small, [PATHS[2:4]])


def test_greedy_takes_what_is_best_with_those_gone(pipe, scores: Scores, tmp_path) -> None:
    found = greedy_plan(pipe, scores, 3, folder=tmp_path, progress=False)
    order = [scores.ranked()[0]]
    for _ in range(2):
        left = [p for p in PATHS if all(pairs_of([p, q]) for q in order) and p not in order]
        values = brute_force(pipe, scores, [[*order, p] for p in left])
        order.append(left[values.index(min(values))])
    assert list(found.order) == order and set(found.plan.paths) == set(order)
    assert [r.candidates for r in found.rounds][0] == 0 and found.generations == sum(r.candidates for r in found.rounds)
    assert found.rounds[-1].score == pytest.approx(brute_force(pipe, scores, [order])[0])
    assert greedy_plan(pipe, scores, 3, folder=tmp_path, progress=False) == found


def test_greedy_in_larger_steps_and_from_a_start(pipe, scores: Scores) -> None:
    two = greedy_plan(pipe, scores, 4, per_round=2, progress=False)
    assert [len(r.taken) for r in two.rounds] == [2, 2] and len(two.plan) == 4
    begun = greedy_plan(pipe, scores, 3, start=[PATHS[0]], pool=3, progress=False)
    assert begun.order[0] == PATHS[0] and PATHS[1] not in begun.order and len(begun.plan) == 3
    assert [r.candidates for r in begun.rounds] == [3, 2]


def test_greedy_by_what_is_saved(pipe, scores: Scores) -> None:
    found = greedy_plan(pipe, scores, 2, per_macs=True, progress=False)
    single, macs = scores.values(), {op.path: op.macs for op in scores.operators}
    first = min(PATHS, key=lambda p: single[p] / macs[p])
    left = [p for p in PATHS if p != first and pairs_of([p, first])]
    values = brute_force(pipe, scores, [[first, p] for p in left])
    second = min(left, key=lambda p: (values[left.index(p)] - single[first]) / macs[p])
    assert list(found.order) == [first, second]


def test_wrong_numbers_are_refused(pipe, scores: Scores) -> None:
    for change, says in (({"count": 0}, "count=0"), ({"per_round": 0}, "per_round=0"), ({"pool": -1}, "pool=-1")):
        with pytest.raises(ValueError, match=says):
            greedy_plan(pipe, scores, **{"count": 2, **change})
    with pytest.raises(ValueError, match="only 5 operators fit beside one another"):
        greedy_plan(pipe, scores, 6, per_round=5, progress=False)
