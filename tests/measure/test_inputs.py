"""The inputs built from a configuration are inputs that the model accepts."""

from __future__ import annotations

import json

import pytest
import torch

from pruning_lib.denoisers import example_inputs, families


@torch.no_grad()
def test_every_family_runs_on_its_inputs(denoiser):
    size = 8  # also for Flux, whose configuration holds no size
    inputs = example_inputs(denoiser, batch=2, sample_size=size, device="cpu")
    out = denoiser(**inputs, return_dict=False)[0]
    assert len(out) == 2 and out.isfinite().all() and out.std() > 0


def test_every_family_is_tested(build):
    from .conftest import SMALL

    assert {cls.__name__ for cls, _ in SMALL.values()} == set(families())


@torch.no_grad()
def test_size_tokens_and_type_are_followed(unet):
    inputs = example_inputs(unet, sample_size=(8, 16), tokens=5, batch=3, device="cpu", dtype=torch.float64)
    assert inputs["sample"].shape == (3, 4, 8, 16) and inputs["encoder_hidden_states"].shape == (3, 5, 12)
    assert inputs["sample"].dtype == torch.float64 and inputs["timestep"].dtype == torch.long
    assert unet.double()(**inputs).sample.shape == (3, 4, 8, 16)


def test_meta_is_the_default_and_the_seed_decides_elsewhere(unet):
    assert all(value.is_meta for value in example_inputs(unet).values())
    first, again, other = (example_inputs(unet, device="cpu", seed=s)["sample"] for s in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert example_inputs(unet)["encoder_hidden_states"].shape[1] == 77


def test_the_text_length_of_the_same_pipeline_is_used(unet, tmp_path):
    unet.save_pretrained(tmp_path / "unet")
    (tmp_path / "text_encoder").mkdir()
    beside = tmp_path / "text_encoder/config.json"
    for text, expected in [('{"max_position_embeddings": 24}', 24), ("no json", 77), (json.dumps({}), 77)]:
        beside.write_text(text)
        loaded = type(unet).from_pretrained(tmp_path / "unet", low_cpu_mem_usage=False)
        assert example_inputs(loaded)["encoder_hidden_states"].shape[1] == expected


def test_subclasses_count_as_their_parent(unet):
    fork = type("MyUNet", (type(unet),), {})(**dict(unet.config.items()))
    assert example_inputs(fork)["sample"].shape == (1, 4, 8, 8)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch": 0}, "batch=0"),
        ({"batch": True}, "batch=True"),
        ({"tokens": -1}, "tokens=-1"),
        ({"sample_size": 8.0}, "sample_size=8.0"),
        ({"sample_size": 0}, "sample_size=0"),
        ({"sample_size": (8, 8, 8)}, r"sample_size=\(8, 8, 8\)"),
        ({"sample_size": (8, 1.5)}, "1.5"),
    ],
)
def test_impossible_sizes(unet, options, said):
    with pytest.raises(ValueError, match=said):
        example_inputs(unet, **options)


def test_a_model_without_a_size_asks_for_one(build):
    unet = build("unet", sample_size=None)
    with pytest.raises(ValueError, match="no sample_size. Pass sample_size=64"):
        example_inputs(unet)


def test_what_is_no_denoiser(unet):
    class Pipe:
        components = {"unet": unet}

    with pytest.raises(TypeError, match="pipe.unet or pipe.transformer"):
        example_inputs(Pipe())
    with pytest.raises(TypeError, match="Linear is not of a known family.*_FAMILIES"):
        example_inputs(torch.nn.Linear(2, 2))
    with pytest.raises(TypeError, match="got str"):
        example_inputs("sd-1.5")


@torch.no_grad()
@pytest.mark.parametrize("kind", ["timestep", "identity", "projection", "simple_projection"])
def test_every_kind_of_class_embedding_runs(build, kind):
    unet = build("unet", class_embed_type=kind, projection_class_embeddings_input_dim=6)
    out = unet(**example_inputs(unet, batch=2, device="cpu")).sample
    assert out.shape == (2, 4, 8, 8) and out.isfinite().all()


@torch.no_grad()
def test_pixart_whose_text_is_not_projected(build):
    pixart = build("pixart", caption_channels=None)
    assert len(pixart(**example_inputs(pixart, batch=2, device="cpu")).sample) == 2


def test_a_compiled_model_counts_as_what_it_wraps(unet):
    assert example_inputs(torch.compile(unet)).keys() == example_inputs(unet).keys()


def test_an_unknown_kind_of_extra_condition_is_named(build):
    unet = build("unet")
    unet.register_to_config(addition_embed_type="image")
    with pytest.raises(ValueError, match="addition_embed_type='image'"):
        example_inputs(unet)
