"""Random, genetic and local search: one interface, within both budgets, and no worse than where they begin."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny

from pruning_book.rivals.schedule_search import genetic_search, random_schedule, random_search
from pruning_lib.steps.budget import uniform
from pruning_lib.steps.schedule import Grid, grid_of
from pruning_lib.steps.search import Evaluator, cell_importance, local_search, outer_units, simple_starts, spaced
from pruning_lib.steps.wiring import Wiring

SEARCHES = (random_search, genetic_search, local_search)


class Staleness:
    """Stands in for an `Evaluator`: how old the values are that each call uses, late calls counting more."""

    reuse = "output"

    def __init__(self, grid):
        self.prompts, self.images, self.known = [1, 2], 0, {}
        self.late = [1 + row / grid.shape[0] for row in range(grid.shape[0])]

    def __call__(self, schedule) -> float:
        live = schedule.live()
        key = live.numpy().tobytes()
        if key not in self.known:
            self.images += len(self.prompts)
            age, loss = torch.zeros(live.shape[1]), 0.0
            for row, weight in zip(live, self.late, strict=True):
                age = torch.where(row, 0.0, age + 1)
                loss += weight * float(age.square().mean())
            self.known[key] = loss
        return self.known[key]


def small_grid(calls: int = 8) -> Grid:
    """Return the grid of a made-up UNet: three layers down, one below, three up, each reading one of those down."""
    names = (
        *(f"down_blocks.0.layers.{i}" for i in range(3)),
        "mid_block",
        *(f"up_blocks.0.layers.{i}" for i in range(3)),
    )
    read = [[], [0], [1], [2], [3, 2], [4, 1], [5, 0]]
    wiring = Wiring(tuple(map(frozenset, read)), frozenset([6]), False)
    macs = (40, 30, 20, 10, 30, 40, 60)
    return Grid(
        names=names,
        macs=macs,
        macs_without_attention=macs,
        base_macs=5,
        base_macs_without_attention=5,
        wiring=wiring,
        grain="layers",
        class_name="Made",
        structure="up",
        scheduler="DDIMScheduler",
        steps=calls,
        timesteps=tuple(float(900 - 100 * i) for i in range(calls)),
    )


@pytest.fixture(scope="module")
def grid():
    return small_grid()


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("keep_macs", [0.13, 0.3, 0.6])
def test_within_both_budgets(grid, search, keep_macs) -> None:
    evaluator = Staleness(grid)
    found = search(grid, keep_macs, evaluator, images=101, seed=1)
    assert found.macs_ratio() <= keep_macs
    assert evaluator.images <= 101 and found.provenance["images"] == evaluator.images
    assert found.provenance["loss"] == evaluator(found)
    assert found.live().equal(found.on)


@pytest.mark.parametrize("search", SEARCHES)
def test_seeds_decide(grid, search) -> None:
    runs = [search(grid, 0.4, Staleness(grid), images=80, seed=seed) for seed in (0, 0, 1)]
    assert runs[0] == runs[1]
    traces = [run.provenance["trace"] for run in runs]
    assert traces[0] == traces[1] and (search is local_search or traces[0] != traces[2])


def test_breeding_beats_chance_and_moving_beats_its_start() -> None:
    grid = small_grid(16)
    by_chance, bred, moved = (search(grid, 0.3, Staleness(grid), images=200).provenance for search in SEARCHES)
    assert bred["loss"] < by_chance["loss"]
    assert moved["loss"] < moved["start_loss"] and sum(moved["moves"].values()) >= 2


def test_local_search_tells_its_start_and_asks_for_given_ones_first() -> None:
    grid = small_grid(16)
    good = local_search(grid, 0.3, Staleness(grid), images=200)
    again = local_search(grid, 0.3, Staleness(grid), images=2, starts=[good]).provenance
    assert again["start"] == good.label == "local search" and again["loss"] == good.provenance["loss"]


def test_more_images_are_never_worse(grid) -> None:
    for search in SEARCHES:
        few, many = (search(grid, 0.4, Staleness(grid), images=n).provenance["loss"] for n in (24, 90))
        assert many <= few


def test_local_search_is_no_worse_than_its_starts(grid) -> None:
    good = genetic_search(grid, 0.4, Staleness(grid), images=80)
    found = local_search(grid, 0.4, Staleness(grid), images=80, starts=[good, grid.full()])
    assert found.provenance["loss"] <= found.provenance["start_loss"] <= good.provenance["loss"]
    evaluator = Staleness(grid)
    found = local_search(grid, 0.4, evaluator, images=80)
    assert found.provenance["loss"] <= found.provenance["start_loss"] <= evaluator(uniform(grid, 0.4))
    assert found.provenance["start"] == "simple"


def test_worth_is_asked_and_charged(grid) -> None:
    evaluator, asked = Staleness(grid), []

    def worth(on):
        asked.append(on.clone())
        return torch.rand(grid.shape, generator=torch.Generator().manual_seed(len(asked)))

    found = local_search(grid, 0.4, evaluator, images=200, worth=worth, worth_every=20)
    assert len(asked) >= 2 and all(on[0].all() for on in asked)
    assert evaluator.images + 8 * len(asked) == found.provenance["images"] <= 200


def test_a_grid_with_one_schedule_ends() -> None:
    grid = small_grid(1)
    for search in SEARCHES:
        assert search(grid, 1.0, Staleness(grid), images=1000) == grid.full()


def test_random_schedules_use_the_budget(grid) -> None:
    generator = torch.Generator().manual_seed(0)
    shares = [grid.macs_ratio(random_schedule(grid, 0.5, generator)) for _ in range(20)]
    assert max(shares) <= 0.5 and min(shares) > 0.4


def test_places() -> None:
    assert spaced(20, 5) == [0, 4, 8, 12, 16]
    assert spaced(20, 5, 0.6) == [0, 4, 9, 13, 18]
    assert spaced(4, 4, 0.6) == [0, 1, 2, 3]
    assert spaced(9, 1) == [0]


def test_outer_units_are_the_first_and_the_last(grid) -> None:
    assert outer_units(grid, 0).nonzero().flatten().tolist() == [6]
    assert outer_units(grid, 1).nonzero().flatten().tolist() == [0, 5, 6]
    unet = grid_of(tiny(), 2)
    names = [name for name, on in zip(unet.names, outer_units(unet, 2).tolist(), strict=True) if on]
    assert names == [*(f"down_blocks.0.layers.{i}" for i in (0, 1)), *(f"up_blocks.3.layers.{i}" for i in (0, 1, 2))]


def test_starts_fit_and_differ(grid) -> None:
    for keep in (0.13, 0.3, 0.5, 1.0):
        tables = simple_starts(grid, keep)
        assert tables and all(grid.macs_ratio(on) <= keep and on[0].all() for on in tables)
        assert len({on.numpy().tobytes() for on in tables}) == len(tables)


def test_bad_input_is_refused(grid) -> None:
    for search in SEARCHES:
        with pytest.raises(ValueError, match="draws 2 images"):
            search(grid, 0.5, Staleness(grid), images=1)
        with pytest.raises(ValueError, match="first of 8 calls"):
            search(grid, 0.01, Staleness(grid), images=100)
    for wrong in ({"population": 1}, {"elite": 0}, {"elite": 16}, {"mutations": -1}):
        with pytest.raises(ValueError, match="needed: population"):
            genetic_search(grid, 0.5, Staleness(grid), images=100, **wrong)


def test_on_a_real_pipeline() -> None:
    pipe = tiny()
    grid = grid_of(pipe, 4)
    evaluator = Evaluator(pipe, ["lion", "pizza"], grid, guidance_scale=3, reuse="prediction")
    found = local_search(
        grid,
        0.5,
        evaluator,
        images=24,
        worth_every=2,
        worth=lambda on: cell_importance(pipe, grid, on, ["lion", "pizza"], guidance_scale=3, reuse="prediction"),
    )
    assert found.provenance["loss"] <= evaluator(uniform(grid, 0.5))
    assert found.provenance["reuse"] == "prediction" and found.macs_ratio() <= 0.5
