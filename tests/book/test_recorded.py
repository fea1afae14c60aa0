"""What the chapters' explorers show: recorded by their benchmarks with a tiny pipeline, and drawn anew live."""

from __future__ import annotations

import re

import pytest
import torch
from torch.nn import functional as F

import pruning_book as pb
import pruning_lib as pl
from pruning_book.widgets import operators, schedule_editor, sparsity
from pruning_book.widgets.guidance import first_explorer, redraw, total_macs
from pruning_book.widgets.operators import operator_explorer
from pruning_book.widgets.schedule_editor import presets, schedule_painter, scheduled_pictures
from pruning_book.widgets.sparsity import cut_of, draw, sparsity_explorer, spread_captions
from pruning_lib.operators.remove import change_operators
from pruning_lib.operators.score import score_operators
from pruning_lib.steps.schedule import decode_table, grid_of
from pruning_lib.weights.magnitude import SCOPES, Sensitivity, prune_magnitude
from pruning_lib.weights.select import prunable_weights

CAPTIONS = ["lion", "pizza", "pizza pie 1"]
SHOWN = ("lion", "pizza")
STEPS = 4  # of the painter; all others draw one or two
# As they are before the fixtures make them small.
CHAPTERS = {"operator_explorer": operators.PROMPTS, "schedule_painter": schedule_editor.PROMPTS}
ALL_CAPTIONS = pb.captions("emoji-sd")


class Clip:
    """Vectors that depend on the picture and on the text, as far as a real CLIP is used."""

    features_name = "stand-in"

    def features(self, images):
        return images.float().mean((2, 3))

    def embed_images(self, images):
        return F.normalize(self.features(images), dim=-1)

    def embed_texts(self, texts):
        return F.normalize(torch.tensor([[1.0, sum(map(ord, text)) % 97, 2.0] for text in texts]), dim=-1)


LIVE = {"load_clip": lambda name: Clip()}


@pytest.fixture(scope="module")
def small(pipe, benchmark):
    """Make a benchmark and its explorer small, for as long as this module runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pl, "load", lambda name, device: pipe)
        patch.setattr(pb, "load_clip", lambda name: Clip())

        def made(name: str, *where, steps: int = 2, **values):
            patch.setattr(sparsity.draw.__wrapped__, "__kwdefaults__", {"first": 0, "steps": steps, "guidance": 3.0})
            module = benchmark(name)
            for key, value in values.items():
                for each in (module, *where):
                    if hasattr(each, key):
                        patch.setattr(each, key, value)
            return module

        yield made


@pytest.fixture
def untouched(pipe):
    """Check that the pipeline's UNet is the same afterwards."""
    before = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
    yield
    after = pipe.unet.state_dict()
    assert list(after) == list(before) and all(torch.equal(before[name], value) for name, value in after.items())


def test_chapter_1_steps_and_guidance(small, written, pipe, tmp_path) -> None:
    assert (total_macs(7, 10, 1.0), total_macs(7, 10, 1.5)) == (70, 140), "guidance doubles the work, one is none"
    module = small("first_explorer", PROMPTS=SHOWN, STEPS=(1, 8, 50), GUIDANCE=(1.0, 3.0))
    record = written(module.measure(repeats=1), tmp_path / "first_explorer.json")
    explorer, macs = first_explorer(record), pl.count_macs(pipe.unet).macs
    stop = {"prompt": "pizza", "steps": 1, "guidance": 3.0}
    assert explorer.sheet.tile(explorer.index(**stop)).tobytes() == redraw(pipe, **stop).tobytes()
    few, many = (explorer.reading("latency_ms", prompt="lion", steps=n, guidance=3.0) for n in (1, 50))
    assert many.n == 1 and many.low <= many.value <= many.high and few.value < many.value
    assert explorer.reading("unet_gmacs", **stop).value == pytest.approx(2 * macs / 1e9)
    assert explorer.baseline == [None, 2, None] and explorer.on_change is None
    answer = first_explorer(record, load=lambda name: pipe, **LIVE).answer({**stop, "steps": 2})
    assert answer["metrics"]["latency_ms"] > 0 and 0 <= answer["metrics"]["clip_score"] <= 100
    assert answer["metrics"]["unet_gmacs"] == pytest.approx(4 * macs / 1e9) and answer["image"].startswith("data:image")


