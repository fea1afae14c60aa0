"""The four parts of emoji-sd, untrained: a tokenizer, a mini CLIP, an autoencoder and a denoiser with its noise."""

from __future__ import annotations

import json
from collections.abc import Iterable

from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPConfig, CLIPModel, CLIPTextModel, CLIPTokenizer

MAX_TOKENS = 24
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def train_tokenizer(texts: Iterable[str], vocabulary: int = 2048) -> CLIPTokenizer:
    """Train byte-pair encoding (Sennrich et al. 2016): start from single bytes, merge the commonest pair, and again.

    Every byte stays in the vocabulary, 514 tokens with the two special ones, so no prompt is ever out of vocabulary:
    rare words just cost more tokens.
    """
    singles = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    core.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(_WORDS), "removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    # CLIP's order of tokens: bytes, bytes that end a word, merges, specials. Naming the first two groups up front also
    # fixes their ids; else the trainer numbers them in the order of a hash map and breaks ties differently every run.
    base = singles + [single + "</w>" for single in singles]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - 2, end_of_word_suffix="</w>", special_tokens=base, show_progress=False
    )
    core.train_from_iterator(list(texts), trainer)
    tokens = sorted(core.get_vocab(), key=core.get_vocab().get)
    vocab = {token: index for index, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    merges = [tuple(pair) for pair in merges_of(core)]
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=MAX_TOKENS)


def merges_of(core: Tokenizer) -> list[list[str]]:
    """Return the pairs that are merged, in order; older tokenizers write a pair as one text."""
    pairs = json.loads(core.to_str())["model"]["merges"]
    return [pair.split(" ") if isinstance(pair, str) else pair for pair in pairs]


def build_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    """Return a mini CLIP: its text tower is the pipeline's text encoder, its image tower the book's judge."""
    shared = {"hidden_size": 128, "num_attention_heads": 4, "intermediate_size": 512, "projection_dim": 64}
    shared["hidden_act"] = "quick_gelu"
    text = {**shared, "num_hidden_layers": 3, "vocab_size": len(tokenizer), "max_position_embeddings": MAX_TOKENS}
    text |= {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    vision = {**shared, "num_hidden_layers": 4, "image_size": 64, "patch_size": 8}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=64))


def text_encoder_of(clip: CLIPModel) -> CLIPTextModel:
    """Return the text tower of `clip` as a model of its own, as Stable Diffusion wants it."""
    encoder = CLIPTextModel(clip.config.text_config)
    # transformers 4 nests the tower under "text_model.", transformers 5 does not
    prefix = "text_model." if any(name.startswith("text_model.") for name in encoder.state_dict()) else ""
    encoder.load_state_dict({prefix + name: value for name, value in clip.text_model.state_dict().items()})
    return encoder.eval()


def build_vae() -> AutoencoderKL:
    """Return an autoencoder from 64 x 64 x 3 pixels to 16 x 16 x 4 latents.

    Diffusers' AutoencoderKL (Kingma and Welling 2014; Rombach et al. 2022, section 3.1) with two stages fewer than
    SD's and no attention.
    """
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        sample_size=64,
        block_out_channels=(16, 32, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        norm_num_groups=16,
        mid_block_add_attention=False,
    )


def build_unet() -> UNet2DConditionModel:
    """Return a denoiser of SD-1.5's own topology, sixty times narrower, for text states `[b, 24, 128]`.

    The same module names and skip connections, so that whatever we learn about a unit here carries its name over.
    """
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 64, 96, 96),
        layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        cross_attention_dim=128,
        norm_num_groups=16,
        # diffusers reads this as the number of heads; every head is 16 to 24 wide.
        attention_head_dim=(2, 4, 4, 4),
    )


def build_scheduler() -> DDIMScheduler:
    """Return SD-1.5's noise schedule, sampled from its noisiest level on, for a denoiser that predicts v.

    v (Salimans and Ho 2022, appendix D) keeps few-step sampling stable. Sampling starts from pure noise, so it must
    start at the level that was trained on the noisiest latents ("trailing", Lin et al. 2024, section 3.3); with few
    steps the usual "leading" spacing starts well below it.
    """
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        num_train_timesteps=1000,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
    )
