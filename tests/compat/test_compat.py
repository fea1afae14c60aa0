"""A sample of the tiny pipelines, another one for each commit; all of them with COMPAT=all."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest
from sweep import check_operators, check_steps, check_training
from tiny_pipelines import RECIPES

EVERY = 12  # one in so many
# What a schedule cannot follow, and the word of the refusal that says why.
REFUSED = {
    "sd_sag": "looks into its unet",
    "score_sde_ve": r"no step\(\)",
    "repaint": "jumps back in time",
    "sd35_skip_layers": "which call is which",
    "wan_two_denoisers": "one denoiser",
    "gligen": "changes .*fuser.enabled",
}
# Where a gradient is refused.
KNOWN = {"panorama": {"gradient"}, "amused": {"gradient"}, "kandinsky5": {"gradient"}}


def sampled(cells: Iterable | None = None, every: int = EVERY) -> list:
    cells = sorted(RECIPES) if cells is None else list(cells)
    if os.environ.get("COMPAT") == "all":
        return cells
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent)
    return cells[int(head.stdout.strip()[:8] or "0", 16) % every :: every]


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


# What is known to be off with operators, and what is said then; a pipeline that searches a layer needs that.
KNOWN_OF_OPERATORS = {
    "pixart_pag": "Cannot find PAG layer",
    "sd3_pag": "Cannot find PAG layer",
    "score_sde_ve": r"has no step\(\)",
}


@pytest.mark.parametrize("name", sampled())
def test_operators_are_found_removed_scored_and_saved(name):
    found = check_operators(RECIPES[name]())
    wrong = {key: said for key, said in found.items() if said != "yes"}
    assert all(name in KNOWN_OF_OPERATORS and re.search(KNOWN_OF_OPERATORS[name], said) for said in wrong.values()), (
        wrong
    )
