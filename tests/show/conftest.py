"""For the tests of the explorers: small sweeps, a tiny pipeline, and the benchmarks that record their data.

Every picture of a sweep is one flat colour, so that it tells its place.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel

from pruning_book.widgets.axes import Axis, Metric
from pruning_book.widgets.sweep import SweepExplorer
from zoo.parts import train_tokenizer

COLOURS = [(40 * i, 250 - 40 * i, 100) for i in range(6)]


def parts() -> dict:
    """Arguments of a sweep of 2 prompts x 3 step counts."""
    return {
        "axes": [Axis("prompt", ["lion", "a <b> & 'c'"], label="Prompt"), Axis("steps", [2, 4, 8], label="Steps")],
        "images": [Image.new("RGB", (8, 6), colour) for colour in COLOURS],
        "metrics": [
            Metric("ms", [10, 20, 40, 11, 21, 41], unit="ms", low=[9] * 6, high=[50] * 6, interval="p10 to p90", n=5),
            Metric("score", [1.5, 2.5, None, 1, 2, 3], digits=1),
        ],
        "title": "Fewer steps?",
    }


@pytest.fixture
def sweep() -> Callable[..., SweepExplorer]:
    """Make the sweep, with some arguments replaced."""

    def make(name: str = "steps", **changes) -> SweepExplorer:
        given = {**parts(), **changes}
        return SweepExplorer(name, given.pop("axes"), given.pop("images"), given.pop("metrics"), **given)

    return make


@pytest.fixture(scope="module")
def pipe() -> StableDiffusionPipeline:
    """A pipeline of Stable Diffusion's kind with random weights, for pictures of 16 x 16 pixels."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["lion", "pizza pie"] * 20, vocabulary=600)
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=tokenizer.model_max_length,
        eos_token_id=tokenizer.eos_token_id,
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        layers_per_block=1,
        cross_attention_dim=8,
        attention_head_dim=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latent_channels=4,
        sample_size=16,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    scheduler = DDIMScheduler(prediction_type="v_prediction", steps_offset=1, clip_sample=False)
    return StableDiffusionPipeline(
        vae, CLIPTextModel(text), tokenizer, unet, scheduler, None, None, requires_safety_checker=False
    )


@pytest.fixture(scope="session")
def benchmark(root: Path) -> Iterator[Callable[[str], ModuleType]]:
    """Load a script of `benchmarks/` as a module of its own."""

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, root / "benchmarks" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkey.setitem(sys.modules, name, module)  # dataclasses look their module up
        spec.loader.exec_module(module)
        return module

    with pytest.MonkeyPatch.context() as monkey:
        yield load
