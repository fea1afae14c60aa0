"""A sample of the tiny pipelines, another one for each commit; all of them with COMPAT=all."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from sweep import check_steps, check_training
from tiny_pipelines import RECIPES

EVERY = 12  # one in so many
# What a schedule cannot follow, and the word of the refusal that says why.
REFUSED = {
    "sd_sag": "looks into its unet",
    "score_sde_ve": r"no step\(\)",
    "repaint": "jumps back in time",
    "sd35_skip_layers": "which call is which",
    "wan_two_denoisers": "one denoiser",
}
# What is known to be off, and how: the fuser of GLIGEN stops during a run, so calls differ in MACs.
KNOWN = {"gligen": {"MACs"}, "panorama": {"gradient"}, "amused": {"gradient"}, "kandinsky5": {"gradient"}}


def sampled() -> list[str]:
    names = sorted(RECIPES)
    if os.environ.get("COMPAT") == "all":
        return names
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent)
    return names[int(head.stdout.strip()[:8] or "0", 16) % EVERY :: EVERY]


@pytest.mark.parametrize("name", sampled())
@pytest.mark.parametrize("grain", ["blocks", "layers"])
def test_a_pipeline_draws_by_schedule_what_an_emulation_draws(name, grain):
    found = check_steps(RECIPES[name](), grain)
    if name in REFUSED:
        assert found["grid"].startswith("refused")
        assert re.search(REFUSED[name], found["grid"])
        return
    found |= check_training(RECIPES[name](), grain)
    wrong = {key: said for key, said in found.items() if said != "yes" and key not in KNOWN.get(name, ())}
    assert not wrong
