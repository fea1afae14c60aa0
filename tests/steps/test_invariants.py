"""What must hold for every table: dead work by hand, by brute force, and on running networks; and for every file."""

from __future__ import annotations

import copy
import itertools
import json
from dataclasses import replace

import pytest
import torch
from tiny import laid_out
from tiny_denoisers import make
from tiny_pipes import pipe_of

from pruning_lib.denoisers import example_inputs
from pruning_lib.steps.hooks import Control, attach
from pruning_lib.steps.schedule import Schedule, decode_table
from pruning_lib.steps.units import units_of
from pruning_lib.steps.wiring import Wiring, live_cells, paper_cascade, trace_wiring

CALLS = 3
# 0 -> 1 -> 2 -> output, and a skip connection 0 -> 2
CHAIN = Wiring((frozenset(), frozenset({0}), frozenset({0, 1})), frozenset({2}), False)


def u_shaped(levels: int) -> Wiring:
    """Return the wiring of a U: down, the bottom, and up with a skip connection into every layer."""
    inputs = [frozenset({i - 1} if i else ()) for i in range(levels + 1)]
    inputs += [frozenset({levels + i, levels - 1 - i}) for i in range(levels)]
    return Wiring(tuple(inputs), frozenset({2 * levels}), False)


def symbols(on: torch.Tensor, wiring: Wiring, left_out: tuple[int, int] | None = None) -> list[object]:
    """Return the output of every call as the nested cells that it is made of."""
    kept: dict[int, object] = {}
    found = []
    for row in range(len(on)):
        for unit, read in enumerate(wiring.inputs):
            if on[row, unit] and (row, unit) != left_out:
                kept[unit] = (row, unit, *(kept.get(other) for other in sorted(read)))
        found.append(tuple(kept.get(unit) for unit in sorted(wiring.output)))
    return found


@pytest.mark.parametrize(
    ("on", "live", "why"),
    [
        (("111", "111"), ("111", "111"), "everything matters"),
        (("111", "110"), ("111", "000"), "the end is off, so nobody reads 0 and 1"),
        (("111", "010", "001"), ("111", "010", "001"), "row 2 passes on what row 1 computed"),
        (("111", "110", "111"), ("111", "000", "111"), "computed again before it is read"),
    ],
)
def test_dead_work_by_hand(on, live, why):
    assert live_cells(decode_table(on), CHAIN).equal(decode_table(live)), why


def test_a_cell_matters_exactly_if_leaving_it_out_changes_an_output():
    tables = [torch.tensor(cells).view(3, 3) for cells in itertools.product([False, True], repeat=9)]
    cases = [(on, CHAIN) for on in tables if on[0].all()]
    generator = torch.Generator().manual_seed(7)
    for _ in range(60):
        on = torch.rand(5, 7, generator=generator) < 0.5
        on[0] = True
        cases.append((on, u_shaped(3)))
    for on, wiring in cases:
        live, base = live_cells(on, wiring), symbols(on, wiring)
        for row, unit in on.nonzero().tolist():
            assert (symbols(on, wiring, (row, unit)) != base) == live[row, unit], (on, row, unit)
        assert torch.equal(live_cells(live, wiring), live) and bool((live <= on).all())
        assert symbols(live, wiring) == base, "the same picture without dead work"


def test_the_rule_within_one_step_takes_more_and_changes_the_picture():
    wiring = u_shaped(2)  # units 0 and 1 down, 2 the bottom, 3 and 4 up
    on = decode_table(["11111", "11100", "11011"])  # nobody at row 1 reads the bottom; row 2 passes on its value
    live, cascade = live_cells(on, wiring), paper_cascade(on, wiring)
    assert live[1].tolist() == [True, True, True, False, False]
    assert not cascade[1].any() and bool((cascade <= live).all())
    assert symbols(cascade, wiring) != symbols(on, wiring) == symbols(live, wiring)


def test_more_cells_can_cost_less():
    """Computing a unit later makes its earlier value dead, and all that was computed for that one alone."""
    grid = replace(
        laid_out(pipe_of("random steps"), 3),
        names=tuple("abcde"),
        macs=(1,) * 5,
        macs_without_attention=(1,) * 5,
        base_macs=0,
        wiring=u_shaped(2),
    )
    costs = [grid.macs_of(decode_table(["11111", "11100", last])) for last in ("00011", "00111", "01111", "11111")]
    assert costs == [5 + 3 + 2, 5 + 2 + 3, 5 + 1 + 4, 5 + 0 + 5]


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
    ("kind", "grain"),
    [
        ("unet with text", "blocks"),
        ("unet with text", "layers"),
        ("unet", "modules"),
        ("dit", "blocks"),
        ("dit", "layers"),
        ("pixart", "layers"),
    ],
)
def test_a_cell_is_live_exactly_if_spoiling_it_changes_an_output(kind, grain):
    """Wiring, hooks and the rule together: what is called dead does not matter, and what is called live does."""
    torch.manual_seed(0)
    model = make(kind).eval()
    with torch.no_grad():  # some layers begin at zero and would hide what they read
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    units = units_of(model, grain)
    wiring = trace_wiring(model, units)
    inputs = [example_inputs(model, device="cpu", seed=call) for call in range(CALLS)]
    generator = torch.Generator().manual_seed(len(units))
    dead = 0
    for share in (0.35, 0.6):
        on = torch.rand(CALLS, len(units), generator=generator) < share
        on[0] = True
        live, base = live_cells(on, wiring), outputs(model, units, inputs, on)
        cells = on.nonzero().tolist()
        for row, unit in [cells[i] for i in torch.randperm(len(cells), generator=generator)[:10].tolist()]:
            found = outputs(model, units, inputs, on, (row, unit))
            changed = any(not torch.equal(a, b) for a, b in zip(base, found, strict=True))
            assert changed == live[row, unit], (units[unit].name, row)
            dead += not changed
    assert dead >= (2 if kind.startswith("unet") else 0), "nothing dead was tried"


def paths(value: object, here: tuple = ()) -> list[tuple]:
    """Return the place of every entry of a nested mapping."""
    if not isinstance(value, dict):
        return []
    return [place for key in value for place in ((*here, key), *paths(value[key], (*here, key)))]


def test_a_file_damaged_anywhere_is_refused_with_its_name(tmp_path):
    full = laid_out(pipe_of("random steps"), 3).full()
    file = full.save(tmp_path / "a.schedule.json")
    whole = json.loads(file.read_text())
    assert Schedule.load(file) == full
    places = [place for place in paths(whole) if place[0] != "provenance"]  # free words
    assert len(places) > 15
    for place, wrong in itertools.product(places, ("gone", None, [], {"a": 1}, [[1]], -1, 2.5)):
        damaged = copy.deepcopy(whole)
        inner = damaged
        for key in place[:-1]:
            inner = inner[key]
        if wrong == "gone":
            del inner[place[-1]]
        else:
            inner[place[-1]] = wrong
        file.write_text(json.dumps(damaged))
        with pytest.raises(ValueError, match=r"a\.schedule\.json"):
            Schedule.load(file)
