"""Removal is physical, reversible on a live model, and survives a round trip through a folder."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMPipeline, DDPMScheduler, DiTPipeline
from safetensors.torch import load_file, save_file
from tiny_denoisers import make, run
from tiny_pipes import pipe_of
from torch import nn

from pruning_lib.operators.find import KINDS, find_operators
from pruning_lib.operators.plan import Plan, plan_for
from pruning_lib.operators.remove import CONFIG_KEY, change_operators, load_pruned, remove_operators

ATTENTION = "up_blocks.1.attentions.0.transformer_blocks.0"
CUT = ["mid_block.resnets.0", "down_blocks.1.resnets.0", f"{ATTENTION}.attn1"]
PLAIN = ["mid_block.attentions.0", "down_blocks.0.downsamplers.0", "up_blocks.0.resnets.0"]


def pipeline() -> DDPMPipeline:
    pipe = DDPMPipeline(make("unet"), DDPMScheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def bits(model: nn.Module) -> dict[str, bytes]:
    return {name: value.contiguous().view(torch.uint8).numpy().tobytes() for name, value in model.state_dict().items()}


def test_a_cut_is_physical_and_taken_back_bit_for_bit_also_after_an_error():
    model = make()
    out, weights, config = run(model), bits(model), dict(model.config)
    with pytest.raises(RuntimeError, match="stop"), change_operators(model, CUT) as handle:
        assert not torch.equal(run(model), out) and CONFIG_KEY in model.config
        assert "in place" in repr(handle) and CUT[0] in repr(handle)
        names = [name for name, _ in model.named_parameters()]
        for path in CUT:
            assert not [n for n in names if n.startswith(f"{path}.") and "conv_shortcut" not in n]
        # What is removed is gone with the norm that served it.
        assert f"{ATTENTION}.norm1.weight" not in names and f"{ATTENTION}.norm2.weight" in names
        raise RuntimeError("stop")
    handle.restore()
    assert torch.equal(run(model), out) and bits(model) == weights and dict(model.config) == config
    assert list(model.state_dict()) == list(weights) and "taken back" in repr(handle)


def test_round_trips_are_bit_equal_also_of_two_cuts_and_the_given_pipeline_stays(tmp_path):
    pipe = pipeline()
    before, config, weights = run(pipe.unet), dict(pipe.config), bits(pipe.unet)
    once = remove_operators(pipe, PLAIN[:1])
    small = remove_operators(once, PLAIN[1:])
    assert len(small.unet.config[CONFIG_KEY]["plans"]) == 2 and len(once.unet.config[CONFIG_KEY]["plans"]) == 1
    assert small.scheduler is pipe.scheduler and type(small) is type(pipe)
    small.save_pretrained(tmp_path / "small")
    back = load_pruned(tmp_path / "small")
    back.save_pretrained(tmp_path / "again")
    for unet in (back.unet, load_pruned(tmp_path / "again").unet):
        assert bits(unet) == bits(small.unet) and not unet.training and torch.equal(run(unet), run(small.unet))
    assert load_pruned(tmp_path / "small", dtype=torch.bfloat16).unet.dtype == torch.bfloat16
    with torch.no_grad():  # nothing trainable is shared
        for weight in small.unet.parameters():
            weight.zero_()
    assert bits(pipe.unet) == weights and torch.equal(run(pipe.unet), before)
    assert dict(pipe.config) == config and CONFIG_KEY not in pipe.unet.config


def test_tables_that_are_not_saved_are_computed_again(tmp_path):
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4)
    dit = DiTPipeline(make("dit"), vae, DDIMScheduler(), id2label={0: "cat"})
    small = remove_operators(dit, ["transformer_blocks.1", "transformer_blocks.0.attn1"])
    small.save_pretrained(tmp_path)
    assert torch.equal(run(load_pruned(tmp_path).transformer), run(small.transformer))


def test_a_plan_survives_its_file_drops_what_lies_inside_and_fits_one_structure(tmp_path):
    operators = find_operators(make("unet"), tuple(KINDS))
    plan = plan_for({CUT[0]: "identity", f"{CUT[0]}.conv1": None, CUT[1]: None}, operators)
    assert Plan.load(plan.save(tmp_path / "plan.json")) == plan and plan.paths == CUT[:2]
    assert "mid_block.resnets.0: identity" in str(plan)
    old = {"version": 1, "base": plan.base.to_dict(), "changes": plan.changes}
    assert Plan.from_dict(json.loads(json.dumps(old))) == plan, "as written before files said their format"
    (tmp_path / "plan.json").write_text('{"version": 1}')
    with pytest.raises(ValueError, match="plan.json is a damaged plan"):
        Plan.load(tmp_path / "plan.json")
    with pytest.raises(ValueError, match="made for a UNet2DModel.*this denoiser is a UNet2DConditionModel"):
        change_operators(make(), plan)
    other = pipeline()
    other.unet.conv_in.weight.data += 1  # other weights of the same structure, as after fine-tuning
    small = remove_operators(other, plan)
    with pytest.raises(ValueError, match="it was pruned before.*score this one"):
        remove_operators(small, plan)


def test_older_plans_take_the_norms_that_they_took(tmp_path):
    pipe = pipe_of("text")
    small = remove_operators(pipe, CUT)
    small.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "unet/config.json").read_text())
    assert config[CONFIG_KEY]["plans"][0].pop("norms") == [f"{ATTENTION}.norm1"]
    (tmp_path / "unet/config.json").write_text(json.dumps(config))
    assert bits(load_pruned(tmp_path).unet) == bits(small.unet)
    old = Plan.from_dict(config[CONFIG_KEY]["plans"][0])
    with change_operators(pipe.unet, old):
        assert bits(pipe.unet) == bits(small.unet)


def test_what_was_set_on_a_configuration_stays(tmp_path):
    """As image adapters do: an attribute, and no entry."""
    pipe = pipe_of("text")
    pipe.unet.config.encoder_hid_dim_type, pipe.unet.config["sample_size"] = "told", 99
    small = remove_operators(pipe, CUT)
    small.save_pretrained(tmp_path)
    assert small.unet.config.encoder_hid_dim_type == "told" and small.unet.config.sample_size == 8
    assert bits(load_pruned(tmp_path).unet) == bits(small.unet)


def test_bad_changes_change_nothing():
    model = make("unet")
    before = bits(model)
    for change, changes, says in (
        (change_operators, ["mid_block.resnets.9"], "mean 'mid_block.resnets.1'"),
        (change_operators, {CUT[0]: "zero"}, "does not allow 'zero'"),
        (remove_operators, CUT, "pass the pipeline"),
    ):
        with pytest.raises((KeyError, TypeError, ValueError), match=says):
            change(model, changes)
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
    config.write_text(text.replace('"layers_per_block": 1', '"layers_per_block": 2'))
    refused(ValueError, "plans in .* do not fit the configuration")
    config.write_text(text)
    tensors = load_file(weights)
    name = next(iter(tensors))
    save_file({"stranger" if key == name else key: value for key, value in tensors.items()}, weights)
    refused(ValueError, f"do not fit the plan.*Missing.*{name}.*Unexpected.*stranger")
    weights.unlink()
    refused(OSError, "no diffusion_pytorch_model")
