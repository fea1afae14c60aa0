"""The commands one after another, each on what the one before wrote: score, cut, look, score again, train, schedule."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import pruning_lib as pl
from pruning_lib.commands import app
from pruning_lib.loading import default_guidance
from pruning_lib.steps.training import TrainedPruner

STEPS = ("--steps", 3)
LION = ("--prompt", "lion")


def runs(*arguments: object) -> str:
    done = CliRunner().invoke(app, list(map(str, arguments)), prog_name="pruning-lib")
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture(scope="module")
def room(tmp_path_factory) -> Path:
    """A folder with emoji-sd scored, and cut to "small"."""
    room = tmp_path_factory.mktemp("chain")
    kinds = ("--kind", "downsampler", "--kind", "upsampler", "--latents", 2)
    runs("score", "emoji-sd", room / "scores.safetensors", *LION, "--steps", 2, *kinds)
    runs("cut", "emoji-sd", room / "small", "--scores", room / "scores.safetensors", "--count", 1)
    return room


@pytest.fixture(scope="module")
def trained(room) -> Path:
    """A pruner trained on the pruned pipeline, from a file of prompts."""
    (room / "prompts.txt").write_text("lion\n\npizza\n")
    train = ("--keep-macs", 0.6, "--iterations", 2, "--batch", 1, "--prompts", room / "prompts.txt", *STEPS)
    assert "Saved in" in runs("train-pruner", room / "small", room / "pruner.safetensors", *train)
    return room / "pruner.safetensors"


def drawn(pipe, path: Path) -> bool:
    """Say whether a picture is what a pipeline draws at a guidance scale of 3."""
    noise = torch.Generator().manual_seed(0)
    wanted = pipe("lion", num_inference_steps=3, guidance_scale=3.0, generator=noise).images[0]
    with Image.open(path) as found:
        return found.tobytes() == wanted.tobytes()


def test_the_pruned_folder_is_taken_by_every_command_with_the_guidance_of_its_model(room):
    assert pl.Scores.load(room / "scores.safetensors").sampling["guidance_scale"] == 3
    small = pl.load(room / "small")
    assert default_guidance(small) == 3 and len(small.unet.config["pruning_lib"]["plans"]) == 1
    runs("generate", "lion", "--model", room / "small", *STEPS, "--out", room / "small.png")
    assert drawn(small, room / "small.png")
    out = runs("bench", "emoji-sd", room / "small", "--repeats", 2, "--warmup", 0)
    assert f"{room / 'small'} is " in out and "times as fast as emoji-sd" in out
    again = room / "again.safetensors"
    runs("score", room / "small", again, *LION, "--steps", 1, "--latents", 2, "--kind", "upsampler")
    assert pl.Scores.load(again).sampling["guidance_scale"] == 3


def test_a_trained_pruner_becomes_a_schedule(room, trained):
    found = TrainedPruner.load(trained)
    assert found.budgets == (0.6,) and found.settings["prompts"] == 2 and len(found.history) == 2
    make = ("schedule", "make", room / "small", room / "scores.json", "--keep-macs", 0.7)
    runs(*make, "--method", "scores", "--scores", trained)
    assert pl.Schedule.load(room / "scores.json") == found.schedule(0.7)


@pytest.mark.parametrize("method", ["uniform", "search"])
def test_a_schedule_is_made_shown_drawn_with_and_timed(room, trained, method):
    file = room / f"{method}.json"
    more = {"uniform": STEPS, "search": (*LION, "--images", 1, "--scores", trained)}[method]
    runs("schedule", "make", room / "small", file, "--keep-macs", 0.7, "--method", method, *more)
    schedule = pl.Schedule.load(file)
    assert schedule.steps == 3 and schedule.macs_ratio() <= 0.7
    assert f"hold {schedule.hold}" in runs("schedule", "show", file)
    small = pl.load(room / "small")
    runs("generate", "lion", "--model", room / "small", "--schedule", file, "--out", room / f"{method}.png")
    with schedule.applied(small):
        assert drawn(small, room / f"{method}.png")
    if method == "uniform":
        out = runs("bench", room / "small", "--schedule", file, "--repeats", 2, "--warmup", 0)
        assert f"with {file.name} is " in out and "pipeline, batch 1" in out
    assert not list(room.glob("*-unfinished")) and not list(room.glob(".*")), "nothing unfinished is left behind"


@pytest.mark.parametrize("how", ["magnitude", "channels", "blocks"])
def test_what_else_prunes_is_loaded_bit_for_bit(tmp_path, how):
    pipe, t = pl.load("emoji-sd"), torch.arange(0, 1000, 7)
    if how == "magnitude":
        runs("prune", "emoji-sd", tmp_path / "small", "--sparsity", 0.5)
        pl.prune_magnitude(pipe.unet, 0.5)
    else:
        whole = pipe.unet
        pipe.unet = (pl.prune_structured(whole, 0.3) if how == "channels" else pl.remove_blocks(whole, "base")).unet
        pipe.save_pretrained(tmp_path / "small")
        with torch.no_grad():
            old, new = (unet.time_embedding(unet.time_proj(t)) for unet in (whole, pipe.unet))
        assert (old - new).norm() / old.norm() < 0.1, "a narrower first level, fitted to fewer waves, knows the time"
    again = pl.load(tmp_path / "small")
    assert all(torch.equal(a, b) for a, b in zip(pipe.unet.parameters(), again.unet.parameters(), strict=True))
