"""`pruning-lib score` and `cut`: from a folder to scores to a smaller folder, and what is refused."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

import pruning_lib as pl
from pruning_lib.__main__ import app
from pruning_lib.operators.plan import Plan
from pruning_lib.operators.remove import load_pruned
from pruning_lib.operators.scores import Scores


def run(*arguments: object):
    return CliRunner().invoke(app, list(map(str, arguments)), prog_name="pruning-lib")


@pytest.fixture(scope="module")
def scored(tiny_pipeline, tmp_path_factory):
    """The file of scores of the tiny pipeline."""
    target = tmp_path_factory.mktemp("scored") / "scores.safetensors"
    done = run(
        "score", tiny_pipeline, target, "--latents", 2, "--steps", 2, "--kind", "resnet", "--kind", "downsampler"
    )
    assert done.exit_code == 0, done.output
    assert f"Saved in {target}" in done.output and "down_blocks.0.resnets.0" in done.output
    assert [path.name for path in target.parent.iterdir()] == [target.name], "nothing else is left behind"
    return target


def test_the_saved_folder_is_smaller_and_loads(tiny_pipeline, scored, tmp_path):
    done = run("cut", tiny_pipeline, tmp_path / "small", "--scores", scored, "--count", 2, "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    wanted = Scores.load(scored).lowest(2)
    assert Plan.from_dict(told["plan"]) == wanted
    whole, small = pl.load(tiny_pipeline), load_pruned(tmp_path / "small")
    a, b = pl.count_macs(whole.unet), pl.count_macs(small.unet)
    assert told["params_ratio"] == pytest.approx(1 - b.params / a.params) and b.params < a.params
    assert told["macs_ratio"] == pytest.approx(1 - b.macs / a.macs)

    wanted.save(tmp_path / "plan.json")
    again = run("cut", tiny_pipeline, tmp_path / "again", "--plan", tmp_path / "plan.json")
    assert again.exit_code == 0 and "2 operators of a UNet2DModel" in again.output
    assert load_pruned(tmp_path / "again").unet.config["pruning_lib"] == small.unet.config["pruning_lib"]


def test_a_budget_is_met_and_a_pruned_folder_is_cut_again(tiny_pipeline, scored, tmp_path):
    done = run("cut", tiny_pipeline, tmp_path / "small", "--scores", scored, "--macs", 0.1, "--json")
    assert json.loads(done.stdout)["macs_ratio"] >= 0.1
    target = tmp_path / "scores.safetensors"
    assert run("score", tmp_path / "small", target, "--latents", 2, "--steps", 1, "--kind", "upsampler").exit_code == 0
    twice = run("cut", tmp_path / "small", tmp_path / "smaller", "--scores", target, "--count", 1)
    assert twice.exit_code == 0, twice.output
    assert len(load_pruned(tmp_path / "smaller").unet.config["pruning_lib"]["plans"]) == 2


def test_mistakes_are_told_and_leave_nothing(tiny_pipeline, scored, tmp_path):
    target, plan = tmp_path / "small", tmp_path / "plan.json"
    Scores.load(scored).lowest(1).save(plan)
    for arguments, words in {
        ("--count", 1): "either --scores, with one budget, or --plan",
        ("--scores", scored, "--plan", plan): "either --scores",
        ("--scores", scored): "0 were given",
        ("--scores", scored, "--count", 1, "--macs", 0.1): "2 were given",
        ("--plan", plan, "--count", 1): "without a budget",
        ("--scores", scored, "--macs", 1.5): "must lie between 0 and 1",
        ("--scores", plan, "--count", 1): "holds no scores",
        ("--scores", scored, "--count", 1, "--formula", "papr"): "formula='papr'",
        ("--scores", scored, "--count", 1, "--device", "gpu"): "Unknown device",
    }.items():
        done = run("cut", tiny_pipeline, target, *arguments)
        assert done.exit_code == 2 and words in " ".join(done.stderr.split()), (arguments, done.output)
        assert not target.exists()
    other = run("cut", "emoji-sd", target, "--scores", scored, "--count", 1)
    assert other.exit_code == 2 and "this denoiser is a UNet2DConditionModel" in other.stderr
    for name, words in {"scores.txt": "does not end in .safetensors", scored: "exists already"}.items():
        done = run("score", tiny_pipeline, tmp_path / name)
        assert done.exit_code == 2 and words in done.stderr
