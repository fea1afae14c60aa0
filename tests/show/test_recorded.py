"""Sweeps on disk: what was saved comes back; what does not belong together is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pruning_book.widgets.sweep import SweepExplorer
from pruning_lib.records import RecordError, passport


@pytest.fixture
def saved(sweep, tmp_path, monkeypatch):
    """A saved sweep, in the folder where records are looked up by name."""
    monkeypatch.setenv("PRUNING_LIB_RESULTS", str(tmp_path))
    return sweep().save(tmp_path / "steps.json", "steps", passport(seeds=[0], n=5, device="cpu"), extra=[1])


@pytest.mark.parametrize("by", ["name", "path"])
def test_a_sweep_comes_back_from_its_record(saved, sweep, by):
    read, made = SweepExplorer.from_record("steps" if by == "name" else saved, "steps", title="Fewer steps?"), sweep()
    assert (read.axes, read.metrics, read.start) == (made.axes, made.metrics, made.start)
    assert np.array_equal(np.asarray(read.sheet.image), np.asarray(made.sheet.image))
    assert read.passport.startswith("Measured on ")
    assert json.loads(saved.read_text())["data"]["extra"] == [1]


def test_a_missing_sheet_is_named(saved):
    saved.with_suffix(".webp").unlink()
    with pytest.raises(RecordError, match=r"steps.webp.*missing"):
        SweepExplorer.from_record("steps", "steps", title="t")


def test_another_sheet_is_noticed(saved):
    with saved.with_suffix(".webp").open("ab") as file:
        file.write(b"x")
    with pytest.raises(RecordError, match="SHA-256"):
        SweepExplorer.from_record("steps", "steps", title="t")


def test_another_kind_of_record_is_refused(saved):
    record = json.loads(saved.read_text())
    del record["data"]["tile"], record["data"]["axes"]
    saved.write_text(json.dumps(record))
    with pytest.raises(RecordError, match="lack axes, tile"):
        SweepExplorer.from_record("steps", "steps", title="t")


def test_a_missing_record_is_named(saved):
    with pytest.raises(RecordError, match="no record.*Records there: steps"):
        SweepExplorer.from_record("other", "steps", title="t")


def test_nothing_is_written_where_nothing_may_be_written(sweep, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match="Cannot write"):
        sweep().save(tmp_path / "file" / "steps.json", "steps", passport(seeds=[0], n=5, device="cpu"))


def test_more_digits_than_recorded_can_be_shown(saved, sweep):
    first, *others = [metric.name for metric in sweep().metrics]
    read = SweepExplorer.from_record("steps", "steps", digits={first: 5}, title="t")
    assert read.metrics[0].digits == 5
    assert [m.digits for m in read.metrics[1:]] == [m.digits for m in sweep().metrics[1:]] and others
    with pytest.raises(ValueError, match="no metric 'spped'"):
        SweepExplorer.from_record("steps", "steps", digits={"spped": 1}, title="t")
