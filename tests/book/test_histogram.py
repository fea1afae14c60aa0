"""The histogram below a sweep: bins, what is removed of them, and the words for it."""

from __future__ import annotations

import re

import pytest
import torch
from explorer_samples import EVIL, PANEL, sweep, weighed

from pruning_book.widgets.histogram import Histogram, WeightBins
from pruning_lib.weights.magnitude import magnitude_masks


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
    removed = bins.count(weights, magnitude_masks(weights, 0.5))
    assert sum(removed) == 2000 and removed[0] == 0 and removed[10] == counts[10]
    zeros = {"a": torch.zeros(5)}
    assert WeightBins.around(zeros, bins=3).count(zeros) == [0, 5, 0]


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
        ({"axes": ["scope"]}, "axis 'scope'"),
        ({"axes": ["prompt", "steps"]}, "its axes make 6"),
    ],
)
def test_a_malformed_histogram_or_one_of_another_sweep_is_refused(changes, words) -> None:
    with pytest.raises(ValueError, match=words):
        sweep(histogram={**PANEL, **changes})


def test_the_words_say_how_much_and_where() -> None:
    panel = Histogram(**PANEL)
    assert panel.words(PANEL["removed"][0], None) == "nothing is removed"
    assert panel.words(PANEL["removed"][1], None) == "500 of 1,030 removed (48.5 %), whatever their size"
    assert panel.words(PANEL["removed"][1], [0.2, 0.2]).endswith("cut at a size of 0.2")
    assert panel.words(PANEL["removed"][2], [0.25, 0.5]).endswith("0.25 to 0.5, by layer")


def test_the_static_side_draws_the_start() -> None:
    html = weighed(start={"steps": 4}).fallback_html()
    assert 'role="img" aria-label="Histogram of the weights: 500 of 1,030 removed' in html
    assert len(re.findall("<rect", html)) == 6  # three bars, and what is kept of each
    heights = [float(x) for x in re.findall(r'height="([\d.]+)"/>', html)]
    assert heights[0] == heights[3] and heights[4] < heights[1], "only the middle bar lost something"
    none_left = weighed(start={"steps": 8}).fallback_html()
    assert len(re.findall("<rect", none_left)) == 5, "an empty bar is not drawn"
    panel = {**PANEL, "axes": ["prompt", "steps"], "removed": [[i, 0, 0] for i in range(6)], "cuts": [None] * 6}
    assert "4 of 1,030 removed" in sweep(histogram=panel, start={"prompt": EVIL, "steps": 4}).fallback_html()


def test_data_say_on_which_axes_it_depends() -> None:
    found = weighed().data()["histogram"]
    assert found["places"] == [1] and found["removed"] == PANEL["removed"]
    assert sweep().data()["histogram"] is None


def test_a_live_answer_is_checked() -> None:
    answers = {"removed": [0, 7, 0], "cut": (0.1, 0.1)}
    made = weighed(on_change=lambda state: {"histogram": answers})
    assert made.answer({})["histogram"] == answers
    answers["removed"] = [0, 7000, 0]
    with pytest.raises(ValueError, match="bin's count"):
        made.answer({})
