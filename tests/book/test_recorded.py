"""What the chapters' explorers show: recorded by their benchmarks with a tiny pipeline, and drawn anew live."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pruning_book as pb
import pruning_lib as pl
from pruning_book.widgets import operator_live, schedule_live, sparsity
from pruning_book.widgets.guidance import first_explorer, redraw, total_macs
from pruning_book.widgets.operator_live import changed_pictures, operator_explorer
from pruning_book.widgets.schedule_live import presets, schedule_painter, scheduled_pictures
from pruning_book.widgets.sparsity import cut_of, draw, sparsity_explorer, spread_captions
from pruning_lib.operators.remove import change_operators
from pruning_lib.operators.score import score_operators
from pruning_lib.steps.schedule import Schedule, decode_table, grid_of
from pruning_lib.weights.magnitude import SCOPES, Sensitivity, prune_magnitude
from pruning_lib.weights.select import prunable_weights

CAPTIONS = ["lion", "pizza", "pizza pie 1"]
SHOWN = ("lion", "pizza")
STEPS = 4  # of the painter; all others draw two
# As they are before the fixtures make them small.
CHAPTERS = {"operator_explorer": operator_live.PROMPTS, "schedule_painter": schedule_live.PROMPTS}
ALL_CAPTIONS = pb.captions


class Clip:
    """Vectors that depend on the picture and on the text, with the parts of a real CLIP that are used."""

    features_name = "stand-in"
    model = SimpleNamespace(visual_projection=nn.Identity())

    def features(self, images):
        return images.float().mean((2, 3))

    def embed_images(self, images):
        return F.normalize(self.features(images), dim=-1)

    def embed_texts(self, texts):
        return F.normalize(torch.tensor([[1.0, sum(map(ord, text)) % 97, 2.0] for text in texts]), dim=-1)


@pytest.fixture(scope="module")
def patch(pipe):
    """Make the benchmarks and the explorers small, for as long as this module runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pl, "load", lambda name, device: pipe)
        patch.setattr(pb, "load_clip", lambda name: Clip())
        yield patch


@pytest.fixture
def untouched(pipe):
    """Check that the pipeline's UNet is the same afterwards."""
    before = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
    yield
    after = pipe.unet.state_dict()
    assert list(after) == list(before) and all(torch.equal(before[name], value) for name, value in after.items())


def steps(patch, count: int) -> None:
    patch.setattr(sparsity.draw.__wrapped__, "__kwdefaults__", {"first": 0, "steps": count, "guidance": 3.0})


def made_twice(written, path, work, make):
    """Write the record twice: the second time from the pictures of the first."""
    written(make(), path)
    first = json.loads(path.read_text())["data"]
    files = {file: file.stat().st_mtime_ns for file in work.iterdir()}
    written(make(), path)
    assert {file: file.stat().st_mtime_ns for file in work.iterdir()} == files, "nothing is drawn twice"
    assert pl.load_record(path)["data"] == first
    return files


# Chapter 1: steps and guidance.


@pytest.fixture(scope="module")
def first_record(benchmark, written, patch, tmp_path_factory):
    module = benchmark("first_explorer")
    for name, value in {"PROMPTS": ("lion", "pizza pie"), "STEPS": (1, 8, 50), "GUIDANCE": (1.0, 3.0)}.items():
        patch.setattr(module, name, value)
    return written(module.measure(repeats=1), tmp_path_factory.mktemp("first") / "first_explorer.json")


def test_guidance_doubles_the_work_and_one_is_no_guidance() -> None:
    assert (total_macs(7, 10, 1.0), total_macs(7, 10, 1.5)) == (70, 140)


