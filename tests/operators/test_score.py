"""Scores: the paper's formula by hand, savings that change no bit, resuming, and everything that goes wrong."""

from __future__ import annotations

import functools
import json
import math

import pytest
import torch
from test_generate import EXTRA
from tiny_pipes import PIPES, PROMPTS, pipe_of

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
    if isinstance(operators, list) and all(path in every() for path in operators):
        operators = Operators(sorted((every()[p] for p in operators), key=lambda op: op.order), every().base)
    return score_operators(pipe or pipe_of("text"), PROMPTS["text"], operators=operators, **{**SAMPLING, **options})


@pytest.fixture(scope="module")
def scores() -> Scores:
    return score(keep_latents=True)


def test_the_score_is_the_papers(scores: Scores) -> None:
    """By hand, with a denoiser in which the operator was changed by hand too."""
    pipe = pipe_of("text")
    sampler = LatentSampler(pipe, PROMPTS["text"], num_latents=3, steps=2, guidance_scale=2.0, batch=2)
    original = sampler.draw()
    pipe.unet.mid_block.attentions[0] = _PassOn()
    modified = sampler.draw()
    avg = (original.mean(0) - modified.mean(0)).norm().item()
    std = (original.std(0) - modified.std(0)).norm().item()
    found = scores["mid_block.attentions.0"]
    assert avg > 0.001 and std > 0.001
    assert (found.avg_dist, found.std_dist) == (pytest.approx(avg, rel=1e-4), pytest.approx(std, rel=1e-4))
    assert found.mse == pytest.approx((original - modified).square().mean().item(), rel=1e-4)
    path = "mid_block.attentions.0"
    assert scores.values()[path] == pytest.approx(avg + std, rel=1e-4)
    assert [scores.values(f)[path] for f in ("mean", "std", "mse")] == [found.avg_dist, found.std_dist, found.mse]
    assert torch.equal(found.avg, modified.double().mean(0).float())
    own = scores.values(lambda o, m: (o.avg - m.avg).abs().max().item())
    assert own[path] == pytest.approx((original.mean(0) - modified.mean(0)).abs().max().item(), rel=1e-4)


class _PassOn(torch.nn.Module):
    def forward(self, hidden_states, *args, **kwargs):
        return (hidden_states,)


