"""The static side of the interactive figures: pictures and tables that stand alone without JavaScript, and in print."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from .lattice import number
from .sprites import data_url

if TYPE_CHECKING:
    from .blocks import BlockExplorer
    from .sweep import SweepExplorer

__all__ = ["block_fallback", "sweep_fallback"]

MAX_ALT = 250


def _sentences(*texts: str) -> str:
    """Join texts, each ended by a full stop unless it has an end of its own."""
    return escape(" ".join(text if text[-1] in ".?!" else text + "." for text in texts if text))


def _scrolling(label: str, caption: str, head: Sequence[str], rows: Sequence[str], passport: str) -> str:
    """Return a table in a box that scrolls sideways and can be reached by keyboard, and a line on where it is from."""
    cells = "".join(f'<th scope="col">{text}</th>' if text else "<td></td>" for text in head)
    return (
        f'<div class="pl-scroll" tabindex="0" role="region" aria-label="{escape(label)}"><table>'
        f"<caption>{caption}</caption><thead><tr>{cells}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
        + (f'<p class="pl-passport">{escape(passport)}</p>' if passport else "")
    )


def sweep_fallback(explorer: SweepExplorer) -> str:
    """Return the pictures at the start of a sweep, and a table of the stops of its first slider."""
    axes, metrics, start = explorer.axes, explorer.metrics, explorer.start
    along = next((k for k, axis in enumerate(axes) if axis.kind == "ordered"), 0)
    states = {"this stop": start}
    if explorer.baseline is not None:
        base = [own if given is None else given for given, own in zip(explorer.baseline, start, strict=True)]
        states = {"baseline": base, **states}
    figures = ""
    for kind, state in states.items():
        picture = explorer.sheet.tile(explorer.combinations.index(tuple(state)))
        alt = f"{explorer.picture}, {kind}: {explorer.phrase(state)}"[:MAX_ALT]
        figures += (
            f'<figure><img src="{data_url(picture)}" width="{picture.width}" height="{picture.height}" '
            f'alt="{escape(alt)}"><figcaption>{escape(f"{kind}: {explorer.phrase(state)}")}</figcaption></figure>'
        )
    rows = []
    for stop, label in enumerate(axes[along].labels):
        index = explorer.combinations.index((*start[:along], stop, *start[along + 1 :]))
        cells = "".join(f"<td>{escape(metric.text(index))}</td>" for metric in metrics)
        rows.append(f'<tr><th scope="row">{escape(label)}</th>{cells}</tr>')
    others = explorer.phrase(start, skip=along)
    intervals = "; ".join(f"{metric.label}: {metric.interval}" for metric in metrics if metric.interval)
    caption = _sentences(explorer.title, others and f"Measured for {others}", intervals)
    head = [escape(text) for text in (axes[along].label, *(metric.label for metric in metrics))]
    panel = explorer.histogram
    below = panel.svg(panel.index([(start[k], len(axes[k].stops)) for k in explorer.histogram_places])) if panel else ""
    pictures = f'<div class="pl-pair">{figures}</div>{below}'
    return pictures + _scrolling(explorer.title, caption, head, rows, explorer.passport)


def block_fallback(explorer: BlockExplorer) -> str:
    """Return a table of the model shown first, with every measure, and bars for the measure shown first."""
    model, first = explorer.models[explorer.start[0]], explorer.measures[explorer.start[1]]
    shown = model.scaled(first.name) or [0.0] * len(model.blocks)
    most = max(value or 0 for value in shown) or 1
    rows = []
    for i, block in enumerate(model.blocks):
        cells = ""
        for measure in explorer.measures:
            values = model.scaled(measure.name)
            text = number(values[i], model.digits(measure.name)) if values else "not measured"
            cells += f"<td>{text}</td>"
            if measure is first:
                width = round(100 * (shown[i] or 0) / most)
                cells += f'<td aria-hidden="true" style="min-width:6rem"><i style="width:{width}%"></i></td>'
        rows.append(f'<tr><th scope="row">{escape(block)}</th>{cells}</tr>')
    head = ["block"]
    for measure in explorer.measures:
        head.append(escape(f"{measure.label}, {measure.unit}"))
        if measure is first:
            head.append("")
    caption = _sentences(explorer.title, f"{model.label}, block by block")
    totals = [m.total_text(explorer.measures) for m in explorer.models]
    note = _sentences("In all: " + "; ".join(totals)) if totals else ""
    return _scrolling(explorer.title, caption, head, rows, "") + (
        f'<p class="pl-passport">{note} {escape(explorer.passport)}</p>'
    )