def test_chapter_4_sparsity(small, written, pipe, tmp_path, monkeypatch, untouched) -> None:
    less = {"STOPS": (0.0, 0.5), "STEPS": 1, "PROMPTS": SHOWN}
    sensitivity = {"SENSITIVITY_STEPS": (0,), "SENSITIVITY_STOPS": (0.5, 0.99)}
    few = {"CHUNK": 2, "FEWER": (0.5,), "PATTERNS": ((2, 4),), "INERT": ("mid_block",)}
    module, work = small("sparsity_curve", sparsity, steps=1, **less, **sensitivity, **few), tmp_path / "work"
    with monkeypatch.context() as patch:
        patch.setattr(pb, "captions", lambda name: [f"pizza pie {i}" for i in range(20)])
        curve = written(module.measure(work, 2), tmp_path / "sparsity_curve.json")
        made = {file: file.stat().st_mtime_ns for file in work.iterdir()}
        written(module.measure(work, 4), curve)  # more pictures: goes on
    assert all(file.stat().st_mtime_ns == when for file, when in made.items()), "nothing is drawn twice"
    data = pl.load_record(curve)["data"]
    rows = {(r["part"], r["scope"], r["asked"]): r for r in data["rows"]}
    assert data["n"] == 4 and len(rows) == len(data["rows"])
    whole, inert = rows["unet", "global", 0.0], rows["unet", "inert", 1.0]
    assert whole["ssim"]["value"] == 1 and whole["psnr_db"] is None and whole["equal_pictures"] == 4
    assert whole["zeros"] == 0 < inert["zeros"] == inert["n"]
    for (part, scope, asked), row in rows.items():
        assert row["ssim"]["low"] <= row["ssim"]["value"] <= row["ssim"]["high"] <= 1.0001
        if asked and scope in ("global", "sensitivity", "random", "random, shares by sensitivity"):
            assert row["n"] == prunable_weights(getattr(pipe, part)).n
            assert row["zeros"] == round(asked * row["n"])
    assert {scope for part, scope, _ in rows if part == "unet"} >= {*SCOPES, "2:4"}
    assert Sensitivity.from_dict(data["sensitivity"]).layers == tuple(prunable_weights(pipe.unet).weights)

    module = small("sparsity_explorer", steps=1, **less)
    record = written(module.measure(repeats=1, curve=str(curve)), tmp_path / "sparsity_explorer.json")
    explorer = sparsity_explorer(record)
    live = sparsity_explorer(record, curve=curve, load=lambda name: pipe, **LIVE)
    for i, scope in enumerate(SCOPES):
        stop = {"prompt": "lion", "scope": scope, "sparsity": 0.5}
        shown, size = explorer.reading("mean_ssim", **stop), explorer.reading("sparse_mb", **stop).value
        assert (shown.value, shown.n) == (rows["unet", scope, 0.5]["ssim"]["value"], 4)
        assert size < explorer.reading("sparse_mb", **stop | {"sparsity": 0.0}).value
        assert explorer.reading("ssim", **stop | {"sparsity": 0.0}).value == 1
        assert explorer.reading("latency_ms", **stop).value > 0
        answer = live.answer(stop)
        assert answer["histogram"]["removed"] == explorer.histogram.removed[2 * i + 1] and answer["image"]
        assert answer["metrics"]["sparse_mb"] == pytest.approx(size, abs=0.001)
        assert set(answer["metrics"]) == {"ssim", "clip_score", "latency_ms", "sparse_mb"}
    panel, n = explorer.histogram, prunable_weights(pipe.unet).n
    assert sum(panel.counts) == n and [sum(row) for row in panel.removed[:2]] == [0, round(0.5 * n)]
    assert panel.cuts[0] is None and panel.cuts[1][0] == panel.cuts[1][1] and panel.cuts[-1] is None
    assert explorer.baseline == [None, None, 0] and explorer.on_change is None


