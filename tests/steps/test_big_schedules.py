"""Schedules of the papers' models: what the record says, and one of its rows counted again."""

from __future__ import annotations

import pytest
import torch

import pruning_lib as pl
from pruning_book.stand_in import stand_in
from pruning_lib.steps.schedule import grid_of
from pruning_lib.steps.units import units_of


@pytest.fixture(scope="module")
def record() -> dict:
    return pl.load_record("big_schedules")["data"]


def test_the_published_schedule_is_counted_again(record):
    published = record["published"]
    pipe = stand_in("sd-1.5")
    pipe.unet = pl.denoiser_on_meta("sd-1.5")
    grid = grid_of(pipe, published["steps"], units_of(pipe.unet, "blocks"))
    on = torch.zeros(grid.shape, dtype=torch.bool)
    on[published["rows"]] = True
    assert list(grid.names) == published["names"] and len(grid.names) == 9
    assert grid.macs_of(on) == published["macs"] == 10 * pl.count_macs(pipe.unet).macs
    assert grid.macs_of(on, attention=False) == published["macs_without_attention"]
    on[7, 0] = False
    assert grid.macs_of(on) == published["odd"][0]["macs"] < published["macs"]


def test_no_schedule_exceeds_its_budget_and_shares_are_of_the_whole(record):
    for model in record["models"]:
        whole = model["macs"] * model["calls"]
        rows = [row for row in model["schedules"] if "refused" not in row]
        assert {row["kind"] for row in rows} >= {"uniform"}
        for row in rows:
            assert row["keep_macs"] <= 1 - row["removed"] + 1e-9, (model["name"], row)
            assert row["macs"] == pytest.approx(row["keep_macs"] * whole, rel=1e-9)
            assert 1 <= row["calls"] <= model["calls"]


def test_conventions_differ_where_layers_are_chosen(record):
    for model in record["models"]:
        reads_input = model["grains"]["layers"]["output_reads_input"]
        assert reads_input == (model["name"] in ("dit-xl-2-256", "pixart-alpha"))
        for row in model["schedules"]:
            if "refused" in row:
                assert row["kind"] == "deepcache" and reads_input
                continue
            with_, without = row["keep_macs"], row["keep_macs_without_attention"]
            if row["kind"] == "deepcache":
                assert without < with_, "its layers have the longest attention"
            elif not reads_input:
                assert without == pytest.approx(with_, rel=1e-9)
            if reads_input:
                assert row["calls"] == model["calls"], "no call can be skipped"


def test_memory_of_training(record):
    models = {(m["name"], m["steps"]): m for m in record["models"]}
    for row in models["sd-1.5", 50]["memory"]:
        assert row["weights"] == 2 * models["sd-1.5", 50]["params"]
        assert row["call_checkpointed"] < row["call"] / 3 and row["caches"] < row["call"] / 10
    sides = {row["sample_size"]: row["caches"] for row in models["sd-1.5", 50]["memory"]}
    assert sides[64] == 4 * sides[32], "caches grow with the area"
