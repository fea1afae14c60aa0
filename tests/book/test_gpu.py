"""What `make gpu` found: read or refused, never hidden; "not measured" where it is not; rulings come out every way."""

from __future__ import annotations

from pathlib import Path

import pytest

from pruning_book import gpu
from pruning_book.output import table
from pruning_lib.latency import Latency
from pruning_lib.records import RecordError, load_record

OOM = {"out_of_memory": "OutOfMemoryError: CUDA out of memory"}
BROKEN = {"error": "RuntimeError: an illegal memory access was encountered"}
WAYS = ("fewer steps", "uniform", "DeepCache", "deepcache package", "searched-like")
H100, T4 = "NVIDIA H100 80GB HBM3", "Tesla T4"
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


def latency(ms: float) -> dict:
    """Three times around a median."""
    return Latency((ms * 0.985, ms, ms * 1.015), 1, 9000.0, "cuda").to_dict()


def timed(steps: int, batch: int, reached: dict | None = None, **more) -> dict:
    """A part of `sd15_speed`; `reached` names ways that do not reach exactly what is promised."""
    rows = []
    for keep in (0.5, 0.2):
        for name in WAYS:
            share = (reached or {}).get(name, 1.0)
            found = {**dict.fromkeys(("value", "low", "high"), share / keep), "n": 3, "level": 0.95}
            facts = {"way": name, "keep": keep, "calls": round(50 * keep), "cells": 99, "macs_ratio": keep}
            other = latency(30.0 * steps * batch * keep / share)
            rows.append({**facts, "latency": other, "times_as_fast": found, "promised": 1 / keep, "reached": share})
    facts = {"steps": steps, "batch": batch, "guidance": 7.5, "side": 64, "dtype": "float16"}
    return {**facts, "unpruned": latency(30.0 * steps * batch), "rows": rows, **more}


def trained(recipe: str, found: dict | None = None, **more) -> tuple[str, dict]:
    """Name and part of `sd15_training`."""
    facts = {"steps": 50, "recipe": recipe, "dtype": "float16", "checkpointing": True, "counted_mib": 8192.0, **more}
    name = ", ".join(str(facts[key]) for key in ("steps", "recipe", "dtype", "checkpointing"))
    return name, {**facts, **(found or {"seconds_per_iteration": 6.5, "peak_mib": 9216.0, "before_mib": 2048.0})}


def one(*found: tuple[str, dict], hardware: str = H100) -> list[dict]:
    """The runs of a record with one GPU and these parts."""
    card = {"driver": "580.65", "cuda": "13.0", "memory_mib": 81559}
    stamp = {"hardware": hardware, "n": 3, "date": "2026-12-01T10:00:00+00:00", "gpu": card}
    stamp["versions"] = {"torch": "2.11.0+cu130"}
    return [{"hardware": hardware, "passport": stamp, "unfinished": "", "dry": False, "parts": dict(found)}]


def cells(rows: list[list[str]], name: str) -> list[str]:
    """The cells of the one row whose first cell ends so."""
    (row,) = [row for row in rows if row[0].endswith(name)]
    return row[1:]


def test_no_record_is_no_run_and_a_damaged_one_or_one_of_another_form_is_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("PRUNING_LIB_RESULTS", str(tmp_path))
    assert gpu.gpu_runs("zeros") == []
    for make in TABLES.values():
        head, rows, caption = make(gpu.gpu_runs)
        assert rows[-1][0] == "GPU" and set(rows[-1][1:]) == {"not measured"}
        assert "no GPU has been measured yet" in caption and "make gpu" in caption
        table(head, rows, caption)
    (tmp_path / "gpu_zeros.json").write_text('{"schema_version": 1,', "utf-8")
    with pytest.raises(RecordError):
        gpu.gpu_runs("zeros")
    for data in ({}, {"runs": {}}, {"runs": [{"hardware": T4, "parts": {}}]}, {"runs": ["x"]}):
        monkeypatch.setattr(gpu, "load_record", lambda name, data=data: {"data": data})
        with pytest.raises(RecordError, match="gpu_zeros.json has no list of runs"):
            gpu.gpu_runs("zeros")


@pytest.mark.parametrize("name", TABLES)
def test_the_shipped_records_fill_the_tables_with_a_block_of_rows_for_each_gpu(name: str) -> None:
    def runs(stage: str) -> list[dict]:
        return [{**run, "hardware": f"GPU {i}"} for i in range(2) for run in gpu.gpu_runs(stage)[:1]]

    head, rows, caption = TABLES[name](runs)
    measured = "not measured" not in table(head, rows, caption).data  # every row as long as the head
    assert len(head) <= 7 and (measured or "Not measured: the run on" in caption or name in ("compiled", "channels"))
    assert not measured or name == "scoring" or all(any(f"GPU {i}" in row[0] for row in rows) for i in range(2))


def test_speed_shows_promised_and_reached() -> None:
    rows, caption = gpu.speed(one(("50 steps, batch 1", timed(50, 1, {"DeepCache": 0.9}))))[1:]
    assert rows[0] == ["50 steps, batch 1: unpruned", "100 %", "–", "1.50 (1.48 to 1.52)", "1", "1", "–"]
    found = cells(rows, "uniform, 50 % asked")
    assert found == ["50.0 %", "25", "0.75 (0.74 to 0.76)", "2.00", "2.00 (2.00 to 2.00)", "1.00"]
    assert cells(rows, "DeepCache, 20 % asked")[3:] == ["5.00", "4.50 (4.50 to 4.50)", "0.90"]
    assert f"{H100} (80 GiB, driver 580.65, CUDA 13.0, torch 2.11.0+cu130, 2026-12-01)" in caption
    assert "512 x 512 pixels, float16, guidance 7.5" in caption and "n = 3" in caption
    assert "dry run at toy shapes" in gpu.speed([{**one(("a", timed(4, 1)))[0], "dry": True}])[2]


