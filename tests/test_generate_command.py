"""`pruning-lib generate --schedule`: the pictures of a schedule, and what is refused before a model is loaded."""

from __future__ import annotations

import re

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import pruning_lib as pl
from pruning_lib.__main__ import app
from pruning_lib.steps.budget import uniform
from pruning_lib.steps.schedule import grid_of


def run(*arguments: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, list(map(str, arguments)), prog_name="pruning-lib")
    return done.exit_code, done.stdout, re.sub(r"[\s│]+", " ", done.stderr)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """emoji-sd, a schedule for four steps, and its file."""
    pipe = pl.load("emoji-sd")
    schedule = uniform(grid_of(pipe, 4), 0.5)
    return pipe, schedule, schedule.save(tmp_path_factory.mktemp("made") / "half.json")


def test_it_draws_what_the_schedule_draws(made, tmp_path):
    pipe, schedule, file = made
    code, out, said = run("generate", "lion", "--schedule", file, "--seed", 5, "--out", tmp_path / "a.png")
    assert code == 0, said
    options = {"num_inference_steps": 4, "guidance_scale": 3.0}
    plain = pipe("lion", generator=torch.Generator().manual_seed(5), **options).images[0]
    with schedule.applied(pipe):
        wanted = pipe("lion", generator=torch.Generator().manual_seed(5), **options).images[0]
    with Image.open(tmp_path / "a.png") as found:
        assert found.tobytes() == wanted.tobytes() != plain.tobytes()
    # Its own number of steps may be given as well.
    assert run("generate", "lion", "--schedule", file, "--steps", 4, "--out", tmp_path / "b.png")[0] == 0


def test_mistakes_are_told_before_a_model_is_loaded(made, tmp_path, monkeypatch):
    _, _, file = made
    monkeypatch.setattr("pruning_lib.loading.load", lambda *a, **k: pytest.fail("a model was loaded"))
    damaged = tmp_path / "damaged.json"
    damaged.write_text(file.read_text()[:100])
    for arguments, words in {
        (file, "--steps", 5): "is a schedule for 4 steps, and --steps 5 was given",
        (damaged,): "is not valid JSON",
        (tmp_path / "none.json",): "No such file",
    }.items():
        code, _, said = run("generate", "lion", "--out", tmp_path / "x.png", "--schedule", *arguments)
        assert code == 2 and words in said, said
    assert not (tmp_path / "x.png").exists()


def test_a_schedule_of_another_model_is_told(made, tiny_pipeline, tmp_path):
    _, _, file = made
    code, _, said = run("generate", "lion", "--model", tiny_pipeline, "--schedule", file, "--out", tmp_path / "x.png")
    assert code == 2 and "made for another denoiser" in said
