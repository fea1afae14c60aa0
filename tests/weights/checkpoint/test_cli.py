"""`inspect` and `slim` from the command line: the library's own answers, and one line with exit code 2 for mistakes."""

from __future__ import annotations

import json
import os
import re

import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import pruning_lib as pl
from pruning_lib.__main__ import app


def run(*arguments: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, [str(a) for a in arguments], prog_name="pruning-lib")
    return done.exit_code, done.stdout, re.sub(r"[\s│]+", " ", done.stderr)


def test_inspect_prints_the_report(small_ckpt):
    code, out, _ = run("inspect", small_ckpt)
    assert code == 0 and out.strip() == pl.inspect_checkpoint(small_ckpt).table()
    code, out, _ = run("inspect", small_ckpt, "--json", "--no-values")
    assert json.loads(out) == pl.inspect_checkpoint(small_ckpt, values=False).to_dict()


def test_slim_does_what_the_library_does(small, small_ckpt, tmp_path):
    code, out, said = run(
        "slim",
        small_ckpt,
        tmp_path / "a.safetensors",
        "--dtype",
        "fp16",
        "--weights",
        "ema",
        "--remove",
        "vae",
        "--remove",
        "schedule",
        "--json",
    )
    assert code == 0, said
    pl.slim(small_ckpt, tmp_path / "b.safetensors", dtype="fp16", weights="ema", remove=("vae", "schedule"))
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    report = json.loads(out)
    assert sum(report["causes"].values()) == report["bytes_before"] - report["bytes_after"]
    assert not any(name.startswith("first_stage") for name in load_file(tmp_path / "a.safetensors"))
    code, out, _ = run("slim", small_ckpt, tmp_path / "a.safetensors", "--overwrite")
    assert code == 0 and "EMA copy" in out and "times smaller" in out


def test_mistakes_are_one_line_and_exit_code_2(small_ckpt, tmp_path):
    class Attack:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'marker'}",)

    torch.save({"x": Attack()}, tmp_path / "bad.ckpt")
    (tmp_path / "empty.ckpt").touch()
    for arguments, words in (
        (("inspect", tmp_path / "bad.ckpt"), "system"),
        (("slim", tmp_path / "bad.ckpt", tmp_path / "x.safetensors"), "would run code"),
        (("inspect", tmp_path / "empty.ckpt"), "empty"),
        (("inspect", tmp_path / "none.ckpt"), "neither a file"),
        (("slim", small_ckpt, tmp_path / "x.ckpt"), "does not end in .safetensors"),
        (("slim", small_ckpt, tmp_path / "x.safetensors", "--dtype", "fp17"), "Did you mean 'fp16'"),
    ):
        code, _, said = run(*arguments)
        assert code == 2 and words in said and "Traceback" not in said, said
    assert not (tmp_path / "marker").exists() and not (tmp_path / "x.safetensors").exists()


def test_a_name_can_be_allowed(foreign, tmp_path):
    with foreign("mytrainer.Settings") as kind:
        torch.save({"state_dict": {"unet.a": torch.ones(2)}, "config": kind()}, tmp_path / "a.ckpt")
    assert "mytrainer.Settings" in run("inspect", tmp_path / "a.ckpt")[2]
    code, out, _ = run("inspect", tmp_path / "a.ckpt", "--allow", "mytrainer.Settings")
    assert code == 0 and "config (mytrainer.Settings)" in out
