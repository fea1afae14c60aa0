"""`pl.load`, and denoisers without weights: names, folders, and every way to be told what went wrong."""

from __future__ import annotations

import os
import shutil

import pytest
import torch
from diffusers import DiffusionPipeline, DiTTransformer2DModel
from safetensors.torch import load_file, save_file

import pruning_book as pb
import pruning_lib as pl
from pruning_lib.denoisers import Fingerprint
from pruning_lib.loading import MODELS, ModelUnavailableError, default_guidance, denoiser_config, models_folder

SHIPPED = models_folder() / "emoji-sd"


@pytest.fixture
def copy(tmp_path):
    return shutil.copytree(SHIPPED, tmp_path / "copy")


def test_the_shipped_model_loads_quietly_and_draws(capfd):
    pipe = pl.load("emoji-sd")
    assert capfd.readouterr() == ("", "")
    assert pipe("lion", num_inference_steps=1).images[0].size == (64, 64) and pipe.unet.dtype is torch.float32
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
        ("sd15", {}, ValueError, "'sd-1.5'"),
        ("", {}, ValueError, "Unknown model ''.*'emoji-sd'"),
        (None, {}, TypeError, "not by None"),
        ("emoji-sd", {"dtype": torch.int8}, ValueError, "float16"),
        (SHIPPED, {"revision": "v2"}, ValueError, "revisions belong to the hub"),
        (SHIPPED / "unet", {}, FileNotFoundError, "model_index.json"),
    ],
)
def test_what_cannot_be_asked_for(name, options, error, said):
    with pytest.raises(error, match=said):
        pl.load(name, **options)


