"""The sparsity explorer, and the two benchmarks behind chapter 4, with a tiny pipeline in place of the model."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pruning_lib as pl
from pruning_book.widgets import sparsity as setting
from pruning_book.widgets.sparsity import cut_of, draw, sparsity_explorer, spread_captions
from pruning_lib.weights.magnitude import Sensitivity, prune_magnitude
from pruning_lib.weights.select import prunable_weights

CAPTIONS = [f"pizza pie {i}" for i in range(40)]
STOPS = (0.0, 0.5, 0.9)


class Clip:
    """Vectors that depend on the picture and on the text, with the parts of a real CLIP that are used."""

    features_name = "stand-in"

    def __init__(self) -> None:
        self.model = SimpleNamespace(visual_projection=nn.Identity())

    def features(self, images):
        return images.float().mean((2, 3))

    def embed_images(self, images):
        return F.normalize(self.features(images), dim=-1)

    def embed_texts(self, texts):
        return F.normalize(torch.tensor([[1.0, sum(map(ord, text)) % 97, 2.0] for text in texts]), dim=-1)


@pytest.fixture(scope="module")
def records(benchmark, pipe, tmp_path_factory):
    """Both records, of a few stops; the second is made from the first."""
    folder = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pl, "load", lambda name, device: pipe)
        patch.setattr(pl, "load_clip", lambda name: Clip())
        patch.setattr(pl, "captions", lambda name: CAPTIONS)
        for name, value in {"STOPS": STOPS, "STEPS": 2, "INERT": ("mid_block",)}.items():
            patch.setattr(setting, name, value)
        patch.setattr(setting.draw.__wrapped__, "__kwdefaults__", {"first": 0, "steps": 2, "guidance": 3.0})
        curve = benchmark("sparsity_curve")
        patch.setattr(curve, "CHUNK", 4)
        patch.setattr(curve, "FEWER", (0.5,))
        patch.setattr(curve, "SENSITIVITY_STEPS", (0, 1))
        patch.setattr(curve, "SENSITIVITY_STOPS", (0.5, 0.99))
        first = curve.record(folder / "sparsity_curve.json", 4, folder / "work", "cpu")
        made = {file: file.stat().st_mtime_ns for file in (folder / "work").iterdir()}
        curve.record(folder / "sparsity_curve.json", 8, folder / "work", "cpu")  # more pictures: goes on
        assert all(file.stat().st_mtime_ns == when for file, when in made.items()), "nothing is drawn twice"
        module = benchmark("sparsity_explorer")
        for name, value in {"STOPS": STOPS, "PROMPTS": ("lion", "pizza"), "STEPS": 2}.items():
            patch.setattr(module, name, value)
        second = module.record(folder / "sparsity_explorer.json", pl.load_record(first), 1, "cpu")
        yield first, second


def test_the_curve_has_every_row_with_exact_counts_and_intervals(records, pipe) -> None:
    data = pl.load_record(records[0])["data"]
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
    assert {scope for part, scope, _ in rows if part == "unet"} >= {*setting.SCOPES, "2:4", "inert"}
    assert rows["unet", "inert", 1.0]["zeros"] == rows["unet", "inert", 1.0]["n"] > 0
    assert Sensitivity.from_dict(data["sensitivity"]).layers == tuple(prunable_weights(pipe.unet).weights)


def test_the_benchmarks_leave_the_model_as_it_was(records, pipe) -> None:
    assert not any((p == 0).all() for p in prunable_weights(pipe.unet).weights.values())
    prune_magnitude(pipe.unet, 0.5).restore()  # refused while a handle is alive


def test_the_explorer_shows_the_record(records, pipe) -> None:
    explorer = sparsity_explorer(records[1])
    assert [axis.name for axis in explorer.axes] == ["prompt", "scope", "sparsity"]
    curve = pl.load_record(records[0])["data"]["rows"]
    for scope in setting.SCOPES:
        row = next(r for r in curve if (r["part"], r["scope"], r["asked"]) == ("unet", scope, 0.9))
        shown = explorer.reading("mean_ssim", prompt="lion", scope=scope, sparsity=0.9)
        assert (shown.value, shown.n) == (row["ssim"]["value"], 8)
        sizes = [explorer.reading("sparse_mb", prompt="pizza", scope=scope, sparsity=s).value for s in (0.0, 0.5, 0.9)]
        assert sizes[0] > sizes[2]
        assert explorer.reading("ssim", prompt="lion", scope=scope, sparsity=0.0).value == 1
        assert explorer.reading("latency_ms", prompt="lion", scope=scope, sparsity=0.5).value > 0
    panel = explorer.histogram
    n = prunable_weights(pipe.unet).n
    assert sum(panel.counts) == n
    removed = {combination: sum(row) for combination, row in enumerate(panel.removed)}
    assert [removed[i] for i in range(3)] == [0, round(0.5 * n), round(0.9 * n)]
    assert panel.cuts[0] is None and panel.cuts[1][0] == panel.cuts[1][1] and panel.cuts[-1] is None
    assert explorer.baseline == [None, None, 0] and explorer.on_change is None


def test_live_it_prunes_draws_and_puts_the_weights_back(records, pipe) -> None:
    before = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
    live = {"load": lambda name: pipe, "load_clip": lambda name: Clip()}
    explorer = sparsity_explorer(records[1], curve=records[0], **live)
    for scope in setting.SCOPES:
        stop = {"prompt": "lion", "scope": scope, "sparsity": 0.5}
        answer = explorer.answer(stop)
        recorded = explorer.histogram.removed[3 * setting.SCOPES.index(scope) + 1]
        assert answer["histogram"]["removed"] == recorded
        assert answer["metrics"]["sparse_mb"] == pytest.approx(explorer.reading("sparse_mb", **stop).value, abs=0.001)
        assert set(answer["metrics"]) == {"ssim", "clip_score", "latency_ms", "sparse_mb"} and answer["image"]
    assert all(torch.equal(before[name], value) for name, value in pipe.unet.state_dict().items())


def test_pictures_start_from_the_noise_of_their_own_place(pipe) -> None:
    both, _ = draw(pipe, ["lion", "pizza"], steps=1)
    second, _ = draw(pipe, ["pizza"], first=1, steps=1)
    torch.testing.assert_close(both[1:], second, atol=1e-4, rtol=0)
    other, _ = draw(pipe, ["pizza"], first=0, steps=1)
    assert (other - second).abs().max() > 1e-3


def test_captions_are_spread_and_more_of_them_begin_with_the_same() -> None:
    assert spread_captions(CAPTIONS, 8)[:4] == spread_captions(CAPTIONS, 4) != CAPTIONS[:4]
    assert sorted(spread_captions(CAPTIONS, 40)) == sorted(CAPTIONS)


def test_cuts_are_one_number_a_range_or_none(pipe) -> None:
    unet = pipe.unet
    with prune_magnitude(unet, 0.5) as pruned:
        low, high = cut_of(pruned)
        assert low == high == max(row.threshold for row in pruned.layers)
    with prune_magnitude(unet, 0.5, scope="layer") as pruned:
        low, high = cut_of(pruned)
        assert low == min(row.threshold for row in pruned.layers) < high
    for options in ({"scope": "random"}, {}):
        with prune_magnitude(unet, 0.5 if options else 0.0, **options) as pruned:
            assert cut_of(pruned) is None
