"""Searches and what judges them: within both budgets, no worse than their start, and the same after an interrupt."""

from __future__ import annotations

import json

import pytest
import torch
from tiny import laid_out, tiny
from tiny_pipes import pipe_of

import pruning_lib as pl
from pruning_book.rivals.schedule_search import genetic_search, random_schedule, random_search
from pruning_lib.steps import search as searching
from pruning_lib.steps.budget import every, uniform
from pruning_lib.steps.evaluate import WORTH_COST, BudgetExhausted, Evaluator, SearchBudget
from pruning_lib.steps.schedule import Grid, Schedule
from pruning_lib.steps.search import local_search, outer_units, simple_starts, spaced
from pruning_lib.steps.training import TrainedPruner
from pruning_lib.steps.wiring import Wiring

SEARCHES = (random_search, genetic_search, local_search)
PROMPTS = ["lion", "pizza", "rocket"]


class Staleness:
    """Stands in for an `Evaluator`: how old the values are that each call uses, late calls counting more."""

    hold = "value"

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


def small_grid(calls: int = 8, reads_input: bool = False) -> Grid:
    """Return the grid of a made-up UNet: three layers down, one below, three up, each reading one of those down."""
    down, up = ([f"{way}_blocks.0.layers.{i}" for i in range(3)] for way in ("down", "up"))
    read = [[], [0], [1], [2], [3, 2], [4, 1], [5, 0]]
    macs = (40, 30, 20, 10, 30, 40, 60)
    return Grid(
        names=(*down, "mid_block", *up),
        macs=macs,
        macs_without_attention=macs,
        base_macs=5,
        base_macs_without_attention=5,
        wiring=Wiring(tuple(map(frozenset, read)), frozenset([6]), reads_input),
        grain="layers",
        class_name="Made",
        structure="up",
        scheduler="DDIMScheduler",
        steps=calls,
        timesteps=tuple(float(900 - 50 * i) for i in range(calls)),
    )


@pytest.fixture(scope="module")
def grid():
    return small_grid()


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("keep_macs", [0.13, 0.6])
def test_within_both_budgets_and_seeds_decide(grid, search, keep_macs):
    evaluator = Staleness(grid)
    found = search(grid, keep_macs, evaluator, images=101, seed=1)
    assert found.macs_ratio() <= keep_macs
    assert evaluator.images <= 101 and found.provenance["images"] == evaluator.images
    assert found.provenance["loss"] == evaluator(found)
    assert found.live().equal(found.on)
    again, other = (search(grid, keep_macs, Staleness(grid), images=101, seed=seed) for seed in (1, 2))
    assert again == found and again.provenance == found.provenance != other.provenance
    fewer = search(grid, keep_macs, Staleness(grid), images=24, seed=1)
    assert found.provenance["loss"] <= fewer.provenance["loss"]


def test_breeding_beats_chance_and_moving_beats_its_start():
    grid = small_grid(16)
    by_chance, bred, moved = (search(grid, 0.3, Staleness(grid), images=200) for search in SEARCHES)
    assert bred.provenance["loss"] < by_chance.provenance["loss"]
    assert moved.provenance["loss"] < moved.provenance["start_loss"] <= Staleness(grid)(uniform(grid, 0.3))
    assert sum(moved.provenance["moves"].values()) >= 2 and moved.provenance["start"] == "simple"
    # given starts are asked first, and those over the budget are left out
    again = local_search(grid, 0.3, Staleness(grid), images=2, starts=[grid.full(), moved]).provenance
    assert again["start"] == moved.label == "local search" and again["loss"] == moved.provenance["loss"]


