"""The zoo's commands, on the toy data set."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from zoo.__main__ import app
from zoo.train import train_part

RUN = CliRunner()


@pytest.fixture
def folders(tmp_path, data):
    data.save(tmp_path / "data")
    return ["--data", str(tmp_path / "data"), "--run", str(tmp_path / "run")]


def test_train_and_assemble(folders, tmp_path):
    for part, steps in [("tokenizer", 1), ("vae", 2), ("clip", 2), ("unet", 1)]:
        done = RUN.invoke(app, ["train", part, *folders, "--steps", str(steps), "--batch", "4"])
        assert done.exit_code == 0, done.output
    done = RUN.invoke(app, ["assemble", str(tmp_path / "model"), *folders])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "model/model_index.json").is_file()
    config = json.loads((tmp_path / "model/training.json").read_text())["vae"]["config"]
    assert config["steps"] == 2


def test_mistakes_are_told(folders, tmp_path):
    for command, words in {
        ("train", "decoder", *folders): "tokenizer, clip, vae, unet",
        ("train", "vae", "--data", str(tmp_path / "nowhere")): "zoo data",
        ("train", "vae", "--batch", "0"): "--batch",
        ("train", "vae", "--steps", "0"): "--steps",
        ("gate", "--n", "1"): "--n",
    }.items():
        done = RUN.invoke(app, command)
        assert done.exit_code == 2 and words in done.stderr, done.output


def test_an_unwritable_run_folder_fails_before_any_work(folders, tmp_path, data):
    (tmp_path / "file").write_text("in the way")
    start = time.perf_counter()
    with pytest.raises(OSError):
        train_part("vae", data, tmp_path / "file", steps=100_000)
    assert time.perf_counter() - start < 5


@pytest.mark.slow
def test_ctrl_c_keeps_the_work_and_the_same_command_goes_on(folders, tmp_path):
    command = [
        sys.executable,
        "-m",
        "zoo",
        "train",
        "vae",
        *folders,
        "--steps",
        "100000",
        "--batch",
        "2",
        "--threads",
        "1",
        "--checkpoint-every",
        "50",
    ]
    env = {**os.environ, "PYTHONPATH": f"{Path(__file__).parents[2]}:{os.environ.get('PYTHONPATH', '')}"}
    log, checkpoint = tmp_path / "run/vae/log.jsonl", tmp_path / "run/vae/checkpoint.pt"
    process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)
    deadline = time.time() + 120
    while not log.is_file() and time.time() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode not in (0, None) and "same command to go on" in said
    step = torch.load(checkpoint, weights_only=True)["step"]
    assert step >= 20
    command[command.index("100000")] = str(step + 2)
    subprocess.run(command, env=env, check=True, capture_output=True, timeout=120)
    assert torch.load(checkpoint, weights_only=True)["step"] == step + 2
