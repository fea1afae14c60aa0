"""For the tests of the book's room: a tiny pipeline, and the benchmarks that record what the explorers show."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from pruning_lib.records import passport, save_record
from zoo.parts import train_tokenizer


@pytest.fixture(scope="session")
def pipe() -> StableDiffusionPipeline:
    """A pipeline of Stable Diffusion's kind with random weights, for pictures of 16 x 16 pixels."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["lion", "pizza pie"] * 20, vocabulary=600)
    width = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    ends = {"max_position_embeddings": tokenizer.model_max_length, "eos_token_id": tokenizer.eos_token_id}
    text = CLIPTextConfig(vocab_size=len(tokenizer), **width, **ends)
    common = {"block_out_channels": (8, 8), "norm_num_groups": 4}
    unet = UNet2DConditionModel(
        **{**common, "sample_size": 8, "layers_per_block": 1, "cross_attention_dim": 8, "attention_head_dim": 2},
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    vae = AutoencoderKL(
        **{**common, "latent_channels": 4, "sample_size": 16},
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    scheduler = DDIMScheduler(prediction_type="v_prediction", steps_offset=1, clip_sample=False)
    return StableDiffusionPipeline(
        vae, CLIPTextModel(text), tokenizer, unet, scheduler, None, None, requires_safety_checker=False
    )


@pytest.fixture(scope="session")
def benchmark(root: Path) -> Callable:
    """Import a benchmark by its name."""
    sys.path.insert(0, str(root))
    return lambda name: importlib.import_module(f"benchmarks.{name}")


@pytest.fixture(scope="session")
def written() -> Callable:
    """Write what a benchmark found as its command line does."""

    def write(found, path: Path) -> Path:
        stamp = passport(seeds=found.seeds, n=found.n, device="cpu")
        if found.explorer:
            return found.explorer.save(path, path.stem, stamp, **found.data)
        return save_record(path, path.stem, found.data, stamp)

    return write