def test_worth_is_asked_and_charged_until_it_cannot_be_had(grid):
    for known in (2, 100):
        evaluator, asked = Staleness(grid), []

        def worth(on, known=known, asked=asked):
            asked.append(on.clone())
            chance = torch.Generator().manual_seed(len(asked))
            return torch.rand(grid.shape, generator=chance) if len(asked) <= known else None

        found = local_search(grid, 0.4, evaluator, images=200, worth=worth, worth_every=20)
        assert all(on[0].all() for on in asked) and (len(asked) == 3 if known == 2 else len(asked) > 3)
        charged = 2 * WORTH_COST * min(known, len(asked))
        assert evaluator.images + charged == found.provenance["images"] <= 200


def test_a_grid_with_one_schedule_ends():
    for search in SEARCHES:
        assert search(small_grid(1), 1.0, Staleness(small_grid(1)), images=1000) == small_grid(1).full()


def test_random_schedules_use_the_budget(grid):
    generator = torch.Generator().manual_seed(0)
    shares = [grid.macs_ratio(random_schedule(grid, 0.5, generator)) for _ in range(20)]
    assert max(shares) <= 0.5 and min(shares) > 0.4


def test_places_of_calls_and_outer_units(grid):
    assert spaced(20, 5) == [0, 4, 8, 12, 16] and spaced(20, 5, 0.6) == [0, 4, 9, 13, 18]
    assert spaced(4, 4, 0.6) == [0, 1, 2, 3] and spaced(9, 1) == [0]
    assert outer_units(grid, 0).nonzero().flatten().tolist() == [6]
    assert outer_units(grid, 1).nonzero().flatten().tolist() == [0, 5, 6]
    unet = laid_out(tiny(), 2)
    names = [name for name, on in zip(unet.names, outer_units(unet, 2).tolist(), strict=True) if on]
    assert names == [*(f"down_blocks.0.layers.{i}" for i in (0, 1)), *(f"up_blocks.3.layers.{i}" for i in (0, 1, 2))]


@pytest.mark.parametrize("reads_input", [False, True])  # then every row costs something, as in a transformer
def test_starts_fit_and_differ(reads_input):
    grid = small_grid(reads_input=reads_input)
    for keep in (0.15, 0.3, 0.5, 1.0):
        tables = simple_starts(grid, keep)
        assert all(grid.macs_ratio(on) <= keep and on[0].all() for on in tables)
        assert len({on.numpy().tobytes() for on in tables}) == len(tables) >= (3 if 0.2 < keep < 1 else 1)


def test_bad_input_of_searches_is_refused(grid):
    for search in SEARCHES:
        with pytest.raises(ValueError, match="images=1; a single schedule draws 2"):
            search(grid, 0.5, Staleness(grid), images=1)
        with pytest.raises(ValueError, match="first of 8 calls"):
            search(grid, 0.01, Staleness(grid), images=100)
    for wrong in ({"population": 1}, {"elite": 0}, {"elite": 16}, {"mutations": -1}):
        with pytest.raises(ValueError, match="needed: population"):
            genetic_search(grid, 0.5, Staleness(grid), images=100, **wrong)


# On a pipeline.


@pytest.fixture(scope="module")
def small():
    return pipe_of("text")


@pytest.fixture(scope="module")
def real(small):
    return laid_out(small, 5)


def test_images_are_counted_once_per_schedule(small, real):
    evaluator = Evaluator(small, PROMPTS, real, guidance_scale=3)
    assert evaluator(real.full()) == 0 and evaluator.images == 3
    first = evaluator(every(real, 2))
    on = every(real, 2).on
    on[3, 0] = True  # dead: nobody reads it
    assert evaluator(real.schedule(on, method="the same under another name")) == first > 0
    assert evaluator.images == 6
    with pytest.raises(ValueError, match="of another grid than the evaluator: another number of steps"):
        evaluator(laid_out(small, 4).full())
    with pytest.raises(ValueError, match="2 seeds for 3 prompts"):
        Evaluator(small, PROMPTS, real, seeds=[1, 2])


