"""What the chapters need around their figures: alt text, numbers for the prose, tables, and checks of exercises.

Everything here works without the book's own tools: in Colab the pictures and tables are drawn by the notebook itself,
and `glue` leaves an output that only the book reads.
"""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from IPython.display import HTML, display
from matplotlib.figure import Figure

MAX_ALT = 250
NO_BREAK = 20  # characters of a table's cell that are kept on one line
WIDE = 5  # from so many columns on a table is set small, with intervals below their values
_SPREAD = re.compile(r"(\S+) \((\S+ to \S+)\)")


class Picture:
    """A matplotlib figure together with the words, 1 to 250 characters, that stand for it where it cannot be seen."""

    def __init__(self, figure: Figure, alt: str) -> None:
        if not alt.strip() or len(alt) > MAX_ALT:
            allowed = f"allowed: 1 to {MAX_ALT}. Say what is there, shortly"
            raise ValueError(f"alt has {len(alt)} characters; {allowed}: {alt!r}")
        self.figure, self.alt = figure, alt

    def _repr_html_(self) -> str:
        file = io.BytesIO()
        self.figure.savefig(file, format="png", dpi=144, bbox_inches="tight", facecolor="white")
        data = base64.b64encode(file.getvalue()).decode()
        width = round(self.figure.get_figwidth() * 96)
        return (
            f'<img src="data:image/png;base64,{data}" alt="{html.escape(self.alt)}" '
            f'style="width:100%;max-width:{width}px;height:auto;background:#fff">'
        )


def picture(figure: Figure, alt: str | None = None) -> Picture:
    """Return `figure` as a cell output with its own words, `figure.alt`, or with `alt`, 1 to 250 characters."""
    return Picture(figure, alt if alt is not None else getattr(figure, "alt", ""))


def glue(**values: Any) -> None:
    """Give numbers, or strings as they are to be shown, to the page's sentences, as MyST-NB's `glue` does."""
    prefix = "application/papermill.record/"
    for name, value in values.items():
        data = {prefix + "text/plain": repr(value) if isinstance(value, str) else str(value)}
        display(data, raw=True, metadata={"scrapbook": {"name": name, "mime_prefix": prefix}})


def table(header: Sequence[str], rows: Sequence[Sequence[Any]], caption: str = "", align: str = "") -> HTML:
    """Return an HTML table that screen readers and phones can read.

    `rows` are as long as `header`, else a ValueError; the first cell names the row. `caption` is one sentence above the
    table, `align` one letter per column, "l" or "r": by default the first is left and the others right.
    """
    align, wide = align or "l" + "r" * (len(header) - 1), len(header) >= WIDE
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"a row has {len(row)} cells, the header has {len(header)}: {row!r}")

    def cell(tag: str, text: Any, where: str, more: str = "") -> str:
        style = "text-align:right" if where == "r" else "text-align:left"
        shown, found = html.escape(str(text)), _SPREAD.fullmatch(str(text)) if wide else None
        if found:
            value, interval = map(html.escape, found.groups())
            shown = f"{value}<br><small>({interval})</small>"
        if "col" not in more:  # a number and its spread stay on one line; longer texts do not become towers
            style += ";white-space:nowrap" if found or len(str(text)) <= NO_BREAK else ";min-width:10em"
        return f'<{tag}{more} style="{style}">{shown}</{tag}>'

    head = "".join(cell("th", h, a, ' scope="col"') for h, a in zip(header, align, strict=True))
    body = "".join(
        "<tr>"
        + cell("th", row[0], align[0], ' scope="row"')
        + "".join(cell("td", c, a) for c, a in zip(row[1:], align[1:], strict=True))
        + "</tr>"
        for row in rows
    )
    # The caption stays in sight while a wide table scrolls below it.
    stays = "display:inline-block;position:sticky;left:0;max-width:100cqw"
    title = f'<caption style="text-align:left"><span style="{stays}">{html.escape(caption)}</span></caption>'
    small = ' style="font-size:.85em"' if wide else ""
    # tabindex: a box that scrolls sideways must be reachable by keyboard.
    return HTML(
        '<div style="overflow-x:auto;container-type:inline-size" tabindex="0" role="region" '
        f'aria-label="{html.escape(caption or "table")}"><table class="table{" table-sm" * wide}"{small}>'
        f"{title * bool(caption)}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def spread(found: Mapping[str, float], digits: int = 3) -> str:
    """Return a figure with its interval, as "0.981 (0.979 to 0.983)"."""
    value, low, high = (f"{found[key]:.{digits}f}" for key in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def percent(share: float, digits: int = 0) -> str:
    """Return a share in percent, as "25 %"."""
    return f"{100 * share:.{digits}f} %"


def must_fail(check: Callable[[Any], Any], wrong: Any) -> None:
    """Assert that `check` refuses a wrong answer, so that a check which accepts anything is noticed."""
    try:
        check(wrong)
    except AssertionError:
        return
    raise AssertionError("the check of this exercise accepted an answer that is known to be wrong")