def test_the_recorded_pictures_and_numbers_are_those_of_the_stop(first_record, pipe) -> None:
    explorer, macs = first_explorer(first_record), pl.count_macs(pipe.unet).macs
    for stop in ({"prompt": "pizza pie", "steps": 8, "guidance": 3.0}, {"prompt": "lion", "steps": 1, "guidance": 1.0}):
        picture = redraw(pipe, **stop)
        assert explorer.sheet.tile(explorer.index(**stop)).tobytes() == picture.tobytes()
    many = explorer.reading("latency_ms", prompt="lion", steps=50, guidance=3.0)
    few = explorer.reading("latency_ms", prompt="lion", steps=1, guidance=3.0)
    assert many.n == 1 and many.low <= many.value <= many.high and few.value < many.value
    counted = explorer.reading("unet_gmacs", prompt="pizza pie", steps=8, guidance=3.0).value
    assert counted == pytest.approx(16 * macs / 1e9)
    assert explorer.baseline == [None, 2, None] and explorer.on_change is None


def test_live_the_stop_is_drawn_timed_and_scored(first_record, pipe) -> None:
    explorer = first_explorer(first_record, load=lambda name: pipe, load_clip=lambda name: Clip())
    answer = explorer.answer({"prompt": "lion", "steps": 2, "guidance": 3.0})
    assert answer["metrics"]["latency_ms"] > 0 and 0 <= answer["metrics"]["clip_score"] <= 100
    assert answer["metrics"]["unet_gmacs"] == pytest.approx(4 * pl.count_macs(pipe.unet).macs / 1e9)
    assert answer["image"].startswith("data:image/webp")


# Chapter 4: sparsity.


@pytest.fixture(scope="module")
def sparse_records(benchmark, written, patch, tmp_path_factory):
    """Both records, of a few stops; the second is made from the first."""
    folder, stops = tmp_path_factory.mktemp("sparsity"), (0.0, 0.5, 0.9)
    patch.setattr(pb, "captions", lambda name: [f"pizza pie {i}" for i in range(40)])
    for name, value in {"STOPS": stops, "STEPS": 2, "INERT": ("mid_block",)}.items():
        patch.setattr(sparsity, name, value)
    steps(patch, 2)
    curve = benchmark("sparsity_curve")
    less = {"CHUNK": 4, "FEWER": (0.5,), "SENSITIVITY_STEPS": (0, 1), "SENSITIVITY_STOPS": (0.5, 0.99)}
    for name, value in less.items():
        patch.setattr(curve, name, value)
    work = folder / "work"
    first = written(curve.measure(work, 4), folder / "sparsity_curve.json")
    made = {file: file.stat().st_mtime_ns for file in work.iterdir()}
    written(curve.measure(work, 8), first)  # more pictures: goes on
    assert all(file.stat().st_mtime_ns == when for file, when in made.items()), "nothing is drawn twice"
    module = benchmark("sparsity_explorer")
    for name, value in {"STOPS": stops, "PROMPTS": SHOWN, "STEPS": 2}.items():
        patch.setattr(module, name, value)
    return first, written(module.measure(repeats=1, curve=str(first)), folder / "sparsity_explorer.json")


def test_the_curve_has_every_row_with_exact_counts_and_intervals(sparse_records, pipe) -> None:
    data = pl.load_record(sparse_records[0])["data"]
    rows = {(r["part"], r["scope"], r["asked"]): r for r in data["rows"]}
    assert data["n"] == 8 and len(rows) == len(data["rows"])
    assert rows["unet", "global", 0.0]["ssim"]["value"] == 1 and rows["unet", "global", 0.0]["zeros"] == 0
    assert rows["unet", "global", 0.0]["psnr_db"] is None and rows["unet", "global", 0.0]["equal_pictures"] == 8
    for (part, scope, asked), row in rows.items():
        assert row["ssim"]["low"] <= row["ssim"]["value"] <= row["ssim"]["high"] <= 1.0001
        assert len(row["per_picture"]["ssim"]) == 8
        if asked and scope in ("global", "sensitivity", "random", "random, shares by sensitivity"):
            assert row["n"] == prunable_weights(getattr(pipe, part)).n
            assert row["zeros"] == round(asked * row["n"])
    assert {scope for part, scope, _ in rows if part == "unet"} >= {*SCOPES, "2:4", "inert"}
    assert rows["unet", "inert", 1.0]["zeros"] == rows["unet", "inert", 1.0]["n"] > 0
    assert Sensitivity.from_dict(data["sensitivity"]).layers == tuple(prunable_weights(pipe.unet).weights)
    assert not any((p == 0).all() for p in prunable_weights(pipe.unet).weights.values())
    prune_magnitude(pipe.unet, 0.5).restore()  # refused while a handle is alive


