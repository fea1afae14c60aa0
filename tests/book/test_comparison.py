"""The explorer and the tables of the comparison at equal MACs, on a record made up for the purpose."""

from __future__ import annotations

import pytest
from comparison_samples import ROWS, interval, made_up
from explorer_samples import grid
from PIL import Image

from pruning_book.plots import comparison
from pruning_book.plots.comparison import Cells, speed_table
from pruning_book.rivals.fewer_steps import FewerSteps
from pruning_book.widgets.comparison import comparison_explorer, rival_of
from pruning_lib.records import passport, save_record
from pruning_lib.steps.schedule import Schedule
from pruning_lib.steps.wiring import Wiring

TWO = Wiring((frozenset(), frozenset([0])), frozenset([1]), False)
GRID = grid(names=("a", "b"), macs=(3, 1), macs_without_attention=(3, 1), wiring=TWO)


def test_rows_are_those_judged_at_every_budget_called_by_what_they_are() -> None:
    data = made_up()
    assert Cells(data).rows(4) == list(ROWS) and Cells(data).rows(50) == []
    data["cells"] = [c for c in data["cells"] if (c["row"], c["budget"]) != ("uniform", 0.25)]
    assert Cells(data).rows(4) == Cells(data).methods(4) == ["ddim", "ours"]
    data["methods"] = ["ours"]
    assert Cells(data).rows(4) == ["ddim", "ours"] and Cells(data).methods(4) == ["ours"]
    with pytest.raises(KeyError, match="no cell of 'uniform'"):
        Cells(data).at(4, "uniform", 0.25)
    recorded = {"dip-go": "DiP-GO, as published", "dip-go-held": "held", "ours": "ours"}
    assert comparison.shown_names(recorded) == {**comparison.SHOWN_NAMES, "ours": "ours"}


def test_cells_become_rivals_again() -> None:
    cells = Cells(made_up())
    fewer, plain, held = (rival_of(cells.at(4, row, 0.5), GRID) for row in ROWS)
    assert isinstance(fewer, FewerSteps) and fewer.steps == 2 and fewer.scheduler is None
    assert isinstance(plain, Schedule) and plain.on.sum() == 3 and plain.label == "uniform"
    assert plain.hold == "value" and held == plain.holding("prediction")
    dpm = rival_of({**cells.at(4, "ddim", 0.5), "row": "dpm"}, GRID)
    assert dpm.label == "2 steps of DPMSolverMultistep"


@pytest.mark.parametrize("timed", [False, True])
def test_the_explorer_reads_the_record(tmp_path, timed) -> None:
    data = made_up()
    if timed:
        data["speed"] = {"times": {"4-0.25-ours": {"generation": {"times_as_fast": interval(3.5)}}}}
    Image.new("RGB", (2 * 64, 7 * 64)).save(tmp_path / "made.webp", lossless=True)
    stamp, file = passport(seeds=[0], n=8, device="cpu"), tmp_path / "made.json"
    save_record(file, "made", {**data, "sheet": "made.webp"}, stamp)
    explorer = comparison_explorer("made", {"data": data, "passport": stamp}, steps=4, source=str(file))
    at = {"thing": "pizza", "method": "ours", "removed": 75}
    assert explorer.reading("macs", **at).value == 25
    assert explorer.reading("ssim", **at).value == pytest.approx(0.1)
    assert explorer.reading("fast", **at).value == (3.5 if timed else None)
    assert explorer.reading("fast", **{**at, "removed": 0}).value == 1
    assert len(explorer.combinations) == 2 * 3 * 3


def test_tables_hold_the_record_s_numbers() -> None:
    data = made_up()
    text = comparison.quality_table(Cells(data), 4, 0.25, ["ddim", "ours"]).data
    assert "uniform reuse" not in text and "0.100<br><small>(0.090 to 0.110)" in text and "25.0 %" in text
    assert "80.0<br><small>(80.0 to 80.0)" in text and "n = 8" in text
    assert speed_table(Cells(data), 4, ["ours"]) is None
    text = comparison.held_table(Cells(data), 4, [("uniform", "ours")]).data
    assert "0.150 \u2192 0.200" in text and "0.075 \u2192 0.100" in text and "output held" in text
    timed = {kind: {"times_as_fast": interval(x)} for kind, x in (("denoising", 3.5), ("generation", 3.2))}
    stamp = {"hardware": "a machine", "n": 5}
    data["speed"] = {"times": {"4-unpruned": timed, "4-0.25-ours": timed}, "pictures": 4, "passport": stamp}
    text = speed_table(Cells(data), 4, ["ddim", "ours"]).data
    assert text.count("3.50 (3.49 to 3.51)") == 1 and ">4.00<" in text and text.count("not measured") == 3
    assert "3.20 (3.19 to 3.21)" in speed_table(Cells(data), 4, ["ours"], "generation").data
    row = {"method": "a", "budget": 0.2, "cpu_seconds": 9.6, "latent_mse": 0.01}
    row |= {"ssim": interval(0.9), "clip_score": interval(80)}
    rows = [{**row, "images": 320}, {**row, "images": None, "images_with_gradient": 160}]
    search = {"names": {"a": "chance"}, "rows": rows, "steps": 4, "n": 8, "unpruned_clip_score": interval(80)}
    text = comparison.search_table(search).data
    assert "320" in text and "160 *" in text and "80 %" in text
