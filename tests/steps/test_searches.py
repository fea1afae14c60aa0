"""Searches and what judges them: within both budgets, no worse than their start, and the same after an interrupt."""

from __future__ import annotations

import json

import pytest
import torch
from tiny import laid_out, made_up, tiny

import pruning_lib as pl
from pruning_book.rivals.schedule_search import genetic_search, random_search
from pruning_lib.steps import search as searching
from pruning_lib.steps.budget import every, uniform
from pruning_lib.steps.evaluate import Evaluator
from pruning_lib.steps.schedule import Schedule
from pruning_lib.steps.search import local_search, outer_units, spaced
from pruning_lib.steps.training import TrainedPruner

SEARCHES = (random_search, genetic_search, local_search)
PROMPTS = ["lion", "pizza"]


class Staleness:
    """Stands in for an `Evaluator`: how old the values are that each call uses, late calls counting more."""

    hold = "value"

    def __init__(self):
        self.prompts, self.images, self.known = [1, 2], 0, {}

    def __call__(self, schedule) -> float:
        live = schedule.live()
        key = live.numpy().tobytes()
        if key not in self.known:
            self.images += len(self.prompts)
            age, loss = torch.zeros(live.shape[1]), 0.0
            for number, row in enumerate(live):
                age = torch.where(row, 0.0, age + 1)
                loss += (1 + number / len(live)) * float(age.square().mean())
            self.known[key] = loss
        return self.known[key]


def small_grid(calls: int):
    """Return the grid of a made-up UNet: three layers down, one below, three up, each reading one of those down."""
    return made_up(calls, (40, 30, 20, 10, 30, 40, 60), [[], [0], [1], [2], [3, 2], [4, 1], [5, 0]])


@pytest.mark.parametrize("search", SEARCHES)
def test_within_both_budgets_and_seeds_decide(search):
    grid = small_grid(8)
    for keep_macs in (0.13, 0.6):
        evaluator = Staleness()
        found = search(grid, keep_macs, evaluator, images=61, seed=1)
        assert found.macs_ratio() <= keep_macs and found.live().equal(found.on)
        assert evaluator.images <= 61 and found.provenance["images"] == evaluator.images
        assert found.provenance["loss"] == evaluator(found)
        again, other = (search(grid, keep_macs, Staleness(), images=61, seed=seed) for seed in (1, 2))
        assert again == found and again.provenance == found.provenance != other.provenance
    assert search(small_grid(1), 1.0, Staleness(), images=1000) == small_grid(1).full(), "it ends"
    for keep_macs, images, said in ((0.5, 1, "images=1; a single schedule draws 2"), (0.01, 100, "first of 8 calls")):
        with pytest.raises(ValueError, match=said):
            search(grid, keep_macs, Staleness(), images=images)


def test_breeding_beats_chance_and_moving_beats_its_start():
    grid = small_grid(16)
    by_chance, bred, moved = (search(grid, 0.3, Staleness(), images=200) for search in SEARCHES)
    assert bred.provenance["loss"] < by_chance.provenance["loss"]
    assert moved.provenance["loss"] < moved.provenance["start_loss"] <= Staleness()(uniform(grid, 0.3))
    assert sum(moved.provenance["moves"].values()) >= 2 and moved.provenance["start"] == "simple"
    # given starts are asked first, and those over the budget are left out
    again = local_search(grid, 0.3, Staleness(), images=2, starts=[grid.full(), moved]).provenance
    assert again["start"] == moved.label == "local search" and again["loss"] == moved.provenance["loss"]
    with pytest.raises(ValueError, match="needed: population"):
        genetic_search(grid, 0.5, Staleness(), images=100, population=1)
    assert spaced(20, 5) == [0, 4, 8, 12, 16] and spaced(20, 5, 0.6) == [0, 4, 9, 13, 18]
    assert outer_units(grid, 1).nonzero().flatten().tolist() == [0, 5, 6]


@pytest.fixture(scope="module")
def small():
    return tiny()


def test_images_are_counted_once_per_schedule_and_the_batch_does_not_matter(small, monkeypatch):
    grid = laid_out(small, 5)
    evaluator = Evaluator(small, PROMPTS, grid, guidance_scale=3)
    assert evaluator(grid.full()) == 0 and evaluator.images == 2
    first, on = evaluator(every(grid, 2)), every(grid, 2).on
    on[3, 0] = True  # dead: nobody reads it
    assert evaluator(grid.schedule(on, method="the same under another name")) == first > 0
    assert evaluator.images == 4
    with pytest.raises(ValueError, match="of another grid than the evaluator: another number of steps"):
        evaluator(laid_out(small, 4).full())

    def asked(**more):
        return Evaluator(small, PROMPTS, grid, guidance_scale=3, **more)(every(grid, 2))

    assert asked(batch=1) == pytest.approx(first, rel=1e-3)
    others = [asked(seeds=[1, 2]), asked(loss="l2", batch=1), first]
    assert all(found > 0 for found in others) and len(set(others)) == 3

    def full(self, prompts, seeds):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("pruning_lib.sampling.Unroll.latents", full)
    with pytest.raises(MemoryError, match="batch=2. Try batch=1"):
        asked(batch=2)


