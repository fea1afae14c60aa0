"""The static side of the interactive figures: pictures and tables that stand alone without JavaScript, and in print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from .lattice import number
from .sprites import data_url
from .worth import fills, score_text

if TYPE_CHECKING:
    from .blocks import BlockExplorer
    from .operators import OperatorExplorer
    from .sweep import SweepExplorer

__all__ = ["block_fallback", "operator_fallback", "sweep_fallback"]

MAX_ALT = 250
EXTREMES = 8  # scores shown at each end of the list, where the page does not move


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


def operator_fallback(explorer: OperatorExplorer) -> str:
    """Return the drawing filled by scores, pictures at the start, and tables of the stops and of the extreme scores."""
    start, measure = explorer.start, fills(explorer.operators)[0]
    prompt, chosen = explorer.prompts[start["prompt"]], explorer.operators[start["operator"]]
    stop = explorer.stops[start["stop"]]
    shown = {
        "unpruned": explorer.tile(prompt),
        f"without {chosen.path}": explorer.tile(prompt, operator=chosen.path),
        f"without the {len(stop.changes)} lowest-scored": explorer.tile(prompt, ratio=stop.ratio),
    }
    figures = "".join(
        f'<figure><img src="{data_url(tile)}" width="{tile.width}" height="{tile.height}" '
        f'alt="{escape(f"{explorer.picture}, {prompt}, {what}"[:MAX_ALT])}">'
        f"<figcaption>{escape(what)}</figcaption></figure>"
        for what, tile in shown.items()
    )
    whole, rows = explorer.stops[0], []
    for found in explorer.stops:
        ends = [1 - found.macs / whole.macs, 1 - found.params / whole.params]
        cells = "".join(f"<td>{number(100 * share, 1)} %</td>" for share in ends)
        rows.append(
            f'<tr><th scope="row">{len(found.changes)}</th>{cells}<td>{_mean(found.mean_ssim)}</td></tr>'
        )
    caption = _sentences(explorer.title, f"The lowest-scored operators of {explorer.model} removed together")
    head = ["operators removed", "MACs removed", "parameters removed", f"mean SSIM, n = {explorer.n}"]
    stops = _scrolling("The stops of the slider", caption, head, rows, "")
    few = EXTREMES if len(explorer.ranked) > 2 * EXTREMES else len(explorer.ranked)
    extremes = [*enumerate(explorer.ranked, 1)]
    extremes = extremes if few == len(extremes) else [*extremes[:few], *extremes[-few:]]
    rows = [
        f'<tr><th scope="row">{escape(op.path)}</th><td>{rank}</td>'
        f"<td>{score_text(op.score)}</td>"
        f"<td>{_mean(op.mean_ssim)}</td><td>{number(op.saved_macs / 1e6, 2)}</td></tr>"
        for rank, op in extremes
    ]
    every = len(explorer.ranked)
    caption = f"The lowest and the highest of {every} scores." if few < every else "All scores."
    head = ["operator", "rank", "score", f"mean SSIM, n = {explorer.n}", "MACs saved, M"]
    table = _scrolling("Scores of operators", caption, head, rows, explorer.passport)
    return f'{_operator_drawing(explorer, measure)}<div class="pl-pair">{figures}</div>{stops}{table}'


def _mean(found: Mapping[str, float]) -> str:
    return f"{number(found['value'], 3)} ({number(found['low'], 3)} to {number(found['high'], 3)})"


def _operator_drawing(explorer: OperatorExplorer, measure: Mapping[str, Any]) -> str:
    """Return the drawing of the largest operators, as the ES module draws it."""
    drawn, parts = explorer.map, []
    for cell in drawn.grains[0]:
        box = f'x="{cell.x:.1f}" y="{cell.y:.1f}" height="{cell.height:.1f}" rx="3"'
        full = cell.width * measure["fill"][cell.operator]
        parts.append(
            f'<rect {box} width="{full:.1f}" fill="var(--pl-fill)"/>'
            f'<rect {box} width="{cell.width:.1f}" fill="none" stroke="var(--pl-edge)"/>'
            f'<text x="{cell.x + cell.width / 2:.1f}" y="{cell.y + cell.height / 2 + 4:.1f}" text-anchor="middle">'
            f"{escape(cell.label)}</text>"
        )
    sizes = "".join(
        f'<text x="{drawn.width / 2}" y="{y + height / 2 + 2:.1f}" text-anchor="middle">{escape(text)}</text>'
        for y, height, text in drawn.levels
    )
    highest, lowest = explorer.ranked[-1].path, explorer.ranked[0].path
    words = f"The operators of {explorer.model} as a drawing, each filled by its {measure['label']}. "
    words += f"Lowest: {lowest}; highest: {highest}."
    return (
        f'<svg viewBox="-1 -1 {drawn.width + 2} {drawn.height + 2}" role="img" aria-label="{escape(words)}" '
        f'style="width:100%;max-width:26rem;font-size:10.5px;fill:var(--pl-ink)">{sizes}{"".join(parts)}</svg>'
        f'<p class="pl-passport">A fuller cell has a higher score, drawn logarithmically.</p>'
    )
