"""The operator explorer's Python side: ranks, refusals, records, what it draws, the static tables, the live answer."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from operator_samples import PATHS, PROMPTS, REMOVED, colour, explorer, stops, worths
from PIL import Image

from pruning_book.widgets.operators import OperatorExplorer, fills, ranks, score_text
from pruning_lib.records import RecordError, passport


def test_ranks_follow_scores_and_what_is_not_finite_comes_last() -> None:
    made = worths()
    assert made[0].score == 4.0 and made[11].score is None
    found = dict(zip(PATHS, ranks(made), strict=True))
    assert sorted(found.values()) == list(range(1, len(PATHS) + 1))
    assert found["mid_block.resnets.0"] == 1 and found["down_blocks.1.resnets.0"] == 2
    assert found["conv_out"] == len(PATHS) - 1 and found["up_blocks.0.upsamplers.0"] == len(PATHS)
    assert [op.path for op in explorer().ranked][:2] == ["mid_block.resnets.0", "down_blocks.1.resnets.0"]


def test_cells_are_filled_by_score_harm_and_macs() -> None:
    made = worths()
    score, harm, macs = fills(made)
    assert [part["name"] for part in (score, harm, macs)] == ["score", "harm", "macs"]
    at = dict(zip(PATHS, score["fill"], strict=True))
    assert at["conv_out"] == at["up_blocks.0.upsamplers.0"] == 1 and at["mid_block.resnets.0"] == 0
    assert at["down_blocks.1.resnets.0"] == pytest.approx(1 / 4, abs=1e-3)
    # A tenth of the highest score lies one decade of four below it.
    assert at["down_blocks.0.resnets.0.conv1"] == pytest.approx(3 / 4, abs=1e-3)
    assert score["texts"][11] == "not finite"
    assert harm["fill"] == pytest.approx([i / 13 for i in range(14)], abs=1e-3)
    assert macs["texts"][2] == "0.02\u00a0M" and max(macs["fill"]) == 1
    assert [score_text(v) for v in (None, 0.0, 0.000479, 21.0547, 1234.5)] == [
        "not finite",
        "0",
        "0.000479",
        "21.1",
        "1230",
    ]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"operators": []}, "at least one"),
        ({"operators": [*worths(), worths()[0]]}, "each with its own"),
        ({"stops": stops()[1:]}, "the first with nothing removed"),
        ({"stops": stops()[::-1]}, "ascending"),
        ({"prompts": ("lion", "lion")}, "none twice"),
        ({"prompts": ("lion",)}, "2 values of ssim for 1 prompts"),
        ({"operators": worths()[:-5]}, "Did you mean|Known"),
        ({"images": [Image.new("RGB", (8, 6))]}, "2 prompts with 3 stops and 14 operators each make 34"),
        ({"start": {"operator": "conv_inn"}}, "Did you mean 'conv_in'"),
        ({"start": {"ratio": 0.3}}, "no ratio 0.3"),
    ],
)
def test_what_does_not_fit_together_is_refused(changes: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        explorer(**changes)


def test_data_are_json_and_name_what_each_stop_removes() -> None:
    data = explorer().data()
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert data["operators"][11]["score"] is None and data["operators"][9]["rank"] == 1
    assert [[PATHS[i] for i in stop["removed"]] for stop in data["stops"]] == list(REMOVED)
    assert data["whole"] == {"params": 100_000, "macs": 1_000_000}
    assert data["grains"] == ["whole blocks", "inside", "single layers"]
    assert data["start"]["stop"] == 1 and data["start"]["prompt"] == 0


def test_pictures_are_found_by_prompt_and_by_what_is_removed() -> None:
    made = explorer()
    for prompt, name in enumerate(PROMPTS):
        assert made.tile(name).getpixel((2, 2)) == colour(prompt, 0)
        assert made.tile(name, ratio=0.25).getpixel((2, 2)) == colour(prompt, 2)
        assert made.tile(name, operator="conv_out").getpixel((2, 2)) == colour(prompt, 3 + len(PATHS) - 1)
    with pytest.raises(ValueError, match="no operator"):
        made.tile("lion", operator="conv")


@pytest.mark.parametrize("quality", [None, 90])
def test_it_comes_back_from_its_record(quality, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PRUNING_LIB_RESULTS", str(tmp_path))
    made = explorer()
    place = made.save(tmp_path / "worth.json", "worth", passport(seeds=[0], n=2, device="cpu"), quality=quality, more=1)
    read = OperatorExplorer.from_record("worth", "worth", title="What is it worth?")
    own = {"sheet", "passport"}
    same, shown = ({k: v for k, v in e.data().items() if k not in own} for e in (read, made))
    assert same == shown and read.passport.startswith("Measured on ")
    difference = np.abs(np.asarray(read.sheet.image, int) - np.asarray(made.sheet.image, int))
    assert difference.max() == 0 if quality is None else difference.mean() < 8
    # What lies on the disk goes into the page as it is.
    assert len(read.data()["sheet"]["src"]) == pytest.approx(place.with_suffix(".webp").stat().st_size * 4 / 3, abs=40)
    place.with_suffix(".webp").unlink()
    with pytest.raises(RecordError, match="missing"):
        OperatorExplorer.from_record("worth", "worth", title="t")
    record = json.loads(place.read_text())
    del record["data"]["stops"]
    place.write_text(json.dumps(record))
    with pytest.raises(RecordError, match="lack stops"):
        OperatorExplorer.from_record("worth", "worth", title="t")


def test_the_static_side_has_a_drawing_pictures_and_two_tables() -> None:
    html = explorer().fallback_html()
    assert html.count("<img ") == 3 and html.count("<table>") == 2 and html.count("<svg") == 1
    rows = re.findall(r'<th scope="row">(.*?)</th>', html)
    assert rows[:3] == ["0", "1", "3"] and rows[3] == "mid_block.resnets.0"
    assert "All scores." in html and "not finite" in html
    words = re.search(r'aria-label="(The operators[^"]*)"', html)[1]
    assert "Lowest: mid_block.resnets.0; highest: up_blocks.0.upsamplers.0." in words
    assert "85.0 %" not in html and "<td>30.0 %</td>" in html and "<b>" not in html
    assert "Made up." in html


def test_a_live_answer_is_checked() -> None:
    drawn = Image.new("RGB", (8, 6), (1, 2, 3))
    made = explorer(on_change=lambda state: {"image": drawn, "ssim": 0.5})
    answer = made.answer({"prompt": "lion", "operator": "conv_in"})
    assert answer["ssim"] == 0.5 and answer["image"].startswith("data:image/webp")
    with pytest.raises(ValueError, match="an image of"):
        explorer(on_change=lambda state: {"image": drawn.resize((2, 2)), "ssim": 1}).answer({})
