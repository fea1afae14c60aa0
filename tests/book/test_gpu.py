"""What `make gpu` found: read or refused, never hidden; "not measured" where it is not; rulings come out every way."""

from __future__ import annotations

import copy
from pathlib import Path

import gpu_samples as samples
import pytest
from gpu_samples import BROKEN, H100, OOM, T4, one

from pruning_book import gpu
from pruning_book.output import table
from pruning_lib.records import RecordError, load_record

CPU = next(iter(load_record("sd15_scoring")["data"]["runs"]))
TABLES = {
    "speed": lambda runs: gpu.speed(runs("sd15_speed")),
    "compiled": lambda runs: gpu.speed(runs("sd15_compiled")),
    "big": lambda runs: gpu.speed(runs("big_models")),
    "training": lambda runs: gpu.training(runs("sd15_training"), runs("sd15_speed")),
    "zeros": lambda runs: gpu.zeros(runs("zeros")),
    "channels": lambda runs: gpu.channels(runs("zeros")),
    "cut": lambda runs: gpu.cut(runs("sd15_operators")),
    "scoring": lambda runs: gpu.scoring(runs("sd15_operators"), CPU),
    "tests": lambda runs: gpu.suites({"all": runs("tests"), "compiled": runs("tests_compiled")}),
}


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of records, where chapters look."""
    monkeypatch.setenv("PRUNING_LIB_RESULTS", str(tmp_path))
    return tmp_path


def cells(rows: list[list[str]], name: str) -> list[str]:
    """Return the cells of the one row whose first cell ends so."""
    (row,) = [row for row in rows if row[0].endswith(name)]
    return row[1:]


def test_no_record_is_no_run_and_a_damaged_one_is_not_hidden(results: Path) -> None:
    assert gpu.gpu_runs("zeros") == []
    (results / "gpu_zeros.json").write_text('{"schema_version": 1,', "utf-8")
    with pytest.raises(RecordError):
        gpu.gpu_runs("zeros")


@pytest.mark.parametrize("data", [{}, {"runs": {}}, {"runs": [{"hardware": T4, "parts": {}}]}, {"runs": ["x"]}])
def test_a_record_of_another_form_is_refused(monkeypatch: pytest.MonkeyPatch, data: dict) -> None:
    monkeypatch.setattr(gpu, "load_record", lambda name: {"data": data})
    with pytest.raises(RecordError, match="gpu_zeros.json has no list of runs"):
        gpu.gpu_runs("zeros")


@pytest.mark.parametrize("name", TABLES)
def test_without_records_a_table_says_so(results: Path, name: str) -> None:
    head, rows, caption = TABLES[name](gpu.gpu_runs)
    assert rows[-1][0] == "GPU" and set(rows[-1][1:]) == {"not measured"}
    assert "no GPU has been measured yet" in caption and "make gpu" in caption
    table(head, rows, caption)


@pytest.mark.parametrize("gpus", [1, 2])
@pytest.mark.parametrize("name", TABLES)
def test_the_shipped_records_fill_the_tables(name: str, gpus: int) -> None:
    def runs(stage: str) -> list[dict]:
        found = gpu.gpu_runs(stage)
        return [{**copy.deepcopy(run), "hardware": f"GPU {i}"} for i in range(gpus) for run in found[:1]]

    head, rows, caption = TABLES[name](runs)
    assert len(head) <= 7
    html = table(head, rows, caption).data  # every row as long as the head
    measured = "not measured" not in html
    assert measured or "Not measured: the run on" in caption or name in ("compiled", "channels")
    if measured and gpus > 1:  # a block of rows for each
        assert all(any(f"GPU {i}" in row[0] for row in rows) or name == "scoring" for i in range(gpus))


def test_what_a_run_had_no_time_for_is_not_called_unmeasured_anywhere() -> None:
    caption = gpu.channels(one(("linear", OOM)))[2]
    assert f"Not measured: the run on {H100} ended before." in caption and "no GPU" not in caption


def test_speed_shows_promised_and_reached() -> None:
    part = samples.timed(50, 1, {"DeepCache": 0.9})
    rows, caption = gpu.speed(one(("50 steps, batch 1", part)))[1:]
    assert rows[0] == ["50 steps, batch 1: unpruned", "100 %", "–", "1.50 (1.48 to 1.52)", "1", "1", "–"]
    assert cells(rows, "uniform, 50 % asked") == [
        "50.0 %",
        "25",
        "0.75 (0.74 to 0.76)",
        *("2.00", "2.00 (2.00 to 2.00)", "1.00"),
    ]
    assert cells(rows, "DeepCache, 20 % asked")[3:] == ["5.00", "4.50 (4.50 to 4.50)", "0.90"]
    assert f"{H100} (80 GiB, driver 580.65, CUDA 13.0, torch 2.11.0+cu130, 2026-12-01)" in caption
    assert "512 x 512 pixels, float16, guidance 7.5" in caption and "n = 3" in caption


def test_speed_by_batch_compiled_and_of_one_round() -> None:
    runs = one(*((f"50 steps, batch {batch}", samples.timed(50, batch)) for batch in (1, 4)))
    assert not any("batch 1" in row[0] for row in gpu.speed(runs, "batch 4")[1])
    compiled = samples.timed(20, 1, compile_seconds=61.0, graphs=34, eager_unpruned=samples.latency(1200.0).to_dict())
    rows = gpu.speed(one(("20 steps", compiled)))[1]
    assert rows[0][0] == "20 steps: unpruned, not compiled" and rows[0][5] == "0.50"
    assert rows[1][0].endswith("unpruned, compiled in 61 s, 34 graphs")
    for row in compiled["rows"]:
        row["times_as_fast"] = {"value": row["times_as_fast"]["value"]}
    rows, caption = gpu.speed(one(("20 steps", compiled)))[1:]
    assert cells(rows, "uniform, 50 % asked")[4] == "2.00" and "n = 1." in caption


@pytest.mark.parametrize("why, word", [(OOM, "out of memory"), (BROKEN, "failed")])
def test_what_has_no_figures_says_why(why: dict, word: str) -> None:
    facts = {"steps": 50, "batch": 4, "guidance": 7.5, "side": 64, "dtype": "float16"}
    for found, name in (
        (gpu.speed(one(("a", samples.timed(50, 1)), ("b", {**facts, **why}))), "b"),
        (gpu.cut(one(("cut", why))), "cut"),
        (gpu.channels(one((gpu.NARROW_UNET, why))), gpu.NARROW_UNET),
        (gpu.scoring(one(("scoring", why)), CPU), H100),
        (gpu.suites({"all": one(("pytest", why))}), H100),
    ):
        assert cells(found[1], name)[0] == word and set(cells(found[1], name)[1:]) == {"–"}
    assert gpu.throughput(one(("unet", why))) == f"unet: {word} ({H100})"


def test_training_shows_counted_and_expected_beside_measured() -> None:
    found = samples.trained("best"), samples.trained("all", OOM), samples.trained("best", BROKEN, steps=20)
    speeds = one(("50 steps, batch 4", samples.timed(50, 4)), ("50 steps, batch 1", samples.timed(50, 1)))
    rows = gpu.training(one(*found), speeds)[1]
    assert rows[0][1:] == ["2.0 GiB", "8.0 GiB", "9.0 GiB", "1.12", "6.0 s", "6.5 s"]
    assert rows[1][1:] == ["–", "8.0 GiB", "out of memory", "–", "6.0 s", "–"]
    assert rows[2][1:] == ["–", "8.0 GiB", "failed", "–", "–", "–"]  # nobody timed 20 steps
    other = [samples.run(run["parts"], T4) for run in speeds]
    assert gpu.training(one(found[0]), other)[1][0][5] == "–"  # another GPU's time expects nothing of this one


@pytest.mark.parametrize(
    "reached, ruling",
    [
        ({}, "holds"),
        ({"deepcache package": 0.5}, "holds"),
        ({"DeepCache": 0.9}, "holds in part"),
        (dict.fromkeys(samples.WAYS, 0.9), "does not hold"),
    ],
)
def test_follows_macs(reached: dict, ruling: str) -> None:
    found = gpu.follows_macs(one(("a", samples.timed(50, 1, reached)), ("b", OOM)))
    assert found[0] == ruling
    assert "DeepCache" not in reached or "The least is 0.90" in found[1] and H100 in found[1]


def test_not_behind_the_package() -> None:
    for package, ruling in ((1.0, "holds"), (0.9, "holds"), (1.05, "does not hold")):
        part = samples.timed(50, 1, {"deepcache package": package})
        assert gpu.not_behind(one(("a", part)))[0] == ruling
    slow = samples.run({"a": samples.timed(50, 1, {"deepcache package": 1.25})}, T4)
    ruling, because = gpu.not_behind([*one(("a", samples.timed(50, 1))), slow])
    assert ruling == "holds in part" and "Not behind in 2 of 4" in because and "0.800 (0.800 to 0.800)" in because


def test_training_stays_under() -> None:
    def ruled(*found: tuple[str, dict]) -> str:
        return gpu.stays_under(one(*found))[0]

    fits, full = samples.trained("best"), samples.trained("published", OOM)
    large = samples.trained("published", {"peak_mib": 14 * 1024.0, "seconds_per_iteration": 1.0, "before_mib": 0.0})
    aside = [samples.trained("a", OOM, steps=20), samples.trained("b", OOM, dtype="float32")]
    assert ruled(fits, *aside) == "holds" and ruled(*aside) == "not measured"
    assert ruled(fits, large) == ruled(fits, full) == "holds in part"
    assert ruled(large) == ruled(full) == "does not hold" and ruled(samples.trained("c", BROKEN)) == "not measured"
    assert "out of memory" in gpu.stays_under(one(fits, full))[1]


def test_without_records_nothing_is_ruled_and_questions_stay_open() -> None:
    for rule in (gpu.follows_macs, gpu.not_behind, gpu.stays_under):
        assert rule([]) == ("not measured", "No GPU has been measured yet.")
    runs = one(("cut", OOM), ("scoring", {"seconds": 1.0}), ("other", BROKEN))
    assert gpu.measured(runs, "scoring") and not gpu.measured(runs, "cut") and not gpu.measured([])
    assert gpu.open_questions({"a <b>": False, "c": True}).data == "<ul><li>a &lt;b&gt;</li></ul>"


def test_a_dry_run_is_called_one() -> None:
    assert "dry run at toy shapes" in gpu.speed([{**samples.run({"a": samples.timed(4, 1)}), "dry": True}])[2]