def test_cuts_are_one_number_a_range_or_none_and_pictures_start_from_their_own_noise(pipe) -> None:
    for scope, ranged in (("global", False), ("layer", True), ("random", None)):
        with prune_magnitude(pipe.unet, 0.5, scope=scope) as pruned:
            cut, all_cuts = cut_of(pruned), [row.threshold for row in pruned.layers]
        assert cut is None if ranged is None else (cut[0] < cut[1]) == ranged
        assert ranged is None or max(all_cuts) == cut[1]
    both, other = draw(pipe, SHOWN, steps=1)[0], draw(pipe, ["pizza"], steps=1)[0]
    second = draw(pipe, ["pizza"], first=1, steps=1)[0]
    torch.testing.assert_close(both[1:], second, atol=1e-4, rtol=0)
    assert (other - second).abs().max() > 1e-3


def test_chapter_7_operators(small, written, pipe, tmp_path, untouched) -> None:
    module = small("operator_explorer", STOPS=(0.0, 0.03), PROMPTS=SHOWN, steps=1)
    how = {"kinds": ["upsampler", "downsampler"], "num_latents": 2, "steps": 1, "progress": False}
    scores = score_operators(pipe, CAPTIONS, **how)
    path = written(module.explored(scores, CAPTIONS, tmp_path / "work"), tmp_path / "operator_explorer.json")
    explorer, data = operator_explorer(path), pl.load_record(path)["data"]
    whole, values = pl.count_macs(pipe.unet), scores.values()
    assert explorer.paths == scores.operators.paths and explorer.n == len(CAPTIONS) == len(data["captions"])
    for op in explorer.operators:
        assert op.score == pytest.approx(values[op.path])
        assert op.mean_ssim["value"] == pytest.approx(sum(data["per_picture"][op.path]) / 3, abs=1e-3)
        assert op.ssim == data["per_picture"][op.path][: len(SHOWN)]
        assert op.mean_ssim["low"] <= op.mean_ssim["value"] <= op.mean_ssim["high"]
    with change_operators(pipe.unet, {op.path: op.how}):
        left = pl.count_macs(pipe.unet)
    assert op.saved_params == pytest.approx(whole.params - left.params, abs=1)
    assert op.saved_macs == pytest.approx(whole.macs - left.macs, abs=1) and op.saved_macs > 0
    assert explorer.stops[0].changes == [] and explorer.stops[0].ssim == [1, 1]
    for stop in explorer.stops[1:]:  # the lowest scores, and at least what was asked for
        assert 1 - stop.macs / explorer.stops[0].macs >= stop.ratio and stop.params < whole.params
        gone = {p for p, _ in stop.changes}
        worst = max(values[p] for p in gone)
        assert all(values[p] >= worst for p in explorer.paths if not any(p in g or g in p for g in gone))
    live = operator_explorer(path, load=lambda name: pipe)
    operator, stop = explorer.operators[1], explorer.stops[1]
    for state, recorded in (
        ({"prompt": "pizza", "operator": operator.path}, operator.ssim[1]),
        ({"prompt": "pizza", "ratio": stop.ratio}, stop.ssim[1]),
        ({"prompt": "lion", "ratio": 0.0}, 1.0),
    ):
        answer = live.answer(state)
        assert answer["ssim"] == pytest.approx(recorded, abs=0.01) and answer["image"].startswith("data:image/webp")
    assert explorer.on_change is None


