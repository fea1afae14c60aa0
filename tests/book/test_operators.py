"""The operator explorer's Python side: its drawing, ranks, refusals, records, the static tables, the live answer."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
from explorer_samples import PATHS, PROMPTS, REMOVED, flat, operator_colour, operators, pruning_stops, results

import pruning_lib as pl
from pruning_book.widgets.operator_map import WIDTH, draw_map
from pruning_book.widgets.operators import OperatorExplorer, fills, score_text
from pruning_lib.records import RecordError, passport


@pytest.fixture(scope="module", params=["emoji-sd", "sd-1.5", "dit-xl-2-256"])
def drawn(request):
    found = pl.find_operators(pl.denoiser_on_meta(request.param))
    return request.param, found, draw_map(found)


def overlap(a, b) -> bool:
    across = min(a.x + a.width, b.x + b.width) - max(a.x, b.x)
    down = min(a.y + a.height, b.y + b.height) - max(a.y, b.y)
    return across > 1e-6 and down > 1e-6


def test_every_operator_is_drawn_and_no_cell_covers_another(drawn) -> None:
    _, found, picture = drawn
    assert {cell.operator for grain in picture.grains for cell in grain} == set(range(len(found)))
    for grain in picture.grains:
        order = [cell.operator for cell in grain]
        assert order == sorted(set(order)), "in the order in which they run"
        paths = [found[i].path for i in order]
        assert not any(a != b and a.startswith(f"{b}.") for a in paths for b in paths), "none inside another"
        for k, cell in enumerate(grain):
            assert 0 <= cell.x and cell.x + cell.width <= WIDTH + 1e-6 and 0 <= cell.y
            assert cell.y + cell.height <= picture.height
            assert not any(overlap(cell, other) for other in grain[k + 1 :])


def test_an_inner_cell_lies_within_the_outer_one(drawn) -> None:
    _, found, picture = drawn
    for outer, inner in zip(picture.grains, picture.grains[1:], strict=False):
        for cell in inner:
            path = found[cell.operator].path
            (around,) = [c for c in outer if f"{path}.".startswith(f"{found[c.operator].path}.")]
            assert around.x - 1e-6 <= cell.x and cell.x + cell.width <= around.x + around.width + 1e-6
            assert around.y == cell.y


def test_a_unet_is_a_letter_u_and_a_chain_is_read_downwards_in_two_columns(drawn) -> None:
    name, found, picture = drawn
    at = {found[cell.operator].path: cell for cell in picture.grains[0]}
    if name == "emoji-sd":
        left = [at[f"down_blocks.{k}.resnets.0"] for k in range(4)]
        right = [at[f"up_blocks.{k}.resnets.0"] for k in range(4)]
        assert [c.y for c in left] == sorted(c.y for c in left)
        assert [c.y for c in right] == sorted((c.y for c in right), reverse=True)
        assert {c.x for c in left} == {0} and all(c.x > WIDTH / 2 for c in right)
        assert at["mid_block.resnets.0"].y > max(c.y for path, c in at.items() if not path.startswith("mid"))
        assert at["conv_in"].y == at["conv_out"].y == 0
        assert [text for _, _, text in picture.levels] == ["16×16", "8×8", "4×4", "2×2"]
        same = [at["down_blocks.3.resnets.1"].y, at["up_blocks.0.resnets.2"].y]
        y, height, _ = picture.levels[3]
        assert all(y <= value < y + height for value in same), "one level for one size"
    elif name.startswith("dit"):
        blocks = [c for c in picture.grains[0] if found[c.operator].kind == "transformer block"]
        assert picture.levels == () and len({c.x for c in blocks}) == 2
        assert [(c.x, c.y) for c in blocks] == sorted((c.x, c.y) for c in blocks)


def test_labels_fit_their_cells() -> None:
    labels = {cell.operator: cell.label for cell in draw_map(results()).grains[-1]}
    assert labels[0] == "convolution" and labels[5] == "self"
    crowded = [SimpleNamespace(path=f"a.{k}", kind="resnet", in_shape=(1, 4)) for k in range(2)]
    inner = [SimpleNamespace(path=f"a.0.{k}", kind="resnet", in_shape=(1, 4)) for k in range(20)]
    assert {cell.label for cell in draw_map([crowded[0], *inner, crowded[1]]).grains[1][:20]} == {""}


def test_ranks_follow_scores_and_what_is_not_finite_comes_last() -> None:
    made = operators()
    assert made.operators[0].score == 4.0 and made.operators[11].score is None
    order = [op.path for op in made.ranked]
    assert order[:2] == ["mid_block.resnets.0", "down_blocks.1.resnets.0"] and sorted(order) == sorted(PATHS)
    assert order[-2:] == ["conv_out", "up_blocks.0.upsamplers.0"]


def test_cells_are_filled_by_score_harm_and_macs() -> None:
    score, harm, macs = fills(results())
    assert [part["name"] for part in (score, harm, macs)] == ["score", "harm", "macs"]
    at = dict(zip(PATHS, score["fill"], strict=True))
    assert at["conv_out"] == at["up_blocks.0.upsamplers.0"] == 1 and at["mid_block.resnets.0"] == 0
    assert at["down_blocks.1.resnets.0"] == pytest.approx(1 / 4, abs=1e-3)
    # A tenth of the highest score lies one decade of four below it.
    assert at["down_blocks.0.resnets.0.conv1"] == pytest.approx(3 / 4, abs=1e-3)
    assert score["texts"][11] == "not finite" and macs["texts"][2] == "0.02\u00a0M" and max(macs["fill"]) == 1
    assert harm["fill"] == pytest.approx([i / 13 for i in range(14)], abs=1e-3)
    assert [score_text(v) for v in (0.0, 0.000479, 21.0547, 1234.5)] == ["0", "0.000479", "21.1", "1230"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"operators": []}, "at least one"),
        ({"operators": [*results(), results()[0]]}, "each with its own"),
        ({"stops": pruning_stops()[1:]}, "the first with nothing removed"),
        ({"stops": pruning_stops()[::-1]}, "ascending"),
        ({"prompts": ("lion", "lion")}, "none twice"),
        ({"prompts": ("lion",)}, "2 values of ssim for 1 prompts"),
        ({"operators": results()[:-5]}, "Did you mean|Known"),
        ({"images": flat((0, 0, 0))}, "2 prompts with 3 stops and 14 operators each make 34"),
        ({"start": {"operator": "conv_inn"}}, "Did you mean 'conv_in'"),
        ({"start": {"ratio": 0.3}}, "no ratio 0.3"),
    ],
)
def test_what_does_not_fit_together_is_refused(changes: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        operators(**changes)


def test_data_are_json_and_name_what_each_stop_removes() -> None:
    data = operators().data()
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert data["operators"][11]["score"] is None and data["operators"][9]["rank"] == 1
    assert [[PATHS[i] for i in stop["removed"]] for stop in data["stops"]] == list(REMOVED)
    assert data["whole"] == {"params": 100_000, "macs": 1_000_000}
    assert data["grains"] == ["whole blocks", "inside", "single layers"]
    assert data["start"]["stop"] == 1 and data["start"]["prompt"] == 0


def test_pictures_are_found_by_prompt_and_by_what_is_removed() -> None:
    made = operators()
    for prompt, name in enumerate(PROMPTS):
        shown = [made.tile(name), made.tile(name, ratio=0.25), made.tile(name, operator="conv_out")]
        wanted = [operator_colour(prompt, place) for place in (0, 2, 3 + len(PATHS) - 1)]
        assert [tile.getpixel((2, 2)) for tile in shown] == wanted
    with pytest.raises(ValueError, match="no operator"):
        made.tile("lion", operator="conv")


@pytest.mark.parametrize("quality", [None, 90])
def test_it_comes_back_from_its_record(quality, tmp_path) -> None:
    made, file = operators(), tmp_path / "worth.json"
    made.save(file, "worth", passport(seeds=[0], n=2, device="cpu"), quality=quality, more=1)
    read = OperatorExplorer.from_record(file, "worth", title="What is it worth?")
    own = {"sheet", "passport"}
    same, shown = ({k: v for k, v in e.data().items() if k not in own} for e in (read, made))
    assert same == shown and read.passport.startswith("Measured on ")
    difference = np.abs(np.asarray(read.sheet.image, int) - np.asarray(made.sheet.image, int))
    assert difference.max() == 0 if quality is None else difference.mean() < 8
    # What lies on the disk goes into the page as it is.
    assert len(read.data()["sheet"]["src"]) == pytest.approx(file.with_suffix(".webp").stat().st_size * 4 / 3, abs=40)
    record = json.loads(file.read_text())
    del record["data"]["stops"]
    file.write_text(json.dumps(record))
    with pytest.raises(RecordError, match="lack stops"):
        OperatorExplorer.from_record(file, "worth", title="t")


def test_the_static_side_has_a_drawing_pictures_and_two_tables() -> None:
    html = operators().fallback_html()
    assert html.count("<img ") == 3 and html.count("<table>") == 2 and html.count("<svg") == 1
    rows = re.findall(r'<th scope="row">(.*?)</th>', html)
    assert rows[:3] == ["0", "1", "3"] and rows[3] == "mid_block.resnets.0"
    assert "All scores." in html and "not finite" in html and "<td>30.0 %</td>" in html
    words = re.search(r'aria-label="(The operators[^"]*)"', html)[1]
    assert "Lowest: mid_block.resnets.0; highest: up_blocks.0.upsamplers.0." in words
    assert "<b>" not in html and "Made up." in html


def test_a_live_answer_is_checked() -> None:
    (drawn,) = flat((1, 2, 3))
    answer = operators(on_change=lambda state: {"image": drawn, "ssim": 0.5}).answer({})
    assert answer["ssim"] == 0.5 and answer["image"].startswith("data:image/webp")
    with pytest.raises(ValueError, match="an image of"):
        operators(on_change=lambda state: {"image": drawn.resize((2, 2)), "ssim": 1}).answer({})
