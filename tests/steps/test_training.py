"""Training a pruner: what it learns, how it resumes, what it refuses, and what it says when all gates shut."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from launching import launch
from tiny import laid_out
from tiny_pipes import pipe_of
from train_small import PROMPTS, SMALL, small_run

import pruning_lib as pl
from pruning_lib.steps.budget import within_budget
from pruning_lib.steps.evaluate import Evaluator
from pruning_lib.steps.training import PrunerCollapseError, TrainedPruner, _prompt


@pytest.fixture(scope="module")
def pipe():
    return pipe_of("text")


@pytest.fixture(scope="module")
def trained(pipe):
    return {recipe: small_run(recipe, pipe) for recipe in SMALL}


def same(a: TrainedPruner, b: TrainedPruner) -> bool:
    strip = [[{k: v for k, v in line.items() if k != "seconds"} for line in x.history] for x in (a, b)]
    return torch.equal(a.tables, b.tables) and strip[0] == strip[1] and a.budgets == b.budgets


@pytest.mark.parametrize("recipe", SMALL)
def test_it_is_learnt_something_and_schedules_keep_to_their_budget(trained, recipe):
    found = trained[recipe]
    assert found.grid.shape == found.scores.shape and (0 <= found.scores).all() and (found.scores <= 1).all()
    assert found.scores[1:].std() > 0
    assert [line["step"] for line in found.history] == [1, 2, 3]
    assert all(line["loss"] >= -1e-5 for line in found.history)
    for budget in (0.4, 0.5, 0.9):
        schedule = found.schedule(budget)
        assert 0 < schedule.macs_ratio() <= budget and schedule.label == "DiP-GO"


def test_gates_of_kind_budget_never_exceed_it(trained):
    found = trained["best"]
    assert all(line["macs_ratio"] <= line["budget"] for line in found.history)
    assert [line["budget"] for line in found.history] == [0.8, 0.8, 0.5]
    assert torch.equal(found.scores_for(0.9), found.tables[0]) and torch.equal(found.scores_for(0.4), found.tables[1])


def test_what_was_trained_beats_chance_on_prompts_it_has_not_seen(pipe):
    found = small_run("best", pipe, steps=4, iterations=4, keep_macs=0.5)
    judge = Evaluator(pipe, ["sunflower", "house", "guitar"], found.grid, guidance_scale=3)
    drawn = [torch.rand(found.grid.shape, generator=torch.Generator().manual_seed(i)) for i in range(6)]
    chance = [judge(found.grid.schedule(within_budget(scores, found.grid, 0.5))) for scores in drawn]
    assert judge(found.schedule(0.5)) < min(chance)


@pytest.mark.parametrize("recipe", SMALL)
def test_an_interrupted_run_goes_on_to_the_same_result(pipe, trained, recipe, tmp_path):
    class StopError(Exception):
        pass

    def stop(look):
        if look.iteration < 3:
            raise StopError

    for _ in range(2):
        with pytest.raises(StopError):
            small_run(recipe, pipe, folder=tmp_path, callback=stop)
    seen = []
    again = small_run(recipe, pipe, folder=tmp_path, callback=lambda look: seen.append(look.iteration))
    assert seen == [3] and same(again, trained[recipe])
    assert same(small_run(recipe, pipe, folder=tmp_path), again), "nothing is left to do"
    with pytest.raises(ValueError, match="other settings"):
        small_run(recipe, pipe, folder=tmp_path, seed=1)
    with pytest.raises(ValueError, match="other prompts"):
        small_run(recipe, pipe, ["lion"], folder=tmp_path)
    (tmp_path / "checkpoint.pt").write_bytes((tmp_path / "checkpoint.pt").read_bytes()[:1000])
    with pytest.raises(ValueError, match="damaged"):
        small_run(recipe, pipe, folder=tmp_path)


def test_an_offloaded_pipeline_is_refused_and_trains_when_it_is_back():
    """On a GPU the backward pass would meet weights that were put away; a CPU, where nothing moves, cannot show it."""
    pipe = pipe_of("text")
    pipe.enable_model_cpu_offload(device="cpu")
    with pytest.raises(ValueError, match="The pipeline is offloaded .* pipe.remove_all_hooks"):
        small_run("best", pipe)
    pipe.remove_all_hooks()
    assert len(small_run("best", pipe, steps=2, batch=1, iterations=1, keep_macs=0.6).history) == 1


def test_every_prompt_comes_once_an_epoch_in_another_order():
    epochs = [[_prompt(e * 5 + i, 5, 7) for i in range(5)] for e in range(6)]
    assert all(sorted(epoch) == list(range(5)) for epoch in epochs) and len(set(map(tuple, epochs))) > 1


def test_a_callback_sees_figures_and_may_draw_and_seeds_decide(pipe, trained):
    shapes = []

    def draw(look):
        shapes.append((look.figures["step"], look.pictures(["lion"]).shape))

    again = small_run("best", pipe, callback=draw)
    side = pipe.vae_scale_factor * pipe.unet.config.sample_size
    assert shapes == [(i, (1, 3, side, side)) for i in (1, 2, 3)]
    assert same(again, trained["best"])
    assert not torch.equal(small_run("best", pipe, seed=1).tables, again.tables)


def test_collapse_is_detected_and_explained(pipe):
    how = {"lr": 5.0, "floor": 0.0, "warmup": 0, "steps": 2, "accumulation": 1, "iterations": 12}
    with pytest.raises(PrunerCollapseError) as told:
        small_run("published", pipe, on_collapse="raise", **how)
    for word in ("since iteration 2 all gates", "went 1.00", "recipe='best'", "lower lr (now 5, try 0.5)"):
        assert word in str(told.value)
    found = small_run("published", pipe, **{**how, "iterations": 2})
    assert [line["collapsed"] for line in found.history] == [False, True]


@pytest.mark.parametrize(
    "more",
    [
        {"optimizer": "adamw", "lr": 0.01, "loss": "l1", "temperature": 0.5, "network": "table"},
        {"loss": "l2", "bf16": True, "checkpointing": False, "alpha": 0.0},
        {"loss": "latent", "gates": "budget", "keep_macs": 0.6, "width": 8, "start": "chance"},
    ],
)
def test_other_settings_run(pipe, more):
    found = small_run("published", pipe, iterations=1, steps=2, **{"accumulation": 1, **more})
    assert len(found.history) == 1 and found.settings["loss"] == more["loss"] and found.tables.isfinite().all()


def test_classes_and_an_own_grid_work():
    pipe = pipe_of("classes")
    grid = laid_out(pipe, 3, "blocks")
    found = small_run("best", pipe, [1, 2], grain=grid, keep_macs=0.7, iterations=2, batch=1)
    assert found.grid.grain == "blocks" and found.schedule(0.7).macs_ratio() <= 0.7


def test_budgets_that_the_first_call_exceeds_are_left_out_unless_asked_for(pipe):
    for steps, budgets in ((4, (0.5, 0.35)), (2, (0.75,))):
        how = {"iterations": 2, "batch": 1, "guidance_scale": 1, "grain": laid_out(pipe, steps)}
        with pytest.raises(ValueError, match="iterations=2 for 5 budgets"):
            pl.train_pruner(pipe, PROMPTS, steps=steps, **how)
        found = pl.train_pruner(pipe, PROMPTS, steps=steps, **{**how, "iterations": 5})
        assert found.budgets == pytest.approx(budgets) and len(found.history) == 5


@pytest.mark.parametrize(
    ("wrong", "kind", "match"),
    [
        ({"prompts": "lion"}, ValueError, "draws from texts"),
        ({"steps": 1}, ValueError, "steps=1"),
        ({"recipe": "bst"}, ValueError, "no recipe 'bst'.*best"),
        ({"iteration": 3}, TypeError, "iterations"),
        ({"batch": True}, ValueError, "batch=True"),
        ({"lr": float("nan")}, ValueError, "lr=nan"),
        ({"alpha": -1}, ValueError, "alpha=-1"),
        ({"leak": 1.0}, ValueError, "leak=1.0"),
        ({"keep_macs": 0.1}, ValueError, "keep_macs=0.1.*first of 4 calls"),
        ({"keep_macs": (0.3, 0.5)}, ValueError, "largest first"),
        ({"keep_macs": None}, ValueError, "keep_macs=None"),
        ({"recipe": "published", "keep_macs": 0.5}, ValueError, "take none"),
        ({"loss": "mse"}, ValueError, "loss"),
        ({"optimizer": "adam"}, ValueError, "adamw"),
        ({"callback": 3}, TypeError, "callback is a int"),
        ({"grain": "layer"}, ValueError, "layers"),
        ({"options": {"hight": 8}}, ValueError, "height"),
        ({"width": 12, "recipe": "published"}, ValueError, "width=12 must be a multiple of 8"),
        ({"accelerator": 3}, TypeError, "accelerator is a int"),
    ],
)
def test_bad_input_is_refused_before_any_work(pipe, wrong, kind, match, monkeypatch):
    monkeypatch.setattr(pipe.unet, "forward", None)  # no call can be made
    given = {"prompts": PROMPTS, "steps": 4, "grain": laid_out(pipe, 4), **wrong}
    with pytest.raises(kind, match=match):
        pl.train_pruner(pipe, given.pop("prompts"), **given)


def test_numbers_that_are_not_finite_stop_the_run():
    pipe = pipe_of("text")
    with pytest.raises(ValueError, match="logits are not finite after iteration 1. Lower lr"):
        small_run("best", pipe, lr=1e38, weight_decay=1e38)
    with torch.no_grad():
        pipe.unet.conv_out.weight.mul_(float("nan"))
    with pytest.raises(ValueError, match="loss became nan at iteration 1"):
        small_run("best", pipe)


def test_saved_and_loaded_it_is_the_same(trained, tmp_path):
    for recipe, found in trained.items():
        path = found.save(tmp_path / f"{recipe}.safetensors")
        again = TrainedPruner.load(path)
        assert same(again, found) and again.settings == json.loads(json.dumps(found.settings))
        assert again.schedule(0.5) == found.schedule(0.5) and again.history == found.history
    with pytest.raises(ValueError, match=".safetensors"):
        found.save(tmp_path / "x.pt")
    with pytest.raises(FileNotFoundError):
        TrainedPruner.load(tmp_path / "none.safetensors")
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match="damaged"):
        TrainedPruner.load(path)


def test_scores_of_the_book_are_read(root):
    files = sorted((root / "pruning_book" / "records").glob("pruner_scores_*.safetensors"))
    assert files and all(TrainedPruner.load(file).schedule(0.3).macs_ratio() <= 0.3 for file in files)


def test_two_processes_equal_one_with_the_double_batch(tmp_path, trained):
    launch(Path(__file__).with_name("train_small.py"), tmp_path)
    main, other = (TrainedPruner.load(tmp_path / f"{rank}.safetensors") for rank in range(2))
    wanted = trained["best"]
    assert torch.equal(main.tables, other.tables)
    assert torch.allclose(main.tables, wanted.tables, atol=2e-3)
    assert [a["rows"] for a in main.history] == [a["rows"] for a in wanted.history]
    looked = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert looked == [[1, 2, 3], []]
