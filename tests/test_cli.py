"""The command line: what it prints, and that every mistake gets words and exit code 2 instead of a traceback."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer
from diffusers import DDPMPipeline, DDPMScheduler, DiTTransformer2DModel, UNet2DModel
from PIL import Image
from typer.testing import CliRunner

import pruning_lib as pl
from pruning_lib.__main__ import app
from pruning_lib.records import load_record

ROOT = Path(__file__).resolve().parents[1]


def run(*arguments: object) -> tuple[int, str, str]:
    """Return exit code, what was printed, and what was said on the error stream, in one line."""
    done = CliRunner().invoke(app, [str(a) for a in arguments], prog_name="pruning-lib")
    return done.exit_code, done.stdout, re.sub(r"[\s│]+", " ", done.stderr)


def refused(*arguments: object) -> str:
    code, _, said = run(*arguments)
    assert code == 2 and said and "Traceback" not in said, said
    return said


def test_models_lists_what_load_knows():
    code, out, _ = run("models")
    assert code == 0
    for info in pl.models():
        assert info.name in out and info.repo in out and info.licence in out


def test_macs_prints_the_report():
    code, out, _ = run("macs", "sd-1.5")
    assert code == 0
    total = next(line for line in out.splitlines() if line.startswith("total"))
    assert "859.5 M" in total and "401.6 G" in total and "338.6 G" in total
    assert "with and without attention products" in out and "sample [1, 4, 64, 64]" in out


def test_macs_options(tmp_path):
    DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=6, num_layers=2, sample_size=8, out_channels=8
    ).save_pretrained(tmp_path)
    expected = pl.count_macs(pl.denoiser_on_meta(tmp_path), sample_size=16).to_dict()
    code, out, _ = run("macs", tmp_path, "--sample-size", 16, "--json")
    assert code == 0 and json.loads(out) == json.loads(json.dumps(expected))
    shallow, deep = (run("macs", tmp_path, "--depth", depth)[1] for depth in (1, 2))
    assert "attn1" not in shallow and "attn1" in deep


def test_bench_measures_and_records(tiny_pipeline, tmp_path):
    out_file = tmp_path / "new/bench.json"
    code, out, said = run("bench", tiny_pipeline, "--repeats", 4, "--warmup", 1, "--record", out_file)
    assert code == 0, said
    record = load_record(out_file)
    latency = record["data"]["latency"][str(tiny_pipeline)]
    assert len(latency["times_ms"]) == 4 and min(latency["times_ms"]) > 0 and latency["warmup"] == 1
    assert f"{latency['median_ms']:.2f} ms ({latency['p10_ms']:.2f} to {latency['p90_ms']:.2f}), n = 4" in out
    assert record["passport"]["n"] == 4 and record["passport"]["hardware"] in out


def test_bench_compares_with_the_first(tiny_pipeline, tmp_path):
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=32,
        block_out_channels=(64, 64),
        layers_per_block=2,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path / "large")
    record = tmp_path / "bench.json"
    code, out, said = run("bench", tmp_path / "large", tiny_pipeline, "--repeats", 5, "--record", record)
    assert code == 0, said
    faster = load_record(record)["data"]["times_as_fast"]
    assert list(faster) == [str(tiny_pipeline)] and faster[str(tiny_pipeline)]["low"] > 1
    assert f"times as fast as {tmp_path / 'large'}" in out
    assert "given twice" in refused("bench", tiny_pipeline, tiny_pipeline)


def test_bench_of_a_whole_picture_and_generate_need_prompts(tiny_pipeline, tmp_path):
    assert "DDPMPipeline, which takes no prompt" in refused(
        "bench", tiny_pipeline, "--part", "pipeline", "--repeats", 1
    )
    assert "takes no prompt" in refused("generate", "lion", "--model", tiny_pipeline, "--out", tmp_path)
    assert os.listdir(tmp_path) == []


def test_generate_writes_what_the_pipeline_draws(tmp_path):
    code, out, said = run("generate", "lion", "red heart!", "--steps", 2, "--seed", 5, "--out", tmp_path / "new")
    assert code == 0, said
    assert sorted(os.listdir(tmp_path / "new")) == ["00-lion-5.png", "01-red-heart-5.png"]
    assert out.splitlines() == [str(tmp_path / "new/00-lion-5.png"), str(tmp_path / "new/01-red-heart-5.png")]
    pipe = pl.load("emoji-sd")
    noise = torch.Generator().manual_seed(5)
    expected = pipe("lion", num_inference_steps=2, guidance_scale=3.0, generator=noise).images[0]
    with Image.open(tmp_path / "new/00-lion-5.png") as found:
        assert found.tobytes() == expected.tobytes()
    assert run("generate", "lion", "--steps", 2, "--seed", 6, "--out", tmp_path / "one.png")[0] == 0
    with Image.open(tmp_path / "one.png") as other:
        assert other.tobytes() != expected.tobytes()


def test_bench_of_emoji_sd_as_a_whole():
    code, out, said = run("bench", "emoji-sd", "--part", "pipeline", "--steps", 1, "--repeats", 1, "--warmup", 0)
    assert code == 0 and re.search(r"emoji-sd +\d+\.\d\d ms .* n = 1", out) and "pipeline, batch 1" in out, said


def test_passport():
    code, out, _ = run("passport")
    stamp = json.loads(out)
    assert code == 0 and stamp["device"] == "cpu" and stamp["versions"]["torch"] == torch.__version__


def test_names_that_are_unknown():
    assert "Did you mean 'sd-1.5'" in refused("macs", "sd1.5")
    assert "Did you mean 'emoji-sd'" in refused("bench", "emoji_sd")
    assert "Did you mean 'emoji-sd'" in refused("generate", "lion", "--model", "emojisd")
    assert "No such command" in refused("benhc")


@pytest.mark.parametrize(
    "command", [("bench", "no/such-model"), ("generate", "lion", "--model", "no/such-model"), ("passport",)]
)
def test_the_device_is_checked_before_anything_else(command):
    assert "Unknown device 'warp'" in refused(*command, "--device", "warp")
    if not torch.cuda.is_available():
        assert "no CUDA GPU" in refused(*command, "--device", "cuda")


def test_places_that_cannot_be_written_to_are_found_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr("pruning_lib.loading.load", lambda *a, **k: pytest.fail("a model was loaded"))
    (tmp_path / "file").write_text("in the way")
    assert "Nothing was measured yet" in refused("bench", "emoji-sd", "--record", tmp_path / "file/b.json")
    assert "does not end in .json" in refused("bench", "emoji-sd", "--record", tmp_path / "b.txt")
    assert "cannot make the folder" in refused("generate", "lion", "--out", tmp_path / "file")
    assert "do not fit into one file" in refused("generate", "a", "b", "--out", tmp_path / "x.png")
    assert "saved as PNG" in refused("generate", "lion", "--out", tmp_path / "x.jpg")
    (tmp_path / "taken.png").mkdir()
    assert "taken by a folder" in refused("generate", "lion", "--out", tmp_path / "taken.png")

    def locked(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", locked)
    assert "or write there: Permission denied" in refused("generate", "lion", "--out", tmp_path)


@pytest.mark.parametrize(
    "arguments",
    [
        ("macs", "sd-1.5", "--depth", 0),
        ("macs", "sd-1.5", "--sample-size", 0),
        ("bench", "emoji-sd", "--repeats", 0),
        ("bench", "emoji-sd", "--part", "vae"),
        ("generate", "lion", "--steps", 0),
        ("generate",),
        ("generate", "lion", "--seed", 2**64),
        ("bench", "emoji-sd", "--seed", -1),
        ("zoo", "gate", "--n", 1),
        ("zoo", "gate", "--steps", 0),
        ("zoo", "train", "vae", "--batch", 0),
        ("zoo", "train", "vae", "--steps", 0),
        ("zoo", "train", "vae", "--threads", 0),
    ],
)
def test_numbers_out_of_range(arguments):
    refused(*arguments)


def test_errors_of_the_zoo_are_told_too(tmp_path):
    assert "zoo data" in refused("zoo", "train", "vae", "--data", tmp_path / "nowhere")


def test_a_traceback_for_those_who_ask(capsys):
    code, _, said = run("--traceback", "macs", "sd1.5")
    assert code == 2 and "Traceback" in said and "ValueError" in said


def test_our_own_defects_keep_their_traceback(monkeypatch):
    def broken():
        raise KeyError("a defect")

    monkeypatch.setattr("pruning_lib.loading.models", broken)
    assert isinstance(CliRunner().invoke(app, ["models"]).exception, KeyError)


def test_an_exit_code_and_help_are_no_errors(monkeypatch):
    def leave():
        raise typer.Exit(7)  # as `zoo gate` does when the model fails

    monkeypatch.setattr("pruning_lib.loading.models", leave)
    assert run("models") == (7, "", "")
    for command in (["bench"], ["zoo"], ["zoo", "train"]):
        code, out, said = run(*command, "--help")
        assert (code, said) == (0, "") and f"pruning-lib {' '.join(command)}" in out


def test_a_closed_pipe_is_no_error():
    read, write = os.pipe()
    os.close(read)  # as `| head` leaves it
    command = [sys.executable, "-m", "pruning_lib", "models"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    os.close(write)
    assert "Error" not in done.stderr and "Traceback" not in done.stderr


def test_interrupting_says_what_the_command_wants_said(monkeypatch):
    def stop():
        raise KeyboardInterrupt("run the same command to go on")

    monkeypatch.setattr("pruning_lib.loading.models", stop)
    code, _, said = run("models")
    assert code == 130 and "the same command" in said


def test_as_a_program():
    def program(*arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-X", "importtime", "-m", "pruning_lib", *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)

    help_ = program("--help")
    for name in ("models", "macs", "bench", "generate", "passport", "zoo"):
        assert re.search(rf"\b{name}\b", help_.stdout)
    assert help_.returncode == 0 and not re.search(r"\| +torch$", help_.stderr, re.M), "help imports no torch"
    wrong = program("macs", "sd1.5")
    assert wrong.returncode == 2 and "Error: Unknown architecture 'sd1.5'" in wrong.stderr
    assert "Traceback" not in wrong.stderr