VAE = "vae/diffusion_pytorch_model.safetensors"
FAULTS = {
    "empty": (VAE, b"", "vae.*damaged"),
    "header is no text": (VAE, b"\x05" + b"\0" * 7 + b"{\xff\xfe}}", "vae.*damaged"),
    "header of another form": (VAE, b"\x07" + b"\0" * 7 + b'{"a":1}', "vae.*damaged"),
    "cut short": (VAE, (SHIPPED / VAE).read_bytes()[:-1000], "vae.*damaged"),
    "no tokenizer": ("tokenizer", None, "lacks tokenizer, which its model_index"),
    "half an index": ("model_index.json", b"{", "damaged"),
    "unknown pipeline": ("model_index.json", b'{"_class_name": "Nope"}', "could not be loaded.*Nope"),
    "half a configuration": ("unet/config.json", b"{", "unet"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_damage_and_gaps_are_named_not_filled_up(tmp_path, fault):
    name, data, said = FAULTS[fault]
    folder = shutil.copytree(SHIPPED, tmp_path / "links", copy_function=os.symlink)
    if data is None:
        shutil.rmtree(folder / name)
    else:
        (folder / name).unlink()
        (folder / name).write_bytes(data)
    with pytest.raises(ModelUnavailableError, match=f"{said}.*restore it"):
        pl.load(folder)


def test_weights_that_lack_a_tensor_are_named_not_made_up(copy):
    for file in (copy / "text_encoder/model.safetensors", copy / "unet/diffusion_pytorch_model.safetensors"):
        weights = load_file(file)
        save_file({name: weights[name] for name in sorted(weights)[1:]}, file, {"format": "pt"})
        with pytest.raises(ModelUnavailableError, match=rf"{file.parent.name} are not whole: they hold .* numbers"):
            pl.load(copy)
        save_file(weights, file, {"format": "pt"})


def test_a_pruned_folder_keeps_its_guidance_and_wants_its_own_weights(copy):
    small = pl.remove_operators(pl.load("emoji-sd"), ["mid_block.resnets.0"])
    small.save_pretrained(copy)
    assert default_guidance(pl.load(copy)) == 3
    shutil.copytree(SHIPPED / "unet", copy / "unet", ignore=lambda *_: ["config.json"], dirs_exist_ok=True)
    with pytest.raises(ModelUnavailableError, match="could not be loaded: The weights.*restore it"):
        pl.load(copy)


@pytest.mark.parametrize("how", ["channels", "blocks"])
def test_what_was_narrowed_is_loaded_bit_for_bit_and_knows_the_time(tmp_path, how):
    pipe, t = pl.load("emoji-sd"), torch.arange(0, 1000, 7)
    whole = pipe.unet
    pipe.unet = (pl.prune_structured(whole, 0.3) if how == "channels" else pl.remove_blocks(whole, "base")).unet
    pipe.save_pretrained(tmp_path)
    again = pl.load(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(pipe.unet.parameters(), again.unet.parameters(), strict=True))
    with torch.no_grad():
        old, new = (unet.time_embedding(unet.time_proj(t)) for unet in (whole, again.unet))
    assert (old - new).norm() / old.norm() < 0.1, "a narrower first level is fitted to fewer waves"


def test_the_judge_checks_its_name_device_and_weights(copy, monkeypatch):
    for call in (pb.load_clip, pb.captions, pb.training_images):
        with pytest.raises(ValueError, match="'emoji-sd'"):
            call("../models")
    with pytest.raises(ValueError, match="Unknown device 'gpu9'"):
        pb.load_clip(device="gpu9")
    monkeypatch.setattr("pruning_book.judge.models_folder", lambda: copy.parent)
    os.truncate(copy / "clip/model.safetensors", 1_000_000)
    with pytest.raises(ModelUnavailableError, match="clip.*damaged or cut short"):
        pb.load_clip("copy")


def test_a_hub_that_refuses_is_one_clear_message(monkeypatch):
    with pytest.raises(ModelUnavailableError, match="Could not load 'no/such-model'.*\n.*pl.load"):
        pl.load("no/such-model")  # through huggingface_hub itself, which the tests keep offline
    asked, errors = {}, [ImportError("pip install x"), Exception("read timed out\nmany lines of advice")]

    def refuse(repo, **options):
        asked.update(options, repo=repo)
        raise errors.pop()  # those of network libraries are no OSError

    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", refuse)
    with pytest.raises(ModelUnavailableError, match="read timed out\n.* 4 GiB") as caught:
        pl.load("sd-1.5")
    assert "many lines" not in str(caught.value) and asked["revision"] == MODELS["sd-1.5"].revision
    with pytest.raises(ImportError, match="pip install x"):
        pl.load("sd-1.5")


def test_models_are_pinned_and_their_configurations_those_published():
    for info in pl.models():
        assert len(info.revision) == 40 or "not pinned" in info.note or not info.repo
        assert denoiser_config(info.name)[0]["_class_name"] == info.architecture, info.name
    # What `test_macs.py` does not tell of each: latent size, channels, and of Esser et al. 2024 two billion parameters.
    sizes = {"sd-1.4": 64, "sd-2.1": 96, "sdxl": 128, "dit-xl-2-256": 32, "pixart-alpha": 128, "ldm-celebahq-256": 64}
    assert {name: denoiser_config(name)[0]["sample_size"] for name in sizes} == sizes
    assert denoiser_config("ldm-celebahq-256")[0]["block_out_channels"] == [224, 448, 672, 896]
    found = denoiser_config("pixart-alpha")[0]
    assert (found["num_layers"], found["num_attention_heads"] * found["attention_head_dim"]) == (28, 1152)
    model = pl.denoiser_on_meta("sd-3-medium")
    assert sum(p.numel() for p in model.parameters()) == 2_028_328_000 and not model.training
    assert all(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))


def test_folders_of_a_pipeline_and_of_a_denoiser(tmp_path):
    sizes = {"num_attention_heads": 2, "attention_head_dim": 6, "num_layers": 1, "sample_size": 8, "out_channels": 8}
    model = DiTTransformer2DModel(**sizes)
    model.save_pretrained(tmp_path / "pipe/transformer")
    for folder in (tmp_path / "pipe", str(tmp_path / "pipe/transformer")):
        built = pl.denoiser_on_meta(folder)
        assert Fingerprint.of(built) == Fingerprint.of(model)
        assert built.config._name_or_path == str(tmp_path / "pipe/transformer")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"_class_name": "UNet', "config.json is not valid JSON.*Restore"),
        ("[]", "config.json has no _class_name"),
        ('{"_class_name": "logging"}', "config.json asks for logging, which diffusers .* does not have"),
        (None, "holds no denoiser: looked for unet/config.json"),
    ],
)
def test_a_folder_without_a_whole_configuration(tmp_path, text, said):
    if text:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        pl.denoiser_on_meta(tmp_path)


def test_an_unknown_name_gets_the_nearest():
    for name, said in {"sd1.5": "'sd1.5'. Did you mean 'sd-1.5'", "": "architecture ''"}.items():
        with pytest.raises(ValueError, match=said):
            pl.denoiser_on_meta(name)
