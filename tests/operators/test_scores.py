"""What scores can be asked: rankings, plans, parts of them, files."""

from __future__ import annotations

import tempfile

import pytest
import torch
from tiny_pipes import PROMPTS, pipe_of

from pruning_lib.operators.budget import choose, reductions
from pruning_lib.operators.find import find_operators
from pruning_lib.operators.score import score_operators
from pruning_lib.operators.scores import OperatorScore, Scores, latent_shift

SAMPLING = {"num_latents": 4, "steps": 2, "guidance_scale": 2.0, "progress": False}


@pytest.fixture(scope="module")
def pipe():
    return pipe_of("text")


@pytest.fixture(scope="module")
def scores(pipe) -> Scores:
    operators = find_operators(pipe.unet)[::3]
    return score_operators(pipe, PROMPTS["text"], operators=operators, keep_latents=True, **SAMPLING)


def test_rankings_are_sorted_by_each_formula(scores: Scores) -> None:
    orders = set()
    for formula in ("paper", "mean", "std", "mse"):
        values, ranked = scores.values(formula), scores.ranked(formula)
        assert sorted(ranked) == sorted(scores.operators.paths)
        assert [values[p] for p in ranked] == sorted(values.values()) and len(set(values.values())) > 10
        orders.add(tuple(ranked))
    assert len(orders) > 1


def test_plans_take_the_lowest_to_a_budget(pipe, scores: Scores) -> None:
    plan = scores.lowest(4)
    assert plan == choose(scores.ranked(), scores.operators, None, count=4) and plan.paths[0] == scores.ranked()[0]
    assert scores.lowest(3, formula="mse").paths[0] == scores.ranked("mse")[0]
    low = scores.of("resnet", "self-attention")  # few, so that few are counted
    assert 0.2 <= reductions(pipe.unet, low.lowest(macs_ratio=0.2))[0] < 0.6


def test_files_bring_everything_back(pipe, scores: Scores, tmp_path) -> None:
    again = Scores.load(scores.save(tmp_path / "scores.safetensors"))
    assert again.operators.base == scores.operators.base and list(again.operators) == list(scores.operators)
    assert again.sampling == scores.sampling and again.rows() == scores.rows()
    assert [s.changes for s in again] == [s.changes for s in scores]
    shift = scores.values(lambda o, m: (o.avg - m.avg).norm().item())
    for path, value in again.values(lambda o, m: (o.avg - m.avg).norm().item()).items():
        assert value == pytest.approx(shift[path], rel=2e-3), "small differences keep their precision"
        assert torch.allclose(again[path].std, scores[path].std, rtol=1e-2, atol=1e-3)
    assert again.lowest(3) == scores.lowest(3)
    assert len(again.of("downsampler", "resnet").lowest(params_ratio=0.01, pipe=pipe)) > 0
    small = scores.save(tmp_path / "small.safetensors", parts=False)
    assert small.stat().st_size < (tmp_path / "scores.safetensors").stat().st_size
    assert Scores.load(small).values() == scores.values()


def test_the_scores_of_the_book_are_read(root) -> None:
    """They were written before files said their format."""
    found = Scores.load(root / "pruning_book/records/operator_scores.safetensors")
    assert len(found) == 493 and found["conv_in"].avg.shape == (4, 16, 16)
    assert found.values()["conv_in"] == pytest.approx(found["conv_in"].avg_dist + found["conv_in"].std_dist)


def test_fewer_latents_give_the_scores_of_a_smaller_run(pipe, scores: Scores) -> None:
    few = {**SAMPLING, "num_latents": 2}
    small = score_operators(pipe, PROMPTS["text"], operators=scores.operators, **few)
    first = scores.of_latents(range(2))
    assert first.values() == {p: pytest.approx(v, rel=2e-3) for p, v in small.values().items()}
    assert first.sampling["num_latents"] == 2


def test_kinds_and_words(scores: Scores) -> None:
    some, values = scores.of("resnet", "convolution"), scores.values()
    assert some.values() == {op.path: values[op.path] for op in scores.operators.of("resnet", "convolution")}
    lines = scores.table(count=5).splitlines()
    assert len(lines) == 7 and lines[2].startswith(scores.ranked()[0])
    assert f"Scores of {len(scores)} operators" in repr(scores) and "num_latents=4" in repr(scores)


def without_parts(scores: Scores) -> Scores:
    with tempfile.TemporaryDirectory() as folder:
        return Scores.load(scores.save(f"{folder}/small.safetensors", parts=False))


PAIR = torch.arange(8.0).reshape(2, 4)


def test_distances_of_latents() -> None:
    found = latent_shift(PAIR + 3, PAIR)
    assert isinstance(found, OperatorScore) and (found.avg_dist, found.std_dist, found.mse) == (6.0, 0.0, 9.0)


@pytest.mark.parametrize(
    ("attempt", "kind", "says"),
    [
        (lambda s: s.ranked("papper"), ValueError, "formula='papper' is unknown. Did you mean 'paper'"),
        (lambda s: s["conv_inn"], KeyError, "Did you mean"),
        (lambda s: s.lowest(), ValueError, "exactly one of count"),
        (lambda s: without_parts(s).lowest(macs_ratio=0.1), ValueError, "Pass pipe="),
        (lambda s: without_parts(s).values(lambda o, m: 0.0), ValueError, "no other formula can be tried"),
        (lambda s: without_parts(s).of_latents([0, 1]), ValueError, "keep_latents=True"),
        (lambda s: s.of_latents([0]), ValueError, "no standard deviation"),
        (lambda s: s.save("scores.json"), ValueError, "does not end in .safetensors"),
        (lambda s: Scores.load("no.safetensors"), FileNotFoundError, "no.safetensors"),
        (lambda s: Scores.load(__file__), ValueError, "holds no scores"),
        (lambda s: latent_shift(PAIR[:1], PAIR[:1]), ValueError, "expected equal shapes"),
        (lambda s: latent_shift(PAIR[:, :2], PAIR), ValueError, "expected equal shapes"),
    ],
)
def test_what_scores_cannot_give(scores: Scores, attempt, kind, says) -> None:
    with pytest.raises(kind, match=says):
        attempt(scores)
