"""What must hold for every table, checked on running networks and on files damaged in every possible way."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from tiny_denoisers import make

from pruning_lib.denoisers import example_inputs
from pruning_lib.steps.hooks import Control, attach
from pruning_lib.steps.schedule import Grid, Schedule, live_cells, paper_cascade
from pruning_lib.steps.units import units_of
from pruning_lib.steps.wiring import Wiring

CALLS = 3


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
        ("unet with text", "modules"),
        ("unet", "layers"),
        ("dit", "blocks"),
        ("dit", "layers"),
        ("pixart", "layers"),
    ],
)
def test_a_cell_is_live_exactly_if_spoiling_it_changes_an_output(kind: str, grain: str) -> None:
    """Wiring, hooks and the rule together: what is called dead does not matter, and what is called live does."""
    torch.manual_seed(0)
    model = make(kind).eval()
    with torch.no_grad():  # some layers begin at zero and would hide what they read
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    units = units_of(model, grain)
    inputs = [example_inputs(model, device="cpu", seed=call) for call in range(CALLS)]
    generator = torch.Generator().manual_seed(len(units))
    dead = 0
    for share in (0.35, 0.6):
        on = torch.rand(CALLS, len(units), generator=generator) < share
        on[0] = True
        live, base = live_cells(on, units.wiring), outputs(model, units, inputs, on)
        cells = on.nonzero().tolist()
        picked = [cells[i] for i in torch.randperm(len(cells), generator=generator)[:10].tolist()]
        for row, unit in picked:
            found = outputs(model, units, inputs, on, (row, unit))
            changed = any(not torch.equal(a, b) for a, b in zip(base, found, strict=True))
            assert changed == bool(live[row, unit]), (units.names[unit], row)
            dead += not changed
    assert dead >= (2 if kind.startswith("unet") else 0), "nothing dead was tried"


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
                kept[unit] = (row, unit, *(kept[other] for other in sorted(read)))
        found.append(tuple(kept[unit] for unit in sorted(wiring.output)))
    return found


def test_live_cells_are_enough_and_none_can_be_spared() -> None:
    wiring, generator = u_shaped(3), torch.Generator().manual_seed(7)
    for _ in range(60):
        on = torch.rand(5, 7, generator=generator) < 0.5
        on[0] = True
        live = live_cells(on, wiring)
        assert bool((live <= on).all()) and torch.equal(live_cells(live, wiring), live)
        live[0] = True  # a schedule always computes the first call
        base = symbols(on, wiring)
        assert symbols(live, wiring) == base, "the same picture without dead work"
        for row, unit in live[1:].nonzero().tolist():
            assert symbols(live, wiring, (row + 1, unit)) != base, "every live cell is needed"


def test_the_rule_within_one_step_takes_more_and_changes_the_picture() -> None:
    wiring = u_shaped(2)  # units 0 and 1 down, 2 the bottom, 3 and 4 up
    on = torch.ones(3, 5, dtype=torch.bool)
    on[1, 3:] = False  # nobody at row 1 reads the bottom; at row 2 unit 3 reads its kept value
    on[2, 2] = False
    live, cascade = live_cells(on, wiring), paper_cascade(on, wiring)
    assert live[1].tolist() == [True, True, True, False, False]
    assert not cascade[1].any() and bool((cascade <= live).all())
    assert symbols(cascade, wiring) != symbols(on, wiring) == symbols(live, wiring)


def test_more_cells_can_cost_less() -> None:
    """Computing a unit later makes its earlier value dead, and all that was computed for that one alone."""
    wiring = u_shaped(2)
    grid = Grid(
        names=tuple("abcde"),
        macs=(1, 1, 1, 1, 1),
        macs_without_attention=(1,) * 5,
        base_macs=0,
        base_macs_without_attention=0,
        wiring=wiring,
        grain="layers",
        class_name="UNet2DModel",
        structure="0",
        scheduler="DDIMScheduler",
        steps=3,
        timesteps=(3.0, 2.0, 1.0),
    )
    on = torch.ones(3, 5, dtype=torch.bool)
    on[1, 3:] = False
    on[2, :3] = False
    more = on.clone()
    more[2, 2] = True  # the bottom, from the old value of unit 1
    assert grid.macs_of(on) == 5 + 3 + 2 and grid.macs_of(more) == 5 + 2 + 3
    more[2, 1] = True
    assert grid.macs_of(more) == 5 + 1 + 4
    more[2, 0] = True
    assert grid.macs_of(more) == 5 + 0 + 5 and int((more & ~grid.live(more)).sum()) == 3


def paths(value: object, here: tuple = ()) -> list[tuple]:
    """Return the place of every entry of a nested mapping."""
    if not isinstance(value, dict):
        return []
    return [place for key in value for place in ((*here, key), *paths(value[key], (*here, key)))]


def test_a_file_damaged_anywhere_is_refused_with_its_name(tmp_path) -> None:
    units = units_of(make("unet"))
    grid = Grid(
        names=units.names,
        macs=units.macs,
        macs_without_attention=units.macs_without_attention,
        base_macs=units.base_macs,
        base_macs_without_attention=units.base_macs_without_attention,
        wiring=units.wiring,
        grain=units.grain,
        class_name=units.class_name,
        structure=units.structure,
        scheduler="DDPMScheduler",
        steps=3,
        timesteps=(3.0, 2.0, 1.0),
    )
    file = tmp_path / "a.schedule.json"
    grid.schedule(torch.ones(grid.shape), method="full").save(file)
    whole = json.loads(file.read_text())
    assert Schedule.load(file) == grid.full()
    tried = 0
    for place in paths(whole):
        for wrong in ("gone", None, [], {"a": 1}, [[1]], -1, 2.5):
            damaged = copy.deepcopy(whole)
            inner = damaged
            for key in place[:-1]:
                inner = inner[key]
            if wrong == "gone":
                del inner[place[-1]]
            else:
                inner[place[-1]] = wrong
            file.write_text(json.dumps(damaged))
            if place[0] == "provenance":
                continue  # free words
            with pytest.raises(ValueError, match=r"a\.schedule\.json"):
                Schedule.load(file)
            tried += 1
    assert tried > 60
