"""Figures of chapter 7: words from the data, an opaque ground, every kind of operator with a mark."""

from __future__ import annotations

import math

import pytest
import torch
from drawn import check_figure

from pruning_book.plots import operator as plots
from pruning_lib.operators.find import KINDS

PATHS = ("conv_in", "down_blocks.0.resnets.0", "down_blocks.0.attentions.0", "mid_block.resnets.0", "up_blocks.0.x")
SCORES = (4.0, 0.5, 0.0, None, 8.0)
USED = ("convolution", "resnet", "transformer", "resnet", "upsampler")
ROWS = [{"path": p, "kind": k, "score": s} for p, k, s in zip(PATHS, USED, SCORES, strict=True)]
HARM = dict(zip(PATHS, (0.4, 0.05, 0.0, 0.9, 0.8), strict=True))


def every_figure() -> dict:
    points = torch.randn(12, 2, generator=torch.Generator().manual_seed(0))
    return {
        "sorted": plots.sorted_scores(ROWS, floor=0.1),
        "kinds": plots.scores_by_kind(ROWS, list(KINDS)),
        "order": plots.scores_in_order(ROWS),
        "against": plots.score_against(ROWS, HARM, ylabel="harm", marks={"conv_in": "here"}),
        "linear": plots.score_against(ROWS, HARM, ylabel="harm", log=False),
        "toy": plots.toy_clouds(points, {"move": points + 1}, {"move": (math.sqrt(2), 0.0)}),
    }


@pytest.mark.parametrize("name", list(every_figure()))
def test_figures_draw_on_white_and_have_words(name: str) -> None:
    check_figure(every_figure()[name])


def test_the_words_follow_the_data() -> None:
    found = {name: figure.alt for name, figure in every_figure().items()}
    assert "4 scores in rising order" in found["sorted"] and "to 8 (up_blocks.0.x)" in found["sorted"]
    assert "Median scores: transformer" in found["kinds"] and "convolution 4, upsampler 8." in found["kinds"]
    assert "in 3 stages" in found["order"] and "up 0 with 8" in found["order"]
    assert "rank correlation is 1.00" in found["against"] and "here: conv_in" in found["against"]
    assert "move 1.41 + 0.00" in found["toy"]


def test_equal_values_share_a_rank_in_the_correlation() -> None:
    values = {path: i // 2 for i, path in enumerate(PATHS)}
    flat = plots.score_against(ROWS[:2] + ROWS[4:], values, ylabel="y", log=False)
    assert "rank correlation is 0.87" in flat.alt


def test_every_kind_has_a_group_and_a_mark() -> None:
    assert {plots.group_of(kind) for kind in KINDS} == set(plots.GROUPS)
    looks = set(plots._LOOKS.values())
    assert len(looks) == len(plots.GROUPS)


def test_zero_is_drawn_at_the_edge_and_what_is_not_finite_is_left_out() -> None:
    (ax,) = plots.sorted_scores(ROWS).axes
    drawn = sorted(y for line in ax.lines for y in line.get_ydata())
    assert drawn == [0.25, 0.5, 4.0, 8.0]


@pytest.mark.parametrize(
    ("path", "stage"),
    [
        ("down_blocks.2.resnets.0.conv1", "down 2"),
        ("mid_block.attentions.0", "mid"),
        ("conv_out", "conv_out"),
        ("transformer_blocks.3.attn1", "transformer_blocks"),
    ],
)
def test_stages_are_those_of_the_u(path: str, stage: str) -> None:
    assert plots.stage_of(path) == stage
