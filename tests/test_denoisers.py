"""Denoisers: the inputs built from a configuration are inputs that the model accepts; and what tells two apart."""

from __future__ import annotations

import re

import pytest
import torch
from small_denoisers import SMALL, build

from pruning_lib.denoisers import _FAMILIES, Fingerprint, denoiser_of, example_inputs

VARIANTS = [(name, {}) for name in SMALL] + [("pixart", {"caption_channels": None})]  # its text is not projected
for embedding in ("timestep", "identity", "projection", "simple_projection"):
    VARIANTS.append(("unet", {"class_embed_type": embedding, "projection_class_embeddings_input_dim": 6}))


@torch.no_grad()
def test_every_family_runs_on_its_inputs():
    for name, changes in VARIANTS:
        model = build(name, **changes)
        out = model(**example_inputs(model, batch=2, sample_size=8, device="cpu"), return_dict=False)[0]
        assert len(out) == 2 and out.isfinite().all() and out.std() > 0, (name, changes)
    assert {kind for kind, _ in SMALL.values()} == set(_FAMILIES), "every family is tested"


def test_size_tokens_type_and_seed_are_followed(tmp_path):
    unet = build()
    inputs = example_inputs(unet, sample_size=(8, 16), tokens=5, batch=3, device="cpu", dtype=torch.float64)
    assert inputs["sample"].shape == (3, 4, 8, 16) and inputs["encoder_hidden_states"].shape == (3, 5, 12)
    assert inputs["sample"].dtype == torch.float64 and inputs["timestep"].dtype == torch.long
    assert all(value.is_meta for value in example_inputs(unet).values()), "meta is the default"
    first, again, other = (example_inputs(unet, device="cpu", seed=s)["sample"] for s in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    fork = type("MyUNet", (type(unet),), {})(**dict(unet.config.items()))
    assert example_inputs(fork)["encoder_hidden_states"].shape[1] == 77, "subclasses count as their parent"
    unet.save_pretrained(tmp_path / "unet")
    (tmp_path / "text_encoder").mkdir()
    loaded = type(unet).from_pretrained(tmp_path / "unet", low_cpu_mem_usage=False)
    for text, expected in [('{"max_position_embeddings": 24}', 24), ("no json", 77), ("{}", 77)]:
        (tmp_path / "text_encoder/config.json").write_text(text)
        assert example_inputs(loaded)["encoder_hidden_states"].shape[1] == expected


def test_what_cannot_be_built_is_named():
    unet, odd = build(), build()
    odd.register_to_config(addition_embed_type="image")
    wrong = [("batch", 0), ("tokens", -1), ("sample_size", (8, 8, 8)), ("sample_size", (8, 1.5))]
    cases = [(unet, {name: value}, re.escape(f"{name}={value}")) for name, value in wrong]
    cases += [
        (build(sample_size=None), {}, "no sample_size. Pass sample_size=64"),
        (odd, {}, "addition_embed_type='image'"),
        (torch.nn.Linear(2, 2), {}, "Linear is not of a known family.*call=captured"),
        (type("Pipe", (), {"components": {}})(), {}, "pipe.unet or pipe.transformer"),
    ]
    for denoiser, options, said in cases:
        with pytest.raises((TypeError, ValueError), match=said):
            example_inputs(denoiser, **options)
    for given, said in ((unet, "looks like a denoiser"), ("sd-1.5", "got str")):
        with pytest.raises(TypeError, match=said):
            denoiser_of(given)


def test_a_fingerprint_is_of_the_structure_and_not_of_the_weights():
    unet, other = build(), build(block_out_channels=(8, 24))
    before = Fingerprint.of(unet)
    with torch.no_grad():
        unet.conv_in.weight.add_(1)
    assert Fingerprint.of(unet.half()) == before == Fingerprint(**before.to_dict())
    assert Fingerprint.of(other).structure != before.structure and "UNet2DConditionModel of" in str(before)
