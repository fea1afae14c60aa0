"""The histogram below a sweep: bins, what is removed of them, and the words for it."""

from __future__ import annotations

import json
import re

import pytest
import torch

from pruning_book.widgets.histogram import Histogram, WeightBins
from pruning_lib.weights.magnitude import magnitude_masks

# The fixture `sweep` has 2 prompts and 3 step counts; here only the steps decide what is removed.
PARTS = {
    "edges": [-1.0, -0.3, 0.3, 1.0],
    "counts": [10, 1000, 20],
    "axes": ["steps"],
    "removed": [[0, 0, 0], [0, 500, 0], [1, 1000, 2]],
    "cuts": [None, [0.2, 0.2], [0.25, 0.5]],
}


def test_bins_hold_every_weight_and_removed_ones_are_those_below_the_cut() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = {"a": torch.randn(3000, generator=generator), "b": 3 * torch.randn(1000, generator=generator)}
    bins = WeightBins.around(weights, bins=21, share=0.9)
    counts = bins.count(weights)
    joined = torch.cat(list(weights.values()))
    assert len(counts) == 21 and sum(counts) == 4000
    middle = (joined.abs() < bins.edges[11]).sum().item()
    assert counts[10] == pytest.approx(middle, abs=1)
    assert counts[0] > counts[1], "the outermost bins hold what lies beyond"
    assert (joined.abs() <= bins.edges[-1]).float().mean() == pytest.approx(0.9, abs=0.001)
    masks = magnitude_masks(weights, 0.5)
    removed = bins.count(weights, masks)
    assert sum(removed) == 2000 and removed[0] == 0 and removed[10] == counts[10]


def test_all_zero_weights_have_bins_too() -> None:
    bins = WeightBins.around({"a": torch.zeros(5)}, bins=3)
    assert bins.count({"a": torch.zeros(5)}) == [0, 5, 0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"edges": [-1, 0, 1]}, "4 increasing edges"),
        ({"edges": [-1, 0.3, -0.3, 1]}, "4 increasing edges"),
        ({"counts": [0, 0, 0], "removed": [[0, 0, 0]] * 3}, "not all empty"),
        ({"removed": [[0, 0, 0], [0, 1001, 0], [0, 0, 0]]}, "from 0 to the bin's count"),
        ({"removed": [[0, 0], [0, 0], [0, 0]]}, "one number per bin"),
        ({"cuts": [None, None]}, "2 cuts"),
        ({"cuts": [None, [0.5, 0.2], None]}, "smallest, largest"),
    ],
)
def test_a_malformed_histogram_is_refused(changes, words) -> None:
    with pytest.raises(ValueError, match=words):
        Histogram(**{**PARTS, **changes})


def test_it_must_fit_the_sweep(sweep) -> None:
    with pytest.raises(ValueError, match="axis 'scope'"):
        sweep(histogram={**PARTS, "axes": ["scope"]})
    with pytest.raises(ValueError, match="its axes make 6"):
        sweep(histogram={**PARTS, "axes": ["prompt", "steps"]})
    assert sweep().data()["histogram"] is None


def test_the_words_say_how_much_and_where(sweep) -> None:
    panel = Histogram(**PARTS)
    assert panel.words(PARTS["removed"][0], None) == "nothing is removed"
    assert panel.words(PARTS["removed"][1], None) == "500 of 1,030 removed (48.5 %), whatever their size"
    assert panel.words(PARTS["removed"][1], [0.2, 0.2]).endswith("cut at a size of 0.2")
    assert panel.words(PARTS["removed"][2], [0.25, 0.5]).endswith("0.25 to 0.5, by layer")


def test_the_static_side_draws_the_start(sweep) -> None:
    html = sweep(histogram=PARTS, start={"steps": 4}).fallback_html()
    assert 'role="img" aria-label="Histogram of the weights: 500 of 1,030 removed' in html
    assert len(re.findall("<rect", html)) == 6  # three bars, and what is kept of each
    heights = [float(x) for x in re.findall(r'height="([\d.]+)"/>', html)]
    assert heights[0] == heights[3] and heights[4] < heights[1], "only the middle bar lost something"
    none_left = sweep(histogram=PARTS, start={"steps": 8}).fallback_html()
    assert len(re.findall("<rect", none_left)) == 5, "an empty bar is not drawn"


def test_data_are_json_and_say_on_which_axes_it_depends(sweep) -> None:
    found = json.loads(json.dumps(sweep(histogram=PARTS).data()))["histogram"]
    assert found["places"] == [1] and found["removed"] == PARTS["removed"]
    assert Histogram(**{key: found[key] for key in Histogram(**PARTS).to_dict()}).cuts == PARTS["cuts"]


def test_a_combination_of_two_axes_is_found(sweep) -> None:
    panel = {**PARTS, "axes": ["prompt", "steps"], "removed": [[i, 0, 0] for i in range(6)], "cuts": [None] * 6}
    html = sweep(histogram=panel, start={"prompt": "a <b> & 'c'", "steps": 4}).fallback_html()
    assert "4 of 1,030 removed" in html


def test_a_live_answer_is_checked(sweep) -> None:
    answers = {"removed": [0, 7, 0], "cut": (0.1, 0.1)}
    made = sweep(histogram=PARTS, on_change=lambda state: {"histogram": answers})
    assert made.answer({})["histogram"] == answers
    answers["removed"] = [0, 7000, 0]
    with pytest.raises(ValueError, match="bin's count"):
        made.answer({})