def search(pipe, **more) -> Schedule:
    given = {"prompts": PROMPTS, "steps": 4, "keep": 0.5, "guidance_scale": 1, "images": 2, "evaluations": 10}
    given |= {"grain": laid_out(pipe, 4), "tell": lambda text: None, **more}
    return pl.search_schedule(pipe, given.pop("prompts"), progress=False, **given)


@pytest.fixture(scope="module")
def found(small):
    told = []
    return search(small, tell=told.append, grain="layers"), told


def test_it_beats_uniform_within_the_budget_and_tells_what_it_costs(small, found):
    schedule, told = found
    assert schedule.hold == "prediction" and schedule.label == "search" and schedule.live().equal(schedule.on)
    assert schedule.macs() <= 0.5 * schedule.grid.total_macs
    judge = Evaluator(small, PROMPTS, schedule.grid, guidance_scale=1, hold="prediction")
    assert judge(schedule) == schedule.provenance["loss"] < judge(uniform(schedule.grid, 0.5))
    assert schedule.provenance["prompts"] == 2 and schedule.provenance["images"] <= 20
    assert "10 evaluations of 2 pictures, 20 in all" in told[0] and "about 1 min" in told[1]


def test_it_goes_on_where_it_was_interrupted_and_begins_with_what_is_given(small, found, tmp_path, monkeypatch):
    judged = Evaluator._judge

    def stop_after(count: int):
        def judge(self, schedule):
            nonlocal count
            count -= 1
            if count < 0:
                raise KeyboardInterrupt
            return judged(self, schedule)

        monkeypatch.setattr(Evaluator, "_judge", judge)

    for count in (2, 3):
        stop_after(count)
        with pytest.raises(KeyboardInterrupt):
            search(small, folder=tmp_path)
    kept = json.loads((tmp_path / "search.json").read_text())
    assert len(kept["losses"]) == 5, "nothing is drawn twice"
    monkeypatch.undo()
    told = []
    again = search(small, folder=tmp_path, tell=told.append)
    assert again == found[0] and again.provenance == found[0].provenance
    assert "evaluations are done already" in told[0]
    with pytest.raises(ValueError, match="other keep, seed. Choose another folder"):
        search(small, folder=tmp_path, keep=0.4, seed=1)
    (tmp_path / "search.json").write_text('{"format": "pruning_lib.search/1"}')
    with pytest.raises(ValueError, match="damaged search"):
        search(small, folder=tmp_path)
    trained = TrainedPruner(again.grid, again.on.double()[None], (), [], {})
    for start in (again.on.float(), trained):
        other = search(small, start=start, evaluations=1).provenance
        assert other["start"] in ("scores", "DiP-GO") and other["loss"] == again.provenance["loss"]


def test_without_gradients_it_searches_by_chance(small, tmp_path, monkeypatch):
    pipe, told, batches = tiny(), [], []
    pipe.enable_model_cpu_offload(device="cpu")
    offloaded = search(pipe, tell=told.append)
    assert "The pipeline is offloaded" in told[1] and offloaded.provenance["evaluations"] == 10

    def too_large(*args, batch, **more):
        batches.append(batch)
        raise MemoryError

    monkeypatch.setattr(searching, "cell_importance", too_large)
    short = search(small, folder=tmp_path, tell=told.append)
    assert batches == [2, 1] and "Memory is too short for gradients" in told[-1]
    monkeypatch.undo()
    assert search(small, folder=tmp_path) == short, "the same, although there is memory now"


@pytest.mark.parametrize(
    ("wrong", "kind", "match"),
    [
        ({"prompts": "lion"}, ValueError, "draws from texts"),
        ({"options": {"hight": 8}}, ValueError, "height"),
        ({"evaluations": 1.5}, ValueError, "evaluations=1.5"),
        ({"start": "scores"}, TypeError, "start is a str"),
    ],
)
def test_bad_input_is_refused_before_any_work(small, wrong, kind, match, tmp_path, monkeypatch):
    monkeypatch.setattr(small.unet, "forward", None)  # no call can be made
    told = []
    with pytest.raises(kind, match=match):
        search(small, folder=tmp_path / "run", tell=told.append, **wrong)
    assert not told and not (tmp_path / "run").exists()
