"""What every static side is made of: sentences, a table that scrolls, and the length a description may have."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

__all__ = ["MAX_ALT", "scrolling", "sentences"]

MAX_ALT = 250


def sentences(*texts: str) -> str:
    """Join texts, each ended by a full stop unless it has an end of its own."""
    return escape(" ".join(text if text[-1] in ".?!" else text + "." for text in texts if text))


def scrolling(label: str, caption: str, head: Sequence[str], rows: Sequence[str], passport: str) -> str:
    """Return a table in a box that scrolls sideways and can be reached by keyboard, and a line on where it is from."""
    cells = "".join(f'<th scope="col">{text}</th>' if text else "<td></td>" for text in head)
    return (
        f'<div class="pl-scroll" tabindex="0" role="region" aria-label="{escape(label)}"><table>'
        f"<caption>{caption}</caption><thead><tr>{cells}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
        + (f'<p class="pl-passport">{escape(passport)}</p>' if passport else "")
    )
