"""Removal is physical, reversible on a live model, and survives a round trip through a folder."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMPipeline, DDPMScheduler, DiffusionPipeline, DiTPipeline
from safetensors.torch import load_file, save_file
from tiny_denoisers import make, run
from torch import nn

import pruning_lib as pl
from pruning_lib.operators.find import KINDS, find_operators
from pruning_lib.operators.plan import Plan, plan_for
from pruning_lib.operators.remove import CONFIG_KEY, change_operators, load_pruned, remove_operators

CUT = ["mid_block.resnets.0", "down_blocks.1.resnets.0", "up_blocks.1.attentions.0.transformer_blocks.0.attn1"]
PLAIN = ["mid_block.attentions.0", "down_blocks.0.downsamplers.0", "up_blocks.0.resnets.0"]


def pipeline(name: str = "unet", seed: int = 0) -> DDPMPipeline:
    return DDPMPipeline(make(name, seed), DDPMScheduler())


def picture(pipe) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    return pipe(num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="np").images


def bits(model: nn.Module) -> dict[str, bytes]:
    return {name: value.contiguous().view(torch.uint8).numpy().tobytes() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("how", ["by hand", "after an error"])
def test_a_cut_is_taken_back_bit_for_bit(how):
    model = make()
    out, weights, config = run(model), bits(model), dict(model.config)
    handle = change_operators(model, CUT)
    assert not torch.equal(run(model), out) and CONFIG_KEY in model.config
    assert "in place" in repr(handle) and CUT[0] in repr(handle)
    if how == "by hand":
        handle.restore()
        handle.restore()
    else:
        with pytest.raises(RuntimeError, match="stop"), handle:
            raise RuntimeError("stop")
    assert torch.equal(run(model), out) and bits(model) == weights and dict(model.config) == config
    assert list(model.state_dict()) == list(weights) and "taken back" in repr(handle)


def test_what_is_removed_is_gone_with_the_norm_that_served_it():
    pipe = pipeline("unet with text")
    small = remove_operators(pipe, CUT).unet
    names = [name for name, _ in small.named_parameters()]
    for path in CUT:
        assert not [n for n in names if n.startswith(f"{path}.") and "conv_shortcut" not in n]
    assert "up_blocks.1.attentions.0.transformer_blocks.0.norm1.weight" not in names
    assert "up_blocks.1.attentions.0.transformer_blocks.0.norm2.weight" in names
    assert pl.count_macs(small).macs < pl.count_macs(pipe.unet).macs


def test_the_given_pipeline_stays_and_nothing_trainable_is_shared():
    pipe = pipeline()
    before, config = picture(pipe), dict(pipe.config)
    small = remove_operators(pipe, PLAIN)
    with torch.no_grad():
        for weight in small.unet.parameters():
            weight.zero_()
    assert (picture(pipe) == before).all() and dict(pipe.config) == config
    assert small.scheduler is pipe.scheduler and type(small) is type(pipe)
    assert CONFIG_KEY not in pipe.unet.config


def test_round_trips_are_bit_equal_also_of_two_cuts_in_a_row(tmp_path):
    once = remove_operators(pipeline(), PLAIN[:1])
    small = remove_operators(once, PLAIN[1:])
    assert len(small.unet.config[CONFIG_KEY]["plans"]) == 2 and len(once.unet.config[CONFIG_KEY]["plans"]) == 1
    small.save_pretrained(tmp_path / "small")
    back = load_pruned(tmp_path / "small")
    assert bits(back.unet) == bits(small.unet) and not back.unet.training
    assert (picture(back) == picture(small)).all()
    assert back.unet.config[CONFIG_KEY] == json.loads((tmp_path / "small/unet/config.json").read_text())[CONFIG_KEY]
    back.save_pretrained(tmp_path / "again")
    assert bits(load_pruned(tmp_path / "again").unet) == bits(small.unet)
    assert load_pruned(tmp_path / "small", dtype=torch.bfloat16).unet.dtype == torch.bfloat16


def test_tables_that_are_not_saved_are_computed_again(tmp_path):
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4)
    dit = DiTPipeline(make("dit"), vae, DDIMScheduler(), id2label={0: "cat"})
    small = remove_operators(dit, ["transformer_blocks.1", "transformer_blocks.0.attn1"])
    small.save_pretrained(tmp_path)
    assert torch.equal(run(load_pruned(tmp_path).transformer), run(small.transformer))


def test_plain_diffusers_warns(tmp_path, caplog):
    remove_operators(pipeline(), PLAIN).save_pretrained(tmp_path)
    logger = logging.getLogger("diffusers")
    logger.propagate, before = True, logger.propagate
    try:
        DiffusionPipeline.from_pretrained(tmp_path)
    finally:
        logger.propagate = before
    assert CONFIG_KEY in caplog.text and "newly initialized" in caplog.text


def test_a_plan_for_another_model_is_refused():
    plan = plan_for(PLAIN, find_operators(make("unet"), tuple(KINDS)))
    with pytest.raises(ValueError, match="made for a UNet2DModel.*this denoiser is a UNet2DConditionModel"):
        change_operators(make(), plan)
    with pytest.raises(ValueError, match="score this one"):
        remove_operators(pipeline("unet with resampling resnets"), plan)
    small = remove_operators(pipeline(seed=1), plan)  # other weights of the same structure, as after fine-tuning
    with pytest.raises(ValueError, match="it was pruned before"):
        remove_operators(small, plan)


def test_a_plan_survives_its_file_and_drops_what_lies_inside(tmp_path):
    operators = find_operators(make(), tuple(KINDS))
    plan = plan_for({CUT[0]: "identity", f"{CUT[0]}.conv1": None, CUT[1]: None}, operators)
    assert Plan.load(plan.save(tmp_path / "plan.json")) == plan and plan.paths == CUT[:2]
    assert "mid_block.resnets.0: identity" in str(plan)
    old = {"version": 1, "base": plan.base.to_dict(), "changes": plan.changes}
    assert Plan.from_dict(json.loads(json.dumps(old))) == plan, "as written before files said their format"


def test_a_damaged_plan_is_named(tmp_path):
    (tmp_path / "plan.json").write_text('{"version": 1}')
    with pytest.raises(ValueError, match="plan.json is a damaged plan"):
        Plan.load(tmp_path / "plan.json")


@pytest.mark.parametrize(
    ("attempt", "kind", "says"),
    [
        (lambda m: change_operators(m, ["mid_block.resnets.9"]), KeyError, "mean 'mid_block.resnets.1' or 'mid_block"),
        (lambda m: change_operators(m, {"mid_block.resnets.0": "zero"}), ValueError, "does not allow 'zero'"),
        (lambda m: remove_operators(m, CUT), TypeError, "pass the pipeline"),
    ],
)
def test_bad_changes_change_nothing(attempt, kind, says):
    model = make()
    before = bits(model)
    with pytest.raises(kind, match=says):
        attempt(model)
    assert bits(model) == before and CONFIG_KEY not in model.config


def test_folders_that_do_not_fit_are_refused(tmp_path):
    def refused(kind, says):
        with pytest.raises(kind, match=says):
            load_pruned(tmp_path)

    refused(OSError, "model_index.json")
    pipeline().save_pretrained(tmp_path)
    refused(ValueError, "was not pruned here")
    remove_operators(pipeline(), PLAIN).save_pretrained(tmp_path)
    config, weights = tmp_path / "unet/config.json", tmp_path / "unet/diffusion_pytorch_model.safetensors"
    text = config.read_text()
    for old, new in (('"layers_per_block": 1', '"layers_per_block": 2'), ("UNet2DModel", "UNet7DModel")):
        config.write_text(text.replace(old, new))
        refused(ValueError, "plans in .* do not fit the configuration")
    config.write_text(text)
    tensors = load_file(weights)
    name = next(iter(tensors))
    save_file({k: v for k, v in tensors.items() if k != name}, weights)
    refused(ValueError, f"missing: {name}")
    save_file({**tensors, "stranger": tensors[name].clone()}, weights)
    refused(ValueError, "unknown: stranger")
    weights.unlink()
    refused(OSError, "no diffusion_pytorch_model")
