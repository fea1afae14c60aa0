"""Architectures without weights: the right files, no memory, and clear words for wrong names and files."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import DiTTransformer2DModel

from pruning_lib.loading import architectures, denoiser_config, denoiser_on_meta, models

DIT = {"num_attention_heads": 2, "attention_head_dim": 6, "num_layers": 1, "sample_size": 8, "out_channels": 8}


@pytest.mark.parametrize("name", architectures())
def test_every_architecture_has_shapes_and_no_values(name):
    model = denoiser_on_meta(name)
    tensors = [*model.parameters(), *model.buffers()]
    assert tensors and all(tensor.is_meta for tensor in tensors) and not model.training


def test_every_model_with_a_name_has_its_architecture():
    for info in models():
        config, _ = denoiser_config(info.name)
        assert config["_class_name"] == info.architecture, info.name


def test_configurations_are_those_published():
    # From each model's paper: latent size, channels or layers and width, width of the text.
    def config(name):
        return denoiser_config(name)[0]

    for name, size, width in [("sd-1.5", 64, 768), ("sd-1.4", 64, 768), ("sd-2.1", 96, 1024), ("sdxl", 128, 2048)]:
        assert (config(name)["sample_size"], config(name)["cross_attention_dim"]) == (size, width), name
    assert config("sd-1.5")["block_out_channels"] == [320, 640, 1280, 1280]
    assert config("sdxl")["transformer_layers_per_block"] == [1, 2, 10]
    for name, size in [("dit-xl-2-256", 32), ("pixart-alpha", 128)]:
        found = config(name)
        assert (found["num_layers"], found["num_attention_heads"] * found["attention_head_dim"]) == (28, 1152), name
        assert (found["patch_size"], found["sample_size"]) == (2, size), name
    assert config("ldm-celebahq-256")["block_out_channels"] == [224, 448, 672, 896]
    # Esser et al. 2024: depth 24 and width 64 x 24, two billion parameters.
    assert (config("sd-3-medium")["num_layers"], config("sd-3-medium")["num_attention_heads"]) == (24, 24)
    assert sum(p.numel() for p in denoiser_on_meta("sd-3-medium").parameters()) == 2_028_328_000


def test_folders_of_a_pipeline_and_of_a_denoiser(tmp_path):
    torch.manual_seed(0)
    model = DiTTransformer2DModel(**DIT)
    model.save_pretrained(tmp_path / "pipe/transformer")
    for folder in (tmp_path / "pipe", tmp_path / "pipe/transformer", str(tmp_path / "pipe")):
        built = denoiser_on_meta(folder)
        assert isinstance(built, DiTTransformer2DModel)
        assert {n: p.shape for n, p in built.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}
    assert denoiser_on_meta(tmp_path / "pipe").config._name_or_path == str(tmp_path / "pipe/transformer")


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(ValueError, match="Unknown architecture 'sd1.5'. Did you mean 'sd-1.5'"):
        denoiser_on_meta("sd1.5")
    with pytest.raises(ValueError, match="Known: .*'dit-xl-2-256'.*local folder"):
        denoiser_on_meta("zzzzzz")
    with pytest.raises(ValueError, match="Unknown architecture ''"):
        denoiser_on_meta("")


def test_a_folder_without_a_denoiser(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no denoiser: looked for unet/config.json"):
        denoiser_on_meta(tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"_class_name": "UNet', "not valid JSON.*Restore"),
        ("\x00", "not valid JSON"),
        ("[]", "no _class_name"),
        ('{"sample_size": 8}', "no _class_name"),
        (json.dumps({"_class_name": "NoSuchModel"}), "asks for NoSuchModel, which diffusers .* does not have"),
        (json.dumps({"_class_name": "logging"}), "asks for logging"),
    ],
)
def test_a_damaged_configuration(tmp_path, text, said):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=said) as caught:
        denoiser_on_meta(tmp_path)
    assert str(tmp_path / "config.json") in str(caught.value)
