"""Dead work, by hand and against brute force."""

from __future__ import annotations

import itertools

import torch

from pruning_lib.steps.schedule import live_cells, paper_cascade
from pruning_lib.steps.wiring import Wiring

# 0 -> 1 -> 2 -> output, and a skip connection 0 -> 2
CHAIN = Wiring((frozenset(), frozenset({0}), frozenset({0, 1})), frozenset({2}), False)


def table(*rows: str) -> torch.Tensor:
    return torch.tensor([[cell == "1" for cell in row] for row in rows])


def test_everything_on_is_alive() -> None:
    on = table("111", "111")
    assert live_cells(on, CHAIN).equal(on)


def test_what_only_dead_units_read_is_dead() -> None:
    # In the last row the end is off: nobody reads 0 and 1.
    assert live_cells(table("111", "110"), CHAIN).equal(table("111", "000"))


def test_a_value_kept_for_a_later_step_is_alive() -> None:
    # Row 1 computes 1 for nobody at row 1, but row 2 passes it on to unit 2.
    on = table("111", "010", "001")
    assert live_cells(on, CHAIN).equal(on)
    assert paper_cascade(on, CHAIN).equal(table("111", "000", "001"))  # the paper's rule forgets row 2


def test_a_value_computed_again_before_it_is_read_is_dead() -> None:
    assert live_cells(table("111", "110", "111"), CHAIN).equal(table("111", "000", "111"))


def test_against_brute_force() -> None:
    """A cell matters exactly if changing its result changes some output: checked by running symbols."""
    for cells in itertools.product([False, True], repeat=6):
        on = torch.tensor([[True] * 3, cells[:3], cells[3:]])
        live = live_cells(on, CHAIN)
        base = outputs(on, None)
        for row, unit in itertools.product(range(3), range(3)):
            matters = bool(on[row, unit]) and outputs(on, (row, unit)) != base
            assert matters == bool(live[row, unit]), (on, row, unit)


def outputs(on: torch.Tensor, changed: tuple[int, int] | None) -> list[object]:
    kept: dict[int, object] = {}
    found = []
    for row in range(len(on)):
        for unit, read in enumerate(CHAIN.inputs):
            if on[row, unit]:
                kept[unit] = (row, unit, (row, unit) == changed, *(kept[other] for other in sorted(read)))
        found.append(tuple(kept[unit] for unit in sorted(CHAIN.output)))
    return found
