"""`pl.load`: the shipped model, folders, and every way to be told what went wrong."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

import pruning_book as pb
import pruning_lib as pl
from pruning_lib.loading import MODELS, ModelUnavailableError, models_folder

SHIPPED = models_folder() / "emoji-sd"


def test_the_shipped_model_generates():
    pipe = pl.load("emoji-sd")
    image = pipe("lion", num_inference_steps=2, guidance_scale=3).images[0]
    assert image.size == (64, 64) and pipe.unet.dtype is torch.float32


def test_it_loads_offline_in_under_five_seconds(tmp_path):
    code = (
        "import time, torch, diffusers, transformers, pruning_lib as pl\n"
        "from diffusers import StableDiffusionPipeline\n"
        "start = time.perf_counter(); pl.load('emoji-sd'); print(time.perf_counter() - start)"
    )
    env = {
        "PATH": "",
        "HOME": str(tmp_path),
        "HF_HOME": str(tmp_path),
        "http_proxy": "http://127.0.0.1:9",
        "https_proxy": "http://127.0.0.1:9",
    }
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    assert float(done.stdout) < 5
    assert not list(tmp_path.rglob("*.safetensors"))


def test_loading_says_nothing(capfd):
    pl.load("emoji-sd")
    out, err = capfd.readouterr()
    assert not out and not err


def test_weights_fit_in_twenty_five_megabytes():
    assert sum(p.stat().st_size for p in SHIPPED.rglob("*.safetensors")) <= 25_000_000


def test_captions_and_real_images_belong_together():
    texts, images = pb.captions(), pb.training_images()
    assert len(texts) == len(set(texts)) == len(images) >= 256
    assert images.shape[1:] == (3, 64, 64) and images.dtype == torch.uint8
    heart = images[texts.index("red heart")].float().mean((1, 2))
    assert heart[0] > heart[1] + 20 and heart[0] > heart[2] + 20  # red, not grey


@pytest.mark.parametrize("asked, meant", [("emoji_sd", "emoji-sd"), ("sd15", "sd-1.5"), ("pixart", "pixart-alpha")])
def test_unknown_name_suggests_the_nearest(asked, meant):
    with pytest.raises(ValueError, match=meant):
        pl.load(asked)


def test_an_unlike_name_lists_all():
    with pytest.raises(ValueError) as caught:
        pl.load("zzzzzz")
    assert all(name in str(caught.value) for name in MODELS)


def test_wrong_device_and_dtype():
    with pytest.raises(ValueError, match="Unknown device 'gpu9'"):
        pl.load("emoji-sd", device="gpu9")
    with pytest.raises(ValueError, match="float16"):
        pl.load("emoji-sd", dtype=torch.int8)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="Runtime > Change runtime type"):
            pl.load("emoji-sd", device="cuda")


def test_a_folder_that_is_no_pipeline(tmp_path):
    with pytest.raises(FileNotFoundError, match="model_index.json"):
        pl.load(tmp_path)


@pytest.fixture
def copy(tmp_path):
    return shutil.copytree(SHIPPED, tmp_path / "copy")


def test_a_local_folder_loads(copy):
    assert pl.load(copy).unet.config.sample_size == 16


def test_truncated_weights_are_named(copy):
    path = copy / "unet/diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ModelUnavailableError, match=r"unet.*damaged or cut short.*bytes"):
        pl.load(copy)


JUNK = {
    "empty": b"",
    "noise": b"\xff" * 64,
    "header longer than the file": (10**12).to_bytes(8, "little") + b"{}",
    "header is no text": b"\x05" + b"\0" * 7 + b"{\xff\xfe}}",
    "header is no object": b"\x02" + b"\0" * 7 + b"[]",
    "header of another form": b"\x07" + b"\0" * 7 + b'{"a":1}',
}


@pytest.mark.parametrize("junk", JUNK.values(), ids=JUNK.keys())
def test_corrupt_weights_are_named(copy, junk):
    (copy / "vae/diffusion_pytorch_model.safetensors").write_bytes(junk)
    with pytest.raises(ModelUnavailableError, match="vae.*damaged"):
        pl.load(copy)


@pytest.mark.parametrize("file", ["unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"])
def test_weights_that_lack_a_tensor_are_named_not_made_up(copy, file):
    weights = load_file(copy / file)
    del weights[sorted(weights)[3]]
    save_file(weights, copy / file, {"format": "pt"})
    with pytest.raises(ModelUnavailableError, match=rf"{file.split('/')[0]} are not whole: they hold .* numbers"):
        pl.load(copy)


@pytest.mark.parametrize("part", ["tokenizer", "scheduler", "vae"])
def test_a_missing_part_is_named(copy, part):
    shutil.rmtree(copy / part)
    with pytest.raises(ModelUnavailableError, match=f"lacks {part}, which its model_index"):
        pl.load(copy)


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("model_index.json", "{", "damaged"),
        ("model_index.json", "[]", "damaged"),
        ("unet/config.json", "{", "unet"),
        ("model_index.json", '{"_class_name": "Nope"}', "could not be loaded.*Nope"),
        ("text_encoder/config.json", "{", "text_encoder"),
    ],
)
def test_damaged_configurations_are_named(copy, file, text, said):
    (copy / file).write_text(text)
    with pytest.raises(ModelUnavailableError, match=f"{said}.*restore it"):
        pl.load(copy)


def test_what_is_no_name():
    with pytest.raises(TypeError, match="not by None"):
        pl.load(None)
    with pytest.raises(ValueError, match="Unknown model ''"):
        pl.load("")


@pytest.mark.parametrize("name", ["", "../models", "emoji_sd", None])
def test_judge_and_captions_of_an_unknown_model(name):
    for call in (pb.load_clip, pb.captions, pb.training_images):
        with pytest.raises(ValueError, match="'emoji-sd'"):
            call(name)


def test_the_judge_checks_its_device_and_weights(copy, monkeypatch):
    with pytest.raises(ValueError, match="Unknown device 'gpu9'"):
        pb.load_clip(device="gpu9")
    monkeypatch.setattr("pruning_book.judge.models_folder", lambda: copy.parent)
    path = copy / "clip/model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ModelUnavailableError, match="clip.*damaged or cut short"):
        pb.load_clip("copy")


@pytest.mark.parametrize("name", ["sd-1.5", "someone/some-model"])
def test_no_network_is_one_clear_message(name, monkeypatch):
    from diffusers import DiffusionPipeline

    asked = {}

    def refuse(repo, **options):
        asked.update(options, repo=repo)
        raise OSError("We couldn't connect to the hub.\nmany lines of advice")

    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", refuse)
    with pytest.raises(ModelUnavailableError) as caught:
        pl.load(name)
    message = str(caught.value)
    assert "couldn't connect" in message and "pl.load('emoji-sd')" in message and "many lines" not in message
    if name == "sd-1.5":
        assert asked["revision"] == MODELS["sd-1.5"].revision and "4 GiB" in message
        assert asked["repo"].startswith("stable-diffusion-v1-5/")


def test_errors_of_network_libraries_are_told_and_missing_packages_keep_their_own_words(monkeypatch):
    from diffusers import DiffusionPipeline

    class Timeout(Exception):
        """As httpx has it: no OSError."""

    for error, expected in (
        (Timeout("read timed out"), ModelUnavailableError),
        (ImportError("pip install x"), ImportError),
    ):

        def refuse(*_, error=error, **__):
            raise error

        monkeypatch.setattr(DiffusionPipeline, "from_pretrained", refuse)
        with pytest.raises(expected, match=str(error)):
            pl.load("sd-1.5")


def test_really_no_network(tmp_path):
    """The real path through huggingface_hub, with every connection refused."""
    code = (
        "import pruning_lib as pl\n"
        "from pruning_lib.loading import ModelUnavailableError\n"
        "try:\n    pl.load('sd-1.5')\nexcept ModelUnavailableError as e:\n    print('CLEAR', e)"
    )
    env = {"HOME": str(tmp_path), "HF_HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9", "PATH": ""}
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=240)
    assert "CLEAR Could not load 'stable-diffusion-v1-5/" in done.stdout, done.stderr[-2000:]
    assert time.perf_counter() - start < 200


def test_every_known_model_says_what_a_reader_needs():
    for info in pl.models():
        assert info.licence and info.memory_gib > 0 and info.architecture
        if info.repo:
            assert len(info.revision) == 40 or "not pinned" in info.note


def test_a_revision_of_something_local_is_refused(copy):
    for name in ("emoji-sd", copy):
        with pytest.raises(ValueError, match="revisions belong to the hub"):
            pl.load(name, revision="v2")