def test_the_sparsity_explorer_shows_the_record(sparse_records, pipe) -> None:
    explorer = sparsity_explorer(sparse_records[1])
    assert [axis.name for axis in explorer.axes] == ["prompt", "scope", "sparsity"]
    curve = pl.load_record(sparse_records[0])["data"]["rows"]
    for scope in SCOPES:
        row = next(r for r in curve if (r["part"], r["scope"], r["asked"]) == ("unet", scope, 0.9))
        shown = explorer.reading("mean_ssim", prompt="lion", scope=scope, sparsity=0.9)
        assert (shown.value, shown.n) == (row["ssim"]["value"], 8)
        sizes = [explorer.reading("sparse_mb", prompt="pizza", scope=scope, sparsity=s).value for s in (0.0, 0.5, 0.9)]
        assert sizes[0] > sizes[2]
        assert explorer.reading("ssim", prompt="lion", scope=scope, sparsity=0.0).value == 1
        assert explorer.reading("latency_ms", prompt="lion", scope=scope, sparsity=0.5).value > 0
    panel, n = explorer.histogram, prunable_weights(pipe.unet).n
    assert sum(panel.counts) == n
    assert [sum(row) for row in panel.removed[:3]] == [0, round(0.5 * n), round(0.9 * n)]
    assert panel.cuts[0] is None and panel.cuts[1][0] == panel.cuts[1][1] and panel.cuts[-1] is None
    assert explorer.baseline == [None, None, 0] and explorer.on_change is None


def test_live_it_prunes_draws_and_puts_the_weights_back(sparse_records, pipe, patch, untouched) -> None:
    steps(patch, 2)
    live = {"load": lambda name: pipe, "load_clip": lambda name: Clip()}
    explorer = sparsity_explorer(sparse_records[1], curve=sparse_records[0], **live)
    for scope in SCOPES:
        stop = {"prompt": "lion", "scope": scope, "sparsity": 0.5}
        answer = explorer.answer(stop)
        recorded = explorer.histogram.removed[3 * SCOPES.index(scope) + 1]
        assert answer["histogram"]["removed"] == recorded
        assert answer["metrics"]["sparse_mb"] == pytest.approx(explorer.reading("sparse_mb", **stop).value, abs=0.001)
        assert set(answer["metrics"]) == {"ssim", "clip_score", "latency_ms", "sparse_mb"} and answer["image"]


def test_pictures_start_from_the_noise_of_their_own_place(pipe) -> None:
    both, _ = draw(pipe, SHOWN, steps=1)
    second, _ = draw(pipe, ["pizza"], first=1, steps=1)
    torch.testing.assert_close(both[1:], second, atol=1e-4, rtol=0)
    other, _ = draw(pipe, ["pizza"], first=0, steps=1)
    assert (other - second).abs().max() > 1e-3


def test_captions_are_spread_and_more_of_them_begin_with_the_same() -> None:
    every = [f"c{i}" for i in range(40)]
    assert spread_captions(every, 8)[:4] == spread_captions(every, 4) != every[:4]
    assert sorted(spread_captions(every, 40)) == sorted(every)


def test_cuts_are_one_number_a_range_or_none(pipe) -> None:
    with prune_magnitude(pipe.unet, 0.5) as pruned:
        low, high = cut_of(pruned)
        assert low == high == max(row.threshold for row in pruned.layers)
    with prune_magnitude(pipe.unet, 0.5, scope="layer") as pruned:
        low, high = cut_of(pruned)
        assert low == min(row.threshold for row in pruned.layers) < high
    for sparsity_, scope in ((0.5, "random"), (0.0, "global")):
        with prune_magnitude(pipe.unet, sparsity_, scope=scope) as pruned:
            assert cut_of(pruned) is None


