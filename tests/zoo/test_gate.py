"""The gate can fail, and each of its figures means what it says."""

from __future__ import annotations

import json

import pytest
import torch

import pruning_book as pb
import pruning_lib as pl
from pruning_lib.loading import models_folder
from pruning_lib.quality import retrieval_rank
from zoo import acceptance as gate
from zoo.card import CONTACT_PROMPTS, write_card

FOLDER = models_folder() / "emoji-sd"


@pytest.fixture(scope="module")
def model():
    return pl.load("emoji-sd"), pb.load_clip(), pb.training_images(), pb.captions()


def test_the_shipped_record_passed():
    stored = json.loads((FOLDER / "gate.json").read_text())
    figures = stored["figures"]
    assert figures["passed"] and figures["n"] >= 256 and figures["steps"] == 25
    assert figures["psnr_db"]["value"] >= 27 and figures["ratio"] >= 0.8
    assert stored["passport"]["hardware"]


def test_autoencoder_reaches_the_recorded_quality(model):
    pipe, _, images, _ = model
    some = images[::8]
    error = gate.psnr(gate.reconstruct(pipe, some).float() / 255, some.float() / 255)
    assert error.mean().item() >= 27


def test_generated_images_find_their_captions(model):
    pipe, clip, _, texts = model
    own = texts[:: len(texts) // 16][:16]
    drawn = gate.generate(pipe, own, steps=12)
    ranks = retrieval_rank(clip, drawn, own, texts)
    assert (ranks <= 5).float().mean() >= 0.6  # chance is 5 in the number of captions
    wrong = retrieval_rank(clip, drawn, [*own[1:], own[0]], texts)
    assert (wrong <= 5).float().mean() <= 0.3


def test_noise_does_not_pass(model):
    _, clip, images, texts = model
    noise = torch.randint(0, 256, (64, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert (retrieval_rank(clip, noise, texts[:64], texts) <= 5).float().mean() < 0.2


def test_an_image_does_not_depend_on_its_batch(model):
    pipe, *_ = model
    alone = gate.generate(pipe, ["lion", "pizza", "rose"], steps=2, batch=1)
    together = gate.generate(pipe, ["lion", "pizza", "rose"], steps=2, batch=3)
    assert (alone.int() - together.int()).abs().max() <= 2


def test_too_many_captions_are_refused(model):
    pipe, clip, images, texts = model
    with pytest.raises(ValueError, match="n=9999"):
        gate.run_gate(pipe, clip, images, texts, FOLDER, n=9999)


def test_too_few_captions_are_refused_before_any_drawing(model, monkeypatch):
    pipe, clip, images, texts = model
    monkeypatch.setattr(gate, "generate", lambda *a, **k: pytest.fail("drawn in vain"))
    with pytest.raises(ValueError, match="n=1 captions.*give 2 to"):
        gate.run_gate(pipe, clip, images, texts, FOLDER, n=1)


def test_contact_prompts_are_concepts():
    assert len(CONTACT_PROMPTS) == 64 and not set(CONTACT_PROMPTS) - set(pb.captions())


def test_card_names_sources_and_figures(tmp_path):
    (tmp_path / "training.json").write_text((FOLDER / "training.json").read_text())
    stored = json.loads((FOLDER / "gate.json").read_text())
    write_card(tmp_path, stored["figures"], stored["passport"], torch.zeros(64, 3, 64, 64, dtype=torch.uint8))
    text = (tmp_path / "README.md").read_text()
    for word in ("Noto Emoji", "Twemoji", "CC-BY 4.0", "Apache-2.0", "emojibase", f"{stored['figures']['ratio']:.3f}"):
        assert word in text
    assert (tmp_path / "training_curve.png").stat().st_size > 5000 and (tmp_path / "contact_sheet.png").is_file()
