"""`pl.load`, and denoisers without weights: names, folders, and every way to be told what went wrong."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from diffusers import DiffusionPipeline, DiTTransformer2DModel
from safetensors.torch import load_file, save_file

import pruning_book as pb
import pruning_lib as pl
from pruning_lib.loading import (
    MODELS,
    ModelUnavailableError,
    architectures,
    default_guidance,
    denoiser_config,
    models_folder,
)

SHIPPED = models_folder() / "emoji-sd"


@pytest.fixture
def copy(tmp_path):
    return shutil.copytree(SHIPPED, tmp_path / "copy")


def test_the_shipped_model_loads_quietly_and_generates(capfd):
    pipe = pl.load("emoji-sd")
    assert capfd.readouterr() == ("", "")
    image = pipe("lion", num_inference_steps=2, guidance_scale=3).images[0]
    assert image.size == (64, 64) and pipe.unet.dtype is torch.float32 and default_guidance(pipe) == 3
    assert sum(p.stat().st_size for p in SHIPPED.rglob("*.safetensors")) <= 25_000_000


def test_captions_and_real_images_belong_together():
    texts, images = pb.captions(), pb.training_images()
    assert len(texts) == len(set(texts)) == len(images) >= 256
    assert images.shape[1:] == (3, 64, 64) and images.dtype == torch.uint8
    heart = images[texts.index("red heart")].float().mean((1, 2))
    assert heart[0] > heart[1] + 20 and heart[0] > heart[2] + 20  # red, not grey


@pytest.mark.parametrize(
    ("name", "options", "error", "said"),
    [
        ("emoji_sd", {}, ValueError, "'emoji-sd'"),
        ("sd15", {}, ValueError, "'sd-1.5'"),
        ("zzzzzz", {}, ValueError, ".*".join(map(repr, MODELS))),
        ("", {}, ValueError, "Unknown model ''"),
        (None, {}, TypeError, "not by None"),
        ("emoji-sd", {"device": "gpu9"}, ValueError, "Unknown device 'gpu9'"),
        ("emoji-sd", {"dtype": torch.int8}, ValueError, "float16"),
        ("emoji-sd", {"revision": "v2"}, ValueError, "revisions belong to the hub"),
        (SHIPPED, {"revision": "v2"}, ValueError, "revisions belong to the hub"),
        (SHIPPED / "unet", {}, FileNotFoundError, "model_index.json"),
    ],
)
def test_what_cannot_be_asked_for(name, options, error, said):
    with pytest.raises(error, match=said):
        pl.load(name, **options)


VAE = "vae/diffusion_pytorch_model.safetensors"
HEADERS = {
    "empty": b"",
    "noise": b"\xff" * 64,
    "header longer than the file": (10**12).to_bytes(8, "little") + b"{}",
    "header is no text": b"\x05" + b"\0" * 7 + b"{\xff\xfe}}",
    "header is no object": b"\x02" + b"\0" * 7 + b"[]",
    "header of another form": b"\x07" + b"\0" * 7 + b'{"a":1}',
    "cut short": (SHIPPED / VAE).read_bytes()[:-1000],
}


def test_damage_and_gaps_are_named_not_filled_up(tmp_path):
    """Of each kind one fault, in a folder of links to the shipped files, and what is said of it."""
    faults = [(VAE, data, "vae.*damaged") for data in HEADERS.values()]
    faults += [(part, None, f"lacks {part}, which its model_index") for part in ("tokenizer", "scheduler", "vae")]
    faults += [
        ("model_index.json", b"{", "damaged"),
        ("model_index.json", b"[]", "damaged"),
        ("model_index.json", b'{"_class_name": "Nope"}', "could not be loaded.*Nope"),
        ("unet/config.json", b"{", "unet"),
        ("text_encoder/config.json", b"{", "text_encoder"),
    ]
    for i, (name, data, said) in enumerate(faults):
        folder = shutil.copytree(SHIPPED, tmp_path / str(i), copy_function=os.symlink)
        if data is None:
            shutil.rmtree(folder / name)
        else:
            (folder / name).unlink()
            (folder / name).write_bytes(data)
        with pytest.raises(ModelUnavailableError, match=f"{said}.*restore it"):
            pl.load(folder)


@pytest.mark.parametrize("file", ["unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"])
def test_weights_that_lack_a_tensor_are_named_not_made_up(copy, file):
    weights = load_file(copy / file)
    del weights[sorted(weights)[3]]
    save_file(weights, copy / file, {"format": "pt"})
    with pytest.raises(ModelUnavailableError, match=rf"{file.split('/')[0]} are not whole: they hold .* numbers"):
        pl.load(copy)


def test_a_pruned_folder_with_the_weights_of_another_is_named_not_filled_up(copy):
    small = pl.remove_operators(pl.load("emoji-sd"), ["mid_block.resnets.0"])
    small.save_pretrained(copy)
    shutil.copytree(SHIPPED / "unet", copy / "unet", ignore=lambda *_: ["config.json"], dirs_exist_ok=True)
    with pytest.raises(ModelUnavailableError, match="do not fit the plan.*mid_block.resnets.0"):
        pl.load(copy)


@pytest.mark.parametrize("name", ["", "../models", "emoji_sd", None])
def test_judge_and_captions_of_an_unknown_model(name):
    for call in (pb.load_clip, pb.captions, pb.training_images):
        with pytest.raises(ValueError, match="'emoji-sd'"):
            call(name)


def test_the_judge_checks_its_device_and_weights(copy, monkeypatch):
    with pytest.raises(ValueError, match="Unknown device 'gpu9'"):
        pb.load_clip(device="gpu9")
    monkeypatch.setattr("pruning_book.judge.models_folder", lambda: copy.parent)
    os.truncate(copy / "clip/model.safetensors", 1_000_000)
    with pytest.raises(ModelUnavailableError, match="clip.*damaged or cut short"):
        pb.load_clip("copy")


class Timeout(Exception):
    """As httpx has it: no OSError."""


@pytest.mark.parametrize(
    ("name", "error", "expected"),
    [
        ("sd-1.5", OSError("We couldn't connect to the hub.\nmany lines of advice"), ModelUnavailableError),
        ("someone/some-model", Timeout("read timed out"), ModelUnavailableError),
        ("sd-1.5", ImportError("pip install x"), ImportError),
    ],
)
def test_a_hub_that_refuses_is_one_clear_message(name, error, expected, monkeypatch):
    asked = {}

    def refuse(repo, **options):
        asked.update(options, repo=repo)
        raise error

    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", refuse)
    with pytest.raises(expected, match=str(error).partition("\n")[0]) as caught:
        pl.load(name)
    message = str(caught.value)
    assert "many lines" not in message
    if expected is ModelUnavailableError:
        assert "pl.load('emoji-sd')" in message and ("4 GiB" in message) == (name in MODELS)
    if name in MODELS:
        assert asked["repo"].startswith("stable-diffusion-v1-5/") and asked["revision"] == MODELS[name].revision


def test_really_no_network(tmp_path):
    """The real path through huggingface_hub, with every connection refused; the shipped model needs none."""
    code = (
        "import pruning_lib as pl\n"
        "from pruning_lib.loading import ModelUnavailableError\n"
        "pl.load('emoji-sd')\n"
        "try:\n    pl.load('sd-1.5')\nexcept ModelUnavailableError as e:\n    print('CLEAR', e)"
    )
    env = {"HOME": str(tmp_path), "HF_HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9", "PATH": ""}
    env |= {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=240)
    assert "CLEAR Could not load 'stable-diffusion-v1-5/" in done.stdout, done.stderr[-2000:]


def test_every_known_model_says_what_a_reader_needs_and_has_its_architecture():
    for info in pl.models():
        assert info.licence and info.memory_gib > 0
        assert len(info.revision) == 40 or "not pinned" in info.note or not info.repo
        assert denoiser_config(info.name)[0]["_class_name"] == info.architecture, info.name


@pytest.mark.parametrize("name", architectures())
def test_every_architecture_has_shapes_and_no_values(name):
    model = pl.denoiser_on_meta(name)
    tensors = [*model.parameters(), *model.buffers()]
    assert tensors and all(tensor.is_meta for tensor in tensors) and not model.training


def test_configurations_are_those_published():
    # From each model's paper: latent size, channels or layers and width, width of the text.
    config = {name: denoiser_config(name)[0] for name in architectures()}
    for name, size, width in [("sd-1.5", 64, 768), ("sd-1.4", 64, 768), ("sd-2.1", 96, 1024), ("sdxl", 128, 2048)]:
        assert (config[name]["sample_size"], config[name]["cross_attention_dim"]) == (size, width), name
    assert config["sd-1.5"]["block_out_channels"] == [320, 640, 1280, 1280]
    assert config["sdxl"]["transformer_layers_per_block"] == [1, 2, 10]
    for name, size in [("dit-xl-2-256", 32), ("pixart-alpha", 128)]:
        found = config[name]
        assert (found["num_layers"], found["num_attention_heads"] * found["attention_head_dim"]) == (28, 1152), name
        assert (found["patch_size"], found["sample_size"]) == (2, size), name
    assert config["ldm-celebahq-256"]["block_out_channels"] == [224, 448, 672, 896]
    # Esser et al. 2024: depth 24 and width 64 x 24, two billion parameters.
    assert (config["sd-3-medium"]["num_layers"], config["sd-3-medium"]["num_attention_heads"]) == (24, 24)
    assert sum(p.numel() for p in pl.denoiser_on_meta("sd-3-medium").parameters()) == 2_028_328_000


def test_folders_of_a_pipeline_and_of_a_denoiser(tmp_path):
    sizes = {"num_attention_heads": 2, "attention_head_dim": 6, "num_layers": 1, "sample_size": 8, "out_channels": 8}
    model = DiTTransformer2DModel(**sizes)
    model.save_pretrained(tmp_path / "pipe/transformer")
    for folder in (tmp_path / "pipe", tmp_path / "pipe/transformer", str(tmp_path / "pipe")):
        built = pl.denoiser_on_meta(folder)
        assert isinstance(built, DiTTransformer2DModel)
        assert {n: p.shape for n, p in built.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}
        assert built.config._name_or_path == str(tmp_path / "pipe/transformer")


def test_an_unknown_name_gets_the_nearest_and_a_folder_what_was_looked_for(tmp_path):
    wrong = {"sd1.5": "Unknown architecture 'sd1.5'. Did you mean 'sd-1.5'", "": "Unknown architecture ''"}
    for name, said in {**wrong, "zzzzzz": "Known: .*'dit-xl-2-256'.*local folder"}.items():
        with pytest.raises(ValueError, match=said):
            pl.denoiser_on_meta(name)
    with pytest.raises(FileNotFoundError, match="holds no denoiser: looked for unet/config.json"):
        pl.denoiser_on_meta(tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"_class_name": "UNet', "not valid JSON.*Restore"),
        ("[]", "no _class_name"),
        ('{"sample_size": 8}', "no _class_name"),
        (json.dumps({"_class_name": "NoSuchModel"}), "asks for NoSuchModel, which diffusers .* does not have"),
        (json.dumps({"_class_name": "logging"}), "asks for logging"),
    ],
)
def test_a_damaged_configuration_of_a_denoiser(tmp_path, text, said):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=said) as caught:
        pl.denoiser_on_meta(tmp_path)
    assert str(tmp_path / "config.json") in str(caught.value)
