"""Figures, rulings and the explorer of the comparison at equal MACs, on a record made up for the purpose."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from pruning_book.comparison_claims import METRICS, as_fast_as_macs_say, beaten, best_or_tied
from pruning_book.plots.comparison import (
    SHOWN_NAMES,
    Cells,
    against_budget,
    differences,
    search_traces,
    shown_names,
    timelines,
    toy_holding,
)
from pruning_book.plots.tables import held_table, quality_table, search_table, speed_table
from pruning_book.rivals.fewer_steps import FewerSteps
from pruning_book.widgets.comparison import comparison_explorer, rival_of
from pruning_lib.records import passport, save_record
from pruning_lib.steps.reuse import HeldPrediction
from pruning_lib.steps.schedule import Grid, Schedule
from pruning_lib.steps.wiring import Wiring

BUDGETS, ROWS = (0.5, 0.25), {"ddim": "fewer steps", "uniform": "uniform reuse", "ours": "ours"}
GRID = Grid(
    names=("a", "b"),
    macs=(3, 1),
    macs_without_attention=(3, 1),
    base_macs=0,
    base_macs_without_attention=0,
    wiring=Wiring((frozenset(), frozenset([0])), frozenset([1]), False),
    grain="layers",
    class_name="Made",
    structure="up",
    scheduler="DDIMScheduler",
    steps=4,
    timesteps=(9.0, 6.0, 3.0, 1.0),
)


def interval(value: float, width: float = 0.01) -> dict:
    return {"value": value, "low": value - width, "high": value + width, "n": 8, "level": 0.95}


def made_up() -> dict:
    """Return a record in which ours is better than either rival on all metrics."""
    figures, place, cells = (*METRICS, "psnr_db"), 1, []
    for budget in BUDGETS:
        for index, row in enumerate(ROWS):
            cell = {
                "steps": 4,
                "budget": budget,
                "row": row,
                "macs_ratio": budget,
                "sheet_row": place,
                "reuse": "output",
            }
            cell |= {key: interval((0.2 + 0.1 * index) * budget) for key in figures}
            cell |= {"num_inference_steps": int(4 * budget) if row == "ddim" else 4}
            if row != "ddim":
                cell["rows"] = ["11", "00", "01", "00"]
            if row == "ours":
                cell["reuse"] = "prediction"
            else:
                signs = {key: sign for key, (_, sign) in METRICS.items()}
                cell["ours_minus"] = {key: interval(0.1 * signs.get(key, 1)) for key in figures}
            cells.append(cell)
            place += 1
    return {
        "budgets": list(BUDGETS),
        "rows": ROWS,
        "methods": list(ROWS),
        "cells": cells,
        "n": 8,
        "shown": ["lion", "pizza"],
        "prompts": ["lion", "pizza"],
        "unpruned": {"4": {"sheet_row": 0, "clip_score": interval(80), "frechet_real": interval(3)}},
    }


def test_figures_say_what_is_in_them() -> None:
    cells = Cells(made_up())
    names = {"ssim": "SSIM", "frechet_real": "Fréchet"}
    assert "25 %: ours 0.1, uniform reuse 0.075, …, fewer steps 0.05." in against_budget(cells, 4, names).alt
    figure = against_budget(cells, 4, {"ssim": "1 - SSIM", "frechet_real": "Fréchet"}, log=["ssim"])
    assert "1 - SSIM at 25 %: ours 0.9, uniform reuse 0.925, …, fewer steps 0.95." in figure.alt
    lost, distance = against_budget(cells, 4, names, ["ours"], log=["ssim"]).axes
    assert lost.get_yscale() == "log" and distance.get_yscale() == "linear"
    line, _, (bars,) = lost.containers[0]
    assert line.get_ydata() == pytest.approx([1 - 0.4 * b for b in BUDGETS])
    assert bars.get_segments()[0][:, 1] == pytest.approx([1 - 0.2 - 0.01, 1 - 0.2 + 0.01])
    figure = differences(cells, 4, METRICS, ["ddim", "uniform"])
    assert "clearly better in 0 of 16" in figure.alt
    assert "a 2 of 3" in timelines({"a": torch.tensor([[1, 1], [0, 0], [0, 1]], dtype=torch.bool)}, (3, 1)).alt
    paths = {"all": torch.tensor([0.0, 1.0]), "held": torch.tensor([0.0, 0.5])}
    assert "held 0.500" in toy_holding([1.0], paths).alt
    assert "chance 0.5" in search_traces({"chance": [[8, 2.0], [16, 0.5]]}, 40, ylabel="error").alt


def test_rows_are_those_judged_at_every_budget() -> None:
    data = made_up()
    assert Cells(data).rows(4) == list(ROWS) and Cells(data).rows(50) == []
    data["cells"] = [c for c in data["cells"] if (c["row"], c["budget"]) != ("uniform", 0.25)]
    assert Cells(data).rows(4) == Cells(data).methods(4) == ["ddim", "ours"]
    data["methods"] = ["ours"]
    assert Cells(data).rows(4) == ["ddim", "ours"] and Cells(data).methods(4) == ["ours"]
    with pytest.raises(KeyError, match="no cell of 'uniform'"):
        Cells(data).at(4, "uniform", 0.25)


def test_best_or_tied_follows_the_intervals() -> None:
    rivals = ["ddim", "uniform"]
    assert best_or_tied(Cells(made_up()), 4, rivals)[0] == "holds"
    data = made_up()
    for by in (data["cells"][0]["ours_minus"], data["cells"][1]["ours_minus"]):
        by["ssim"] = interval(0.0)  # a tie
    ruling, because = best_or_tied(Cells(data), 4, rivals)
    assert ruling == "holds" and "better in 14, clearly worse in 0" in because
    data["cells"][0]["ours_minus"]["frechet_real"] = interval(0.2)  # lower is better
    ruling, because = best_or_tied(Cells(data), 4, rivals)
    assert ruling == "holds in part" and "fewer steps at 50 % (Fréchet distance to the real" in because
    (lost,) = beaten(Cells(data), 4, rivals)
    assert (lost.row, lost.budget, lost.metric) == ("ddim", 0.5, "frechet_real")
    for cell in data["cells"]:
        for key, (_, sign) in METRICS.items():
            if "ours_minus" in cell:
                cell["ours_minus"][key] = interval(-0.1 * sign)
    assert best_or_tied(Cells(data), 4, rivals)[0] == "does not hold"


def test_speed_is_ruled_by_the_times() -> None:
    data = made_up()
    assert as_fast_as_macs_say(data)[0] == "not measured"
    data["speed"] = {"times": {}}
    assert as_fast_as_macs_say(data)[0] == "not measured"
    for fast, wanted in (((1.9, 3.7), "holds"), ((1.7, 3.7), "holds in part"), ((1.7, 3.0), "does not hold")):
        data["speed"] = {
            "times": {
                f"4-{budget:g}-ours": {"denoising": {"times_as_fast": interval(x)}}
                for budget, x in zip(BUDGETS, fast, strict=True)
            }
        }
        assert as_fast_as_macs_say(data)[0] == wanted


def test_cells_become_rivals_again() -> None:
    cells = Cells(made_up())
    fewer, plain, held = (rival_of(cells.at(4, row, 0.5), GRID) for row in ROWS)
    assert isinstance(fewer, FewerSteps) and fewer.steps == 2 and fewer.scheduler is None
    assert isinstance(plain, Schedule) and plain.on.sum() == 3 and plain.label == "uniform"
    assert isinstance(held, HeldPrediction) and held.schedule == plain
    dpm = rival_of({**cells.at(4, "ddim", 0.5), "row": "dpm"}, GRID)
    assert dpm.label == "2 steps of DPMSolverMultistep"


@pytest.mark.parametrize("timed", [False, True])
def test_the_explorer_reads_the_record(tmp_path, timed) -> None:
    data = made_up()
    if timed:
        data["speed"] = {"times": {"4-0.25-ours": {"generation": {"times_as_fast": interval(3.5)}}}}
    sheet = Image.new("RGB", (2 * 64, 7 * 64))
    for row in range(7):
        sheet.paste((30 * row, 0, 0), (0, 64 * row, 128, 64 * row + 64))
    sheet.save(tmp_path / "made.webp", lossless=True)
    stamp = passport(seeds=[0], n=8, device="cpu")
    save_record(tmp_path / "made.json", "made", {**data, "sheet": "made.webp"}, stamp)
    explorer = comparison_explorer(
        "made", {"data": data, "passport": stamp}, steps=4, source=str(tmp_path / "made.json")
    )
    at = {"thing": "pizza", "method": "ours", "removed": 75}
    assert explorer.reading("macs", **at).value == 25
    assert explorer.reading("ssim", **at).value == pytest.approx(0.1)
    assert explorer.reading("fast", **at).value == (3.5 if timed else None)
    assert explorer.reading("fast", **{**at, "removed": 0}).value == 1
    assert len(explorer.combinations) == 2 * 3 * 3


def test_rows_are_called_by_what_they_are_whatever_a_record_says() -> None:
    recorded = {"dip-go": "DiP-GO, as published", "dip-go-held": "held", "ours": "ours"}
    shown = shown_names(recorded)
    assert shown == {**SHOWN_NAMES, "ours": "ours"} and Cells({"rows": recorded, "cells": []}).names == shown


def test_eight_rows_have_eight_looks() -> None:
    rows = {f"r{i}": f"rival {i}" for i in range(7)} | {"ours": "ours"}
    cells = [
        {"steps": 4, "budget": b, "row": row, "macs_ratio": b, "ssim": interval(0.5)} for row in rows for b in BUDGETS
    ]
    data = {"budgets": list(BUDGETS), "rows": rows, "methods": list(rows), "cells": cells}
    (ax,) = against_budget(Cells(data), 4, {"ssim": "SSIM"}).axes
    lines = [container[0] for container in ax.containers]
    assert len({line.get_color() for line in lines}) == len(rows)


def test_tables_hold_the_record_s_numbers() -> None:
    data = made_up()
    text = quality_table(Cells(data), 4, 0.25, ["ddim", "ours"]).data
    assert "uniform reuse" not in text and "0.100<br><small>(0.090 to 0.110)" in text and "25.0 %" in text
    assert "80.0<br><small>(80.0 to 80.0)" in text and "n = 8" in text
    assert speed_table(Cells(data), 4, ["ours"]) is None
    text = held_table(Cells(data), 4, [("uniform", "ours")]).data
    assert "0.150 \u2192 0.200" in text and "0.075 \u2192 0.100" in text and "output held" in text
    timed = {kind: {"times_as_fast": interval(x)} for kind, x in (("denoising", 3.5), ("generation", 3.2))}
    stamp = {"hardware": "a machine", "n": 5}
    data["speed"] = {"times": {"4-unpruned": timed, "4-0.25-ours": timed}, "pictures": 4, "passport": stamp}
    text = speed_table(Cells(data), 4, ["ddim", "ours"]).data
    assert text.count("3.50 (3.49 to 3.51)") == 1 and ">4.00<" in text and text.count("not measured") == 3
    assert "3.20 (3.19 to 3.21)" in speed_table(Cells(data), 4, ["ours"], "generation").data
    row = {
        "method": "a",
        "budget": 0.2,
        "cpu_seconds": 9.6,
        "latent_mse": 0.01,
        "ssim": interval(0.9),
        "clip_score": interval(80),
    }
    rows = [{**row, "images": 320}, {**row, "images": None, "images_with_gradient": 160}]
    search = {"names": {"a": "chance"}, "rows": rows, "steps": 4, "n": 8, "unpruned_clip_score": interval(80)}
    text = search_table(search).data
    assert "320" in text and "160 *" in text and "80 %" in text
