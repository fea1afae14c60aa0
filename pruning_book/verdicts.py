"""Verdicts on what is said about pruning, decided by records and not by the author."""

from __future__ import annotations

import html
from typing import Literal, get_args

from IPython.display import HTML

__all__ = ["verdict"]

Ruling = Literal["holds", "holds in part", "does not hold", "not measured"]
_MARKS = {"holds": "✔", "holds in part": "◐", "does not hold": "✘", "not measured": "–"}


def verdict(claim: str, ruling: Ruling, because: str, *, source: str = "the popular account") -> HTML:
    """Return a box with a claim, a ruling and what was measured.

    Compute `ruling` and the numbers in `because` from a record, so that the box follows the measurement.

    Args:
        claim: what is said, in one sentence.
        ruling: "holds", "holds in part", "does not hold" or "not measured".
        because: one or two sentences with the measured numbers.
        source: who says it.

    Raises:
        ValueError: another ruling, or an empty claim or reason.

    Example:
        >>> verdict("Zeros are fast.", "holds" if ratio > 1.05 else "does not hold", f"{ratio:.2f} times as fast")
    """
    if ruling not in _MARKS:
        raise ValueError(f"ruling={ruling!r}; allowed: {', '.join(map(repr, get_args(Ruling)))}.")
    if not claim.strip() or not because.strip():
        raise ValueError("A verdict needs a claim and what was measured; one of them is empty.")
    return HTML(
        '<div class="admonition pl-verdict" role="note">'
        f'<p class="admonition-title">Claim: {html.escape(claim)}</p>'
        f'<p><strong><span aria-hidden="true">{_MARKS[ruling]}</span> {ruling.capitalize()}.</strong> '
        f"{html.escape(because)}</p>"
        f"<p><small>Said by {html.escape(source)}.</small></p></div>"
    )
