"""The operator explorer and the schedule painter: what they draw, rank and say, and their static sides."""

from __future__ import annotations

import json
import re

import explorer_samples as samples
import pytest
from explorer_samples import PATHS, PROMPTS, operators, painter

import pruning_lib as pl
from pruning_book.widgets.operator_map import WIDTH, draw_map
from pruning_book.widgets.operators import fills, score_text
from pruning_book.widgets.schedule_editor import PaintedStop


@pytest.fixture(scope="module", params=["emoji-sd", "dit-xl-2-256"])
def drawn(request):
    found = pl.find_operators(pl.denoiser_on_meta(request.param))
    return request.param, found, draw_map(found)


def overlap(a, b) -> bool:
    across = min(a.x + a.width, b.x + b.width) - max(a.x, b.x)
    down = min(a.y + a.height, b.y + b.height) - max(a.y, b.y)
    return across > 1e-6 and down > 1e-6


def test_every_operator_is_drawn_within_its_outer_one_and_no_cell_covers_another(drawn) -> None:
    _, found, picture = drawn
    assert {cell.operator for grain in picture.grains for cell in grain} == set(range(len(found)))
    for grain in picture.grains:
        order = [cell.operator for cell in grain]
        assert order == sorted(set(order)), "in the order in which they run"
        paths = [found[i].path for i in order]
        assert not any(a != b and a.startswith(f"{b}.") for a in paths for b in paths), "none inside another"
        for k, cell in enumerate(grain):
            assert 0 <= cell.x and cell.x + cell.width <= WIDTH + 1e-6
            assert 0 <= cell.y and cell.y + cell.height <= picture.height
            assert not any(overlap(cell, other) for other in grain[k + 1 :])
    for outer, inner in zip(picture.grains, picture.grains[1:], strict=False):
        for cell in inner:
            path = found[cell.operator].path
            (around,) = [c for c in outer if f"{path}.".startswith(f"{found[c.operator].path}.")]
            assert around.x - 1e-6 <= cell.x and cell.x + cell.width <= around.x + around.width + 1e-6
            assert around.y == cell.y


def test_a_unet_is_a_letter_u_and_a_chain_is_read_downwards_in_two_columns(drawn) -> None:
    name, found, picture = drawn
    at = {found[cell.operator].path: cell for cell in picture.grains[0]}
    if name.startswith("dit"):
        blocks = [c for c in picture.grains[0] if found[c.operator].kind == "transformer block"]
        assert picture.levels == () and len({c.x for c in blocks}) == 2
        assert [(c.x, c.y) for c in blocks] == sorted((c.x, c.y) for c in blocks)
        return
    left, right = ([at[f"{side}_blocks.{k}.resnets.0"] for k in range(4)] for side in ("down", "up"))
    assert [c.y for c in left] == sorted(c.y for c in left)
    assert [c.y for c in right] == sorted((c.y for c in right), reverse=True)
    assert {c.x for c in left} == {0} and all(c.x > WIDTH / 2 for c in right)
    assert at["mid_block.resnets.0"].y > max(c.y for path, c in at.items() if not path.startswith("mid"))
    assert at["conv_in"].y == at["conv_out"].y == 0
    assert [text for _, _, text in picture.levels] == ["16×16", "8×8", "4×4", "2×2"]
    labels = {cell.operator: cell.label for cell in draw_map(samples.results()).grains[-1]}
    assert labels[0] == "convolution" and labels[5] == "self"


def test_ranks_follow_scores_and_cells_are_filled_by_score_harm_and_macs() -> None:
    made = operators()
    order = [op.path for op in made.ranked]
    assert order[:2] == ["mid_block.resnets.0", "down_blocks.1.resnets.0"] and sorted(order) == sorted(PATHS)
    assert order[-2:] == ["conv_out", "up_blocks.0.upsamplers.0"], "what is not finite comes last"
    score, harm, macs = fills(made.operators)
    assert [part["name"] for part in (score, harm, macs)] == ["score", "harm", "macs"]
    at = dict(zip(PATHS, score["fill"], strict=True))
    assert at["conv_out"] == at["up_blocks.0.upsamplers.0"] == 1 and at["mid_block.resnets.0"] == 0
    # A tenth of the highest score lies one decade of four below it.
    assert at["down_blocks.0.resnets.0.conv1"] == pytest.approx(3 / 4, abs=1e-3)
    assert score["texts"][11] == "not finite" and macs["texts"][2] == "0.02\u00a0M" and max(macs["fill"]) == 1
    assert harm["fill"] == pytest.approx([i / 13 for i in range(14)], abs=1e-3)
    assert [score_text(v) for v in (0.0, 0.000479, 21.0547, 1234.5)] == ["0", "0.000479", "21.1", "1230"]