def test_the_batch_does_not_matter_and_seeds_and_losses_do(small, real):
    def asked(**more):
        return Evaluator(small, PROMPTS, real, guidance_scale=3, **more)(every(real, 2))

    plain = asked()
    assert asked(batch=2) == pytest.approx(plain, rel=1e-3)
    assert asked(seeds=[1, 2, 3]) != pytest.approx(plain, rel=1e-2)
    others = [asked(loss="l2", batch=2), asked(loss="l1"), plain]
    assert all(found > 0 for found in others) and len(set(others)) == 3


def test_a_budget_keeps_to_macs_and_images(grid):
    budget = SearchBudget(grid, 0.5, Staleness(grid), 5)
    assert budget.ask(every(grid, 3).on) == budget.ask(every(grid, 3).on) == budget.loss and budget.spent == 2
    with pytest.raises(ValueError, match="over its budget"):
        budget.ask(grid.full().on)
    with pytest.raises(BudgetExhausted):
        budget.charge(4)
    budget.charge(1)
    budget.ask(every(grid, 2).on)
    with pytest.raises(BudgetExhausted):
        budget.ask(every(grid, 4).on)
    losses = [loss for _, loss in budget.trace]
    assert losses == sorted(losses, reverse=True) and losses[-1] == budget.loss and budget.spent == 5


# The front door.


def search(pipe, **more) -> Schedule:
    given = {"prompts": PROMPTS, "steps": 5, "keep": 0.5, "guidance_scale": 3, "images": 2, "evaluations": 16, **more}
    if "grain" not in given and pipe is not None:
        given["grain"] = laid_out(pipe, 5)
    return pl.search_schedule(pipe, given.pop("prompts"), progress=False, **{"tell": lambda text: None, **given})


@pytest.fixture(scope="module")
def found(small):
    told = []
    return search(small, tell=told.append, grain="layers"), told


def test_it_beats_uniform_within_the_budget_and_tells_what_it_costs(small, found):
    schedule, told = found
    assert schedule.hold == "prediction" and schedule.label == "search" and schedule.live().equal(schedule.on)
    assert schedule.macs() <= 0.5 * schedule.grid.total_macs
    judge = Evaluator(small, [PROMPTS[0], PROMPTS[1]], schedule.grid, guidance_scale=3, hold="prediction")
    assert judge(schedule) == schedule.provenance["loss"] < judge(uniform(schedule.grid, 0.5))
    provenance = schedule.provenance
    assert provenance["prompts"] == 2 and provenance["images"] <= 32 and 5 < provenance["evaluations"] <= 12
    assert "16 evaluations of 2 pictures, 32 in all" in told[0] and "about 1 min" in told[1]


def test_it_goes_on_where_it_was_interrupted_to_the_same_result(small, found, tmp_path, monkeypatch):
    judged = Evaluator._judge

    def stop_after(count: int):
        def judge(self, schedule):
            nonlocal count
            count -= 1
            if count < 0:
                raise KeyboardInterrupt
            return judged(self, schedule)

        monkeypatch.setattr(Evaluator, "_judge", judge)

    for count in (3, 5):
        stop_after(count)
        with pytest.raises(KeyboardInterrupt):
            search(small, folder=tmp_path)
    kept = json.loads((tmp_path / "search.json").read_text())
    assert len(kept["losses"]) == 8, "nothing is drawn twice"
    monkeypatch.setattr(Evaluator, "_judge", judged)
    told = []
    again = search(small, folder=tmp_path, tell=told.append)
    assert again == found[0] and again.provenance == found[0].provenance
    assert "evaluations are done already" in told[0]
    stop_after(0)
    assert search(small, folder=tmp_path) == again, "nothing is left to draw"
    with pytest.raises(ValueError, match="other keep, seed. Choose another folder"):
        search(small, folder=tmp_path, keep=0.4, seed=1)
    (tmp_path / "search.json").write_text('{"format": "pruning_lib.search/1"}')
    with pytest.raises(ValueError, match="damaged search"):
        search(small, folder=tmp_path)


