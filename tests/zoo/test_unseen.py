"""The pictures of things that emoji-sd never learned."""

from __future__ import annotations

import pytest
import torch

import pruning_book as pb
from pruning_book.judge import new_concepts
from zoo.data import EmojiData
from zoo.unseen import UNSEEN, save_unseen


def test_what_ships_is_new_to_the_model():
    images, captions = new_concepts()
    assert images.shape == (24, 3, 64, 64) and images.dtype == torch.uint8
    assert captions == list(UNSEEN) and not set(captions) & set(pb.captions())
    known = pb.training_images().flatten(1).float()
    distance = torch.cdist(images.flatten(1).float(), known) / known.shape[1] ** 0.5
    assert distance.min() > 20, "a new picture is nearly one that the model learned"
    assert images.float().std((1, 2, 3)).min() > 10, "a blank picture"


def test_what_is_written_is_read_back(tmp_path):
    names = ["lion", *UNSEEN, UNSEEN[0]]
    images = torch.randint(256, (len(names), 3, 64, 64), generator=torch.Generator().manual_seed(0)).byte()
    style = torch.tensor([0] * (len(names) - 1) + [1])
    concept = torch.tensor([True] + [False] * (len(names) - 1))
    save_unseen(EmojiData(images, names, [[]] * len(names), style, concept), tmp_path)
    found, captions = new_concepts(tmp_path)
    assert captions == list(UNSEEN) and torch.equal(found, images[1:-1])


def test_a_missing_picture_is_named(tmp_path):
    names = [name for name in UNSEEN if name != "yarn"]
    n = len(names)
    data = EmojiData(torch.zeros(n, 3, 64, 64).byte(), names, [[]] * n, torch.zeros(n), torch.zeros(n).bool())
    with pytest.raises(ValueError, match="no unlearned Noto picture of yarn"):
        save_unseen(data, tmp_path / "new")
    assert not (tmp_path / "new").exists()
