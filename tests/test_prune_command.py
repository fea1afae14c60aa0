"""`pruning-lib prune`: a folder that diffusers loads, with exactly as many zeros; and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from diffusers import DDPMPipeline
from typer.testing import CliRunner

from pruning_lib.__main__ import app
from pruning_lib.weights.select import prunable_weights


def run(*arguments: object):
    return CliRunner().invoke(app, ["prune", *map(str, arguments)], prog_name="pruning-lib")


def zeros(folder: Path) -> tuple[int, int]:
    unet = DDPMPipeline.from_pretrained(folder).unet
    weights = prunable_weights(unet).weights.values()
    return sum(int((w == 0).sum()) for w in weights), sum(w.numel() for w in weights)


@pytest.mark.parametrize("scope", ["global", "layer", "sensitivity", "random"])
def test_the_saved_folder_has_the_zeros_and_the_source_none(tiny_pipeline, tmp_path, scope) -> None:
    done = run(tiny_pipeline, tmp_path / "small", "--sparsity", 0.4, "--scope", scope)
    assert done.exit_code == 0, done.output
    count, n = zeros(tmp_path / "small")
    assert abs(count - 0.4 * n) <= (0.5 if scope != "layer" else 50)
    assert zeros(tiny_pipeline)[0] == 0
    assert "total" in done.output and f"Saved in {tmp_path / 'small'}" in done.output
    assert [path.name for path in tmp_path.iterdir()] == ["small"], "nothing else is left behind"


def test_patterns_are_spared_and_json_is_printed(tiny_pipeline, tmp_path) -> None:
    done = run(tiny_pipeline, tmp_path / "small", "--leave-alone", "mid_block*", "--json")
    found = json.loads(done.stdout)
    assert found["asked"] == 0.3 and not any(row["name"].startswith("mid_block") for row in found["layers"])
    assert found["ignored"]["mid_block.resnets.0.conv1.weight"] == "mid_block*"


def test_mistakes_are_told_and_leave_nothing(tiny_pipeline, tmp_path) -> None:
    for arguments, words in {
        ("--sparsity", "1.5"): "must lie in [0, 1)",
        ("--part", "vae"): "no part 'vae'",
        ("--leave-alone", "mid_blok*"): "matches no parameter",
    }.items():
        done = run(tiny_pipeline, tmp_path / "small", *arguments)
        assert done.exit_code == 2 and words in " ".join(done.stderr.split()), done.stderr
        assert not list(tmp_path.iterdir())
    (tmp_path / "small").mkdir()
    done = run(tiny_pipeline, tmp_path / "small")
    assert done.exit_code == 2 and "exists already" in done.stderr
