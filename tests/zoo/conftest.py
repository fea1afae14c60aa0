"""A tiny data set and tiny models, so that the zoo's tests run in seconds."""

from __future__ import annotations

import pytest
import torch

from zoo.data import EmojiData


@pytest.fixture(scope="session")
def data() -> EmojiData:
    """Twelve flat-coloured squares in two styles, six of them concepts."""
    generator = torch.Generator().manual_seed(0)
    images = torch.full((12, 3, 64, 64), 255, dtype=torch.uint8)
    for i in range(12):
        colour = torch.randint(0, 256, (3, 1, 1), generator=generator, dtype=torch.uint8)
        images[i, :, 16:48, 16:48] = colour
    labels = [f"{c} square" for c in ("red", "green", "blue", "grey", "pink", "black")] * 2
    style = torch.tensor([0] * 6 + [1] * 6)
    return EmojiData(images, labels, [["shape", "flat"]] * 12, style, style == 0)
