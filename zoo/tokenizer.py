"""A byte-pair tokenizer of about 2,000 tokens, trained on the captions and saved as an ordinary CLIPTokenizer.

Byte-pair encoding (Sennrich et al., 2016) starts from single bytes and merges the commonest pair again and again.
Every byte stays in the vocabulary, so no prompt is ever out of vocabulary: rare words just cost more tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

__all__ = ["MAX_TOKENS", "train_tokenizer"]

MAX_TOKENS = 24
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_START, _END = "<|startoftext|>", "<|endoftext|>"


def train_tokenizer(texts: Iterable[str], vocabulary: int = 2048) -> CLIPTokenizer:
    """Train on `texts` and return a tokenizer with at most `vocabulary` tokens and length `MAX_TOKENS`.

    Raises:
        ValueError: the vocabulary cannot hold the 512 byte tokens and the two special ones.
    """
    if vocabulary < 600:
        raise ValueError(f"vocabulary={vocabulary} is too small; 514 tokens are fixed, so ask for at least 600.")
    bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    core.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(_WORDS), "removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    # CLIP's order of tokens: bytes, bytes that end a word, merges, specials. Naming the first two groups up front also
    # fixes their ids; else the trainer numbers them in the order of a hash map and breaks ties differently every run.
    base = bytes_ + [b + "</w>" for b in bytes_]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - 2, end_of_word_suffix="</w>", special_tokens=base, show_progress=False
    )
    core.train_from_iterator(list(texts), trainer)
    tokens = sorted(core.get_vocab(), key=core.get_vocab().get)
    vocab = {token: index for index, token in enumerate([*tokens, _START, _END])}
    return CLIPTokenizer(vocab=vocab, merges=_merges(core), model_max_length=MAX_TOKENS)


def _merges(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    pairs = json.loads(tokenizer.to_str())["model"]["merges"]
    return [tuple(p) if not isinstance(p, str) else tuple(p.split(" ")) for p in pairs]