def _recorded(name: str, share_mib: float) -> Scores:
    options = {k: v for k, v in SAMPLING.items() if k != "guidance_scale" or name in PROMPTS}
    pipe = pipe_of(name)
    found = find_operators(pipe.components.get("unet") or pipe.transformer, tuple(KINDS))
    operators = found[:: max(1, len(found) // 12)]
    return score_operators(
        pipe,
        PROMPTS.get(name),
        operators=operators,
        share_mib=share_mib,
        keep_latents=True,
        **options,
        **EXTRA.get(name, {}),
    )


@pytest.mark.parametrize("name", PIPES)
def test_sharing_the_first_step_changes_no_bit(name: str) -> None:
    plain, shared = _recorded(name, 0), _recorded(name, 64)
    assert len(plain) >= 6 and len({s.mse for s in plain}) > len(plain) / 2
    for path in plain.operators.paths:
        assert torch.equal(plain[path].latents, shared[path].latents), path


def test_sharing_skips_what_ran_before_the_operator() -> None:
    """Calls of the first block: one for each step, run and batch, but for the first step of the second run."""
    calls = {}
    for share_mib in (0, 64):
        pipe, seen = pipe_of("text"), []
        pipe.unet.down_blocks[0].resnets[0].conv1.register_forward_hook(lambda *_, seen=seen: seen.append(1))
        score(pipe, ["up_blocks.1.resnets.0"], share_mib=share_mib)
        calls[share_mib] = len(seen)
    batches, steps = 2, 2
    assert calls == {0: 2 * batches * steps, 64: 2 * batches * steps - batches}


def test_a_shared_output_that_was_written_to_is_not_used() -> None:
    pipe = pipe_of("text")
    plain = score(pipe, ["up_blocks.1.resnets.0"], share_mib=0)
    pipe.unet.down_blocks[0].register_forward_hook(lambda m, a, out: (out[0].add_(0.0), *out[1:]))
    pipe.unet.mid_block.register_forward_pre_hook(lambda m, a: (a[0].mul_(1.5), *a[1:]))
    changed = score(pipe, ["up_blocks.1.resnets.0"], share_mib=0)
    shared = score(pipe, ["up_blocks.1.resnets.0"], share_mib=64)
    assert changed.values() == shared.values() != plain.values()


def test_what_changes_nothing_is_proven_and_not_generated() -> None:
    pipe = pipe_of("text")
    block, attention = pipe.unet.down_blocks[0].resnets[1], pipe.unet.mid_block.attentions[0]
    with torch.no_grad():
        for layer in (block.conv2, attention.proj_out):
            layer.weight.zero_(), layer.bias.zero_()
    silent = [
        "down_blocks.0.resnets.1",
        "down_blocks.0.resnets.1.conv1",
        "mid_block.attentions.0",
        "mid_block.attentions.0.transformer_blocks.0.attn1",
        "mid_block.attentions.0.norm",
    ]
    heard = ["down_blocks.0.resnets.0", "up_blocks.1.resnets.0"]
    found = score(pipe, silent + heard)
    assert {s.changes[0][0] for s in found if s.skipped} == set(silent)
    assert all(found.values()[path] == 0 for path in silent) and all(found.values()[path] > 0 for path in heard)
    assert "zero" in found[silent[0]].skipped and "zero" in found.table()
    sampler = LatentSampler(pipe, PROMPTS["text"], num_latents=3, steps=2, guidance_scale=2.0)
    original = sampler.draw()
    for path in silent:  # the proof holds
        with change_operators(pipe.unet, [path]):
            assert torch.equal(sampler.draw(), original), path
    # What stands outside the branch, and the zero layer itself, are generated.
    shown = score(pipe, ["mid_block.attentions.0.proj_out"], how={"mid_block.attentions.0.proj_out": "identity"})
    assert not any(s.skipped for s in shown) and min(shown.values().values()) > 0


def test_the_pipeline_is_left_as_it_was() -> None:
    pipe = pipe_of("text")
    before, config = {n: w.clone() for n, w in pipe.unet.state_dict().items()}, dict(pipe.unet.config)
    modules = list(pipe.unet.modules())
    pipe.unet.train()
    score(pipe)
    assert pipe.unet.training and dict(pipe.unet.config) == config
    assert all(a is b for a, b in zip(modules, pipe.unet.modules(), strict=True))
    assert all(torch.equal(before[n], w) for n, w in pipe.unet.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) for m in pipe.unet.modules())


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path, scores: Scores, monkeypatch) -> None:
    pipe, draw, drawn = pipe_of("text"), LatentSampler.draw_part, []

    def until(stop):
        def part(self, index, around=None):
            drawn.append(index)
            if len(drawn) > stop:
                raise KeyboardInterrupt
            return draw(self, index, around)

        return part

    monkeypatch.setattr(LatentSampler, "draw_part", until(7))  # two batches each: the original, two operators, a half
    with pytest.raises(KeyboardInterrupt, match="2 finished scores are kept"):
        score(pipe, folder=tmp_path, keep_latents=True)
    assert all(m not in str(pipe.unet) for m in ("Identity()",)), "the model is whole again"
    drawn.clear()
    monkeypatch.setattr(LatentSampler, "draw_part", until(100))
    found = score(pipe, folder=tmp_path, keep_latents=True)
    assert len(drawn) == 2 * 3, "the original and the two that were missing"
    assert found.values() == scores.values()
    assert all(torch.equal(a.latents, b.latents) for a, b in zip(found, scores, strict=True))
    drawn.clear()
    assert score(pipe, folder=tmp_path, keep_latents=True).values() == scores.values() and not drawn


def test_a_folder_of_other_settings_or_weights_is_refused(tmp_path) -> None:
    pipe = pipe_of("text")
    score(pipe, PATHS[:1], folder=tmp_path)
    with pytest.raises(ValueError, match="seed: 0 there, 1 now"):
        score(pipe, PATHS[:1], folder=tmp_path, seed=1)
    with torch.no_grad():
        pipe.unet.conv_in.bias[0] += 1e-6
    with pytest.raises(ValueError, match="models"):
        score(pipe, PATHS[:1], folder=tmp_path)


def test_a_damaged_file_is_scored_again(tmp_path, scores: Scores) -> None:
    score(folder=tmp_path)
    for path in tmp_path.glob("up_blocks*.safetensors"):
        path.write_bytes(path.read_bytes()[:100])
    assert score(folder=tmp_path).values() == scores.values()
    assert not list(tmp_path.glob("*.part")) + list(tmp_path.glob(".*.part"))


def test_latents_that_are_not_finite_give_an_infinite_score(tmp_path) -> None:
    pipe = pipe_of("text")
    with torch.no_grad():  # only what the norm reins in keeps this finite
        pipe.unet.down_blocks[0].resnets[1].conv1.weight.mul_(1e17)
        pipe.unet.down_blocks[0].resnets[1].conv2.weight.mul_(1e10)
    paths = ["down_blocks.0.resnets.1.norm2", *PATHS[1:]]
    found = score(pipe, paths, share_mib=0)
    assert found.broken == paths[:1] and math.isinf(found.values()[paths[0]])
    assert found.ranked()[-1] == paths[0] and "inf" in found.table()
    assert paths[0] not in found.lowest(3).paths
    with pytest.raises(ValueError, match="at most 3"):
        found.lowest(4)
    assert found.rows()[0]["score"] is None and json.dumps(found.rows(), allow_nan=False)
    again = Scores.load(found.save(tmp_path / "scores.safetensors"))
    assert again.broken == found.broken


