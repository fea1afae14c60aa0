"""Records of `make gpu`: read or refused, never hidden; and rulings that come out every way."""

from __future__ import annotations

from pathlib import Path

import gpu_samples as samples
import pytest

from pruning_book import gpu as records
from pruning_lib.records import RecordError

H100, T4 = "NVIDIA H100 80GB HBM3", "Tesla T4"


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of records, where chapters look."""
    monkeypatch.setenv("PRUNING_LIB_RESULTS", str(tmp_path))
    return tmp_path


def test_no_record_is_no_run(results: Path) -> None:
    assert records.gpu_runs("sd15_speed") == []


def test_a_record_gives_its_runs(results: Path) -> None:
    samples.write(results, "tests", [samples.run(samples.parts()["tests"], name) for name in (H100, T4)])
    assert [run["hardware"] for run in records.gpu_runs("tests")] == [H100, T4]


def test_a_damaged_record_is_not_hidden(results: Path) -> None:
    (results / "gpu_zeros.json").write_text('{"schema_version": 1,', "utf-8")
    with pytest.raises(RecordError, match="no valid JSON"):
        records.gpu_runs("zeros")


@pytest.mark.parametrize("data", [{}, {"runs": {}}, {"runs": [{"hardware": T4, "parts": {}}]}, {"runs": ["x"]}])
def test_a_record_of_another_form_is_refused(results: Path, data: dict) -> None:
    stamp = samples.run({})["passport"]
    samples.save_record(results / "gpu_zeros.json", "gpu_zeros", data, stamp)
    with pytest.raises(RecordError, match="gpu_zeros.json has no list of runs"):
        records.gpu_runs("zeros")


def test_measured_wants_figures() -> None:
    runs = samples.one(("cut", samples.OOM), ("scoring", samples.scored()), ("other", samples.BROKEN))
    assert records.measured(runs) and records.measured(runs, "scoring")
    assert not records.measured(runs, "cut") and not records.measured(runs, "other") and not records.measured([])


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
    found = records.follows_macs(samples.one(("a", samples.timed(50, 1, reached)), ("b", samples.OOM)))
    assert found[0] == ruling
    if "DeepCache" in reached:
        assert "The least is 0.90" in found[1] and H100 in found[1]


@pytest.mark.parametrize("package, ruling", [(1.0, "holds"), (0.9, "holds"), (1.05, "does not hold")])
def test_not_behind_the_package(package: float, ruling: str) -> None:
    assert records.not_behind(samples.one(("a", samples.timed(50, 1, {"deepcache package": package}))))[0] == ruling


def test_behind_the_package_on_one_gpu_only() -> None:
    slow = samples.run({"a": samples.timed(50, 1, {"deepcache package": 1.25})}, T4)
    ruling, because = records.not_behind([*samples.one(("a", samples.timed(50, 1))), slow])
    assert ruling == "holds in part" and "Not behind in 2 of 4" in because and "0.800 (0.800 to 0.800)" in because
    assert T4 in because


def test_training_stays_under() -> None:
    def ruled(*found: tuple[str, dict]) -> tuple[str, str]:
        return records.stays_under(samples.one(*found))

    fits = samples.trained(50, "best", True)
    at_limit = {"peak_mib": 14 * 1024.0, "seconds_per_iteration": 1.0, "before_mib": 0.0}
    large = samples.trained(50, "published", True, at_limit)
    full = samples.trained(50, "published", True, samples.OOM)
    broken = samples.trained(50, "published", True, samples.BROKEN)
    aside = [
        samples.trained(20, "best", True, samples.OOM),
        samples.trained(50, "best", False, samples.OOM),
        samples.trained(50, "published", True, samples.OOM, dtype="float32"),
    ]
    assert ruled(fits, *aside)[0] == "holds" and f"9.0 GiB: {fits[0]}, {H100}." in ruled(fits, *aside)[1]
    assert ruled(fits, large)[0] == "holds in part" and "14.0 GiB" in ruled(fits, large)[1]
    assert ruled(large)[0] == ruled(full)[0] == "does not hold"
    assert ruled(fits, full)[0] == "holds in part" and f"{full[0]}, {H100}: out of memory." in ruled(fits, full)[1]
    assert ruled(fits, broken)[0] == "holds in part" and ruled(broken)[0] == "not measured"
    assert ruled(*aside)[0] == "not measured"


def test_without_records_nothing_is_ruled() -> None:
    for rule in (records.follows_macs, records.not_behind, records.stays_under):
        assert rule([]) == ("not measured", "No GPU has been measured yet.")


def test_open_questions_leaves_out_what_is_known() -> None:
    assert records.open_questions({"a <b>": False, "c": True}).data == "<ul><li>a &lt;b&gt;</li></ul>"
    assert "<ul>" not in records.open_questions({"c": True}).data
