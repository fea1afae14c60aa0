"""`pruning-lib schedule`: from a model to a schedule within a budget, shown and checked, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import DDPMPipeline
from typer.testing import CliRunner

import pruning_lib as pl
from pruning_lib.__main__ import app
from pruning_lib.steps.schedule import Schedule, grid_of
from pruning_lib.steps.training import TrainedPruner


def run(*arguments: object):
    return CliRunner().invoke(app, ["schedule", *map(str, arguments)], prog_name="pruning-lib")


@pytest.mark.parametrize("method", ["uniform", "deepcache"])
def test_a_schedule_is_made_within_its_budget_and_can_be_followed(tiny_pipeline, tmp_path, method) -> None:
    target = tmp_path / "a.json"
    done = run("make", tiny_pipeline, target, "--keep-macs", 0.5, "--method", method, "--steps", 6)
    assert done.exit_code == 0, done.output
    made = Schedule.load(target)
    assert made.steps == 6 and 0.3 < made.macs_ratio() <= 0.5 and made.grid.grain == "layers"
    assert f"{100 * made.macs_ratio():.1f} % of the MACs kept" in done.output
    checked = run("check", target, tiny_pipeline)
    assert checked.exit_code == 0 and f"can follow {target}" in checked.output


def test_a_schedule_is_shown_as_text_numbers_and_picture(tiny_pipeline, tmp_path) -> None:
    grid = grid_of(pl.load(tiny_pipeline), 4)
    on = torch.ones(grid.shape, dtype=torch.bool)
    on[1, -1] = False  # all else of this row is read by nobody
    schedule = grid.schedule(on, method="by hand")
    schedule.save(tmp_path / "a.json")
    done = run("show", tmp_path / "a.json", "--plot", tmp_path / "a.png")
    assert done.exit_code == 0, done.output
    *lines, calls, told, drawn = done.output.splitlines()
    assert [line.split()[0] for line in lines] == list(grid.names)
    assert [line.split()[1] for line in lines] == ["#x##"] * (len(lines) - 1) + ["#.##"]
    assert calls.endswith("  | ||") and told.startswith("by hand: 75.0 % of the MACs kept")
    assert "3 of 4 calls" in told and f"{len(lines) - 1} dead" in told
    assert drawn == f"Drawn in {tmp_path / 'a.png'}" and (tmp_path / "a.png").stat().st_size > 5000
    costs = json.loads(run("show", tmp_path / "a.json", "--json").stdout)
    assert costs["macs"] == schedule.macs() and costs["keep_macs"] == 0.75 and costs["calls"] == 3


def test_a_schedule_of_trained_scores(tiny_pipeline, tmp_path) -> None:
    pipe = pl.load(tiny_pipeline)
    grid = grid_of(pipe, 5)
    generator = torch.Generator().manual_seed(0)
    tables = torch.rand(1, *grid.shape, generator=generator, dtype=torch.float64)
    trained = TrainedPruner(grid, tables, (), [], {"recipe": "by chance"})
    scores = trained.save(tmp_path / "scores.safetensors")
    options = ("--keep-macs", 0.6, "--method", "scores", "--scores", scores)
    done = run("make", tiny_pipeline, tmp_path / "a.json", *options)
    assert done.exit_code == 0, done.output
    made = Schedule.load(tmp_path / "a.json")
    assert made == trained.schedule(keep_macs=0.6) and made.macs_ratio() <= 0.6
    wrong = run("make", tiny_pipeline, tmp_path / "b.json", *options, "--steps", 9)
    assert wrong.exit_code == 2 and "scores for 5 steps, and --steps 9" in wrong.output


@pytest.fixture
def other(tmp_path):
    """A pipeline of another denoiser."""
    from diffusers import DDPMScheduler, UNet2DModel

    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
    )
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path / "other")
    return tmp_path / "other"


def test_mistakes_are_told_and_leave_nothing(tiny_pipeline, other, tmp_path) -> None:
    made = tmp_path / "made.json"
    assert run("make", tiny_pipeline, made, "--keep-macs", 0.5, "--steps", 4).exit_code == 0
    damaged = tmp_path / "damaged.json"
    damaged.write_text(made.read_text()[:-40])
    target = tmp_path / "new.json"
    for arguments, words in {
        ("make", tiny_pipeline, made, "--keep-macs", 0.5): "exists already",
        ("make", tiny_pipeline, tmp_path / "new.txt", "--keep-macs", 0.5): "does not end in .json",
        ("make", tiny_pipeline, target, "--keep-macs", 1.5): "above 0 and up to 1",
        ("make", tiny_pipeline, target, "--keep-macs", 0.1, "--steps", 4): "Keep more, or sample with more steps",
        ("make", tiny_pipeline, target, "--keep-macs", 0.5, "--grain", "layer"): "no grain 'layer'",
        ("make", tiny_pipeline, target, "--keep-macs", 0.5, "--method", "scores"): "goes with --scores FILE",
        ("make", tiny_pipeline, target, "--keep-macs", 0.5, "--scores", made): "goes with --scores FILE",
        ("make", tiny_pipeline, target, "--keep-macs", 0.5, "--method", "scores", "--scores", made): "trained pruner",
        ("make", "emoji-sdd", target, "--keep-macs", 0.5): "emoji-sd",
        ("show", tmp_path / "nothing.json"): "nothing.json",
        ("show", damaged): "not valid JSON",
        ("show", made, "--plot", tmp_path / "a.gif"): "allowed: .png, .svg, .pdf",
        ("check", made, other): "another denoiser",
    }.items():
        done = run(*arguments)
        assert done.exit_code == 2 and words in done.output, (arguments, done.output)
    assert not target.exists()


def test_another_spacing_of_timesteps_is_found(tiny_pipeline, tmp_path) -> None:
    made, moved = tmp_path / "made.json", tmp_path / "moved"
    assert run("make", tiny_pipeline, made, "--keep-macs", 0.5, "--steps", 4).exit_code == 0
    pipe = pl.load(tiny_pipeline)
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, timestep_spacing="trailing")
    pipe.save_pretrained(moved)
    done = run("check", made, moved)
    assert done.exit_code == 2 and "other timesteps" in done.output
