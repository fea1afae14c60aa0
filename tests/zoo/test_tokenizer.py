"""The tokenizer loses nothing and keeps CLIP's habits."""

from __future__ import annotations

import pytest

from zoo.tokenizer import MAX_TOKENS, train_tokenizer

TEXTS = ["lion", "red heart", "grinning cat with smiling eyes", "hot beverage", "lion face"] * 20


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, vocabulary=700)


@pytest.mark.parametrize("text", ["lion", "a zebra & two owls", "piñata", "日本", "T-Rex 8"])
def test_any_text_comes_back(tokenizer, text):
    ids = tokenizer(text).input_ids
    back = tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "")
    assert back == text.lower().replace(" ", "")


def test_frequent_words_become_one_token(tokenizer):
    assert tokenizer.tokenize("lion") == ["lion</w>"]
    assert len(tokenizer.tokenize("xylophone")) > 3


def test_special_tokens_and_length(tokenizer):
    ids = tokenizer("lion", padding="max_length", truncation=True).input_ids
    assert len(ids) == MAX_TOKENS
    assert ids[0] == tokenizer.bos_token_id and ids[2:] == [tokenizer.eos_token_id] * (MAX_TOKENS - 2)
    # CLIP finds the end of the text by the largest id
    assert tokenizer.eos_token_id == max(tokenizer.get_vocab().values()) == len(tokenizer) - 1
    assert len(tokenizer("owl " * 100, truncation=True).input_ids) == MAX_TOKENS


def test_it_is_deterministic(tokenizer):
    assert train_tokenizer(TEXTS, vocabulary=700).get_vocab() == tokenizer.get_vocab()


def test_too_small_a_vocabulary():
    with pytest.raises(ValueError, match="at least 600"):
        train_tokenizer(TEXTS, vocabulary=100)
