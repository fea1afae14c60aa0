"""The record behind the schedule painter, made with a tiny pipeline, and the live side that runs what is painted."""

from __future__ import annotations

import json
import re

import pytest
import torch

import pruning_book as pb
import pruning_lib as pl
from pruning_book.widgets import schedule_live as painter_live
from pruning_book.widgets import sparsity
from pruning_book.widgets.schedule_live import presets, schedule_painter, scheduled_pictures
from pruning_lib.steps.schedule import Schedule, decode_table, grid_of

CAPTIONS = ["lion", "pizza", "pizza pie 1"]
STEPS = 4
SHOWN, ALL = painter_live.PROMPTS, pb.captions


@pytest.fixture(scope="module")
def made(benchmark, pipe, tmp_path_factory):
    """The record, made twice: the second time from the pictures of the first."""
    folder = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pl, "load", lambda name, device: pipe)
        patch.setattr(sparsity.draw.__wrapped__, "__kwdefaults__", {"first": 0, "steps": STEPS, "guidance": 3.0})
        module = benchmark("schedule_painter")
        for where in (module, painter_live):
            patch.setattr(where, "STEPS", STEPS)
            patch.setattr(where, "PROMPTS", ("lion", "pizza"))
        patch.setattr(module, "BUDGETS", (0.5,))
        patch.setattr(module, "SEARCH_PROMPTS", 2)
        patch.setattr(pl, "captions", lambda name: [*CAPTIONS[:2] * 4, "c"])
        path = module.record(folder / "schedule_painter.json", CAPTIONS, 24, folder / "work", "cpu")
        first = path.read_text()
        files = {file: file.stat().st_mtime_ns for file in (folder / "work").iterdir()}
        module.record(path, CAPTIONS, 24, folder / "work", "cpu")
        assert {f: f.stat().st_mtime_ns for f in (folder / "work").iterdir()} == files, "drawn twice"
        assert pl.load_record(path)["data"] == json.loads(first)["data"]
        (found,) = (Schedule.load(file) for file in files if file.suffix == ".json")
        yield path, found


def test_the_record_has_every_preset_and_what_was_found(made, pipe) -> None:
    path, found = made
    painter, tables = schedule_painter(path), presets(grid_of(pipe, STEPS))
    assert [stop.name for stop in painter.stops][:-1] == list(tables) and painter.n == len(CAPTIONS)
    assert painter.stops[-1].name == "local search, within 50 %" and found.macs_ratio() <= 0.5
    assert decode_table(painter.stops[-1].on).equal(found.live()) and found.provenance["images"] <= 24
    assert painter.stops[0].ssim == [1, 1] and painter.stops[0].mean["low"] == 1
    likeness = [stop.mean["value"] for stop in painter.stops[1:]]
    assert max(likeness) < 1 and all(stop.mean["low"] <= stop.mean["value"] for stop in painter.stops)
    # Dead work makes no other picture.
    wasted, second = painter.stop("a picture full of dead work"), painter.stop("every 2nd step")
    assert wasted.ssim == second.ssim and wasted.on != second.on


def test_presets_are_what_they_are_called(pipe) -> None:
    grid = grid_of(pipe, STEPS)
    tables = presets(grid)
    steps, units = grid.shape
    assert len({name for name in tables}) == len(tables) == 14 + units + steps - 1
    assert all(bool(on[0].all()) for _, on, _ in tables.values())
    first, second = tables["the first half"][1], tables["the second half"][1]
    assert grid.macs_of(first) == grid.macs_of(second) and not torch.equal(first, second)
    assert grid.macs_ratio(tables["every 2nd step"][1]) == 0.5
    for i, name in enumerate(grid.names):
        assert (~tables[f"{name} once"][1]).nonzero().tolist() == [[t, i] for t in range(1, steps)]
    assert not tables["without step 3"][1][2].any() and tables["without step 3"][1].sum() == 3 * units
    once = tables["the deep levels once"][1]
    kept = {name for name, on in zip(grid.names, once[1].tolist(), strict=True) if on}
    assert kept and all(re.match(r"(down_blocks\.0|up_blocks\.1)\.layers", name) for name in kept)
    assert torch.equal(tables["the deep levels twice"][1] & once, once)
    assert tables["the last three layers"][1][1:].sum() == 3 * (steps - 1)


def test_live_it_runs_what_is_painted_and_leaves_the_pipeline_as_it_was(made, pipe) -> None:
    path, found = made
    painter = schedule_painter(path, load=lambda name: pipe)
    before = scheduled_pictures(pipe, None, ["lion"])
    for stop in (painter.stops[-1], painter.stop("every 2nd step")):
        live = painter.grid.live(decode_table(stop.on))
        for prompt, recorded in zip(painter.prompts, stop.ssim, strict=True):
            rows = ["".join("1" if cell else "0" for cell in row) for row in live.tolist()]
            answer = painter.answer({"prompt": prompt, "on": rows})
            assert answer["ssim"] == pytest.approx(recorded, abs=0.01)
            assert answer["image"].startswith("data:image/webp") and answer["ms"] > 0 < answer["whole_ms"]
    torch.testing.assert_close(scheduled_pictures(pipe, None, ["lion"]), before, rtol=0, atol=0)
    assert schedule_painter(path).on_change is None


def test_captions_are_held_out_and_begin_with_those_of_the_painter(benchmark, monkeypatch) -> None:
    monkeypatch.setattr(pl, "captions", ALL)
    module, every = benchmark("schedule_painter"), ALL("emoji-sd")
    monkeypatch.setattr(module, "PROMPTS", SHOWN)
    found = module.captions_of(32)
    assert tuple(found[:4]) == SHOWN and len(found) == len(set(found)) == 32
    assert not set(found) & set(every[::4])
    assert found[:8] == module.captions_of(8)
    monkeypatch.setattr(module, "PROMPTS", (every[0],))
    with pytest.raises(ValueError, match="trained with"):
        module.captions_of(4)
