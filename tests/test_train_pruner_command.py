"""`pruning-lib train-pruner`: from a folder and prompts to scores and a schedule, and what is refused."""

from __future__ import annotations

import pytest
from tiny_pipes import pipe_of
from typer.testing import CliRunner

from pruning_lib.__main__ import app
from pruning_lib.steps.training import TrainedPruner


def run(*arguments: object):
    return CliRunner().invoke(app, list(map(str, arguments)), prog_name="pruning-lib")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "pipe"
    pipe_of("text").save_pretrained(folder)
    return folder


def test_scores_are_trained_kept_and_made_into_a_schedule(model, tmp_path):
    target, texts = tmp_path / "scores.safetensors", tmp_path / "prompts.txt"
    texts.write_text("lion\n\npizza\n")
    more = ("--steps", 3, "--prompts", texts, "--keep-macs", 0.6, "--iterations", 2, "--batch", 1)
    done = run("train-pruner", model, target, *more)
    assert done.exit_code == 0, done.output
    assert "iteration    2" in done.output and f"Saved in {target}" in done.output
    found = TrainedPruner.load(target)
    assert found.budgets == (0.6,) and found.settings["prompts"] == 2 and len(found.history) == 2
    assert {path.name for path in tmp_path.iterdir()} == {target.name, texts.name}, "nothing else is left behind"
    again = run("train-pruner", model, target, *more)
    assert again.exit_code == 2 and "exists already" in again.output


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("x.pt", "--prompt", "lion"), "does not end in .safetensors"),
        (("x.safetensors",), "There is no prompt"),
        (("x.safetensors", "--prompt", "lion", "--loss", "mse"), "There is no loss 'mse'"),
        (("x.safetensors", "--prompt", "lion", "--keep-macs", "0.01"), "keep_macs=0.01"),
        (("x.safetensors", "--prompts", "none.txt"), "none.txt"),
    ],
)
def test_wrong_input_is_told_in_a_line(model, tmp_path, monkeypatch, arguments, match):
    monkeypatch.chdir(tmp_path)
    done = run("train-pruner", model, *arguments)
    assert done.exit_code == 2 and match in done.output and "Traceback" not in done.output
    assert not list(tmp_path.glob("*.safetensors"))
