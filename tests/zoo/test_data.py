"""Reading the npm packages, and what counts as a concept."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from zoo import data as module
from zoo.concepts import is_concept, is_wide
from zoo.data import PACKAGES, EmojiData, fetch, prepare


@pytest.fixture
def packages(tmp_path):
    """Two emoji and a flag, in the packages' own layout."""
    words = [
        {"hexcode": "1F981", "label": "lion", "tags": ["face"]},
        {"hexcode": "2600", "label": "sun", "tags": []},
        {"hexcode": "1F1E6", "label": "flag"},
    ]
    for name in PACKAGES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "package.json").write_text("{}")
    (tmp_path / "emojibase-data/en").mkdir()
    (tmp_path / "emojibase-data/en/data.json").write_text(json.dumps(words))
    for style in ("google", "twitter"):
        folder = tmp_path / f"emoji-datasource-{style}"
        (folder / "img" / style / "64").mkdir(parents=True)
        entries = []
        for code, category, sub in [
            ("1F981", "Animals & Nature", "animal-mammal"),
            ("2600-FE0F", "Travel & Places", "sky & weather"),
            ("1F1E6", "Flags", "country-flag"),
        ]:
            image = f"{code.lower()}.png"
            Image.new("RGBA", (64, 64), (255, 0, 0, 128)).save(folder / "img" / style / "64" / image)
            entries.append(
                {
                    "unified": code,
                    "image": image,
                    "category": category,
                    "subcategory": sub,
                    "has_img_google": True,
                    "has_img_twitter": True,
                }
            )
        (folder / "emoji.json").write_text(json.dumps(entries))
    return tmp_path


def test_prepare_reads_both_styles_and_leaves_flags_out(packages):
    found = prepare(packages)
    assert found.labels == ["lion", "sun"] * 2
    assert found.images.shape == (4, 3, 64, 64) and found.images.dtype == torch.uint8
    assert found.concept.tolist() == [True, True, False, False]
    # half-transparent red over white
    assert found.images[0, :, 0, 0].tolist() == [255, 127, 127]


def test_round_trip(packages, tmp_path):
    found = prepare(packages)
    found.save(tmp_path / "out")
    again = EmojiData.load(tmp_path / "out")
    assert torch.equal(found.images, again.images) and found.labels == again.labels and found.tags == again.tags
    assert again.concepts().labels == ["lion", "sun"]


def test_missing_package_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="emojibase-data"):
        prepare(tmp_path)


def test_unprepared_folder_says_what_to_run(tmp_path):
    with pytest.raises(FileNotFoundError, match="zoo data"):
        EmojiData.load(tmp_path)


@pytest.mark.parametrize("file", ["data.safetensors", "data.json"])
def test_damaged_data_says_what_to_run(data, tmp_path, file):
    data.save(tmp_path)
    (tmp_path / file).write_bytes((tmp_path / file).read_bytes()[:-20])
    with pytest.raises(ValueError, match="is damaged.*zoo data --out"):
        EmojiData.load(tmp_path)


def test_without_npm_the_message_names_the_packages(tmp_path, monkeypatch):
    monkeypatch.setattr(module.shutil, "which", lambda name: None)
    with pytest.raises(RuntimeError, match="emoji-datasource-google"):
        fetch(tmp_path)


def test_npm_failure_carries_its_words(tmp_path, monkeypatch):
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho 'registry is down' >&2\nexit 3\n")
    npm.chmod(0o755)
    monkeypatch.setattr(module.shutil, "which", lambda name: str(npm))
    with pytest.raises(RuntimeError, match="registry is down"):
        fetch(tmp_path / "out")


def test_concept_rules():
    assert is_concept("animal-mammal", "lion") and not is_concept("animal-mammal", "service dog")
    assert is_concept("heart", "red heart") and not is_concept("heart", "grey heart")
    assert not is_concept("country-flag", "flag: Kenya")
    assert is_wide("Food & Drink") and not is_wide("People & Body")
