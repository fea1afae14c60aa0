"""How emoji-sd is made: the whole recipe on toy data, and that the model which ships is good enough."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPModel
from typer.testing import CliRunner

import pruning_book as pb
import pruning_lib as pl
from pruning_book.judge import generate, new_concepts
from pruning_lib.finetuning.denoising import encode_images
from pruning_lib.loading import models_folder
from pruning_lib.quality import retrieval_rank
from zoo import acceptance, train
from zoo import assemble as assembling
from zoo.__main__ import app
from zoo.data import PACKAGES, UNSEEN, EmojiData, fetch, is_concept, prepare, save_unseen
from zoo.parts import MAX_TOKENS, train_tokenizer

FOLDER = models_folder() / "emoji-sd"


@pytest.fixture(scope="module")
def data() -> EmojiData:
    """Twelve flat-coloured squares in two styles, six of them concepts."""
    images = torch.full((12, 3, 64, 64), 255, dtype=torch.uint8)
    colours = torch.randint(0, 256, (12, 3, 1, 1), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    images[:, :, 16:48, 16:48] = colours
    labels = [f"{c} square" for c in ("red", "green", "blue", "grey", "pink", "black")] * 2
    style = torch.tensor([0] * 6 + [1] * 6)
    return EmojiData(images, labels, [["shape", "flat"]] * 12, style, style == 0)


def test_both_styles_are_read_and_flags_left_out(tmp_path):
    emoji = {
        "1F981": ("lion", "Animals & Nature", "animal-mammal"),
        "2600-FE0F": ("sun", "Travel & Places", "sky & weather"),
        "1F1E6": ("flag", "Flags", "country-flag"),
    }
    words = [{"hexcode": code.removesuffix("-FE0F"), "label": row[0], "tags": ["x"]} for code, row in emoji.items()]
    (tmp_path / "emojibase-data/en").mkdir(parents=True)
    (tmp_path / "emojibase-data/en/data.json").write_text(json.dumps(words))
    for style in ("google", "twitter"):
        folder = tmp_path / f"emoji-datasource-{style}"
        (folder / "img" / style / "64").mkdir(parents=True)
        entries = []
        for code, (_, category, sub) in emoji.items():
            Image.new("RGBA", (64, 64), (255, 0, 0, 128)).save(folder / "img" / style / "64" / f"{code}.png")
            facts = {"unified": code, "image": f"{code}.png", "category": category, "subcategory": sub}
            entries.append({**facts, "has_img_google": True, "has_img_twitter": True})
        (folder / "emoji.json").write_text(json.dumps(entries))
    prepare(tmp_path).save(tmp_path / "out")
    found = EmojiData.load(tmp_path / "out")
    assert found.labels == ["lion", "sun"] * 2 and found.tags == [["x"]] * 4
    assert found.images.shape == (4, 3, 64, 64) and found.images.dtype == torch.uint8
    assert found.images[0, :, 0, 0].tolist() == [255, 127, 127], "half-transparent red over white"
    assert found.concept.tolist() == [True, True, False, False] and found.concepts().labels == ["lion", "sun"]
    assert not is_concept("animal-mammal", "service dog") and not is_concept("country-flag", "flag: Kenya")
    assert is_concept("heart", "red heart") and not is_concept("heart", "grey heart")


def test_npm_that_is_missing_or_fails_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match=next(iter(PACKAGES))):
        fetch(tmp_path)
    (tmp_path / "npm").write_text("#!/bin/sh\necho 'registry is down' >&2\nexit 3\n")
    (tmp_path / "npm").chmod(0o755)
    with pytest.raises(RuntimeError, match="registry is down"):
        fetch(tmp_path / "out")


def test_unseen_pictures_are_new_to_the_model_and_written_as_they_are_read(tmp_path):
    images, captions = new_concepts()
    assert captions == list(UNSEEN) and not set(captions) & set(pb.captions())
    known = pb.training_images().flatten(1).float()
    distance = torch.cdist(images.flatten(1).float(), known) / known.shape[1] ** 0.5
    assert distance.min() > 20, "a new picture is nearly one that the model learned"
    names = ["lion", *UNSEEN]
    every, concept = torch.cat([images[:1], images]), torch.tensor([True] + [False] * len(UNSEEN))
    save_unseen(EmojiData(every, names, [[]] * len(names), torch.zeros(len(names)), concept), tmp_path)
    assert torch.equal(new_concepts(tmp_path)[0], images)
    concept[names.index("yarn")] = True
    with pytest.raises(ValueError, match="no unlearned Noto picture of yarn"):
        save_unseen(EmojiData(every, names, [[]] * len(names), torch.zeros(len(names)), concept), tmp_path)


def test_the_tokenizer_loses_nothing_and_keeps_clips_habits():
    texts = ["lion", "red heart", "grinning cat with smiling eyes", "hot beverage", "lion face"] * 20
    tokenizer = train_tokenizer(texts, vocabulary=700)
    for text in ("lion", "a zebra & two owls", "piñata", "日本", "T-Rex 8"):
        back = tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True)
        assert back.replace(" ", "") == text.lower().replace(" ", "")
    assert tokenizer.tokenize("lion") == ["lion</w>"] and len(tokenizer.tokenize("xylophone")) > 3
    ids = tokenizer("lion", padding="max_length", truncation=True).input_ids
    assert ids[0] == tokenizer.bos_token_id and ids[2:] == [tokenizer.eos_token_id] * (MAX_TOKENS - 2)
    assert len(tokenizer("owl " * 100, truncation=True).input_ids) == MAX_TOKENS
    # CLIP finds the end of the text by the largest id
    assert tokenizer.eos_token_id == max(tokenizer.get_vocab().values()) == len(tokenizer) - 1
    assert train_tokenizer(texts, vocabulary=700).get_vocab() == tokenizer.get_vocab(), "the same every time"


@pytest.fixture(scope="module")
def model(tmp_path_factory, data):
    """A pipeline of parts that the command trained for two steps, in `toy` beside `run`, their folder."""
    folder = tmp_path_factory.mktemp("models")
    run = folder / "run"
    data.save(run / "data")
    words = ["--data", str(run / "data"), "--run", str(run), "--steps", "2", "--batch", "4"]
    done = CliRunner().invoke(app, ["train", "all", *words])
    assert done.exit_code == 0, done.output
    return assembling.assemble(data, run, folder / "toy")


def test_the_folder_is_an_ordinary_pipeline_in_half_precision(model, data):
    run = model.with_name("run")
    weights = {path.parent.name: load_file(path) for path in model.rglob("*.safetensors")}
    assert weights.keys() == {"unet", "vae", "text_encoder", "clip"}
    for part in weights.values():
        assert {value.dtype for value in part.values() if value.is_floating_point()} == {torch.float16}
    for options, dtype in (({"torch_dtype": torch.float16}, torch.float16), ({}, torch.float32)):
        pipe = DiffusionPipeline.from_pretrained(model, **options)
        assert {pipe.unet.dtype, pipe.vae.dtype, pipe.text_encoder.dtype} == {dtype}
    assert isinstance(pipe, StableDiffusionPipeline) and pipe.scheduler.config.prediction_type == "v_prediction"
    assert generate(pipe, ["red square"], steps=1).shape == (1, 3, 64, 64)
    clip = CLIPModel.from_pretrained(model / "clip", dtype=torch.float32)
    ids = pipe.tokenizer(["red square"], padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        assert torch.allclose(pipe.text_encoder(ids)[0], clip.text_model(ids).last_hidden_state, atol=1e-6)
    assert encode_images(pipe.vae, data.concepts().images).std().item() == pytest.approx(1, abs=0.02)
    averaged = torch.load(run / "unet/checkpoint.pt", weights_only=True)["ema"]["shadow_params"][0]
    assert torch.equal(next(pipe.unet.parameters()), averaged.half().float())
    assert json.loads((model / "concepts.json").read_text())["labels"] == data.labels[:6]
    assert (model / "tokenizer/vocab.json").is_file() and (model / "tokenizer/merges.txt").is_file()
    training = json.loads((model / "training.json").read_text())
    assert training["unet"]["steps_done"] == training["vae"]["config"]["steps"] == 2 and training["concepts"] == 6
    for config in model.glob("*/config.json"):
        assert "_name_or_path" not in config.read_text() and str(run) not in config.read_text(), config


def test_assembling_replaces_a_model_whole_or_not_at_all(data, model, tmp_path, monkeypatch):
    run = model.with_name("run")
    (model / "README.md").write_text("kept")
    (model / "unet/stray.txt").write_text("from an older layout")
    assembling.assemble(data, run, model)
    assert (model / "README.md").read_text() == "kept" and not (model / "unet/stray.txt").exists()
    monkeypatch.setattr(assembling, "MAX_BYTES", 1000)
    with pytest.raises(ValueError, match="MB"):
        assembling.assemble(data, run, model)
    assert {path.name for path in model.parent.iterdir()} == {"toy", "run"} and (model / "model_index.json").is_file()
    (tmp_path / "thesis.txt").write_text("years of work")
    for place in (tmp_path, tmp_path / "thesis.txt"):
        with pytest.raises(ValueError, match="is no pipeline; it would be replaced"):
            assembling.assemble(data, run, place)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_training_that_was_interrupted_goes_on(data, tmp_path, monkeypatch):
    how = {"batch": 2, "steps": 4, "checkpoint_every": 1}
    train.train_part("vae", data, tmp_path / "whole", **how)
    loss, calls = train.F.mse_loss, []

    def interrupted(*given):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return loss(*given)

    monkeypatch.setattr(train.F, "mse_loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train.train_part("vae", data, tmp_path / "part", **how)
    train.train_part("vae", data, tmp_path / "part", **how)
    assert len(calls) == 5, "two steps, one that was lost, two more"
    whole, part = (next((tmp_path / name / "vae/final").glob("*.safetensors")) for name in ("whole", "part"))
    assert whole.read_bytes() == part.read_bytes()


def test_mistakes_are_told(model, tmp_path):
    here = ["--data", str(model.with_name("run") / "data"), "--run", str(tmp_path)]
    for command, words in {
        ("train", "decoder", *here): "tokenizer, clip, vae, unet",
        ("train", "clip", *here): "zoo train tokenizer",
        ("train", "vae", "--data", str(tmp_path)): "zoo data --out",
        ("gate", "--n", "1"): "--n",
    }.items():
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 2 and words in done.stderr, done.output


def test_captions_and_disturbed_pictures():
    generator = torch.Generator().manual_seed(0)
    many = {train.caption("lion", ["king", "mane", "wild"], generator) for _ in range(60)}
    assert "lion" in many and len(many) > 5 and all(c.split(", ")[0] == "lion" for c in many)
    out = train.disturb(torch.ones(8, 3, 64, 64), generator)
    assert out.shape == (8, 3, 64, 64) and out.min() >= -1 and out.max() <= 1 and out.mean() > 0.9


def test_the_shipped_model_passes_and_noise_does_not(monkeypatch):
    pipe, clip, texts = pl.load("emoji-sd"), pb.load_clip(), pb.captions()
    own = texts[:: len(texts) // 8][:8]
    drawn = generate(pipe, own, steps=8)
    assert (retrieval_rank(clip, drawn, own, texts) <= 5).float().mean() >= 0.6  # chance is 5 in the number of captions
    assert (retrieval_rank(clip, drawn, [*own[1:], own[0]], texts) <= 5).float().mean() <= 0.3
    with pytest.raises(ValueError, match="n=9999 captions.*give 2 to"):
        acceptance.run_gate(pipe, clip, FOLDER, n=9999)
    some = pb.training_images()[::8]
    monkeypatch.setattr(acceptance, "training_images", lambda: some)
    monkeypatch.setattr(acceptance, "captions", lambda: texts[::8])
    found = acceptance.run_gate(pipe, clip, FOLDER, n=12, steps=1)  # one step draws fog
    assert not found["passed"] and found["psnr_db"]["value"] >= 27 and found["top5_real"]["value"] > 0.8


def test_the_card_is_the_one_that_ships(tmp_path):
    (tmp_path / "training.json").write_text((FOLDER / "training.json").read_text())
    stored = json.loads((FOLDER / "gate.json").read_text())
    figures = stored["figures"]
    assert figures["passed"] and figures["n"] >= 256 and figures["psnr_db"]["value"] >= 27 and figures["ratio"] >= 0.8
    acceptance.write_card(tmp_path, figures, stored["passport"], torch.zeros(64, 3, 64, 64, dtype=torch.uint8))
    assert (tmp_path / "README.md").read_text() == (FOLDER / "README.md").read_text()
    assert (tmp_path / "training_curve.png").stat().st_size > 5000 and (tmp_path / "contact_sheet.png").is_file()
    assert len(acceptance.CONTACT_PROMPTS) == 64 and not set(acceptance.CONTACT_PROMPTS) - set(pb.captions())