def test_seeds_and_scores_to_start_from_count(small, found):
    assert search(small, seed=1).provenance["loss"] != found[0].provenance["loss"]
    grid = found[0].grid
    trained = TrainedPruner(grid, found[0].on.double()[None], (), [], {})
    for start in (found[0].on.float(), trained):
        again = search(small, start=start, evaluations=1).provenance
        assert again["start"] in ("scores", "DiP-GO") and again["loss"] == found[0].provenance["loss"]


def test_without_gradients_it_searches_by_chance(small, found, tmp_path, monkeypatch):
    pipe = pipe_of("text")
    pipe.enable_model_cpu_offload(device="cpu")
    told = []
    offloaded = search(pipe, tell=told.append)
    assert "The pipeline is offloaded" in told[1]
    assert offloaded.provenance["evaluations"] == 16 == search(small, gradients=False).provenance["evaluations"]

    batches, told = [], []

    def too_large(*args, batch, **more):
        batches.append(batch)
        raise MemoryError

    monkeypatch.setattr(searching, "cell_importance", too_large)
    short = search(small, images=3, evaluations=12, folder=tmp_path, tell=told.append)
    assert batches == [3, 1] and "Memory is too short for gradients" in told[-1]
    monkeypatch.undo()
    assert search(small, images=3, evaluations=12, folder=tmp_path) == short, "the same, although there is memory now"


def test_a_picture_too_large_for_memory_is_told(small, real, monkeypatch):
    def full(self, prompts, seeds):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("pruning_lib.sampling.Unroll.latents", full)
    with pytest.raises(MemoryError, match="batch=2. Try batch=1"):
        Evaluator(small, PROMPTS, real, batch=2)(every(real, 2))


def test_pictures_that_are_not_finite_are_told():
    pipe = pipe_of("text")
    with torch.no_grad():
        pipe.unet.conv_out.weight.mul_(float("nan"))
    with pytest.raises(ValueError, match="numbers that are not finite"):
        search(pipe)


@pytest.mark.parametrize("kind", ["classes", "unconditional"])
def test_other_pipelines_are_searched_too(kind):
    scale = 2 if kind == "classes" else None
    found = search(pipe_of(kind), prompts=[1, 2], guidance_scale=scale, evaluations=8)
    assert found.macs_ratio() <= 0.5 and found.provenance["start"] == "simple"


@pytest.mark.parametrize(
    ("wrong", "kind", "match"),
    [
        ({"prompts": "lion"}, ValueError, "draws from texts"),
        ({"steps": 0}, ValueError, "steps=0"),
        ({"keep": 25}, ValueError, "keep=25"),
        ({"keep": 0.1}, ValueError, "first of 5 calls"),
        ({"grain": "layer"}, ValueError, "layers"),
        ({"options": {"hight": 8}}, ValueError, "height"),
        ({"hold": "output"}, ValueError, "hold='output'"),
        ({"loss": "mse"}, ValueError, "There is no loss"),
        ({"images": 0}, ValueError, "images=0"),
        ({"evaluations": 1.5}, ValueError, "evaluations=1.5"),
        ({"batch": 0}, ValueError, "batch=0"),
        ({"seed": -1}, ValueError, "seed=-1"),
        ({"start": "scores"}, TypeError, "start is a str"),
        ({"start": torch.zeros(2, 2)}, ValueError, "this grid needs 5"),
        ({"pipe": None}, TypeError, "pipeline"),
    ],
)
def test_bad_input_is_refused_before_any_work(small, wrong, kind, match, tmp_path, monkeypatch):
    monkeypatch.setattr(small.unet, "forward", None)  # no call can be made
    told = []
    given = {"pipe": small, "folder": tmp_path / "run", "tell": told.append, **wrong}
    with pytest.raises(kind, match=match):
        search(**given)
    assert not told and not (tmp_path / "run").exists()
