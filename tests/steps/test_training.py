"""Training a pruner: what it learns, how it resumes, what it refuses, and what it says when all gates shut."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from launching import launch
from tiny import laid_out, tiny

import pruning_lib as pl
from pruning_lib.steps.budget import within_budget
from pruning_lib.steps.evaluate import Evaluator
from pruning_lib.steps.training import PrunerCollapseError, TrainedPruner

PROMPTS = ["lion", "pizza", "red heart"]
SMALL = {
    "best": {"iterations": 3, "batch": 2, "keep_macs": (0.8, 0.5)},
    "published": {"iterations": 3, "batch": 1, "width": 16, "loss": "l1", "on_collapse": "go on", "lr": 0.02},
}


def small_run(recipe: str = "best", pipe=None, prompts: list = PROMPTS, **more: object) -> TrainedPruner:
    """Train for a few iterations of a few steps."""
    given, pipe = {"steps": 3, "guidance_scale": 1, **SMALL[recipe], **more}, pipe or tiny()
    return pl.train_pruner(pipe, prompts, recipe=recipe, **{"grain": laid_out(pipe, given["steps"]), **given})


@pytest.fixture(scope="module")
def pipe():
    return tiny()


@pytest.fixture(scope="module")
def trained(pipe):
    return {recipe: small_run(recipe, pipe) for recipe in SMALL}


def same(a: TrainedPruner, b: TrainedPruner) -> bool:
    strip = [[{k: v for k, v in line.items() if k != "seconds"} for line in x.history] for x in (a, b)]
    return torch.equal(a.tables, b.tables) and strip[0] == strip[1] and a.budgets == b.budgets


def test_scores_are_learnt_saved_and_give_schedules_of_any_budget(trained, tmp_path):
    for recipe, found in trained.items():
        assert found.grid.shape == found.scores.shape and (0 <= found.scores).all() and (found.scores <= 1).all()
        assert found.scores[1:].std() > 0 and [line["step"] for line in found.history] == [1, 2, 3]
        for budget in (0.4, 0.9):
            assert 0 < found.schedule(budget).macs_ratio() <= budget and found.schedule(budget).label == "DiP-GO"
        path = found.save(tmp_path / f"{recipe}.safetensors")
        again = TrainedPruner.load(path)
        assert same(again, found) and again.settings == json.loads(json.dumps(found.settings))
        assert again.schedule(0.5) == found.schedule(0.5) and again.history == found.history
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match="damaged"):
        TrainedPruner.load(path)
    found = trained["best"]
    assert all(line["macs_ratio"] <= line["budget"] for line in found.history)
    assert [line["budget"] for line in found.history] == [0.8, 0.8, 0.5]
    assert torch.equal(found.scores_for(0.9), found.tables[0]) and torch.equal(found.scores_for(0.4), found.tables[1])


def test_what_was_trained_beats_chance_on_prompts_it_has_not_seen(pipe):
    found = small_run("best", pipe, steps=4, iterations=4, keep_macs=0.5)
    judge = Evaluator(pipe, ["sunflower", "house"], found.grid, guidance_scale=1)
    drawn = [torch.rand(found.grid.shape, generator=torch.Generator().manual_seed(i)) for i in range(6)]
    chance = [judge(found.grid.schedule(within_budget(scores, found.grid, 0.5))) for scores in drawn]
    assert judge(found.schedule(0.5)) < min(chance)


@pytest.mark.parametrize("recipe", SMALL)
def test_an_interrupted_run_goes_on_to_the_same_result(pipe, trained, recipe, tmp_path):
    def stop(look) -> None:
        side = pipe.vae_scale_factor * pipe.unet.config.sample_size
        assert look.pictures(["lion"]).shape == (1, 3, side, side), "a callback may draw"
        if look.iteration < 3:
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            small_run(recipe, pipe, folder=tmp_path, callback=stop)
    seen = []
    again = small_run(recipe, pipe, folder=tmp_path, callback=lambda look: seen.append(look.figures["step"]))
    assert seen == [3] and same(again, trained[recipe])
    assert same(small_run(recipe, pipe, folder=tmp_path), again), "nothing is left to do"
    with pytest.raises(ValueError, match="other settings"):
        small_run(recipe, pipe, folder=tmp_path, seed=1)
    with pytest.raises(ValueError, match="other prompts"):
        small_run(recipe, pipe, ["lion"], folder=tmp_path)
    (tmp_path / "checkpoint.pt").write_bytes((tmp_path / "checkpoint.pt").read_bytes()[:1000])
    with pytest.raises(ValueError, match="damaged"):
        small_run(recipe, pipe, folder=tmp_path)


def test_collapse_is_detected_and_explained(pipe):
    how = {"lr": 5.0, "floor": 0.0, "warmup": 0, "steps": 2, "accumulation": 1, "iterations": 12}
    with pytest.raises(PrunerCollapseError) as told:
        small_run("published", pipe, on_collapse="raise", **how)
    for word in ("since iteration 2 all gates", "went 1.00", "recipe='best'", "lower lr (now 5, try 0.5)"):
        assert word in str(told.value)
    found = small_run("published", pipe, **{**how, "iterations": 2})
    assert [line["collapsed"] for line in found.history] == [False, True]


def test_other_settings_pipelines_and_seeds(pipe, trained):
    how = {"iterations": 1, "steps": 2, "batch": 1}
    more = {"optimizer": "adamw", "loss": "l2", "temperature": 0.5, "network": "table", "alpha": 0.0, "bf16": True}
    found = small_run("published", pipe, accumulation=1, checkpointing=False, **more, **how)
    assert found.settings["loss"] == "l2" and found.tables.isfinite().all()
    classes = tiny("classes")
    found = small_run(
        "best", classes, [1, 2], grain=laid_out(classes, 2, "blocks"), keep_macs=0.7, start="chance", **how
    )
    assert found.grid.grain == "blocks" and found.schedule(0.7).macs_ratio() <= 0.7
    assert not torch.equal(small_run("best", pipe, seed=1).tables, trained["best"].tables)


def test_budgets_that_the_first_call_exceeds_are_left_out_unless_asked_for(pipe):
    how = {"steps": 2, "batch": 1, "guidance_scale": 1, "grain": laid_out(pipe, 2)}
    with pytest.raises(ValueError, match="iterations=2 for 5 budgets"):
        pl.train_pruner(pipe, PROMPTS, iterations=2, **how)
    found = pl.train_pruner(pipe, PROMPTS, iterations=5, **how)
    assert found.budgets == pytest.approx((0.75,)) and len(found.history) == 5


@pytest.mark.parametrize(
    ("wrong", "kind", "match"),
    [
        ({"prompts": "lion"}, ValueError, "draws from texts"),
        ({"steps": 1}, ValueError, "steps=1"),
        ({"recipe": "bst"}, ValueError, "no recipe 'bst'.*best"),
        ({"iteration": 3}, TypeError, "iterations"),
        ({"lr": float("nan")}, ValueError, "lr=nan"),
        ({"keep_macs": 0.1}, ValueError, "keep_macs=0.1.*first of 4 calls"),
        ({"keep_macs": (0.3, 0.5)}, ValueError, "largest first"),
    ],
)
def test_bad_input_is_refused_before_any_work(pipe, wrong, kind, match, monkeypatch):
    monkeypatch.setattr(pipe.unet, "forward", None)  # no call can be made
    given = {"prompts": PROMPTS, "steps": 4, "grain": laid_out(pipe, 4), **wrong}
    with pytest.raises(kind, match=match):
        pl.train_pruner(pipe, given.pop("prompts"), **given)


def test_offloading_and_numbers_that_are_not_finite_stop_the_run():
    pipe = tiny()
    with pytest.raises(ValueError, match="logits are not finite after iteration 1. Lower lr"):
        small_run("best", pipe, lr=1e38, weight_decay=1e38)
    # On a GPU the backward pass would meet weights that were put away; a CPU, where nothing moves, cannot show it.
    pipe.enable_model_cpu_offload(device="cpu")
    with pytest.raises(ValueError, match="The pipeline is offloaded .* pipe.remove_all_hooks"):
        small_run("best", pipe)
    pipe.remove_all_hooks()
    with torch.no_grad():
        pipe.unet.conv_out.weight.mul_(float("nan"))
    with pytest.raises(ValueError, match="loss became nan at iteration 1"):
        small_run("best", pipe)


def test_two_processes_equal_one_with_the_double_batch(tmp_path, trained):
    launch(Path(__file__), tmp_path)
    main, other = (TrainedPruner.load(tmp_path / f"{rank}.safetensors") for rank in range(2))
    wanted = trained["best"]
    assert torch.equal(main.tables, other.tables)
    assert torch.allclose(main.tables, wanted.tables, atol=2e-3)
    assert [a["rows"] for a in main.history] == [a["rows"] for a in wanted.history]
    looked = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert looked == [[1, 2, 3], []]


if __name__ == "__main__":  # one of two processes
    torch.set_num_threads(1)
    out, rank, seen = Path(sys.argv[1]), os.environ["RANK"], []
    for _ in range(2):  # at the second time all is done
        found = small_run(batch=1, folder=out / "run", callback=lambda look: seen.append(look.iteration))
    found.save(out / f"{rank}.safetensors")
    torch.save(seen, out / f"{rank}.pt")