# Chapter 7: operators.


@pytest.fixture(scope="module")
def operator_record(benchmark, written, pipe, patch, tmp_path_factory):
    folder, module = tmp_path_factory.mktemp("operators"), benchmark("operator_explorer")
    steps(patch, 2)
    patch.setattr(module, "STOPS", (0.0, 0.05, 0.1))
    patch.setattr(module, "PROMPTS", SHOWN)
    kinds = ["transformer", "upsampler"]
    scores = score_operators(pipe, CAPTIONS, kinds=kinds, num_latents=2, steps=1, progress=False)
    path, work = folder / "operator_explorer.json", folder / "work"
    made_twice(written, path, work, lambda: module.explored(scores, CAPTIONS, work))
    return path, scores


def test_the_record_has_every_operator_with_its_score_and_what_it_saves(operator_record, pipe, untouched) -> None:
    path, scores = operator_record
    explorer, data = operator_explorer(path), pl.load_record(path)["data"]
    whole = pl.count_macs(pipe.unet)
    assert explorer.paths == scores.operators.paths and explorer.n == len(CAPTIONS) == len(data["captions"])
    for op in explorer.operators:
        assert op.score == pytest.approx(scores.values()[op.path])
        with change_operators(pipe.unet, {op.path: op.how}):
            left = pl.count_macs(pipe.unet)
        assert op.saved_params == pytest.approx(whole.params - left.params, abs=1)
        assert op.saved_macs == pytest.approx(whole.macs - left.macs, abs=1) and op.saved_macs > 0
        assert op.mean_ssim["value"] == pytest.approx(sum(data["per_picture"][op.path]) / 3, abs=1e-3)
        assert op.ssim == data["per_picture"][op.path][: len(SHOWN)]
        assert op.mean_ssim["low"] <= op.mean_ssim["value"] <= op.mean_ssim["high"]


def test_each_stop_removes_the_lowest_and_at_least_what_was_asked_for(operator_record) -> None:
    path, scores = operator_record
    explorer = operator_explorer(path)
    whole = explorer.stops[0]
    assert whole.changes == [] and whole.ssim == [1, 1]
    for stop in explorer.stops[1:]:
        assert 1 - stop.macs / whole.macs >= stop.ratio and stop.params < whole.params
        gone = {p for p, _ in stop.changes}
        worst = max(scores.values()[p] for p in gone)
        apart = [p for p in explorer.paths if not any(f"{p}.".startswith(f"{g}.") for g in gone)]
        rest = [p for p in apart if not any(g.startswith(f"{p}.") for g in gone)]
        assert all(scores.values()[p] >= worst for p in rest)


def test_live_it_draws_what_was_recorded_and_puts_everything_back(operator_record, pipe, patch, untouched) -> None:
    steps(patch, 2)
    explorer = operator_explorer(operator_record[0], load=lambda name: pipe)
    operator, stop = explorer.operators[1], explorer.stops[2]
    for state, recorded in (
        ({"prompt": "pizza", "operator": operator.path}, operator.ssim[1]),
        ({"prompt": "pizza", "ratio": stop.ratio}, stop.ssim[1]),
        ({"prompt": "lion", "ratio": 0.0}, 1.0),
    ):
        answer = explorer.answer(state)
        assert answer["ssim"] == pytest.approx(recorded, abs=0.01) and answer["image"].startswith("data:image/webp")
    assert operator_explorer(operator_record[0]).on_change is None


def test_pictures_change_with_what_is_changed(pipe) -> None:
    whole = changed_pictures(pipe, {}, ["lion"])
    torch.testing.assert_close(whole, changed_pictures(pipe, {}, ["lion"]), atol=1e-5, rtol=0)
    other = changed_pictures(pipe, {"conv_out": "pointwise"}, ["lion"])
    assert other.shape == whole.shape and (other - whole).abs().max() > 1e-3


