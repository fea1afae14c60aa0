"""What scores can be asked: rankings, plans, parts of them, files."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch
from tiny_pipes import PROMPTS, pipe_of

from pruning_book.rivals.rankings import overlap, rank_agreement, spearman
from pruning_lib.operators.budget import choose, reductions
from pruning_lib.operators.find import find_operators
from pruning_lib.operators.score import score_operators
from pruning_lib.operators.scores import OperatorScore, Scores, measure


@pytest.fixture(scope="module")
def pipe():
    return pipe_of("text")


@pytest.fixture(scope="module")
def scores(pipe) -> Scores:
    operators = find_operators(pipe.unet)[::3]
    return score_operators(
        pipe,
        PROMPTS["text"],
        operators=operators,
        num_latents=4,
        steps=2,
        guidance_scale=2.0,
        keep_latents=True,
        progress=False,
    )


def test_rankings_are_sorted_by_each_formula(scores: Scores) -> None:
    orders = set()
    for formula in ("paper", "mean", "std", "mse"):
        values = scores.values(formula)
        ranked = scores.ranked(formula)
        assert sorted(ranked) == sorted(scores.operators.paths)
        assert [values[p] for p in ranked] == sorted(values.values()) and len(set(values.values())) > 10
        orders.add(tuple(ranked))
    assert len(orders) > 1
    with pytest.raises(ValueError, match="formula='papper' is unknown. Did you mean 'paper'"):
        scores.ranked("papper")
    with pytest.raises(KeyError, match="Did you mean"):
        scores["conv_inn"]


def test_plans_take_the_lowest_to_a_budget(pipe, scores: Scores) -> None:
    plan = scores.lowest(4)
    assert plan == choose(scores.ranked(), scores.operators, None, count=4) and plan.paths[0] == scores.ranked()[0]
    assert scores.lowest(3, formula="mse").paths[0] == scores.ranked("mse")[0]
    low = scores.of("resnet", "self-attention")  # few, so that few are counted
    assert 0.2 <= reductions(pipe.unet, low.lowest(macs_ratio=0.2))[0] < 0.6
    with pytest.raises(ValueError, match="exactly one of count"):
        scores.lowest()


def test_files_bring_everything_back(pipe, scores: Scores, tmp_path) -> None:
    again = Scores.load(scores.save(tmp_path / "scores.safetensors"))
    assert again.operators.base == scores.operators.base and list(again.operators) == list(scores.operators)
    assert again.sampling == scores.sampling and again.rows() == scores.rows()
    for mine, theirs in zip(again, scores, strict=True):
        assert mine.changes == theirs.changes
        assert torch.allclose(mine.std, theirs.std, rtol=1e-2, atol=1e-3)
    shift = scores.values(lambda o, m: (o.avg - m.avg).norm().item())
    for path, value in again.values(lambda o, m: (o.avg - m.avg).norm().item()).items():
        assert value == pytest.approx(shift[path], rel=2e-3), "small differences keep their precision"
    assert again.lowest(3) == scores.lowest(3)
    with pytest.raises(ValueError, match="Pass pipe="):
        again.lowest(macs_ratio=0.1)
    few = again.of("downsampler", "resnet")
    assert len(few.lowest(params_ratio=0.01, pipe=pipe)) > 0
    small = scores.save(tmp_path / "small.safetensors", parts=False)
    assert small.stat().st_size < (tmp_path / "scores.safetensors").stat().st_size
    assert Scores.load(small).values() == scores.values()
    with pytest.raises(ValueError, match="no other formula can be tried"):
        Scores.load(small).values(lambda o, m: 0.0)


def test_wrong_files_are_refused(scores: Scores, tmp_path) -> None:
    with pytest.raises(ValueError, match="does not end in .safetensors"):
        scores.save(tmp_path / "scores.json")
    with pytest.raises(FileNotFoundError):
        Scores.load(tmp_path / "no.safetensors")
    (tmp_path / "x.safetensors").write_bytes(b"no scores")
    with pytest.raises(ValueError, match="holds no scores"):
        Scores.load(tmp_path / "x.safetensors")


def test_fewer_latents_give_the_scores_of_a_smaller_run(pipe, scores: Scores) -> None:
    small = score_operators(
        pipe, PROMPTS["text"], operators=scores.operators, num_latents=2, steps=2, guidance_scale=2.0, progress=False
    )
    first = scores.of_latents(range(2))
    assert first.values() == {p: pytest.approx(v, rel=2e-3) for p, v in small.values().items()}
    assert first.sampling["num_latents"] == 2
    assert scores.of_latents(range(4)).values() == {p: pytest.approx(v) for p, v in scores.values().items()}
    with pytest.raises(ValueError, match="keep_latents=True"):
        small.of_latents([0, 1])
    with pytest.raises(ValueError, match="no standard deviation"):
        scores.of_latents([0])


def test_kinds_and_words(scores: Scores) -> None:
    some = scores.of("resnet", "convolution")
    assert {op.kind for op in some.operators} == {"resnet", "convolution"} and len(some) < len(scores)
    assert some.values() == {p: scores.values()[p] for p in some.operators.paths}
    lines = scores.table(count=5).splitlines()
    assert len(lines) == 6 and lines[1].startswith(scores.ranked()[0])
    assert f"Scores of {len(scores)} operators" in repr(scores) and "num_latents=4" in repr(scores)
    assert scores.seconds > 0


def test_distances_need_pairs_of_latents() -> None:
    latents = torch.arange(8.0).reshape(2, 4)
    found = measure(latents + 3, latents)
    assert isinstance(found, OperatorScore) and (found.avg_dist, found.std_dist, found.mse) == (6.0, 0.0, 9.0)
    for wrong in (latents[:1], latents[:, :2]):
        with pytest.raises(ValueError, match="expected equal shapes"):
            measure(wrong, wrong if len(wrong) == 1 else latents)


@pytest.mark.parametrize("seed", range(3))
def test_rank_correlation_is_scipys(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a = rng.integers(0, 6, 40).astype(float)  # many ties
    b = a + rng.normal(0, 2, 40)
    assert spearman(a, b) == pytest.approx(scipy.stats.spearmanr(a, b).statistic, abs=1e-12)
    assert spearman(a.tolist(), [-x for x in b]) == pytest.approx(-spearman(a, b))
    assert spearman([1.0, 2.0, np.inf], [1, 2, 3]) == pytest.approx(1)
    for wrong in (([1.0], [1.0]), ([1.0, 2], [1.0, 2, 3]), ([1.0, np.nan], [1.0, 2])):
        with pytest.raises(ValueError, match="Expected two rows"):
            spearman(*wrong)
    with pytest.raises(ValueError, match="no order"):
        spearman([1.0, 1], [1.0, 2])


def test_agreement_has_an_interval_and_overlap_counts() -> None:
    rng = np.random.default_rng(0)
    a = {f"op{i}": float(i) for i in range(60)}
    close = {p: v + rng.normal(0, 6) for p, v in a.items()}
    far = {p: rng.normal() for p in a}
    near, none = rank_agreement(a, close), rank_agreement(a, far)
    assert near.value == spearman(list(a.values()), list(close.values())) and near.n == 60
    assert 0.7 < near.low < near.value < near.high < 1 and none.low < 0 < none.high + 0.3
    assert rank_agreement({**a, "op3": float("inf")}, close).value < near.value
    assert overlap(a, a, 10) == 1 and overlap(a, {p: -v for p, v in a.items()}, 10) == 0
    assert overlap(a, {**a, "op0": 100.0}, 10) == 0.9
    with pytest.raises(ValueError, match="different operators; 2 are in one only, such as 'op0'"):
        rank_agreement(a, {"x" if p == "op0" else p: v for p, v in a.items()})
    with pytest.raises(ValueError, match="count=0"):
        overlap(a, a, 0)
