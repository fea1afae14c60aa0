"""Sheets of pictures and data URLs."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import torch
from explorer_samples import COLOURS, flat
from PIL import Image

from pruning_book.widgets.sheet import Sheet, data_url, to_pil

NOISE = np.random.default_rng(0).integers(0, 256, (5, 6, 8, 3), dtype=np.uint8)


def test_a_sheet_gives_back_every_picture_after_the_disk_too(tmp_path) -> None:
    sheet = Sheet.pack(flat(*COLOURS[:5]))
    assert (sheet.columns, sheet.image.size) == (3, (24, 12))
    assert [sheet.tile(i).getpixel((3, 3)) for i in range(5)] == COLOURS[:5]
    Sheet.pack(NOISE).save(tmp_path / "sheet.webp")
    read = Sheet.read(tmp_path / "sheet.webp", 8, 6, 5)
    assert all(np.array_equal(np.asarray(read.tile(i)), NOISE[i]) for i in range(5))


@pytest.mark.parametrize(
    ("width", "height", "count", "words"),
    [(7, 6, 5, "no tiles of 7 x 6"), (8, 6, 7, "7 pictures are"), (8, 6, 3, "3 pictures are"), (0, 6, 5, "no tiles")],
)
def test_a_sheet_of_another_shape_is_refused(width, height, count, words) -> None:
    with pytest.raises(ValueError, match=words):
        Sheet(Sheet.pack(NOISE).image, width, height, count)


def test_all_kinds_of_pictures_become_the_same_and_values_are_clipped() -> None:
    whole = torch.from_numpy(NOISE).permute(0, 3, 1, 2)
    for images in (NOISE, whole, whole / 255, [Image.fromarray(a) for a in NOISE]):
        assert all(np.array_equal(np.asarray(p), a) for p, a in zip(to_pil(images), NOISE, strict=True))
    (picture,) = to_pil(torch.tensor([-1.0, 0.5, 2.0]).view(1, 3, 1, 1).expand(1, 3, 2, 2))
    assert picture.getpixel((0, 0)) == (0, 128, 255)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (torch.zeros(3, 4, 4), r"shape \(3, 4, 4\)"),
        (np.zeros((1, 4, 4, 3)), "float64"),
        (np.zeros((1, 3, 4, 4), np.uint8), r"\(1, 3, 4, 4\)"),
        (["lion.png"], "holds a str"),
        ([*flat((0, 0, 0)), Image.new("RGB", (4, 4))], r"sizes \[\(4, 4\), \(8, 6\)\]"),
        ([], "images is empty"),
    ],
)
def test_what_is_no_sheet_of_pictures_is_refused(images, words) -> None:
    with pytest.raises(ValueError, match=words):
        Sheet.pack(images)


def test_a_data_url_is_lossless_within_its_budget_and_smaller_beyond() -> None:
    def decoded(url: str) -> Image.Image:
        head, data = url.split(",", 1)
        assert head == "data:image/webp;base64"
        return Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")

    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    whole, cut = data_url(noise), data_url(noise, budget=1000)
    assert np.array_equal(np.asarray(decoded(whole)), np.asarray(noise))
    assert len(cut) < 0.7 * len(whole) and decoded(cut).size == (64, 64)
