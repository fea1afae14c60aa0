"""Tables of `make gpu`: "not measured" without records; with them figures, or why there are none."""

from __future__ import annotations

from pathlib import Path

import gpu_samples as samples
import pytest

from pruning_book import gpu as records
from pruning_book import gpu as tables
from pruning_book.output import table

H100, T4 = "NVIDIA H100 80GB HBM3", "Tesla T4"
PROCESSOR = {**samples.scored(), "passport": {"hardware": "a processor"}}
TABLES = {
    "speed": lambda runs: tables.speed(runs("sd15_speed")),
    "batch 4": lambda runs: tables.speed(runs("sd15_speed"), "batch 4"),
    "compiled": lambda runs: tables.speed(runs("sd15_compiled")),
    "big": lambda runs: tables.speed(runs("big_models")),
    "training": lambda runs: tables.training(runs("sd15_training"), runs("sd15_speed")),
    "zeros": lambda runs: tables.zeros(runs("zeros")),
    "channels": lambda runs: tables.channels(runs("zeros")),
    "cut": lambda runs: tables.cut(runs("sd15_operators")),
    "scoring": lambda runs: tables.scoring(runs("sd15_operators"), PROCESSOR),
    "tests": lambda runs: tables.suites({"all": runs("tests"), "compiled": runs("tests_compiled")}),
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


@pytest.mark.parametrize("name", TABLES)
def test_without_records_a_table_says_so(results: Path, name: str) -> None:
    head, rows, caption = TABLES[name](records.gpu_runs)
    assert rows[-1][0] == "GPU" and set(rows[-1][1:]) == {"not measured"}
    assert "no GPU has been measured yet" in caption and "make gpu" in caption
    table(head, rows, caption)


@pytest.mark.parametrize("hardware", [[H100], [H100, T4]], ids=["one GPU", "two GPUs"])
@pytest.mark.parametrize("name", TABLES)
def test_with_records_a_table_names_the_gpus_and_n(results: Path, name: str, hardware: list[str]) -> None:
    samples.write_all(results, hardware)
    head, rows, caption = TABLES[name](records.gpu_runs)
    assert len(head) <= 7
    html = table(head, rows, caption).data  # every row as long as the head
    assert "not measured" not in html and "no GPU has been measured" not in html
    about = "(80 GiB, driver 580.65, CUDA 13.0, torch 2.11.0+cu130, 2026-12-01)"
    assert all(f"{gpu} {about}" in caption for gpu in hardware)
    assert "n = " in caption or name == "tests"
    if len(hardware) > 1:  # a block of rows for each
        assert all(any(gpu in row[0] for row in rows) for gpu in hardware)


def test_speed_shows_promised_and_reached() -> None:
    part = samples.timed(50, 1, {"DeepCache": 0.9})
    head, rows, caption = tables.speed(samples.one(("50 steps, batch 1", part)))
    assert rows[0] == ["50 steps, batch 1: unpruned", "100 %", "–", "1.50 (1.48 to 1.52)", "1", "1", "–"]
    assert cells(rows, "uniform, 50 % asked")[:2] == ["50.0 %", "25"]
    assert cells(rows, "uniform, 50 % asked")[3:] == ["2.00", "2.00 (2.00 to 2.00)", "1.00"]
    assert cells(rows, "DeepCache, 20 % asked")[3:] == ["5.00", "4.50 (4.50 to 4.50)", "0.90"]
    assert [row[0].partition(",")[0] for row in rows[1:6]] == list(samples.WAYS)
    assert "512 x 512 pixels, float16, guidance 7.5" in caption and "n = 3" in caption


def test_speed_by_batch_leaves_the_others_out() -> None:
    runs = samples.one(*((f"50 steps, batch {batch}", samples.timed(50, batch)) for batch in (1, 4)))
    assert len(tables.speed(runs, "batch 4")[1]) == len(tables.speed(runs)[1]) / 2
    assert not any("batch 1" in row[0] for row in tables.speed(runs, "batch 4")[1])
    assert tables.speed(runs, "batch 4")[2].startswith("Stable Diffusion 1.5, batch 4, full size")


def test_speed_of_one_round_has_no_interval() -> None:
    part = samples.timed(50, 1)
    for row in part["rows"]:
        row["times_as_fast"] = {"value": row["times_as_fast"]["value"]}
    _, rows, caption = tables.speed(samples.one(("50 steps, batch 1", part)))
    assert cells(rows, "uniform, 50 % asked")[4] == "2.00" and "n = 1." in caption


def test_compiled_shows_what_it_was_before() -> None:
    rows = tables.speed(samples.one(*samples.parts()["sd15_compiled"].items()))[1]
    assert rows[0][0] == "20 steps, batch 1: unpruned, not compiled" and rows[0][5] == "0.50"
    assert rows[1][0].endswith("unpruned, compiled in 61 s, 34 graphs")


def test_settings_that_differ_stand_in_the_rows() -> None:
    parts = samples.parts()["big_models"]
    parts["DiT-XL/2, 250 steps"] = {**parts["PixArt-alpha, 20 steps"], "pixels": 256}
    parts["DiT-XL/2, 250 steps"].pop("guidance")
    _, rows, caption = tables.speed(samples.one(*parts.items()))
    assert rows[0][0] == "PixArt-alpha, 20 steps, 1024 x 1024 pixels, float16, guidance 4.5: unpruned"
    assert rows[2][0] == "DiT-XL/2, 250 steps, 256 x 256 pixels, float16: unpruned" and "pixels" not in caption


@pytest.mark.parametrize("why, word", [(samples.OOM, "out of memory"), (samples.BROKEN, "failed")])
def test_what_has_no_figures_says_why(why: dict, word: str) -> None:
    facts = {"steps": 50, "batch": 4, "guidance": 7.5, "side": 64, "dtype": "float16"}
    for found, name in (
        (tables.speed(samples.one(("a", samples.timed(50, 1)), ("b", {**facts, **why}))), "b"),
        (tables.zeros(samples.one(("a", samples.layer_rows("a")), ("b", why))), "b"),
        (tables.cut(samples.one(("cut", why))), "cut"),
        (tables.channels(samples.one((tables.NARROW_UNET, why))), tables.NARROW_UNET),
        (tables.scoring(samples.one(("scoring", why)), PROCESSOR), H100),
        (tables.suites({"all": samples.one(("pytest", why))}), H100),
    ):
        assert cells(found[1], name)[0] == word and set(cells(found[1], name)[1:]) == {"–"}
        assert "not measured" not in str(found)
    assert tables.throughput(samples.one(("unet", why))) == f"unet: {word} ({H100})"


def test_training_shows_counted_and_expected_beside_measured() -> None:
    fits, full, broken = (
        samples.trained(50, "best", True),
        samples.trained(50, "best", False, samples.OOM),
        samples.trained(20, "best", True, samples.BROKEN),
    )
    speeds = samples.one(("50 steps, batch 4", samples.timed(50, 4)), ("50 steps, batch 1", samples.timed(50, 1)))
    rows = tables.training(samples.one(fits, full, broken), speeds)[1]
    assert rows[0][1:] == ["2.0 GiB", "8.0 GiB", "9.0 GiB", "1.12", "6.0 s", "6.5 s"]
    assert rows[1][1:] == ["–", "8.0 GiB", "out of memory", "–", "6.0 s", "–"]
    assert rows[2][1:] == ["–", "8.0 GiB", "failed", "–", "–", "–"]  # nobody timed 20 steps
    other = [samples.run(run["parts"], T4) for run in speeds]
    assert tables.training(samples.one(fits), other)[1][0][5] == "–"  # another GPU's time expects nothing of this one


def test_zeros_stand_beside_their_macs() -> None:
    head, rows, caption = tables.zeros(samples.one(("linear", samples.layer_rows("linear"))))
    assert head[2:5] == ["zeros, 50 % less", "2:4, 50 % less", "CSR, 50 % less"]
    assert head[5:] == ["CSR, 99 % less", "fewer outputs, 50 % less"]
    assert rows[0] == ["times fewer MACs", "1", "1", "2", "–", "–", "2"]
    assert rows[1][1:4] == ["0.200 (0.198 to 0.202)", "1.00 (1.00 to 1.00)", "1.60 (1.60 to 1.60)"]
    assert rows[1][4:6] == ["refused", "refused"]
    assert "float16" in caption and "n = 50" in caption


def test_reasons_of_refusal_are_told_once() -> None:
    layers = {name: samples.layer_rows(name) for name in "abc"}
    layers["c"]["refused"] = {"csr": "too small. Use another."}
    caption = tables.zeros([samples.run(layers)])[2]
    assert caption.endswith("n = 50. csr was refused: no kernel for half precision. csr was refused: too small.")


def test_scoring_shows_the_floor_for_both() -> None:
    _, rows, _ = tables.scoring(samples.one(("scoring", samples.scored())), PROCESSOR)
    assert [row[0] for row in rows] == ["a processor", H100]
    assert rows[1][2:] == ["50 s", "56 s", "1.12", "2.0 GiB", "4.5 GiB"]


def test_failing_tests_are_named(results: Path) -> None:
    samples.write_all(results, [H100])
    _, rows, caption = TABLES["tests"](records.gpu_runs)
    assert rows == [[f"all, {H100}", "40", "0", "2", "71"], [f"compiled, {H100}", "7", "1", "2", "71"]]
    assert caption.endswith("Failed: test_graphs_replay.")


def test_throughput() -> None:
    assert tables.throughput([]) == "not measured"
    words = tables.throughput(samples.one(*samples.parts()["throughput"].items()))
    assert words == f"unet: 2346 ({H100}); vae: 1200 ({H100})"


def test_a_dry_run_is_called_one() -> None:
    runs = [{**samples.run({"a": samples.timed(4, 1)}), "dry": True}]
    assert "dry run at toy shapes" in tables.speed(runs)[2]
