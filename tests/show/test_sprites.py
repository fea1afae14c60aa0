"""Sheets of pictures and data URLs."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from pruning_book.widgets.sheet import Sheet, data_url, to_pil

COLOURS = [(40 * i, 250 - 40 * i, 100) for i in range(5)]


def flat(size=(8, 6)) -> list[Image.Image]:
    return [Image.new("RGB", size, colour) for colour in COLOURS]


def decoded(url: str) -> Image.Image:
    head, data = url.split(",", 1)
    assert head == "data:image/webp;base64"
    return Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")


def test_a_sheet_gives_back_every_picture():
    sheet = Sheet.pack(flat())
    assert (sheet.columns, sheet.image.size) == (3, (24, 12))
    assert [sheet.tile(i).getpixel((3, 3)) for i in range(5)] == COLOURS
    assert all(sheet.tile(i).size == (8, 6) for i in range(5))


@pytest.mark.parametrize("name", ["sheet.png", "sheet.webp"])
def test_a_saved_sheet_is_read_without_loss(tmp_path, name):
    noise = np.random.default_rng(0).integers(0, 256, (5, 6, 8, 3), dtype=np.uint8)
    Sheet.pack(noise).save(tmp_path / name)
    read = Sheet.read(tmp_path / name, 8, 6, 5)
    assert all(np.array_equal(np.asarray(read.tile(i)), noise[i]) for i in range(5))


@pytest.mark.parametrize(
    ("width", "height", "count", "words"),
    [(7, 6, 5, "no tiles of 7 x 6"), (8, 6, 7, "7 pictures are"), (8, 6, 3, "3 pictures are"), (0, 6, 5, "no tiles")],
)
def test_a_sheet_of_another_shape_is_refused(width, height, count, words):
    with pytest.raises(ValueError, match=words):
        Sheet(Sheet.pack(flat()).image, width, height, count)


def test_pictures_of_different_sizes_and_none_are_refused():
    with pytest.raises(ValueError, match=r"sizes \[\(4, 4\), \(8, 6\)\]"):
        Sheet.pack([*flat(), Image.new("RGB", (4, 4))])
    with pytest.raises(ValueError, match="images is empty"):
        Sheet.pack([])


def test_all_kinds_of_pictures_become_the_same():
    array = np.random.default_rng(0).integers(0, 256, (2, 6, 8, 3), dtype=np.uint8)
    whole = torch.from_numpy(array).permute(0, 3, 1, 2)
    for images in (array, whole, whole / 255, [Image.fromarray(a) for a in array]):
        assert all(np.array_equal(np.asarray(p), a) for p, a in zip(to_pil(images), array, strict=True))


def test_values_outside_of_the_range_are_clipped():
    (picture,) = to_pil(torch.tensor([-1.0, 0.5, 2.0]).view(1, 3, 1, 1).expand(1, 3, 2, 2))
    assert picture.getpixel((0, 0)) == (0, 128, 255)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (torch.zeros(3, 4, 4), r"shape \(3, 4, 4\)"),
        (np.zeros((1, 4, 4, 3)), "float64"),
        (np.zeros((1, 3, 4, 4), np.uint8), r"\(1, 3, 4, 4\)"),
        (["lion.png"], "holds a str"),
    ],
)
def test_what_is_no_picture_is_refused(images, words):
    with pytest.raises(ValueError, match=words):
        to_pil(images)


def test_a_data_url_is_lossless_within_its_budget_and_smaller_beyond():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    whole, cut = data_url(noise), data_url(noise, budget=1000)
    assert np.array_equal(np.asarray(decoded(whole)), np.asarray(noise))
    assert len(cut) < 0.7 * len(whole) and decoded(cut).size == (64, 64)