# Chapter 12: schedules.


@pytest.fixture(scope="module")
def painter_record(benchmark, written, patch, tmp_path_factory):
    folder, module = tmp_path_factory.mktemp("painter"), benchmark("schedule_painter")
    steps(patch, STEPS)
    for where in (module, schedule_live):
        patch.setattr(where, "STEPS", STEPS)
        patch.setattr(where, "PROMPTS", SHOWN)
    patch.setattr(module, "BUDGETS", (0.5,))
    patch.setattr(module, "SEARCH_PROMPTS", 2)
    patch.setattr(pb, "captions", lambda name: [*CAPTIONS[:2] * 4, "c"])
    path, work = folder / "schedule_painter.json", folder / "work"
    files = made_twice(written, path, work, lambda: module.painted(CAPTIONS, 24, work))
    (found,) = (Schedule.load(file) for file in files if file.suffix == ".json")
    return path, found


def test_the_record_has_every_preset_and_what_was_found(painter_record, pipe) -> None:
    path, found = painter_record
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
    tables = {name: on for name, (_, on, _) in presets(grid).items()}
    count, units = grid.shape
    assert len(tables) == 14 + units + count - 1 and all(bool(on[0].all()) for on in tables.values())
    early, late = tables["the first half"], tables["the second half"]
    assert grid.macs_of(early) == grid.macs_of(late) and not torch.equal(early, late)
    assert grid.macs_ratio(tables["every 2nd step"]) == 0.5
    for i, name in enumerate(grid.names):
        assert (~tables[f"{name} once"]).nonzero().tolist() == [[t, i] for t in range(1, count)]
    assert not tables["without step 3"][2].any() and tables["without step 3"].sum() == 3 * units
    once = tables["the deep levels once"]
    kept = {name for name, on in zip(grid.names, once[1].tolist(), strict=True) if on}
    assert kept and all(re.match(r"(down_blocks\.0|up_blocks\.1)\.layers", name) for name in kept)
    assert torch.equal(tables["the deep levels twice"] & once, once)
    assert tables["the last three layers"][1:].sum() == 3 * (count - 1)


def test_live_it_runs_what_is_painted_and_leaves_the_pipeline_as_it_was(painter_record, pipe, patch) -> None:
    steps(patch, STEPS)
    painter = schedule_painter(painter_record[0], load=lambda name: pipe)
    before = scheduled_pictures(pipe, None, ["lion"])
    for stop in (painter.stops[-1], painter.stop("every 2nd step")):
        for prompt, recorded in zip(painter.prompts, stop.ssim, strict=True):
            answer = painter.answer({"prompt": prompt, "on": stop.on})
            assert answer["ssim"] == pytest.approx(recorded, abs=0.01)
            assert answer["image"].startswith("data:image/webp") and answer["ms"] > 0 < answer["whole_ms"]
    torch.testing.assert_close(scheduled_pictures(pipe, None, ["lion"]), before, rtol=0, atol=0)
    assert schedule_painter(painter_record[0]).on_change is None


@pytest.mark.parametrize(("name", "shown"), CHAPTERS.items())
def test_captions_begin_with_those_that_are_shown(name, shown, benchmark, monkeypatch) -> None:
    module, every = benchmark(name), ALL_CAPTIONS("emoji-sd")
    monkeypatch.setattr(pb, "captions", ALL_CAPTIONS)
    monkeypatch.setattr(module, "PROMPTS", shown)
    found = module.captions_of(32)
    assert tuple(found[:4]) == shown and len(found) == len(set(found)) == 32 and set(found) <= set(every)
    assert found[:8] == module.captions_of(8)
    if name == "schedule_painter":
        assert not set(found) & set(every[::4])
        monkeypatch.setattr(module, "PROMPTS", (every[0],))
        with pytest.raises(ValueError, match="trained with"):
            module.captions_of(4)
