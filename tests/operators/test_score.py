"""Scoring: the paper's formula by hand, resuming, and everything that goes wrong."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable

import pytest
import torch
from tiny_pipes import PROMPTS, pipe_of

from pruning_lib.denoisers import Fingerprint
from pruning_lib.operators.find import KINDS, Operators, find_operators
from pruning_lib.operators.plan import Plan
from pruning_lib.operators.remove import change_operators
from pruning_lib.operators.score import score_operators, score_plans
from pruning_lib.operators.scores import Scores
from pruning_lib.sampling import LatentSampler

SAMPLING = {"num_latents": 3, "steps": 2, "guidance_scale": 2.0, "batch": 2, "progress": False}
PATHS = ["down_blocks.0.resnets.1", "down_blocks.0.downsamplers.0", "mid_block.attentions.0", "up_blocks.1.resnets.0"]


@functools.cache
def every() -> Operators:
    """All operators of the pipeline with text; listing them takes longer than scoring a few."""
    return find_operators(pipe_of("text").unet, tuple(KINDS))


def score(pipe=None, operators=PATHS, **options) -> Scores:
    if isinstance(operators, list):
        operators = Operators(sorted((every()[p] for p in operators), key=lambda op: op.order), every().base)
    return score_operators(pipe or pipe_of("text"), PROMPTS["text"], operators=operators, **{**SAMPLING, **options})


@pytest.fixture(scope="module")
def scores() -> Scores:
    return score(keep_latents=True)


@pytest.fixture
def draws(monkeypatch) -> Callable[[int], list]:
    """Return a function that sets how many generations may finish, and the list of those that began."""
    begun, limit, draw = [], [math.inf], LatentSampler.draw

    def counted(sampler):
        begun.append(sampler)
        latents = draw(sampler)
        if len(begun) > limit[0]:
            raise KeyboardInterrupt
        return latents

    def until(stop: float) -> list:
        limit[0] = stop
        begun.clear()
        return begun

    monkeypatch.setattr(LatentSampler, "draw", counted)
    return until


class _PassOn(torch.nn.Module):
    def forward(self, hidden_states, *args, **kwargs):
        return (hidden_states,)


def test_the_score_is_the_papers(scores: Scores) -> None:
    """By hand, with a denoiser in which the operator was changed by hand too."""
    pipe, path = pipe_of("text"), "mid_block.attentions.0"
    sampler = LatentSampler(pipe, PROMPTS["text"], num_latents=3, steps=2, guidance_scale=2.0, batch=2)
    original = sampler.draw()
    pipe.unet.mid_block.attentions[0] = _PassOn()
    modified = sampler.draw()
    avg = (original.mean(0) - modified.mean(0)).norm().item()
    std = (original.std(0) - modified.std(0)).norm().item()
    found = scores[path]
    assert avg > 0.001 and std > 0.001 and torch.equal(found.latents, modified)
    assert (found.avg_dist, found.std_dist) == (pytest.approx(avg, rel=1e-4), pytest.approx(std, rel=1e-4))
    assert found.mse == pytest.approx((original - modified).square().mean().item(), rel=1e-4)
    assert scores.values()[path] == pytest.approx(avg + std, rel=1e-4)
    assert [scores.values(f)[path] for f in ("mean", "std", "mse")] == [found.avg_dist, found.std_dist, found.mse]
    assert torch.equal(found.avg, modified.double().mean(0).float())
    own = scores.values(lambda o, m: (o.avg - m.avg).abs().max().item())
    assert own[path] == pytest.approx((original.mean(0) - modified.mean(0)).abs().max().item(), rel=1e-4)


@pytest.mark.parametrize("name", ["classes", "unconditional latents"])
def test_pipelines_without_text_are_scored(name: str) -> None:
    pipe, sampling = pipe_of(name), {"num_latents": 2, "steps": 2}
    denoiser = pipe.components.get("unet") or pipe.transformer
    operators = find_operators(denoiser, ["self-attention", "feed-forward", "resnet"])
    found = score_operators(pipe, PROMPTS.get(name), operators=operators, keep_latents=True, progress=False, **sampling)
    assert len(found) >= 4 and len(set(found.values("mse").values())) == len(found)
    with change_operators(denoiser, [operators[0].path]):
        wanted = LatentSampler(pipe, PROMPTS.get(name), **sampling).draw()
    assert torch.equal(found[operators[0].path].latents, wanted)


def test_the_pipeline_is_left_as_it_was_and_its_structure_read_once(monkeypatch) -> None:
    pipe, read, of = pipe_of("text"), [], Fingerprint.of
    monkeypatch.setattr(Fingerprint, "of", lambda denoiser: read.append(denoiser) or of(denoiser))
    before, config = {n: w.clone() for n, w in pipe.unet.state_dict().items()}, dict(pipe.unet.config)
    modules = list(pipe.unet.modules())
    pipe.unet.train()
    score(pipe, every().paths[:4])
    assert pipe.unet.training and dict(pipe.unet.config) == config and len(read) == 1
    assert all(a is b for a, b in zip(modules, pipe.unet.modules(), strict=True))
    assert all(torch.equal(before[n], w) for n, w in pipe.unet.state_dict().items())


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path, scores: Scores, draws) -> None:
    pipe = pipe_of("text")
    draws(3)
    with pytest.raises(KeyboardInterrupt, match="2 finished scores are kept"):
        score(pipe, folder=tmp_path, keep_latents=True)
    assert "Identity()" not in str(pipe.unet), "the model is whole again"
    begun = draws(math.inf)
    found = score(pipe, folder=tmp_path, keep_latents=True)
    assert len(begun) == 3, "the original and the two that were missing"
    assert found.values() == scores.values()
    assert all(torch.equal(a.latents, b.latents) for a, b in zip(found, scores, strict=True))
    draws(-1)
    assert score(pipe, folder=tmp_path, keep_latents=True).values() == scores.values()


def test_a_folder_of_other_settings_or_weights_is_refused(tmp_path) -> None:
    pipe = pipe_of("text")
    score(pipe, PATHS[:1], folder=tmp_path)
    with pytest.raises(ValueError, match="seed: 0 there, 1 now"):
        score(pipe, PATHS[:1], folder=tmp_path, seed=1)
    with torch.no_grad():
        pipe.unet.conv_in.bias[0] += 1e-6
    with pytest.raises(ValueError, match="models"):
        score(pipe, PATHS[:1], folder=tmp_path)


def test_a_damaged_file_is_scored_again(tmp_path, scores: Scores, draws) -> None:
    score(folder=tmp_path)
    for path in tmp_path.glob("up_blocks*.safetensors"):
        path.write_bytes(path.read_bytes()[:100])
    begun = draws(math.inf)
    assert score(folder=tmp_path).values() == scores.values() and len(begun) == 2
    names = {path.suffix for path in tmp_path.iterdir()}
    assert names == {".safetensors", ".json"}, "nothing half written is left"


def test_latents_that_are_not_finite_give_an_infinite_score(tmp_path) -> None:
    pipe = pipe_of("text")
    with torch.no_grad():  # only what the norm reins in keeps this finite
        pipe.unet.down_blocks[0].resnets[1].conv1.weight.mul_(1e17)
        pipe.unet.down_blocks[0].resnets[1].conv2.weight.mul_(1e10)
    paths = ["down_blocks.0.resnets.1.norm2", *PATHS[1:]]
    found = score(pipe, paths)
    assert found.broken == paths[:1] and math.isinf(found.values()[paths[0]])
    assert found.ranked()[-1] == paths[0] and "inf" in found.table()
    assert paths[0] not in found.lowest(3).paths
    with pytest.raises(ValueError, match="at most 3"):
        found.lowest(4)
    assert found.rows()[0]["score"] is None and json.dumps(found.rows(), allow_nan=False)
    assert Scores.load(found.save(tmp_path / "scores.safetensors")).broken == found.broken


def test_an_original_that_is_not_finite_is_refused_and_other_errors_are_passed_on() -> None:
    pipe = pipe_of("text")
    with torch.no_grad():
        pipe.unet.conv_out.bias.fill_(math.nan)
    with pytest.raises(ValueError, match="unchanged pipeline gives latents that are infinite or not a number"):
        score(pipe)
    pipe.unet.mid_block.forward = lambda *a, **k: (_ for _ in ()).throw(RuntimeError("a shape is wrong"))
    with pytest.raises(RuntimeError, match="a shape is wrong"):
        score(pipe)


def test_out_of_memory_names_the_batch_to_try_and_keeps_what_is_finished(scores) -> None:
    pipe, calls, batches = pipe_of("text"), [], []

    def full(*_):
        calls.append(1)
        if len(calls) > 3 * 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")

    hook = pipe.unet.register_forward_pre_hook(full)
    with pytest.raises(MemoryError, match=r"batch=2: CUDA .*Try batch=1\. 2 finished scores are kept") as told:
        score(pipe)
    hook.remove()
    kept = str(told.value).split("folder='")[1].split("'")[0]  # a temporary folder
    pipe.unet.register_forward_pre_hook(lambda m, a: batches.append(len(a[0])))
    found = score(pipe, folder=kept, batch=1)
    assert set(batches) == {2} and len(batches) == 3 * 3 * 2, "guidance doubles a batch of one; three were drawn"
    assert all(found.values()[p] == pytest.approx(v, rel=1e-3) for p, v in scores.values().items())


def test_how_is_chosen_for_a_path_or_a_kind(scores: Scores) -> None:
    path = "down_blocks.0.downsamplers.0"
    assert scores.operators[path].modifications[0] == "resample"
    other = score(how={"downsampler": "pointwise"})
    assert other.operators[path].modifications[0] == "pointwise" and other[path].changes == ((path, "pointwise"),)
    assert other.values()[path] != scores.values()[path]
    assert other.values()[PATHS[0]] == scores.values()[PATHS[0]]
    assert (path, "pointwise") in other.lowest(len(PATHS)).changes, "what was scored is what is planned"
    assert score(how={path: "pointwise"}).values() == other.values()


def test_sets_of_changes_are_scored_together(scores: Scores) -> None:
    pipe = pipe_of("text")
    plans = [PATHS[:2], {PATHS[1]: "pointwise"}, scores.lowest(1), []]
    both, pointwise, lowest, nothing = score_plans(pipe, PROMPTS["text"], plans, **SAMPLING)
    sampler = LatentSampler(pipe, PROMPTS["text"], num_latents=3, steps=2, guidance_scale=2.0, batch=2)
    with change_operators(pipe.unet, PATHS[:2]):
        drawn = sampler.draw()
    assert torch.equal(both.avg, drawn.double().mean(0).float())
    assert pointwise.changes == ((PATHS[1], "pointwise"),) and nothing.mse == 0
    assert lowest.mse == scores[scores.ranked()[0]].mse


def alien():
    pipe = pipe_of("text")
    pipe.unet = pipe.vae
    return pipe


STRANGER = find_operators(pipe_of("unconditional").unet)


@pytest.mark.parametrize(
    ("attempt", "kind", "says"),
    [
        (lambda: score(operators=("down_blocks.0.resnet.1",)), KeyError, "Did you mean 'down_blocks.0.resnets.1'"),
        (lambda: score(operators=None, kinds=["resnets"]), ValueError, "'resnets' is unknown. Did you mean 'resnet'"),
        (lambda: score(operators=STRANGER), ValueError, "made for a UNet2DModel"),
        (lambda: score(how={PATHS[1]: "zero"}), ValueError, "does not allow 'zero'. Known: 'resample'"),
        (lambda: score(how={"downsamplr": "pointwise"}), KeyError, "Did you mean 'downsampler'"),
        (lambda: score(num_latents=1), ValueError, "num_latents=1"),
        (lambda: score(alien(), None), TypeError, "AutoencoderKL is not of a known family.*A family needs two things"),
        (
            lambda: score_plans(pipe_of("text"), ["lion"], [Plan((), every().base), Plan((), STRANGER.base)]),
            ValueError,
            "made for a UNet2DModel",
        ),
    ],
)
def test_wrong_arguments_are_refused(attempt, kind, says) -> None:
    with pytest.raises(kind, match=says):
        attempt()


def test_a_compiled_denoiser_is_scored_as_it_is_inside(scores: Scores) -> None:
    pipe = pipe_of("text")
    inner = pipe.unet
    wrapper = pipe.unet = torch.compile(inner, backend="eager")
    found = score(pipe, tuple(reversed(PATHS)))  # paths are enough, in any order
    assert found.values() == scores.values() and found.operators.paths == scores.operators.paths
    assert pipe.unet is wrapper and wrapper._orig_mod is inner
