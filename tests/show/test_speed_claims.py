"""Rulings follow the records: each can come out every way."""

from __future__ import annotations

import pytest

from pruning_book import speed_claims as claims
from pruning_lib.records import load_record


def sizes(*shares: float) -> list[dict]:
    keys = claims.WAYS.values()
    return [
        {"sparsity": 0.2 * i, "bytes": {**dict.fromkeys(keys, 1000 * s), "dense": 1000}} for i, s in enumerate(shares)
    ]


def interval(value: float, spread: float = 0.0) -> dict:
    return {"value": value, "low": value - spread, "high": value + spread, "n": 9, "level": 0.95}


def curve(*top5: float) -> dict:
    rows = [{"part": "unet", "scope": "global", "asked": 0.2 * i, "top5": interval(t)} for i, t in enumerate(top5)]
    return {"rows": [*rows, {"part": "vae", "scope": "global", "asked": 0.0, "top5": interval(0)}], "n": 64}


def test_sparsity_for_lies_between_the_stops() -> None:
    rows = sizes(1.0, 0.5, 0.1)
    assert claims.sparsity_for(2, rows) == pytest.approx(0.2)
    assert claims.sparsity_for(1 / 0.3, rows) == pytest.approx(0.3)
    with pytest.raises(ValueError, match="the best is 10.0 times"):
        claims.sparsity_for(11, rows)


def test_ten_times_smaller() -> None:
    rows = sizes(1.0, 0.5, 0.05)  # ten times smaller a little before the last stop, so the one before it is judged
    assert claims.ten_times_smaller(rows, None)[0] == "not measured"
    assert claims.ten_times_smaller(sizes(1.0, 0.5), curve(1.0, 1.0))[0] == "does not hold"
    assert claims.ten_times_smaller(rows, curve(1.0, 0.96, 0.0))[0] == "holds"
    ruling, because = claims.ten_times_smaller(rows, curve(1.0, 0.9, 1.0))
    assert ruling == "does not hold" and "38 % zeros" in because and "Already at 20 %" in because


@pytest.mark.parametrize(
    "file, speed, ruling",
    [
        (0.5, 1.5, "holds"),
        (0.5, 1.0, "holds in part"),
        (0.9, 1.5, "holds in part"),
        (0.9, 1.0, "does not hold"),
        (0.5, 1.08, "holds in part"),
    ],
)
def test_smaller_and_faster(file: float, speed: float, ruling: str) -> None:
    rows = [
        {"form": "zeros", "sparsity": 0.5, "times_as_fast": interval(speed, 0.05)},
        {"form": "csr", "sparsity": 0.5, "times_as_fast": interval(0.4, 0.05)},
    ]
    found = claims.smaller_and_faster(sizes(file)[0], rows)
    assert found[0] == ruling and f"{speed:.2f} ({speed - 0.05:.2f} to" in found[1] and "0.40" in found[1]


def structured(size: float, speed: float | None, top5: float) -> dict:
    row = {
        "name": "narrow",
        "params": 100 / size,
        "after": {"top5": interval(top5)},
        "finetune": {"steps": 400},
        "latency_times_as_fast": None if speed is None else interval(speed),
    }
    return {"unpruned": {"params": 100, "top5": interval(0.9)}, "rows": [row]}


@pytest.mark.parametrize(
    "size, speed, top5, ruling",
    [
        (4, 3, 0.9, "holds"),
        (4, 3, 0.5, "holds in part"),
        (4, 2, 0.9, "holds in part"),
        (4, 2, 0.5, "does not hold"),
        (2, 3, 0.9, "does not hold"),
        (4, None, 0.9, "not measured"),
    ],
)
def test_four_times_smaller(size: float, speed: float | None, top5: float, ruling: str) -> None:
    assert claims.four_times_smaller(structured(size, speed, top5))[0] == ruling
    assert claims.four_times_smaller(None)[0] == "not measured"


def test_the_nearest_row_is_named() -> None:
    data = structured(4, 2, 0.9)
    data["rows"].append({**data["rows"][0], "name": "faster", "latency_times_as_fast": interval(3.0)})
    assert "nearest is faster: 4.0 times fewer parameters, 3.0 times as fast" in claims.four_times_smaller(data)[1]


def test_rows_points_and_crossings() -> None:
    rows = [{"form": "csr", "sparsity": s, "times_as_fast": interval(s, 0.1)} for s in (0.5, 0.9)]
    assert claims.only_row(rows, "csr", 0.9) is rows[1]
    with pytest.raises(ValueError, match="2 rows"):
        claims.only_row(rows, "csr")
    assert claims.speed_points(rows, "csr")[0] == (0.5, 0.5, 0.4, 0.6)
    assert claims.crossing({"sparsity": 0.876, "says": ""}) == "0.88"
    assert claims.crossing({"sparsity": None, "says": "slower"}) == "slower"


def test_the_record_of_sizes_agrees_with_the_formulas() -> None:
    data = load_record("sparse_size")["data"]
    for row in data["rows"]:
        single = row["bytes_in_one_layout"]
        item = 4 if row["dtype"] == "float32" else 2
        assert single["dense"] == row["n"] * item
        # a bitmap for each tensor: an eighth of a byte per entry, at most one byte more per tensor
        bitmap = row["n_pruned"] / 8 + (row["nnz_pruned"] + row["n"] - row["n_pruned"]) * item
        assert bitmap <= single["bitmap"] <= bitmap + 300
        assert row["bytes"]["sparse"] <= row["bytes"]["dense"] + 120
