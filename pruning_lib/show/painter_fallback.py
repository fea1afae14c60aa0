"""The static side of the schedule painter: the table at the start, its pictures, and all recorded schedules."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from .fallback import MAX_ALT
from .lattice import number
from .sprites import data_url

if TYPE_CHECKING:
    from .painter import SchedulePainter

__all__ = ["painter_fallback"]

CELL, GAP, LABEL, HEAD = 16, 2, 70, 18


def painter_fallback(painter: SchedulePainter) -> str:
    """Return the drawn table, two pictures, and a table of the recorded schedules."""
    place = painter.start["stop"]
    stop, prompt = painter.stops[place], painter.prompts[painter.start["prompt"]]
    figures = "".join(
        f'<figure><img src="{data_url(tile)}" width="{tile.width}" height="{tile.height}" '
        f'alt="{escape(f"{painter.picture}, {prompt}, {what}"[:MAX_ALT])}">'
        f"<figcaption>{escape(what)}</figcaption></figure>"
        for what, tile in (
            ("unpruned", painter.tile(prompt, painter.stops[0].name)),
            (stop.name, painter.tile(prompt, stop.name)),
        )
    )
    rows = []
    for found, table in zip(painter.stops, painter.tables, strict=True):
        mean = found.mean
        rows.append(
            f'<tr><th scope="row">{escape(found.name)}</th>'
            f"<td>{number(100 * painter.grid.macs_ratio(table), 1)} %</td>"
            f"<td>{number(mean['value'], 3)} ({number(mean['low'], 3)} to {number(mean['high'], 3)})</td></tr>"
        )
    heads = "".join(
        f'<th scope="col">{escape(text)}</th>'
        for text in ("schedule", "MACs kept", f"mean SSIM, n = {painter.n}")
    )
    title = painter.title if painter.title[-1] in ".?!" else painter.title + "."
    table = (
        f'<div class="pl-scroll" tabindex="0" role="region" aria-label="Recorded schedules"><table>'
        f"<caption>{escape(title)} MACs with attention products; 95 % intervals.</caption>"
        f"<thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )
    passport = f'<p class="pl-passport">{escape(painter.passport)}</p>' if painter.passport else ""
    return f'{drawn_table(painter)}<div class="pl-pair">{figures}</div>{table}{passport}'


def drawn_table(painter: SchedulePainter) -> str:
    """Return the table shown first as a picture: filled where computed, crossed where dead work, empty where reused."""
    from .painter_grid import short_name

    on = painter.tables[painter.start["stop"]]
    live, stop = painter.grid.live(on).numpy(), painter.stops[painter.start["stop"]]
    steps, units = on.shape
    step, parts = CELL + GAP, []
    for t in range(steps):
        x = LABEL + t * step
        parts.append(f'<text x="{x + CELL / 2}" y="{HEAD - 5}" text-anchor="middle">{t + 1}</text>')
        for n in range(units):
            y = HEAD + n * step
            fill = "var(--pl-accent)" if live[t, n] else "var(--pl-line)" if on[t, n] else "none"
            parts.append(
                f'<rect x="{x}" y="{y}" width="{CELL}" height="{CELL}" rx="2" fill="{fill}" stroke="var(--pl-edge)"/>'
            )
            if on[t, n] and not live[t, n]:
                parts.append(
                    f'<path d="M{x} {y + CELL}L{x + CELL} {y}" stroke="var(--pl-edge)" stroke-width="2"/>'
                )
    labels = "".join(
        f'<text x="0" y="{HEAD + n * step + CELL - 4}">{escape(short_name(name))}</text>'
        for n, name in enumerate(painter.grid.names)
    )
    kept = int(live.sum())
    words = f"The schedule {stop.name}: {kept} of {steps * units} cells are computed and used, "
    words += f"{int(on.sum()) - kept} are dead work, the others are used again from an earlier step."
    width, height = LABEL + steps * step, HEAD + units * step
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(words)}" '
        f'style="width:100%;max-width:{width * 1.3:.0f}px;font-size:10.5px;fill:var(--pl-ink)">'
        f"{labels}{''.join(parts)}</svg>"
        '<p class="pl-passport">One row a unit, one column a step. Filled: computed. Crossed: dead work. '
        "Empty: used again from an earlier step.</p>"
    )
