"""Units and wiring against tables written by hand from the published architectures."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace

import pytest
from small_denoisers import build
from torch import nn

import pruning_lib as pl
from pruning_lib.steps.units import Unit, units_of
from pruning_lib.steps.wiring import Wiring, trace_wiring

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
def found(model: str, grain: str = "layers") -> tuple[tuple[Unit, ...], Wiring, dict[str, set[str]]]:
    return look(pl.denoiser_on_meta(model), grain)


def look(model: nn.Module, grain: str = "layers") -> tuple[tuple[Unit, ...], Wiring, dict[str, set[str]]]:
    """Return units, wiring, and for each unit the names of those it reads."""
    units = units_of(model, grain)
    wiring, names = trace_wiring(model, units), [unit.name for unit in units]
    return units, wiring, {name: {names[i] for i in read} for name, read in zip(names, wiring.inputs, strict=True)}


@pytest.mark.parametrize("model", ["emoji-sd", "sd-1.5", "ldm-celebahq-256"])
def test_a_u_of_four_levels_has_27_layers_and_eleven_skip_connections(model):
    units, wiring, reads = found(model)
    assert list(reads) == list(SD_15) and {unit.kind for unit in units} == {"output"}
    assert reads == {name: set(filter(None, pair)) for name, pair in SD_15.items()}
    assert wiring.output == {26} and not wiring.output_reads_input
    assert sum(skip is not None for _, skip in SD_15.values()) == 11


def test_a_layer_is_a_resnet_with_the_transformer_behind_it():
    modules = {unit.name: unit.modules for unit in found("sd-1.5")[0]}
    assert modules["down_blocks.0.layers.1"] == ("down_blocks.0.resnets.1", "down_blocks.0.attentions.1")
    assert modules["down_blocks.3.layers.1"] == ("down_blocks.3.resnets.1",), "the bottom has no text"
    assert modules["up_blocks.0.layers.2"] == ("up_blocks.0.resnets.2",)
    assert modules["mid_block"] == ("mid_block",)
    assert modules["up_blocks.2.upsamplers.0"] == ("up_blocks.2.upsamplers.0",)


def test_whole_blocks_of_a_u_read_across():
    down, up = ([f"{side}_blocks.{i}" for i in range(4)] for side in ("down", "up"))
    wanted = {
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
    reads = found("emoji-sd", "blocks")[2]
    assert list(reads) == list(wanted) and reads == wanted


def test_at_the_finest_grain_skips_leave_from_the_transformers():
    units, _, reads = found("emoji-sd", "modules")
    assert len(units) == 44 and all(unit.modules == (unit.name,) for unit in units)
    assert reads["down_blocks.0.attentions.0"] == {"down_blocks.0.resnets.0"}
    assert reads["up_blocks.3.resnets.1"] == {"up_blocks.3.attentions.0", "down_blocks.0.attentions.0"}
    assert reads["up_blocks.3.resnets.2"] == {"up_blocks.3.attentions.1"}
    assert reads["mid_block.attentions.0"] == {"mid_block.resnets.0"}
    assert reads["mid_block.resnets.1"] == {"mid_block.attentions.0"}
    assert reads["up_blocks.0.resnets.0"] == {"mid_block.resnets.1", "down_blocks.3.resnets.1"}


def test_sdxl_has_three_levels_and_no_sampler_at_the_bottom():
    units, wiring, reads = found("sdxl")
    assert len(units) == 8 + 1 + 11 and "down_blocks.2.downsamplers.0" not in reads
    assert reads["mid_block"] == {"down_blocks.2.layers.1"}
    assert reads["up_blocks.0.layers.0"] == {"mid_block", "down_blocks.2.layers.1"}
    assert reads["up_blocks.0.layers.2"] == {"up_blocks.0.layers.1", "down_blocks.1.downsamplers.0"}
    assert reads["up_blocks.2.layers.2"] == {"up_blocks.2.layers.1"}
    assert wiring.output == {19} and not wiring.output_reads_input


@pytest.mark.parametrize(
    ("model", "grain", "branches"),
    [
        ("dit-xl-2-256", "layers", (".attn1", ".ff")),
        ("dit-xl-2-256", "blocks", ("",)),
        ("pixart-alpha", "layers", (".attn1", ".attn2", ".ff")),
    ],
)
def test_in_a_stream_all_that_was_added_before_is_read_and_its_start_by_the_output(model, grain, branches):
    units, wiring, reads = found(model, grain)
    assert list(reads) == [f"transformer_blocks.{i}{branch}" for i in range(28) for branch in branches]
    assert {unit.kind for unit in units} == {"contribution" if grain == "blocks" else "output"}
    assert wiring.inputs == tuple(frozenset(range(i)) for i in range(len(units)))
    assert wiring.output == set(range(len(units))) and wiring.output_reads_input


def test_sd3_has_a_stream_of_text_beside_the_stream_of_the_picture():
    units, wiring, reads = look(build("sd3", num_layers=3))
    name = "transformer_blocks.{}.{}".format
    # The last block changes the picture only, so it has no feed-forward for the text.
    assert list(reads) == [
        name(i, branch) for i in range(3) for branch in ("attn", "ff", "ff_context")[: 3 if i < 2 else 2]
    ]
    assert reads[name(0, "attn")] == set() and reads[name(0, "ff")] == {name(0, "attn")}
    assert reads[name(0, "ff_context")] == {name(0, "attn")}, "the two streams meet in the attention only"
    assert reads[name(1, "attn")] == {name(0, "attn"), name(0, "ff"), name(0, "ff_context")}
    assert reads[name(1, "ff")] == {name(0, "attn"), name(0, "ff"), name(1, "attn")}
    assert reads[name(1, "ff_context")] == {name(0, "attn"), name(0, "ff_context"), name(1, "attn")}
    pictures = {name(i, branch) for i in range(3) for branch in ("attn", "ff")}
    assert {units[i].name for i in wiring.output} == pictures and wiring.output_reads_input


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ((nn.Linear(2, 2),), TypeError, "neither up_blocks nor transformer_blocks"),
        ((SimpleNamespace(components={}),), TypeError, r"pipe\.unet or pipe\.transformer"),
        ((nn.Linear(2, 2), "layer"), ValueError, "no grain 'layer'"),
    ],
)
def test_what_has_no_units_is_refused(wrong, error, message):
    with pytest.raises(error, match=message):
        units_of(*wrong)
