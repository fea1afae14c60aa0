"""What scores can be asked: rankings, plans, parts of them, files."""

from __future__ import annotations

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
    assert [s.changes for s in again] == [s.changes for s in scores]
    shift = scores.values(lambda o, m: (o.avg - m.avg).norm().item())
    for path, value in again.values(lambda o, m: (o.avg - m.avg).norm().item()).items():
        assert value == pytest.approx(shift[path], rel=2e-3), "small differences keep their precision"
        assert torch.allclose(again[path].std, scores[path].std, rtol=1e-2, atol=1e-3)
    assert again.lowest(3) == scores.lowest(3)
    with pytest.raises(ValueError, match="Pass pipe="):
        again.lowest(macs_ratio=0.1)
    assert len(again.of("downsampler", "resnet").lowest(params_ratio=0.01, pipe=pipe)) > 0
    small = scores.save(tmp_path / "small.safetensors", parts=False)
    assert small.stat().st_size < (tmp_path / "scores.safetensors").stat().st_size
    assert Scores.load(small).values() == scores.values()
    with pytest.raises(ValueError, match="no other formula can be tried"):
        Scores.load(small).values(lambda o, m: 0.0)


def test_the_scores_of_the_book_are_read(root) -> None:
    """They were written before files said their format."""
    found = Scores.load(root / "pruning_book/records/operator_scores.safetensors")
    assert len(found) == 493 and found["conv_in"].avg.shape == (4, 16, 16)
    assert found.values()["conv_in"] == pytest.approx(found["conv_in"].avg_dist + found["conv_in"].std_dist)


def test_wrong_files_are_refused(scores: Scores, tmp_path) -> None:
    with pytest.raises(ValueError, match="does not end in .safetensors"):
        scores.save(tmp_path / "scores.json")
    with pytest.raises(FileNotFoundError):
        Scores.load(tmp_path / "no.safetensors")
    (tmp_path / "x.safetensors").write_bytes(b"no scores")
    with pytest.raises(ValueError, match="holds no scores"):
        Scores.load(tmp_path / "x.safetensors")


def test_fewer_latents_give_the_scores_of_a_smaller_run(pipe, scores: Scores) -> None:
    few = {**SAMPLING, "num_latents": 2}
    small = score_operators(pipe, PROMPTS["text"], operators=scores.operators, **few)
    first = scores.of_latents(range(2))
    assert first.values() == {p: pytest.approx(v, rel=2e-3) for p, v in small.values().items()}
    assert first.sampling["num_latents"] == 2
    assert scores.of_latents(range(4)).values() == {p: pytest.approx(v) for p, v in scores.values().items()}
    with pytest.raises(ValueError, match="keep_latents=True"):
        small.of_latents([0, 1])
    with pytest.raises(ValueError, match="no standard deviation"):
        scores.of_latents([0])


def test_kinds_and_words(scores: Scores) -> None:
    some, values = scores.of("resnet", "convolution"), scores.values()
    assert some.values() == {
        op.path: values[op.path] for op in scores.operators if op.kind in ("resnet", "convolution")
    }
    lines = scores.table(count=5).splitlines()
    assert len(lines) == 6 and lines[1].startswith(scores.ranked()[0])
    assert f"Scores of {len(scores)} operators" in repr(scores) and "num_latents=4" in repr(scores)
    assert scores.seconds > 0


def test_distances_need_pairs_of_latents() -> None:
    latents = torch.arange(8.0).reshape(2, 4)
    found = latent_shift(latents + 3, latents)
    assert isinstance(found, OperatorScore) and (found.avg_dist, found.std_dist, found.mse) == (6.0, 0.0, 9.0)
    for wrong in ((latents[:1], latents[:1]), (latents[:, :2], latents)):
        with pytest.raises(ValueError, match="expected equal shapes"):
            latent_shift(*wrong)
