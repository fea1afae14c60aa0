"""Schedules of the papers' models: what the record says, and one of its rows counted again."""

from __future__ import annotations

import pytest
import torch

import pruning_lib as pl
from pruning_book.stand_in import stand_in
from pruning_lib.steps.schedule import grid_of

RECORD = pl.load_record("big_schedules")["data"]


def test_the_published_schedule_is_counted_again():
    published = RECORD["published"]
    pipe = stand_in("sd-1.5")
    pipe.unet = pl.denoiser_on_meta("sd-1.5")
    grid = grid_of(pipe, published["steps"], "blocks")
    on = torch.zeros(grid.shape, dtype=torch.bool)
    on[published["rows"]] = True
    assert list(grid.names) == published["names"]
    assert grid.macs_of(on) == published["macs"] == 10 * pl.count_macs(pipe.unet).macs
    assert grid.macs_of(on, attention=False) == published["macs_without_attention"]
    on[7, 0] = False
    assert grid.macs_of(on) == published["odd"][0]["macs"] < published["macs"]


def test_no_schedule_exceeds_its_budget_and_conventions_differ_where_layers_are_chosen():
    for model in RECORD["models"]:
        reads_input = model["grains"]["layers"]["output_reads_input"]
        assert reads_input == (model["name"] in ("dit-xl-2-256", "pixart-alpha"))
        assert all(row["kind"] == "deepcache" and reads_input for row in model["schedules"] if "refused" in row)
        for row in (row for row in model["schedules"] if "refused" not in row):
            kept, without = row["keep_macs"], row["keep_macs_without_attention"]
            assert kept <= 1 - row["removed"] + 1e-9, (model["name"], row)
            assert row["macs"] == pytest.approx(kept * model["macs"] * model["calls"], rel=1e-9)
            if row["kind"] == "deepcache":
                assert without < kept, "its layers have the longest attention"
            elif reads_input:
                assert row["calls"] == model["calls"], "no call can be skipped"
            else:
                assert without == pytest.approx(kept, rel=1e-9) and 1 <= row["calls"] <= model["calls"]
