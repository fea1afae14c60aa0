"""Units and wiring against tables written by hand from the published architectures."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from small_denoisers import build
from torch import nn

import pruning_lib as pl
from pruning_lib.steps.units import units_of
from pruning_lib.steps.wiring import trace_wiring

# The layers of Stable Diffusion 1.5, in the order in which they run, and what an up layer reads besides the one before
# it. The last of twelve skip connections, to the last up layer, comes from the first convolution, which is no unit.
DOWN = [[*(f"down_blocks.{i}.layers.{n}" for n in (0, 1)), f"down_blocks.{i}.downsamplers.0"] for i in range(4)]
UP = [[*(f"up_blocks.{i}.layers.{n}" for n in (0, 1, 2)), f"up_blocks.{i}.upsamplers.0"] for i in range(4)]
LAYERS = [*sum(DOWN, [])[:-1], "mid_block", *sum(UP, [])[:-1]]
SKIPS = {
    "up_blocks.0.layers.0": "down_blocks.3.layers.1",
    "up_blocks.0.layers.1": "down_blocks.3.layers.0",
    "up_blocks.0.layers.2": "down_blocks.2.downsamplers.0",
    "up_blocks.1.layers.0": "down_blocks.2.layers.1",
    "up_blocks.1.layers.1": "down_blocks.2.layers.0",
    "up_blocks.1.layers.2": "down_blocks.1.downsamplers.0",
    "up_blocks.2.layers.0": "down_blocks.1.layers.1",
    "up_blocks.2.layers.1": "down_blocks.1.layers.0",
    "up_blocks.2.layers.2": "down_blocks.0.downsamplers.0",
    "up_blocks.3.layers.0": "down_blocks.0.layers.1",
    "up_blocks.3.layers.1": "down_blocks.0.layers.0",
}


def look(model: nn.Module, grain: str = "layers"):
    """Return units, wiring, and for each unit the names of those it reads."""
    units = units_of(model, grain)
    wiring, names = trace_wiring(model, units), [unit.name for unit in units]
    return units, wiring, {name: {names[i] for i in read} for name, read in zip(names, wiring.inputs, strict=True)}


@pytest.mark.parametrize("model", ["sd-1.5", "ldm-celebahq-256"])
def test_a_u_of_four_levels_has_27_layers_with_eleven_skip_connections(model):
    units, wiring, reads = look(pl.denoiser_on_meta(model))
    assert list(reads) == LAYERS and not any(unit.streams for unit in units)
    for name, before in zip(LAYERS, [None, *LAYERS], strict=False):
        assert reads[name] == {before, SKIPS.get(name)} - {None}
    assert wiring.output == {26} and not wiring.output_reads_input
    if model == "sd-1.5":  # a layer is a ResNet with the transformer behind it; the bottom has none
        assert units[1].modules == ("down_blocks.0.resnets.1", "down_blocks.0.attentions.1")
        assert units[10].modules == ("down_blocks.3.resnets.1",) and units[11].modules == ("mid_block",)


def test_whole_blocks_and_single_modules_read_across():
    unet = pl.denoiser_on_meta("emoji-sd")
    down, up = ([f"{side}_blocks.{i}" for i in range(4)] for side in ("down", "up"))
    assert look(unet, "blocks")[2] == {
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
    units, _, reads = look(unet, "modules")
    assert len(units) == 44 and all(unit.modules == (unit.name,) for unit in units)
    assert reads["down_blocks.0.attentions.0"] == {"down_blocks.0.resnets.0"}
    assert reads["up_blocks.3.resnets.1"] == {"up_blocks.3.attentions.0", "down_blocks.0.attentions.0"}
    assert reads["mid_block.resnets.1"] == {"mid_block.attentions.0"}


@pytest.mark.parametrize(("model", "grain", "branches"), [("dit", "blocks", 1), ("pixart", "layers", 3)])
def test_in_a_stream_all_that_was_added_before_is_read_and_its_start_by_the_output(model, grain, branches):
    units, wiring, reads = look(build(model, num_layers=3), grain)
    names = ("",) if branches == 1 else (".attn1", ".attn2", ".ff")
    assert list(reads) == [f"transformer_blocks.{i}{branch}" for i in range(3) for branch in names]
    assert {bool(unit.streams) for unit in units} == {grain == "blocks"}
    assert wiring.inputs == tuple(frozenset(range(i)) for i in range(len(units)))
    assert wiring.output == set(range(len(units))) and wiring.output_reads_input


def test_sd3_has_a_stream_of_text_beside_the_stream_of_the_picture():
    units, wiring, reads = look(build("sd3", num_layers=2))
    attn, ff, text, last, last_ff = (
        f"transformer_blocks.{name}" for name in ("0.attn", "0.ff", "0.ff_context", "1.attn", "1.ff")
    )
    # The last block changes the picture only, so it has no feed-forward for the text.
    assert reads == {attn: set(), ff: {attn}, text: {attn}, last: {attn, ff, text}, last_ff: {attn, ff, last}}
    assert {units[i].name for i in wiring.output} == {attn, ff, last, last_ff} and wiring.output_reads_input


def test_what_has_no_units_is_refused():
    for wrong, error, message in (
        ((nn.Linear(2, 2),), TypeError, "not of a known family"),
        ((SimpleNamespace(components={}),), TypeError, r"pipe\.unet or pipe\.transformer"),
        ((nn.Linear(2, 2), "layer"), ValueError, "no grain 'layer'"),
    ):
        with pytest.raises(error, match=message):
            units_of(*wrong)