def test_chapter_12_schedules(small, written, pipe, tmp_path, monkeypatch) -> None:
    less = {"STEPS": STEPS, "PROMPTS": SHOWN, "BUDGETS": (0.5,), "SEARCH_PROMPTS": 2}
    module = small("schedule_painter", schedule_editor, steps=STEPS, **less)
    monkeypatch.setattr(pb, "captions", lambda name: [*CAPTIONS[:2] * 4, "c"])
    path, work = tmp_path / "schedule_painter.json", tmp_path / "work"
    written(module.painted(CAPTIONS, 12, work), path)
    first, files = pl.load_record(path)["data"], {file: file.stat().st_mtime_ns for file in work.iterdir()}
    written(module.painted(CAPTIONS, 12, work), path)
    assert {file: file.stat().st_mtime_ns for file in work.iterdir()} == files, "nothing is drawn or searched twice"
    assert pl.load_record(path)["data"] == first
    painter, tables = schedule_painter(path, load=lambda name: pipe), presets(grid_of(pipe, STEPS))
    assert [stop.name for stop in painter.stops][:-1] == list(tables) and painter.n == len(CAPTIONS)
    found = painter.stops[-1]
    assert found.name == "local search, within 50 %" and painter.grid.macs_ratio(decode_table(found.on)) <= 0.5
    assert painter.stops[0].ssim == [1, 1] and painter.stops[0].mean["low"] == 1
    likeness = [stop.mean["value"] for stop in painter.stops[1:]]
    assert max(likeness) < 1 and all(stop.mean["low"] <= stop.mean["value"] for stop in painter.stops)
    # Dead work makes no other picture.
    wasted, second = painter.stop("a picture full of dead work"), painter.stop("every 2nd step")
    assert wasted.ssim == second.ssim and wasted.on != second.on
    before = scheduled_pictures(pipe, None, ["lion"])
    for stop in (found, second):
        answer = painter.answer({"prompt": "pizza", "on": stop.on})
        assert answer["ssim"] == pytest.approx(stop.ssim[1], abs=0.01)
        assert answer["image"].startswith("data:image/webp") and answer["ms"] > 0 < answer["whole_ms"]
    torch.testing.assert_close(scheduled_pictures(pipe, None, ["lion"]), before, rtol=0, atol=0)
    assert schedule_painter(path).on_change is None


def test_presets_are_what_they_are_called(pipe) -> None:
    grid = grid_of(pipe, STEPS)
    tables = {name: on for name, (_, on, _) in presets(grid).items()}
    count, units = grid.shape
    assert len(tables) == 14 + units + count - 1 and all(bool(on[0].all()) for on in tables.values())
    assert grid.macs_ratio(tables["every 2nd step"]) == 0.5
    for i, name in enumerate(grid.names):
        assert (~tables[f"{name} once"]).nonzero().tolist() == [[t, i] for t in range(1, count)]
    assert not tables["without step 3"][2].any() and tables["without step 3"].sum() == 3 * units
    once = tables["the deep levels once"]
    kept = {name for name, on in zip(grid.names, once[1].tolist(), strict=True) if on}
    assert kept and all(re.match(r"(down_blocks\.0|up_blocks\.1)\.layers", name) for name in kept)
    assert torch.equal(tables["the deep levels twice"] & once, once)
    assert tables["the last three layers"][1:].sum() == 3 * (count - 1)


@pytest.mark.parametrize(("name", "shown"), CHAPTERS.items())
def test_captions_are_spread_and_begin_with_those_that_are_shown(name, shown, benchmark, monkeypatch) -> None:
    module = benchmark(name)
    monkeypatch.setattr(pb, "captions", lambda name: ALL_CAPTIONS)
    monkeypatch.setattr(module, "PROMPTS", shown)
    found = module.captions_of(32)
    assert tuple(found[:4]) == shown and len(found) == len(set(found)) == 32 and set(found) <= set(ALL_CAPTIONS)
    assert found[:8] == module.captions_of(8)
    assert sorted(spread_captions(shown, 4)) == sorted(shown)
    if name == "schedule_painter":
        assert not set(found) & set(ALL_CAPTIONS[::4])
        monkeypatch.setattr(module, "PROMPTS", (ALL_CAPTIONS[0],))
        with pytest.raises(ValueError, match="trained with"):
            module.captions_of(4)