def test_operators_are_told_drawn_and_listed() -> None:
    made = operators()
    data, html = made.data(), made.fallback_html()
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert data["operators"][11]["score"] is None and data["operators"][9]["rank"] == 1
    assert [[PATHS[i] for i in stop["removed"]] for stop in data["stops"]] == list(samples.REMOVED)
    assert data["whole"] == {"params": 100_000, "macs": 1_000_000}
    assert data["grains"] == ["whole blocks", "inside", "single layers"]
    assert data["start"]["stop"] == 1 and data["start"]["prompt"] == 0
    for prompt, name in enumerate(PROMPTS):
        shown = [made.tile(name), made.tile(name, ratio=0.25), made.tile(name, operator="conv_out")]
        wanted = [samples.operator_colour(prompt, place) for place in (0, 2, 3 + len(PATHS) - 1)]
        assert [tile.getpixel((2, 2)) for tile in shown] == wanted
    with pytest.raises(ValueError, match="no operator"):
        made.tile("lion", operator="conv")
    assert html.count("<img ") == 3 and html.count("<table>") == 2 and html.count("<svg") == 1
    rows = re.findall(r'<th scope="row">(.*?)</th>', html)
    assert rows[:3] == ["0", "1", "3"] and rows[3] == "mid_block.resnets.0"
    assert "All scores." in html and "not finite" in html and "<td>30.0 %</td>" in html
    words = re.search(r'aria-label="(The operators[^"]*)"', html)[1]
    assert "Lowest: mid_block.resnets.0; highest: up_blocks.0.upsamplers.0." in words
    assert "<b>" not in html and "Made up." in html


def test_schedules_are_told_drawn_and_listed() -> None:
    made = painter(start={"schedule": "the last layer"})
    data, html, names = made.data(), made.fallback_html(), list(samples.SCHEDULES)
    drawn = data["grid"]
    assert drawn["names"] == list(samples.UNITS) and drawn["steps"] == 4 and drawn["reads"] is False
    assert drawn["inputs"] == [[], [0], [1], [0, 2]] and drawn["output"] == [3]
    assert drawn["macs"] == list(made.grid.macs) and drawn["base_macs"] == made.grid.base_macs
    assert drawn["shares"] == [0.1, 0.2, 0.3, 0.35] and drawn["blocks"] == [0, 0, 1, 2]
    assert [s["name"] for s in data["stops"]] == names and painter().data()["start"] == {"prompt": 0, "stop": 1}
    for p, prompt in enumerate(PROMPTS):
        for s, name in enumerate(names):
            assert made.tile(prompt, name).getpixel((2, 2)) == samples.schedule_colour(p, s)
    with pytest.raises(ValueError, match="there is no schedule"):
        made.stop("nothing")
    assert html.count("<img ") == 2 and html.count("<table>") == 1 and html.count("<svg") == 1
    assert re.findall(r'<th scope="row">(.*?)</th>', html) == names and "<b>" not in html and "Made up." in html
    kept = re.findall(r"<td>([\d.]+) %</td>", html)
    assert kept == ["100.0", "50.0", f"{100 * (1 + 3 * 0.4) / 4:.1f}"]
    words = re.search(r'aria-label="(The schedule[^"]*)"', html)[1]
    assert words.startswith("The schedule the last layer: 7 of 16 cells are computed and used, 0 are dead work")
    dead, mean = ["1111", "1110", "1111", "1111"], {"value": 1.0, "low": 1.0, "high": 1.0}
    stops = [PaintedStop(name, "g", on, [1, 1], mean) for name, on in {"all": ["1111"] * 4, "dead": dead}.items()]
    html = painter(stops=stops, images=samples.flat(*[(0, 0, 0)] * 4)).fallback_html()
    assert html.count("<path ") == 3 and "12 of 16 cells are computed and used, 3 are dead work" in html