def test_an_original_that_is_not_finite_is_refused() -> None:
    pipe = pipe_of("text")
    with torch.no_grad():
        pipe.unet.conv_out.bias.fill_(math.nan)
    with pytest.raises(ValueError, match="unchanged pipeline gives latents that are infinite or not a number"):
        score(pipe)


@pytest.mark.parametrize("own_folder", [True, False])
def test_out_of_memory_names_the_batch_to_try_and_keeps_what_is_finished(tmp_path, monkeypatch, own_folder) -> None:
    pipe, forward, calls = pipe_of("text"), [], []

    def full(*_):
        calls.append(1)
        if len(calls) > 3 * 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")

    forward.append(pipe.unet.register_forward_pre_hook(full))
    folder = {"folder": tmp_path} if own_folder else {}
    with pytest.raises(MemoryError, match=r"batch=2: CUDA .*Try batch=1; .* 2 finished scores are kept") as told:
        score(pipe, **folder)
    forward[0].remove()
    kept = str(told.value).split("folder='")[1].split("'")[0]
    batches = []
    pipe.unet.register_forward_pre_hook(lambda m, a: batches.append(len(a[0])))
    found = score(pipe, folder=kept, batch=1)
    assert set(batches) == {2} and len(batches) == 3 * 3 * 2, "guidance doubles a batch of one; three were drawn"
    assert all(found.values()[p] == pytest.approx(v, rel=1e-3) for p, v in score().values().items())


def test_other_errors_are_passed_on() -> None:
    pipe = pipe_of("text")
    pipe.unet.mid_block.forward = lambda *a, **k: (_ for _ in ()).throw(RuntimeError("a shape is wrong"))
    with pytest.raises(RuntimeError, match="a shape is wrong"):
        score(pipe)


def test_how_is_chosen_for_a_path_or_a_kind(scores: Scores) -> None:
    path = "down_blocks.0.downsamplers.0"
    assert scores.operators[path].modifications[0] == "resample"
    other = score(how={"downsampler": "pointwise"})
    assert other.operators[path].modifications[0] == "pointwise" and other[path].changes == ((path, "pointwise"),)
    assert other.values()[path] != scores.values()[path]
    assert other.values()[PATHS[0]] == scores.values()[PATHS[0]]
    assert (path, "pointwise") in other.lowest(len(PATHS)).changes, "what was scored is what is planned"
    assert score(how={path: "pointwise"}).values() == other.values()
    with pytest.raises(ValueError, match=r"does not allow 'zero'. Known: 'resample'"):
        score(how={path: "zero"})
    with pytest.raises(KeyError, match="Did you mean 'downsampler'"):
        score(how={"downsamplr": "pointwise"})


def test_sets_of_changes_are_scored_together(scores: Scores) -> None:
    pipe = pipe_of("text")
    plans = [PATHS[:2], {PATHS[1]: "pointwise"}, scores.lowest(1), []]
    options = {k: v for k, v in SAMPLING.items()}
    both, pointwise, lowest, nothing = score_plans(pipe, PROMPTS["text"], plans, **options)
    sampler = LatentSampler(pipe, PROMPTS["text"], num_latents=3, steps=2, guidance_scale=2.0, batch=2)
    with change_operators(pipe.unet, PATHS[:2]):
        drawn = sampler.draw()
    assert torch.equal(both.avg, drawn.double().mean(0).float())
    assert pointwise.changes == ((PATHS[1], "pointwise"),) and nothing.mse == 0
    assert lowest.mse == scores[scores.ranked()[0]].mse


def test_paths_are_enough(scores: Scores) -> None:
    pipe = pipe_of("text")
    found = score_operators(pipe, PROMPTS["text"], operators=reversed(PATHS), **SAMPLING)
    assert found.values() == scores.values() and found.operators.paths == scores.operators.paths


def test_wrong_operators_are_refused_by_name() -> None:
    with pytest.raises(KeyError, match="Did you mean 'down_blocks.0.resnets.1'"):
        score(operators=["down_blocks.0.resnet.1"])
    with pytest.raises(ValueError, match="kind 'resnets' is unknown. Did you mean 'resnet'"):
        score(operators=None, kinds=["resnets"])
    with pytest.raises(ValueError, match="made for a UNet2DModel"):
        score(operators=find_operators(pipe_of("unconditional").unet))
    with pytest.raises(ValueError, match="made for a UNet2DModel"):
        score_plans(pipe_of("text"), ["lion"], [Plan((), find_operators(pipe_of("unconditional").unet).base)])


def test_an_unknown_family_says_what_it_needs() -> None:
    pipe = pipe_of("text")
    pipe.unet = pipe.vae
    with pytest.raises(TypeError, match="AutoencoderKL is not of a known family.*A family needs two things"):
        score(pipe, operators=None)


def test_a_compiled_denoiser_is_scored_as_it_is_inside(scores: Scores) -> None:
    pipe = pipe_of("text")
    inner = pipe.unet
    pipe.unet = torch.compile(inner, backend="eager")
    wrapper = pipe.unet
    assert score(pipe).values() == scores.values()
    assert pipe.unet is wrapper and wrapper._orig_mod is inner