def test_speed_by_batch_compiled_and_of_one_round() -> None:
    runs = one(*((f"50 steps, batch {batch}", timed(50, batch)) for batch in (1, 4)))
    assert not any("batch 1" in row[0] for row in gpu.speed(runs, "batch 4")[1])
    compiled = timed(20, 1, compile_seconds=61.0, graphs=34, eager_unpruned=latency(1200.0))
    rows = gpu.speed(one(("20 steps", compiled)))[1]
    assert rows[0][0] == "20 steps: unpruned, not compiled" and rows[0][5] == "0.50"
    assert rows[1][0].endswith("unpruned, compiled in 61 s, 34 graphs")


@pytest.mark.parametrize("why, word", [(OOM, "out of memory"), (BROKEN, "failed")])
def test_what_has_no_figures_says_why(why: dict, word: str) -> None:
    facts = {"steps": 50, "batch": 4, "guidance": 7.5, "side": 64, "dtype": "float16"}
    for found, name in (
        (gpu.speed(one(("a", timed(50, 1)), ("b", {**facts, **why}))), "b"),
        (gpu.cut(one(("cut", why))), "cut"),
        (gpu.channels(one((gpu.NARROW_UNET, why))), gpu.NARROW_UNET),
        (gpu.scoring(one(("scoring", why)), CPU), H100),
        (gpu.suites({"all": one(("pytest", why))}), H100),
    ):
        assert cells(found[1], name)[0] == word and set(cells(found[1], name)[1:]) == {"–"}
    assert gpu.throughput(one(("unet", why))) == f"unet: {word} ({H100})"
    caption = gpu.channels(one(("linear", why)))[2]
    assert f"Not measured: the run on {H100} ended before." in caption and "no GPU" not in caption


def test_training_shows_counted_and_expected_beside_measured() -> None:
    found = trained("best"), trained("all", OOM), trained("best", BROKEN, steps=20)
    parts = ("50 steps, batch 4", timed(50, 4)), ("50 steps, batch 1", timed(50, 1))
    rows = gpu.training(one(*found), one(*parts))[1]
    assert rows[0][1:] == ["2.0 GiB", "8.0 GiB", "9.0 GiB", "1.12", "6.0 s", "6.5 s"]
    assert rows[1][1:] == ["–", "8.0 GiB", "out of memory", "–", "6.0 s", "–"]
    assert rows[2][1:] == ["–", "8.0 GiB", "failed", "–", "–", "–"]  # nobody timed 20 steps
    other = gpu.training(one(found[0]), one(*parts, hardware=T4))
    assert other[1][0][5] == "–"  # another GPU's time expects nothing of this one


@pytest.mark.parametrize(
    "reached, ruling",
    [
        ({}, "holds"),
        ({"deepcache package": 0.5}, "holds"),
        ({"DeepCache": 0.9}, "holds in part"),
        (dict.fromkeys(WAYS, 0.9), "does not hold"),
    ],
)
def test_follows_macs(reached: dict, ruling: str) -> None:
    found = gpu.follows_macs(one(("a", timed(50, 1, reached)), ("b", OOM)))
    assert found[0] == ruling
    assert "DeepCache" not in reached or "The least is 0.90" in found[1] and H100 in found[1]


def test_not_behind_the_package() -> None:
    for package, ruling in ((1.0, "holds"), (0.9, "holds"), (1.05, "does not hold")):
        assert gpu.not_behind(one(("a", timed(50, 1, {"deepcache package": package}))))[0] == ruling
    slow = one(("a", timed(50, 1, {"deepcache package": 1.25})), hardware=T4)
    ruling, because = gpu.not_behind(one(("a", timed(50, 1))) + slow)
    assert ruling == "holds in part" and "Not behind in 2 of 4" in because and "0.800 (0.800 to 0.800)" in because


def test_training_stays_under() -> None:
    def ruled(*found: tuple[str, dict]) -> str:
        return gpu.stays_under(one(*found))[0]

    fits, full = trained("best"), trained("published", OOM)
    large = trained("published", {"peak_mib": 14 * 1024.0, "seconds_per_iteration": 1.0, "before_mib": 0.0})
    aside = [trained("a", OOM, steps=20), trained("b", OOM, dtype="float32")]
    assert ruled(fits, *aside) == "holds" and ruled(*aside) == "not measured"
    assert ruled(fits, large) == ruled(fits, full) == "holds in part"
    assert ruled(large) == ruled(full) == "does not hold" and ruled(trained("c", BROKEN)) == "not measured"
    assert "out of memory" in gpu.stays_under(one(fits, full))[1]


def test_without_records_nothing_is_ruled_and_questions_stay_open() -> None:
    for rule in (gpu.follows_macs, gpu.not_behind, gpu.stays_under):
        assert rule([]) == ("not measured", "No GPU has been measured yet.")
    runs = one(("cut", OOM), ("scoring", {"seconds": 1.0}), ("other", BROKEN))
    assert gpu.measured(runs, "scoring") and not gpu.measured(runs, "cut") and not gpu.measured([])
    assert gpu.open_questions({"a <b>": False, "c": True}).data == "<ul><li>a &lt;b&gt;</li></ul>"
