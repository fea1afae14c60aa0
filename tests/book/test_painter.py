"""The schedule painter's Python side: refusals, records, what it draws, the static side, the live answer."""

from __future__ import annotations

import json
import re

import pytest
from explorer_samples import PROMPTS, SCHEDULES, UNITS, flat, grid, painter, schedule_colour

from pruning_book.widgets.schedule_editor import PaintedStop, SchedulePainter, short_name
from pruning_lib.records import RecordError, passport


def stop(name: str = "a", on=("1111",) * 4, ssim=(1.0, 1.0)) -> PaintedStop:
    return PaintedStop(name, "g", list(on), list(ssim), {"value": 1.0, "low": 1.0, "high": 1.0})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stops": []}, "at least one"),
        ({"stops": [stop(), stop()]}, "its own name"),
        ({"stops": [stop(on=("1111",) * 3)]}, "this grid has 4 calls of 4"),
        ({"stops": [stop(), stop("b", ("1101", *("1111",) * 3))]}, "'b': In the first row 1 of 4"),
        ({"stops": [stop(on=("1111", "0000", "1111", "1111"))]}, "must compute everything"),
        ({"stops": [stop(on=("1111", "1121", "1111", "1111"))]}, "strings of 0 and 1"),
        ({"stops": [stop(on=("1111", "111", "1111", "1111"))]}, "equally long"),
        ({"stops": [stop(ssim=(1.0,))]}, "1 values of ssim for 2 prompts"),
        ({"prompts": ("lion", "lion")}, "none twice"),
        ({"images": flat((0, 0, 0))}, "2 prompts with 3 schedules make 6"),
        ({"start": {"schedule": "every 3rd step"}}, "Did you mean|Known"),
        ({"start": {"prompt": "lino"}}, "Did you mean 'lion'"),
        ({"grid": grid(timesteps=(999.0, 499.0), steps=2)}, "this grid has 2 calls"),
    ],
)
def test_what_does_not_fit_is_refused(changes, words) -> None:
    with pytest.raises(ValueError, match=words):
        painter(**changes)


def test_units_have_short_names() -> None:
    names = {
        "down_blocks.0.layers.1": "down 0.1",
        "down_blocks.2.downsamplers.0": "down 2 \u2193",
        "mid_block": "mid",
        "up_blocks.1.upsamplers.0": "up 1 \u2191",
        "up_blocks.3.attentions.2": "up 3.a2",
        "up_blocks.3": "up 3",
        "down_blocks.0.resnets.1": "down 0.r1",
        "transformer_blocks.7.attn1": "block 7.attn1",
        "other": "other",
    }
    assert {name: short_name(name) for name in names} == names


def test_the_module_gets_costs_wiring_and_stops() -> None:
    made = painter()
    data = made.data()
    drawn = data["grid"]
    assert drawn["names"] == list(UNITS) and drawn["steps"] == 4 and drawn["reads"] is False
    assert drawn["inputs"] == [[], [0], [1], [0, 2]] and drawn["output"] == [3]
    assert drawn["macs"] == list(made.grid.macs) and drawn["base_macs"] == made.grid.base_macs
    assert drawn["shares"] == [0.1, 0.2, 0.3, 0.35] and drawn["blocks"] == [0, 0, 1, 2]
    assert [s["name"] for s in data["stops"]] == list(SCHEDULES)
    assert data["start"] == {"prompt": 0, "stop": 1}
    for p, prompt in enumerate(PROMPTS):
        for s, name in enumerate(SCHEDULES):
            assert made.tile(prompt, name).getpixel((2, 2)) == schedule_colour(p, s)
    assert made.stop("the last layer").on[1] == "0001"
    with pytest.raises(ValueError, match="there is no schedule"):
        made.stop("nothing")


def test_it_comes_back_from_its_record(tmp_path) -> None:
    made, file = painter(), tmp_path / "paint.json"
    made.save(file, "paint", passport(seeds=[0], n=2, device="cpu"), more=1)
    read = SchedulePainter.from_record(file, "painter", title=made.title)
    own = {"sheet", "passport"}
    same, shown = ({k: v for k, v in e.data().items() if k not in own} for e in (read, made))
    assert same == shown and read.passport.startswith("Measured on ") and read.grid == made.grid
    record = json.loads(file.read_text())
    record["data"]["grid"]["wiring"]["inputs"][0] = [3]
    file.write_text(json.dumps(record))
    with pytest.raises(RecordError, match="only read units before it"):
        SchedulePainter.from_record(file, "painter", title="t")


def test_the_static_side_has_the_table_two_pictures_and_all_schedules() -> None:
    html = painter(start={"schedule": "the last layer"}).fallback_html()
    assert html.count("<img ") == 2 and html.count("<table>") == 1 and html.count("<svg") == 1
    assert re.findall(r'<th scope="row">(.*?)</th>', html) == list(SCHEDULES)
    kept = re.findall(r"<td>([\d.]+) %</td>", html)
    assert kept == ["100.0", "50.0", f"{100 * (1 + 3 * 0.4) / 4:.1f}"]
    words = re.search(r'aria-label="(The schedule[^"]*)"', html)[1]
    assert words.startswith("The schedule the last layer: 7 of 16 cells are computed and used, 0 are dead work")
    assert "<b>" not in html and "Made up." in html
    dead = stop("dead", ("1111", "1110", "1111", "1111"))
    html = painter(stops=[stop(), dead], images=flat(*[(0, 0, 0)] * 4), start={}).fallback_html()
    assert html.count("<path ") == 3 and "12 of 16 cells are computed and used, 3 are dead work" in html


def test_a_live_answer_is_checked() -> None:
    (drawn,), told = flat((1, 2, 3)), {"ssim": 0.5, "ms": 7, "whole_ms": 9}
    answer = painter(on_change=lambda state: {"image": drawn, **told}).answer({})
    assert answer.pop("image").startswith("data:image/webp") and answer == told
    with pytest.raises(ValueError, match="an image of"):
        painter(on_change=lambda state: {"image": drawn.resize((2, 2)), **told}).answer({})
