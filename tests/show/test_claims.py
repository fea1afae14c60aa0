"""Verdicts say what was claimed, what was ruled and why, and refuse to say less."""

from __future__ import annotations

import pytest

from pruning_book.verdicts import verdict


@pytest.mark.parametrize("ruling", ["holds", "holds in part", "does not hold", "not measured"])
def test_the_box_says_claim_ruling_and_reason(ruling):
    text = verdict("Zeros are <fast>.", ruling, "0.98 times as fast & no less", source="a page").data
    assert "Claim: Zeros are &lt;fast&gt;." in text and "0.98 times as fast &amp; no less" in text
    assert f"{ruling.capitalize()}." in text and "Said by a page." in text


def test_another_ruling_lists_the_allowed_ones():
    with pytest.raises(ValueError, match="'maybe'; allowed: 'holds', 'holds in part', 'does not hold', 'not measured'"):
        verdict("Zeros are fast.", "maybe", "because")


@pytest.mark.parametrize(("claim", "because"), [(" ", "x"), ("x", "")])
def test_an_empty_part_is_refused(claim, because):
    with pytest.raises(ValueError, match="one of them is empty"):
        verdict(claim, "holds", because)
