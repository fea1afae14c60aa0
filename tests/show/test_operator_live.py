"""The record behind the operator explorer, made with a tiny pipeline, and the live side that draws anew."""

from __future__ import annotations

import json

import pytest
import torch

import pruning_lib as pl
from pruning_book.widgets import operator_live
from pruning_book.widgets.operator_live import changed_pictures, operator_explorer
from pruning_lib.operators.remove import change_operators
from pruning_lib.operators.score import score_operators

CAPTIONS = ["lion", "pizza", "pizza pie 1"]
SHOWN = ("lion", "pizza")
STOPS = (0.0, 0.05, 0.1)


@pytest.fixture(scope="module")
def made(benchmark, pipe, tmp_path_factory):
    """The record, made twice: the second time from the pictures of the first."""
    folder = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pl, "load", lambda name, device: pipe)
        patch.setattr(operator_live.draw.__wrapped__, "__kwdefaults__", {"first": 0, "steps": 2, "guidance": 3.0})
        module = benchmark("operator_explorer")
        for name, value in {"STOPS": STOPS, "PROMPTS": SHOWN}.items():
            patch.setattr(module, name, value)
        kinds = ["transformer", "upsampler"]
        scores = score_operators(pipe, CAPTIONS, kinds=kinds, num_latents=2, steps=1, progress=False)
        before = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
        path = module.record(folder / "operator_explorer.json", scores, CAPTIONS, folder / "work", "cpu")
        first = path.read_text()
        files = {file: file.stat().st_mtime_ns for file in (folder / "work").iterdir()}
        module.record(path, scores, CAPTIONS, folder / "work", "cpu")
        assert {f: f.stat().st_mtime_ns for f in (folder / "work").iterdir()} == files, "nothing is drawn twice"
        assert pl.load_record(path)["data"] == json.loads(first)["data"]
        assert all(torch.equal(before[name], value) for name, value in pipe.unet.state_dict().items())
        yield path, scores


def test_the_record_has_every_operator_with_its_score_and_what_it_saves(made, pipe) -> None:
    path, scores = made
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


def test_each_stop_removes_the_lowest_and_at_least_what_was_asked_for(made) -> None:
    path, scores = made
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


def test_live_it_draws_what_was_recorded_and_puts_everything_back(made, pipe) -> None:
    path, _ = made
    explorer = operator_explorer(path, load=lambda name: pipe)
    before = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
    operator = explorer.operators[1]
    for state, recorded in (
        ({"prompt": "pizza", "operator": operator.path}, operator.ssim[1]),
        ({"prompt": "pizza", "ratio": STOPS[2]}, explorer.stops[2].ssim[1]),
        ({"prompt": "lion", "ratio": 0.0}, 1.0),
    ):
        answer = explorer.answer(state)
        assert answer["ssim"] == pytest.approx(recorded, abs=0.01) and answer["image"].startswith("data:image/webp")
    after = pipe.unet.state_dict()
    assert list(after) == list(before) and all(torch.equal(before[name], value) for name, value in after.items())
    assert operator_explorer(path).on_change is None


def test_pictures_change_with_what_is_changed(pipe) -> None:
    whole = changed_pictures(pipe, {}, ["lion"])
    torch.testing.assert_close(whole, changed_pictures(pipe, {}, ["lion"]), atol=1e-5, rtol=0)
    other = changed_pictures(pipe, {"conv_out": "pointwise"}, ["lion"])
    assert other.shape == whole.shape and (other - whole).abs().max() > 1e-3
    with pytest.raises(KeyError, match="conv_out"):
        changed_pictures(pipe, {"conv_outt": "pointwise"}, ["lion"])


def test_captions_begin_with_those_of_the_explorer(benchmark, monkeypatch) -> None:
    monkeypatch.setattr(pl, "captions", lambda name: [f"c{i}" for i in range(40)] + ["lion"])
    module = benchmark("operator_explorer")
    found = module.captions_of(12)
    assert tuple(found[:4]) == operator_live.PROMPTS and len(found) == len(set(found)) == 12
    assert found[:8] == module.captions_of(8)
