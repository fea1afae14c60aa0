"""What a schedule is, counts, refuses and writes."""

from __future__ import annotations

import json

import pytest
import torch
from tiny import by_chance, laid_out, latents, tiny

from pruning_lib.steps.schedule import Schedule, grid_of


@pytest.fixture(scope="module")
def pipe():
    return tiny()


@pytest.fixture(scope="module")
def grid(pipe):
    return laid_out(pipe, 4)


@pytest.fixture(scope="module")
def some(grid) -> Schedule:
    return grid.schedule(by_chance(grid, 0.6), method="random", seed=0)


def test_dead_work_changes_no_bit(pipe, grid, some):
    alive = some.live()
    assert alive.sum() < some.on.sum()
    alive[0] = True
    with some.applied(pipe):
        with_dead = latents(pipe)
    with grid.schedule(alive).applied(pipe):
        assert latents(pipe).equal(with_dead)


def test_grains_share_the_macs_of_the_whole(pipe, grid):
    for grain in ("blocks", "modules"):
        other = laid_out(pipe, 4, grain)
        assert len(other.names) != len(grid.names) and min(other.macs) > 0 < other.base_macs
        assert other.total_macs == grid.total_macs
        assert other.full().macs(attention=False) == grid.full().macs(attention=False) < grid.total_macs


def test_round_trip(some, tmp_path):
    again = Schedule.load(some.holding("prediction").save(tmp_path / "a.schedule.json"))
    assert again == some.holding("prediction") != some and again.hold == "prediction"
    assert again.provenance == {"method": "random", "seed": 0} and again.grid == some.grid
    assert "27 units" in repr(again) and "hold='prediction'" in repr(again)


@pytest.mark.parametrize(
    ("noted", "hold"), [({}, "value"), ({"reuse": "output"}, "value"), ({"reuse": "prediction"}, "prediction")]
)
def test_files_of_the_first_version_hold_what_they_say(some, tmp_path, noted, hold):
    data = {**some.to_dict(), "format": "pruning_lib.schedule/1", "provenance": noted}
    del data["hold"]
    file = tmp_path / "old.json"
    file.write_text(json.dumps(data))
    assert Schedule.load(file) == some.holding(hold)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda grid: torch.eye(*grid.shape, dtype=torch.bool), "first row 26 of 27 units are off, such as down"),
        (lambda grid: torch.ones(3, 27, dtype=torch.bool), r"shape \(3, 27\), but this grid has 4 calls of 27"),
        (lambda grid: torch.full(grid.shape, 0.5), r"truth values .* got 0.5"),
    ],
)
def test_bad_tables_are_refused(grid, make, message):
    with pytest.raises(ValueError, match=message):
        grid.schedule(make(grid))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: d.pop("rows"), "'rows' is missing"),
        (lambda d: d["rows"].__setitem__(1, "2" * 27), "0 and 1, all equally long"),
        (lambda d: d["rows"].__setitem__(1, "1"), "0 and 1, all equally long"),
        (lambda d: d["units"]["names"].pop(), "of the same"),
        (lambda d: d["wiring"]["inputs"].__setitem__(0, [5]), "before it"),
        (lambda d: d.__setitem__("hold", "nothing"), "allowed: 'value', 'prediction'"),
        (lambda d: d.__setitem__("format", "other"), "holds no schedule"),
        (lambda d: d.__setitem__("format", "pruning_lib.schedule/9"), "version 9"),
    ],
)
def test_damaged_files_are_refused(some, tmp_path, damage, message):
    path, data = tmp_path / "a.json", some.to_dict()
    damage(data)
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=message):
        Schedule.load(path)
    path.write_text(path.read_text()[:200])
    with pytest.raises(ValueError, match="not valid JSON"):
        Schedule.load(path)


@pytest.mark.parametrize("steps", [0, -1, 2.5, True, "4"])
def test_bad_step_counts_are_refused(pipe, steps):
    with pytest.raises(ValueError, match="steps="):
        grid_of(pipe, steps)
