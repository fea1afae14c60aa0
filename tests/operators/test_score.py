"""Scoring: the paper's formula by hand, resuming, what scores can be asked, and everything that goes wrong."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from tiny_pipes import PROMPTS, pipe_of

from pruning_lib.operators.budget import choose, reductions
from pruning_lib.operators.find import KINDS, Operators, find_operators
from pruning_lib.operators.plan import Plan, plan_for
from pruning_lib.operators.remove import change_operators
from pruning_lib.operators.score import LatentSampler, score_operators, score_plans
from pruning_lib.operators.scores import Scores, latent_shift

DRAWN = {"num_latents": 3, "steps": 2, "guidance_scale": 2.0, "batch": 2}
PATHS = ["down_blocks.0.resnets.1", "down_blocks.0.downsamplers.0", "mid_block.attentions.0", "up_blocks.1.resnets.0"]
EVERY = find_operators(pipe_of("text").unet, tuple(KINDS))
STRANGER = find_operators(pipe_of("unconditional").unet)


def score(pipe=None, operators=PATHS, **options) -> Scores:
    if isinstance(operators, list):
        operators = Operators(sorted((EVERY[p] for p in operators), key=lambda op: op.order), EVERY.base)
    options = {**DRAWN, "progress": False, **options}
    return score_operators(pipe or pipe_of("text"), PROMPTS["text"], operators=operators, **options)


@pytest.fixture(scope="module")
def scores() -> Scores:
    return score(keep_latents=True)


@pytest.fixture
def draws(monkeypatch) -> dict:
    """Counts the generations that began; beyond "most" they are interrupted."""
    draw, seen = LatentSampler.draw, {"begun": 0, "most": math.inf}

    def counted(sampler):
        seen["begun"] += 1
        latents = draw(sampler)
        if seen["begun"] > seen["most"]:
            raise KeyboardInterrupt
        return latents

    monkeypatch.setattr(LatentSampler, "draw", counted)
    return seen


class _PassOn(torch.nn.Module):
    def forward(self, hidden_states, *args, **kwargs):
        return (hidden_states,)


def test_the_score_is_the_papers(scores: Scores) -> None:
    """By hand, with a denoiser in which the operator was changed by hand too."""
    pipe, path = pipe_of("text"), "mid_block.attentions.0"
    sampler = LatentSampler(pipe, PROMPTS["text"], **DRAWN)
    original = sampler.draw()
    pipe.unet.mid_block.attentions[0] = _PassOn()
    modified = sampler.draw()
    avg = (original.mean(0) - modified.mean(0)).norm().item()
    std = (original.std(0) - modified.std(0)).norm().item()
    mse = (original - modified).square().mean().item()
    assert avg > 0.001 and std > 0.001 and torch.equal(scores[path].latents, modified)
    found = [scores.values(formula)[path] for formula in ("paper", "mean", "std", "mse")]
    assert found == pytest.approx([avg + std, avg, std, mse], rel=1e-4)
    own = scores.values(lambda original, modified: (original.avg - modified.avg).norm().item())
    assert own == pytest.approx(scores.values("mean"), rel=1e-4)
    assert torch.equal(scores[path].avg, modified.double().mean(0).float())


def test_a_compiled_pipeline_is_scored_inside_and_left_as_it_was(scores: Scores) -> None:
    pipe = pipe_of("text")
    inner = pipe.unet
    wrapper = pipe.unet = torch.compile(inner, backend="eager")
    before, modules, config = copy.deepcopy(inner.state_dict()), [*inner.modules()], dict(inner.config)
    inner.train()
    found = score(pipe, tuple(reversed(PATHS)))  # paths are enough, in any order
    assert found.values() == scores.values() and found.operators.paths == scores.operators.paths
    assert pipe.unet is wrapper and wrapper._orig_mod is inner and inner.training and dict(inner.config) == config
    assert all(a is b for a, b in zip(modules, inner.modules(), strict=True))
    assert all(torch.equal(before[n], w) for n, w in inner.state_dict().items())


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path, scores: Scores, draws) -> None:
    pipe, how = pipe_of("text"), {"folder": tmp_path, "keep_latents": True}
    draws["most"] = 3
    with pytest.raises(KeyboardInterrupt, match="2 finished scores are kept"):
        score(pipe, **how)
    assert "Identity()" not in str(pipe.unet), "the model is whole again"
    draws |= {"begun": 0, "most": math.inf}
    found = score(pipe, **how)
    assert draws["begun"] == 3, "the original and the two that were missing"
    assert found.values() == scores.values()
    assert all(torch.equal(a.latents, b.latents) for a, b in zip(found, scores, strict=True))
    for path in tmp_path.glob("up_blocks*.safetensors"):  # damaged: scored again
        path.write_bytes(path.read_bytes()[:100])
    assert score(pipe, **how).values() == scores.values() and draws["begun"] == 3 + 2
    assert {path.suffix for path in tmp_path.iterdir()} == {".safetensors", ".json"}, "nothing half written is left"
    assert score(pipe, **how).values() == scores.values() and draws["begun"] == 5
    with pytest.raises(ValueError, match="seed: 0 there, 1 now"):
        score(pipe, **how, seed=1)
    with torch.no_grad():
        pipe.unet.conv_in.bias[0] += 1e-6
    with pytest.raises(ValueError, match="models"):
        score(pipe, **how)


def test_latents_that_are_not_finite_give_an_infinite_score_and_an_original_that_is_not_is_refused(tmp_path) -> None:
    pipe = pipe_of("text")
    with torch.no_grad():  # only what the norm reins in keeps this finite
        pipe.unet.down_blocks[0].resnets[1].conv1.weight.mul_(1e17)
        pipe.unet.down_blocks[0].resnets[1].conv2.weight.mul_(1e10)
    paths = ["down_blocks.0.resnets.1.norm2", *PATHS[1:]]
    found = score(pipe, paths)
    assert found.broken == paths[:1] and math.isinf(found.values()[paths[0]])
    assert found.ranked()[-1] == paths[0] not in found.lowest(3).paths and "inf" in found.table()
    with pytest.raises(ValueError, match="at most 3"):
        found.lowest(4)
    assert found.rows()[0]["score"] is None and json.dumps(found.rows(), allow_nan=False)
    assert Scores.load(found.save(tmp_path / "scores.safetensors")).broken == found.broken
    with torch.no_grad():
        pipe.unet.conv_out.bias.fill_(math.nan)
    with pytest.raises(ValueError, match="unchanged pipeline gives latents that are infinite or not a number"):
        score(pipe)
    pipe.unet.mid_block.forward = lambda *a, **k: (_ for _ in ()).throw(RuntimeError("a shape is wrong"))
    with pytest.raises(RuntimeError, match="a shape is wrong"):
        score(pipe)


def test_modes_and_processors_are_put_back_and_what_no_run_does_without_has_an_infinite_score(draws) -> None:
    class Other(AttnProcessor):
        pass

    pipe = pipe_of("text")
    attention, broken = pipe.unet.mid_block.attentions[0], []
    draw = pipe.prepare_latents

    def prepare(*args, **kwargs):  # what a pipeline changes when it begins, and would undo at its end
        pipe.unet.set_attn_processor(Other())
        if broken and not any(module is attention for module in pipe.unet.modules()):
            raise ValueError("I need that layer")
        return draw(*args, **kwargs)

    before = dict(pipe.unet.attn_processors)
    attention.train()
    pipe.prepare_latents, broken = prepare, [1]
    with pytest.warns(UserWarning, match="cannot run without mid_block.attentions.0: I need that layer"):
        found = score(pipe, ["mid_block.attentions.0", "mid_block.resnets.0"])
    assert found.broken == ["mid_block.attentions.0"]
    draws |= {"begun": 0, "most": 1}
    with pytest.raises(KeyboardInterrupt):
        score(pipe)
    assert all(pipe.unet.attn_processors[name] is processor for name, processor in before.items())
    assert attention.training and not pipe.unet.training


def test_sets_of_changes_are_scored_together(scores: Scores) -> None:
    pipe = pipe_of("text")
    plans = [plan_for(changes, EVERY) for changes in (PATHS[:2], {PATHS[1]: "pointwise"}, PATHS[:1], [])]
    both, pointwise, single, nothing = score_plans(pipe, PROMPTS["text"], plans, progress=False, **DRAWN)
    with change_operators(pipe.unet, PATHS[:2]):
        drawn = LatentSampler(pipe, PROMPTS["text"], **DRAWN).draw()
    assert torch.equal(both.avg, drawn.double().mean(0).float())
    assert pointwise.changes == ((PATHS[1], "pointwise"),) and nothing.mse == 0 != pointwise.mse
    assert single.mse == scores[PATHS[0]].mse


def test_rankings_plans_and_tables_go_by_the_formula(scores: Scores) -> None:
    for formula in ("paper", "mse"):
        values, ranked = scores.values(formula), scores.ranked(formula)
        assert sorted(ranked) == sorted(PATHS) and [values[p] for p in ranked] == sorted(values.values())
        assert scores.lowest(3, formula=formula) == choose(ranked, scores.operators, None, count=3)
        assert scores.table(formula, count=2).splitlines()[2].startswith(ranked[0])
    few = scores.of("resnet", "downsampler")
    assert few.values() == {p: scores.values()[p] for p in scores.operators.of("resnet", "downsampler").paths}
    assert reductions(few.denoiser, few.lowest(macs_ratio=0.02))[0] >= 0.02
    assert "Scores of 4 operators" in repr(scores) and "num_latents=3" in repr(scores)


def test_files_bring_everything_back_but_latents_whose_part_scores_as_a_smaller_run(scores, tmp_path, root) -> None:
    again = Scores.load(scores.save(tmp_path / "scores.safetensors"))
    assert again.operators.base == scores.operators.base and list(again.operators) == list(scores.operators)
    assert again.sampling == scores.sampling and again.rows() == scores.rows() and again.lowest(3) == scores.lowest(3)
    assert [s.changes for s in again] == [s.changes for s in scores]
    for mine, theirs in zip(again, scores, strict=True):
        shift = [(s.avg - scores.original.avg).norm().item() for s in (mine, theirs)]
        assert shift[0] == pytest.approx(shift[1], rel=2e-3), "small differences keep their precision"
        assert torch.allclose(mine.std, theirs.std, rtol=1e-2, atol=1e-3)
    with pytest.raises(ValueError, match="Pass pipe="):
        again.lowest(macs_ratio=0.02)
    assert len(again.lowest(params_ratio=0.001, pipe=pipe_of("text"))) > 0
    with pytest.raises(ValueError, match="keep_latents=True"):
        again.of_latents([0, 1])
    first = scores.of_latents(range(2))
    assert first.values() == pytest.approx(score(num_latents=2).values(), rel=2e-3)
    assert first.sampling["num_latents"] == 2
    book = Scores.load(root / "pruning_book/records/operator_scores.safetensors")  # before files said their format
    assert len(book) == 493 and book["conv_in"].avg.shape == (4, 16, 16)
    assert book.values()["conv_in"] == pytest.approx(book["conv_in"].avg_dist + book["conv_in"].std_dist)


def test_what_is_refused(scores: Scores) -> None:
    alien = pipe_of("text")
    alien.unet = alien.vae
    for attempt, says in (
        (lambda: score(operators=("down_blocks.0.resnet.1",)), "Did you mean 'down_blocks.0.resnets.1'"),
        (lambda: score(operators=STRANGER), "made for a UNet2DModel"),
        (lambda: score(num_latents=1), "num_latents=1"),
        (lambda: score(alien, None), "could not be run to see what it calls its unet with"),
        (lambda: score_plans(pipe_of("text"), [], [Plan((), STRANGER.base)]), "made for a UNet2DModel"),
        (lambda: latent_shift(torch.ones(2, 2), torch.ones(2, 4)), "expected equal shapes"),
        (lambda: scores.ranked("papper"), "formula='papper' is unknown. Did you mean 'paper'"),
        (lambda: scores["conv_inn"], "No operator"),
        (lambda: scores.of_latents([0]), "no standard deviation"),
        (lambda: scores.save("scores.json"), "does not end in .safetensors"),
        (lambda: Scores.load("no.safetensors"), "no.safetensors"),
        (lambda: Scores.load(__file__), "holds no scores"),
    ):
        with pytest.raises((KeyError, OSError, TypeError, ValueError), match=says):
            attempt()


def test_out_of_memory_names_the_batch_to_try_and_keeps_what_is_finished(scores: Scores) -> None:
    pipe, calls = pipe_of("text"), []

    def full(*_):
        calls.append(1)
        if len(calls) > 3 * 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")

    hook = pipe.unet.register_forward_pre_hook(full)
    with pytest.raises(MemoryError, match=r"batch=2: CUDA .*Try batch=1\. 2 finished scores are kept") as told:
        score(pipe)
    hook.remove()
    found = score(pipe, folder=str(told.value).split("folder='")[1].split("'")[0], batch=1)  # a temporary folder
    assert all(found.values()[p] == pytest.approx(v, rel=1e-3) for p, v in scores.values().items())
