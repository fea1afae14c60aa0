"""Training a pruner: what it learns, how it resumes, what it refuses, and what it says when all gates shut."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_pipes import pipe_of
from train_small import PROMPTS, SMALL, small_run

import pruning_lib as pl
from pruning_lib.steps.schedule import grid_of
from pruning_lib.steps.supernet import gate_gradients
from pruning_lib.steps.training import PrunerCollapseError, TrainedPruner, _prompt, train_pruner

HERE = Path(__file__).parent


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
    steps, losses = found.curve("loss")
    assert steps == [1, 2, 3, 4] and all(loss >= -1e-5 for loss in losses)
    for budget in (0.4, 0.5, 0.9):
        schedule = found.schedule(budget)
        assert 0 < schedule.macs_ratio() <= budget and schedule.provenance["method"] == "DiP-GO"
    with pytest.raises(KeyError, match="It has: step"):
        found.curve("los")


def test_gates_of_kind_budget_never_exceed_it(trained):
    for line in trained["best"].history:
        assert line["macs_ratio"] <= line["budget"]
    assert [line["budget"] for line in trained["best"].history] == [0.8] * 2 + [0.5] * 2
    first, second = trained["best"].tables
    assert torch.equal(trained["best"].scores_for(0.9), first) and torch.equal(trained["best"].scores_for(0.4), second)


def test_what_was_trained_beats_chance_on_prompts_it_has_not_seen(pipe):
    found = train_pruner(pipe, PROMPTS, steps=4, guidance_scale=3, iterations=6, batch=2, keep_macs=0.5)
    new, seeds = ["sunflower", "house", "guitar"], [0, 1, 2]
    from pruning_lib.steps.budget import within_budget
    from pruning_lib.steps.supernet import SuperNet

    net = SuperNet(pipe, found.grid, guidance_scale=3)
    wanted = net.reference(new, seeds)

    def error(on) -> float:
        with found.grid.schedule(on).applied(pipe), torch.no_grad():
            return (net.unroll.latents(new, seeds) - wanted).square().mean().item()

    drawn = [torch.rand(found.grid.shape, generator=torch.Generator().manual_seed(i)) for i in range(6)]
    chance = sorted(error(within_budget(scores, found.grid, 0.5)) for scores in drawn)
    assert error(found.schedule(0.5).on) < chance[0]


@pytest.mark.parametrize("recipe", SMALL)
def test_an_interrupted_run_goes_on_to_the_same_result(pipe, trained, recipe, tmp_path):
    class StopError(Exception):
        pass

    def stop(look):
        if look.iteration in (1, 3):
            raise StopError

    for _ in range(2):
        with pytest.raises(StopError):
            small_run(recipe, pipe, folder=tmp_path, callback=stop)
    seen = []
    again = small_run(recipe, pipe, folder=tmp_path, callback=lambda look: seen.append(look.iteration))
    assert seen == [4] and same(again, trained[recipe])
    assert same(small_run(recipe, pipe, folder=tmp_path), again), "nothing is left to do"
    with pytest.raises(ValueError, match="other settings"):
        small_run(recipe, pipe, folder=tmp_path, seed=1)
    with pytest.raises(ValueError, match="other prompts"):
        train_pruner(pipe, ["lion"], steps=4, recipe=recipe, guidance_scale=3, folder=tmp_path, **SMALL[recipe])
    (tmp_path / "checkpoint.pt").write_bytes((tmp_path / "checkpoint.pt").read_bytes()[:1000])
    with pytest.raises(ValueError, match="damaged"):
        small_run(recipe, pipe, folder=tmp_path)


def test_an_offloaded_pipeline_is_refused_and_trains_when_it_is_back():
    """On a GPU the backward pass would meet weights that were put away; a CPU, where nothing moves, cannot show it."""
    pipe = pipe_of("text")
    pipe.enable_model_cpu_offload(device="cpu")
    with pytest.raises(ValueError, match="The pipeline is offloaded .* pipe.remove_all_hooks"):
        small_run("best", pipe)
    with pytest.raises(ValueError, match="offloaded"):
        gate_gradients(pipe, grid_of(pipe, 4), grid_of(pipe, 4).full().on, PROMPTS)
    pipe.remove_all_hooks()
    assert len(small_run("best", pipe, iterations=1, keep_macs=(0.5,)).history) == 1


def test_seeds_decide(pipe, trained):
    assert same(small_run("best", pipe), trained["best"])
    assert not torch.equal(small_run("best", pipe, seed=1).tables, trained["best"].tables)


def test_every_prompt_comes_once_an_epoch_in_another_order():
    epochs = [[_prompt(e * 5 + i, 5, 7) for i in range(5)] for e in range(6)]
    assert all(sorted(epoch) == list(range(5)) for epoch in epochs) and len(set(map(tuple, epochs))) > 1


def test_a_callback_sees_figures_and_may_draw(pipe):
    shapes = []
    small_run("best", pipe, callback=lambda look: shapes.append((look.figures["step"], look.pictures(["lion"]).shape)))
    side = pipe.vae_scale_factor * pipe.unet.config.sample_size
    assert shapes == [(i, (1, 3, side, side)) for i in range(1, 5)]


def test_collapse_is_detected_and_explained(pipe):
    with pytest.raises(
        PrunerCollapseError, match=r"(?s)since iteration \d+ all gates.*recipe='best'.*lower lr"
    ) as told:
        small_run("published", pipe, iterations=12, lr=5.0, floor=0.0, warmup=0, on_collapse="raise")
    assert "The kept share of MACs went 1.00" in str(told.value)
    found = small_run("published", pipe, lr=5.0, floor=0.0, warmup=0, on_collapse="go on")
    assert found.history[-1]["collapsed"] and not found.history[0]["collapsed"]


def test_other_settings_run(pipe):
    for more in (
        {"optimizer": "adamw", "lr": 0.01, "loss": "l1", "temperature": 0.5, "network": "table"},
        {"loss": "l2", "bf16": True, "checkpointing": False, "alpha": 0.0},
        {"loss": "latent", "gates": "budget", "keep_macs": 0.6, "width": 8, "start": "chance"},
    ):
        found = small_run("published", pipe, **{"iterations": 2, **more})
        assert len(found.history) == 2 and found.settings["loss"] == more["loss"]
    wanted = small_run("best", pipe, iterations=2)
    assert torch.allclose(small_run("best", pipe, iterations=2, checkpointing=False).tables, wanted.tables, atol=1e-3)


def test_classes_and_an_own_grid_work():
    pipe = pipe_of("classes")
    found = train_pruner(
        pipe, [1, 2], steps=3, grain=grid_of(pipe, 3, "blocks"), guidance_scale=2, keep_macs=0.7, iterations=2, batch=1
    )
    assert found.grid.grain == "blocks" and found.schedule(0.7).macs_ratio() <= 0.7


def test_budgets_that_the_first_call_exceeds_are_left_out_unless_asked_for(pipe):
    assert small_run("best", pipe, iterations=2, keep_macs=(0.6, 0.35)).budgets == (0.6, 0.35)
    for steps, budgets in ((4, (0.5, 0.35)), (2, (0.75,))):
        found = train_pruner(pipe, PROMPTS, steps=steps, iterations=5, batch=1, guidance_scale=1)
        assert found.budgets == pytest.approx(budgets) and len(found.history) == 5


@pytest.mark.parametrize(
    ("wrong", "kind", "match"),
    [
        ({"prompts": []}, ValueError, "draws from texts"),
        ({"prompts": "lion"}, ValueError, "draws from texts"),
        ({"steps": 1}, ValueError, "steps=1"),
        ({"steps": 2.5}, ValueError, "steps=2.5"),
        ({"recipe": "bst"}, ValueError, "no recipe 'bst'.*best"),
        ({"iteration": 3}, TypeError, "iterations"),
        ({"iterations": 0}, ValueError, "iterations=0"),
        ({"batch": True}, ValueError, "batch=True"),
        ({"lr": float("nan")}, ValueError, "lr=nan"),
        ({"lr": 0}, ValueError, "lr=0"),
        ({"alpha": -1}, ValueError, "alpha=-1"),
        ({"leak": 1.0}, ValueError, "leak=1.0"),
        ({"keep_macs": 0.1}, ValueError, "keep_macs=0.1.*first of 4 calls"),
        ({"keep_macs": 2}, ValueError, "=.2"),
        ({"keep_macs": (0.3, 0.5)}, ValueError, "largest first"),
        ({"keep_macs": None}, ValueError, "keep_macs=None"),
        ({"recipe": "published", "keep_macs": 0.5}, ValueError, "take none"),
        ({"loss": "mse"}, ValueError, "loss"),
        ({"optimizer": "adam"}, ValueError, "adamw"),
        ({"callback": 3}, TypeError, "callback is a int"),
        ({"grain": "layer"}, ValueError, "layers"),
        ({"options": {"hight": 8}}, ValueError, "height"),
        ({"temperature": 0}, ValueError, "temperature"),
        ({"iterations": 2}, ValueError, "for 5 budgets"),
        ({"accelerator": 3}, TypeError, "accelerator is a int"),
    ],
)
def test_bad_input_is_refused_before_any_work(pipe, wrong, kind, match, monkeypatch):
    monkeypatch.setattr(pipe.unet, "forward", None)  # no call can be made
    given = {"prompts": PROMPTS, "steps": 4, **wrong}
    with pytest.raises(kind, match=match):
        pl.train_pruner(pipe, given.pop("prompts"), **given)


def test_a_rate_that_blows_the_pruner_up_is_told(pipe):
    with pytest.raises(ValueError, match="logits are not finite after iteration 1. Lower lr"):
        small_run("best", pipe, lr=1e38, weight_decay=1e38)


def test_a_loss_that_is_not_finite_stops_the_run(pipe, tmp_path):
    weight = pipe.unet.conv_out.weight
    before = weight.detach().clone()
    with torch.no_grad():
        weight.mul_(float("nan"))
    try:
        with pytest.raises(ValueError, match="loss became nan at iteration 1"):
            small_run("best", pipe)
    finally:
        with torch.no_grad():
            weight.copy_(before)


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
    (tmp_path / "text.safetensors").write_text("no scores")
    with pytest.raises(ValueError, match="damaged"):
        TrainedPruner.load(tmp_path / "text.safetensors")


def test_two_processes_equal_one_with_the_double_batch(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(2):
        more = {
            "WORLD_SIZE": 2,
            "RANK": rank,
            "LOCAL_RANK": rank,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "ACCELERATE_USE_CPU": "true",
            "OMP_NUM_THREADS": 1,
            "HF_HUB_OFFLINE": 1,
            "PYTHONPATH": f"{HERE.parents[1]}:{HERE}:{HERE.parent / 'operators'}:{os.environ.get('PYTHONPATH', '')}",
        }
        environment = os.environ | {name: str(value) for name, value in more.items()}
        command = [sys.executable, str(HERE / "train_small.py"), str(tmp_path)]
        started.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    errors = [process.communicate(timeout=600)[1] for process in started]
    assert not any(process.returncode for process in started), errors
    main, other = (TrainedPruner.load(tmp_path / f"{rank}.safetensors") for rank in range(2))
    wanted = small_run("best")
    assert torch.equal(main.tables, other.tables)
    assert torch.allclose(main.tables, wanted.tables, atol=2e-3)
    assert [a["rows"] for a in main.history] == [a["rows"] for a in wanted.history]
    looked = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert looked == [[1, 2, 3, 4], []]
