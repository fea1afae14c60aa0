"""Denoisers: the inputs built from a configuration are inputs that the model accepts; and what tells two apart."""

from __future__ import annotations

import json
import re

import pytest
import torch
from small_denoisers import SMALL, build

from pruning_lib.denoisers import _FAMILIES, Fingerprint, denoiser_of, example_inputs


@torch.no_grad()
@pytest.mark.parametrize("name", SMALL)
def test_every_family_runs_on_its_inputs(name):
    model = build(name)
    inputs = example_inputs(model, batch=2, sample_size=8, device="cpu")  # Flux has no size of its own
    out = model(**inputs, return_dict=False)[0]
    assert len(out) == 2 and out.isfinite().all() and out.std() > 0
    assert {kind for kind, _ in SMALL.values()} == set(_FAMILIES), "every family is tested"


@torch.no_grad()
@pytest.mark.parametrize("kind", ["timestep", "identity", "projection", "simple_projection"])
def test_every_kind_of_class_embedding_runs(kind):
    unet = build(class_embed_type=kind, projection_class_embeddings_input_dim=6)
    out = unet(**example_inputs(unet, batch=2, device="cpu")).sample
    assert out.shape == (2, 4, 8, 8) and out.isfinite().all()


@torch.no_grad()
def test_variants_of_a_family():
    pixart = build("pixart", caption_channels=None)  # its text is not projected
    assert len(pixart(**example_inputs(pixart, batch=2, device="cpu")).sample) == 2
    unet = build()
    fork = type("MyUNet", (type(unet),), {})(**dict(unet.config.items()))
    assert example_inputs(fork)["sample"].shape == (1, 4, 8, 8), "subclasses count as their parent"
    assert example_inputs(torch.compile(unet)).keys() == example_inputs(unet).keys()


@torch.no_grad()
def test_size_tokens_type_and_seed_are_followed():
    unet = build()
    inputs = example_inputs(unet, sample_size=(8, 16), tokens=5, batch=3, device="cpu", dtype=torch.float64)
    assert inputs["sample"].shape == (3, 4, 8, 16) and inputs["encoder_hidden_states"].shape == (3, 5, 12)
    assert inputs["sample"].dtype == torch.float64 and inputs["timestep"].dtype == torch.long
    assert all(value.is_meta for value in example_inputs(unet).values()), "meta is the default"
    first, again, other = (example_inputs(unet, device="cpu", seed=s)["sample"] for s in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_the_text_length_of_the_same_pipeline_is_used(tmp_path):
    unet = build()
    assert example_inputs(unet)["encoder_hidden_states"].shape[1] == 77
    unet.save_pretrained(tmp_path / "unet")
    (tmp_path / "text_encoder").mkdir()
    beside = tmp_path / "text_encoder/config.json"
    for text, expected in [('{"max_position_embeddings": 24}', 24), ("no json", 77), (json.dumps({}), 77)]:
        beside.write_text(text)
        loaded = type(unet).from_pretrained(tmp_path / "unet", low_cpu_mem_usage=False)
        assert example_inputs(loaded)["encoder_hidden_states"].shape[1] == expected


def test_impossible_sizes():
    wrong = [("batch", 0), ("batch", True), ("tokens", -1)]
    wrong += [("sample_size", size) for size in (8.0, 0, (8, 8, 8), (8, 1.5))]
    for name, value in wrong:
        with pytest.raises(ValueError, match=re.escape(f"{name}={value}")):
            example_inputs(build(), **{name: value})


def test_what_cannot_be_built_is_named():
    with pytest.raises(ValueError, match="no sample_size. Pass sample_size=64"):
        example_inputs(build(sample_size=None))
    unet = build()
    unet.register_to_config(addition_embed_type="image")
    with pytest.raises(ValueError, match="addition_embed_type='image'"):
        example_inputs(unet)
    with pytest.raises(TypeError, match="Linear is not of a known family.*_FAMILIES"):
        example_inputs(torch.nn.Linear(2, 2))
    with pytest.raises(TypeError, match="pipe.unet or pipe.transformer"):
        example_inputs(type("Pipe", (), {"components": {}})())
    for wrong, said in ((unet, "looks like a denoiser"), ("sd-1.5", "got str")):
        with pytest.raises(TypeError, match=said):
            denoiser_of(wrong)


def test_a_fingerprint_is_of_the_structure_and_not_of_the_weights():
    unet, other = build(), build(block_out_channels=(8, 24))
    before = Fingerprint.of(unet)
    with torch.no_grad():
        unet.conv_in.weight.add_(1)
    assert Fingerprint.of(unet.half()) == before == Fingerprint(**before.to_dict())
    assert Fingerprint.of(other).structure != before.structure and "UNet2DConditionModel of" in str(before)
