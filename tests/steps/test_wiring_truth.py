"""Units and wiring against tables written by hand from the published architectures."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from diffusers import SD3Transformer2DModel

import pruning_lib as pl
from pruning_lib.steps.units import Units, units_of

# What each layer of Stable Diffusion 1.5 reads: the one before it, and for an up layer the skip connection it takes.
# None is the first convolution, or nothing at all.
SD_15 = {
    "down_blocks.0.layers.0": (None, None),
    "down_blocks.0.layers.1": ("down_blocks.0.layers.0", None),
    "down_blocks.0.downsamplers.0": ("down_blocks.0.layers.1", None),
    "down_blocks.1.layers.0": ("down_blocks.0.downsamplers.0", None),
    "down_blocks.1.layers.1": ("down_blocks.1.layers.0", None),
    "down_blocks.1.downsamplers.0": ("down_blocks.1.layers.1", None),
    "down_blocks.2.layers.0": ("down_blocks.1.downsamplers.0", None),
    "down_blocks.2.layers.1": ("down_blocks.2.layers.0", None),
    "down_blocks.2.downsamplers.0": ("down_blocks.2.layers.1", None),
    "down_blocks.3.layers.0": ("down_blocks.2.downsamplers.0", None),
    "down_blocks.3.layers.1": ("down_blocks.3.layers.0", None),
    "mid_block": ("down_blocks.3.layers.1", None),
    "up_blocks.0.layers.0": ("mid_block", "down_blocks.3.layers.1"),
    "up_blocks.0.layers.1": ("up_blocks.0.layers.0", "down_blocks.3.layers.0"),
    "up_blocks.0.layers.2": ("up_blocks.0.layers.1", "down_blocks.2.downsamplers.0"),
    "up_blocks.0.upsamplers.0": ("up_blocks.0.layers.2", None),
    "up_blocks.1.layers.0": ("up_blocks.0.upsamplers.0", "down_blocks.2.layers.1"),
    "up_blocks.1.layers.1": ("up_blocks.1.layers.0", "down_blocks.2.layers.0"),
    "up_blocks.1.layers.2": ("up_blocks.1.layers.1", "down_blocks.1.downsamplers.0"),
    "up_blocks.1.upsamplers.0": ("up_blocks.1.layers.2", None),
    "up_blocks.2.layers.0": ("up_blocks.1.upsamplers.0", "down_blocks.1.layers.1"),
    "up_blocks.2.layers.1": ("up_blocks.2.layers.0", "down_blocks.1.layers.0"),
    "up_blocks.2.layers.2": ("up_blocks.2.layers.1", "down_blocks.0.downsamplers.0"),
    "up_blocks.2.upsamplers.0": ("up_blocks.2.layers.2", None),
    "up_blocks.3.layers.0": ("up_blocks.2.upsamplers.0", "down_blocks.0.layers.1"),
    "up_blocks.3.layers.1": ("up_blocks.3.layers.0", "down_blocks.0.layers.0"),
    "up_blocks.3.layers.2": ("up_blocks.3.layers.1", None),
}


@cache
def found(model: str, grain: str = "layers") -> Units:
    return units_of(pl.denoiser_on_meta(model), grain)


def reads(units: Units) -> dict[str, set[str]]:
    """Return unit -> names of those it reads."""
    return {unit.name: {units.names[i] for i in read} for unit, read in zip(units, units.wiring.inputs, strict=True)}


@pytest.mark.parametrize("model", ["sd-1.5", "emoji-sd", "sd-2.1", "ldm-celebahq-256"])
def test_a_u_of_four_levels_has_27_layers_and_eleven_skip_connections(model: str) -> None:
    units = found(model)
    assert list(units.names) == list(SD_15)
    assert reads(units) == {name: set(filter(None, pair)) for name, pair in SD_15.items()}
    assert units.wiring.output == {26} and not units.wiring.output_reads_input
    assert sum(skip is not None for _, skip in SD_15.values()) == 11


def test_a_layer_is_a_resnet_with_the_transformer_behind_it() -> None:
    units = {unit.name: unit for unit in found("sd-1.5")}
    assert units["down_blocks.0.layers.1"].modules == ("down_blocks.0.resnets.1", "down_blocks.0.attentions.1")
    assert units["down_blocks.3.layers.1"].modules == ("down_blocks.3.resnets.1",), "the bottom has no text"
    assert units["up_blocks.0.layers.2"].modules == ("up_blocks.0.resnets.2",)
    assert units["mid_block"].modules == ("mid_block",)
    assert units["up_blocks.2.upsamplers.0"].modules == ("up_blocks.2.upsamplers.0",)
    assert {unit.kind for unit in found("sd-1.5")} == {"output"}


def test_whole_blocks_of_a_u_read_across() -> None:
    units = found("sd-1.5", "blocks")
    down, up = ([f"{side}_blocks.{i}" for i in range(4)] for side in ("down", "up"))
    assert list(units.names) == [*down, "mid_block", *up]
    assert reads(units) == {
        down[0]: set(),
        down[1]: {down[0]},
        down[2]: {down[1]},
        down[3]: {down[2]},
        "mid_block": {down[3]},
        up[0]: {"mid_block", down[3], down[2]},
        up[1]: {up[0], down[2], down[1]},
        up[2]: {up[1], down[1], down[0]},
        up[3]: {up[2], down[0]},
    }


def test_at_the_finest_grain_skips_leave_from_the_transformers() -> None:
    units = found("emoji-sd", "modules")
    assert len(units) == 44 and all(unit.modules == (unit.name,) for unit in units)
    table = reads(units)
    assert table["down_blocks.0.attentions.0"] == {"down_blocks.0.resnets.0"}
    assert table["up_blocks.3.resnets.1"] == {"up_blocks.3.attentions.0", "down_blocks.0.attentions.0"}
    assert table["up_blocks.3.resnets.2"] == {"up_blocks.3.attentions.1"}
    assert table["mid_block.attentions.0"] == {"mid_block.resnets.0"}
    assert table["mid_block.resnets.1"] == {"mid_block.attentions.0"}
    assert table["up_blocks.0.resnets.0"] == {"mid_block.resnets.1", "down_blocks.3.resnets.1"}


def test_sdxl_has_three_levels_and_no_sampler_at_the_bottom() -> None:
    units = found("sdxl")
    table = reads(units)
    assert len(units) == 8 + 1 + 11 and "down_blocks.2.downsamplers.0" not in table
    assert table["mid_block"] == {"down_blocks.2.layers.1"}
    assert table["up_blocks.0.layers.0"] == {"mid_block", "down_blocks.2.layers.1"}
    assert table["up_blocks.0.layers.2"] == {"up_blocks.0.layers.1", "down_blocks.1.downsamplers.0"}
    assert table["up_blocks.2.layers.2"] == {"up_blocks.2.layers.1"}
    assert units.wiring.output == {19} and not units.wiring.output_reads_input


# In a transformer whatever was added to the stream before is read, and the output reads the stream: its start as well.


def test_every_branch_of_dit_reads_all_before_it() -> None:
    units = found("dit-xl-2-256")
    assert list(units.names) == [f"transformer_blocks.{i}.{branch}" for i in range(28) for branch in ("attn1", "ff")]
    assert units.wiring.inputs == tuple(frozenset(range(i)) for i in range(56))
    assert units.wiring.output == set(range(56)) and units.wiring.output_reads_input
    blocks = found("dit-xl-2-256", "blocks")
    assert len(blocks) == 28 and {unit.kind for unit in blocks} == {"contribution"}
    assert blocks.wiring.inputs == tuple(frozenset(range(i)) for i in range(28))


def test_pixart_has_three_branches_in_a_block() -> None:
    units = found("pixart-alpha")
    assert list(units.names) == [
        f"transformer_blocks.{i}.{branch}" for i in range(28) for branch in ("attn1", "attn2", "ff")
    ]
    assert units.wiring.inputs == tuple(frozenset(range(i)) for i in range(84))
    assert units.wiring.output == set(range(84)) and units.wiring.output_reads_input


def test_sd3_has_a_stream_of_text_beside_the_stream_of_the_picture() -> None:
    with torch.device("meta"):
        model = SD3Transformer2DModel(
            sample_size=8,
            num_layers=3,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=16,
            caption_projection_dim=16,
            pooled_projection_dim=16,
            pos_embed_max_size=8,
        )
    units, table = units_of(model), reads(units_of(model))
    name = "transformer_blocks.{}.{}".format
    # The last block changes the picture only, so it has no feed-forward for the text.
    assert list(units.names) == [
        name(i, branch) for i in range(3) for branch in ("attn", "ff", "ff_context")[: 3 if i < 2 else 2]
    ]
    assert table[name(0, "attn")] == set() and table[name(0, "ff")] == {name(0, "attn")}
    assert table[name(0, "ff_context")] == {name(0, "attn")}, "the two streams meet in the attention only"
    assert table[name(1, "attn")] == {name(0, "attn"), name(0, "ff"), name(0, "ff_context")}
    assert table[name(1, "ff")] == {name(0, "attn"), name(0, "ff"), name(1, "attn")}
    assert table[name(1, "ff_context")] == {name(0, "attn"), name(0, "ff_context"), name(1, "attn")}
    pictures = {name(i, branch) for i in range(3) for branch in ("attn", "ff")}
    assert {units.names[i] for i in units.wiring.output} == pictures
    assert units.wiring.output_reads_input


@pytest.mark.parametrize(
    ("model", "grains"), [("emoji-sd", ("layers", "modules")), ("dit-xl-2-256", ("blocks", "layers"))]
)
def test_units_and_the_rest_make_the_whole(model: str, grains: tuple[str, ...]) -> None:
    report = pl.count_macs(pl.denoiser_on_meta(model))
    for units in (found(model, grain) for grain in grains):
        assert sum(units.macs) + units.base_macs == report.macs
        without = sum(units.macs_without_attention) + units.base_macs_without_attention
        assert without == report.macs_without_attention
        assert units.base_macs > 0 and min(units.macs) > 0
