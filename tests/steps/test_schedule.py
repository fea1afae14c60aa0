"""What a schedule is, counts, refuses and writes; and what must hold for every table and every file."""

from __future__ import annotations

import copy
import itertools
import json

import pytest
import torch
from on_gpu import some
from tiny import laid_out, tiny
from tiny_denoisers import make

from pruning_lib.denoisers import example_inputs
from pruning_lib.steps.schedule import Schedule, grid_of
from pruning_lib.steps.units import Control, attach, units_of
from pruning_lib.steps.wiring import Wiring, live_cells, trace_wiring


@pytest.fixture(scope="module")
def pipe():
    return tiny()


@pytest.fixture(scope="module")
def grid(pipe):
    return laid_out(pipe, 5)


def test_grains_share_the_macs_of_the_whole(pipe, grid):
    for grain in ("blocks", "modules"):
        other = laid_out(pipe, 5, grain)
        assert len(other.names) != len(grid.names) and min(other.macs) > 0 < other.base_macs
        assert other.total_macs == grid.total_macs
        assert other.full().macs(attention=False) == grid.full().macs(attention=False) < grid.total_macs


def test_round_trip_of_this_and_of_the_first_version(grid, tmp_path):
    schedule = some(grid)
    again = Schedule.load(schedule.holding("prediction").save(tmp_path / "a.schedule.json"))
    assert again == schedule.holding("prediction") != schedule and again.hold == "prediction"
    assert again.provenance == {"method": "by chance"} and again.grid == grid
    for noted, hold in (({}, "value"), ({"reuse": "output"}, "value"), ({"reuse": "prediction"}, "prediction")):
        data = {**schedule.to_dict(), "format": "pruning_lib.schedule/1", "provenance": noted}
        del data["hold"]
        (tmp_path / "old.json").write_text(json.dumps(data))
        assert Schedule.load(tmp_path / "old.json") == schedule.holding(hold)


def test_bad_tables_and_step_counts_are_refused(pipe, grid):
    units = len(grid.names)
    for table, message in (
        (torch.eye(*grid.shape, dtype=torch.bool), f"first row {units - 1} of {units} units are off, such as down"),
        (torch.ones(3, units, dtype=torch.bool), rf"shape \(3, {units}\), but this grid has 5 calls of {units}"),
        (torch.full(grid.shape, 0.5), r"truth values .* got 0.5"),
    ):
        with pytest.raises(ValueError, match=message):
            grid.schedule(table)
    for steps in (0, 2.5, True, "4"):
        with pytest.raises(ValueError, match="steps="):
            grid_of(pipe, steps)


CALLS = 3
# 0 -> 1 -> 2 -> output, and a skip connection 0 -> 2
CHAIN = Wiring((frozenset(), frozenset({0}), frozenset({0, 1})), frozenset({2}), False)


def symbols(on: torch.Tensor, left_out: tuple[int, int] | None = None) -> list[object]:
    """Return the output of every call as the nested cells that it is made of."""
    kept: dict[int, object] = {}
    found = []
    for row in range(len(on)):
        for unit, read in enumerate(CHAIN.inputs):
            if on[row, unit] and (row, unit) != left_out:
                kept[unit] = (row, unit, *(kept.get(other) for other in sorted(read)))
        found.append(kept.get(2))
    return found


def test_a_cell_matters_exactly_if_leaving_it_out_changes_an_output():
    for cells in itertools.product([False, True], repeat=6):
        on = torch.tensor([True] * 3 + list(cells)).view(3, 3)
        live, base = live_cells(on, CHAIN), symbols(on)
        for row, unit in on.nonzero().tolist():
            assert (symbols(on, (row, unit)) != base) == live[row, unit], (on, row, unit)
        assert torch.equal(live_cells(live, CHAIN), live) and bool((live <= on).all())
        assert symbols(live) == base, "the same picture without dead work"


class Plain(Control):
    """Computes every cell that is on, dead work included, and spoils the value of one of them."""

    def __init__(self, on: torch.Tensor, spoiled: tuple[int, int] | None = None):
        self.on, self.spoiled, self.row, self.kept = on, spoiled, -1, {}

    def denoiser(self, forward, args, kwargs, context):
        self.row += 1
        return forward()

    def unit(self, index, compute):
        if self.on[self.row, index]:
            self.kept[index] = compute()
            if (self.row, index) == self.spoiled:
                self.kept[index] = [value + 1 for value in self.kept[index]]
        return self.kept[index]


@torch.no_grad()
def outputs(model, units, inputs: list[dict], on: torch.Tensor, spoiled=None) -> list[torch.Tensor]:
    with attach(model, units, Plain(on, spoiled)):
        return [model(**given, return_dict=False)[0] for given in inputs]


@pytest.mark.parametrize(
    ("kind", "grain"), [("unet with text", "layers"), ("unet", "modules"), ("dit", "blocks"), ("pixart", "layers")]
)
def test_a_cell_is_live_exactly_if_spoiling_it_changes_an_output(kind, grain):
    """Wiring, hooks and the rule together: what is called dead does not matter, and what is called live does."""
    model = make(kind)
    units = units_of(model, grain)
    wiring = trace_wiring(model, units)
    inputs = [example_inputs(model, device="cpu", seed=call) for call in range(CALLS)]
    generator = torch.Generator().manual_seed(len(units))
    on = torch.rand(CALLS, len(units), generator=generator) < 0.45
    on[0] = True
    live, base, dead = live_cells(on, wiring), outputs(model, units, inputs, on), 0
    cells = on.nonzero().tolist()
    for row, unit in [cells[i] for i in torch.randperm(len(cells), generator=generator)[:14].tolist()]:
        found = outputs(model, units, inputs, on, (row, unit))
        changed = any(not torch.equal(a, b) for a, b in zip(base, found, strict=True))
        assert changed == live[row, unit], (units[unit].name, row)
        dead += not changed
    assert dead >= (2 if kind.startswith("unet") else 0), "nothing dead was tried"


def test_a_file_damaged_anywhere_is_refused_with_its_name(tmp_path):
    full = laid_out(tiny("random steps"), 3).full()
    file = full.save(tmp_path / "a.schedule.json")
    whole = json.loads(file.read_text())
    assert Schedule.load(file) == full
    places = [(key,) for key in whole if key != "provenance"]  # that one holds free words
    places += [(key, inner) for (key,) in places if isinstance(whole[key], dict) for inner in whole[key]]
    assert len(places) > 15
    for place, wrong in itertools.product(places, ("gone", None, [], {"a": 1}, [[1]], -1, 2.5)):
        damaged = copy.deepcopy(whole)
        inner = damaged if len(place) == 1 else damaged[place[0]]
        inner[place[-1]] = wrong
        if wrong == "gone":
            del inner[place[-1]]
        file.write_text(json.dumps(damaged))
        with pytest.raises(ValueError, match=r"a\.schedule\.json"):
            Schedule.load(file)
