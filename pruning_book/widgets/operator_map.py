"""Where the operators of a denoiser stand in its drawing: a U for a UNet, two columns for a chain of blocks.

Made from paths, kinds and the order in which operators run alone. Operators lie inside one another, so there are
several *grains*: whole blocks, what lies inside them, and so on down to single layers; each grain fills the same
places.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

WIDTH, ROW, GAP = 360, 28, 4
COLUMN = 156  # of the U's arms; between them there is room for a size
RIGHT, STEP = WIDTH - COLUMN, ROW + GAP
BAND = 8  # between two levels of the U
_LETTER = 6.0  # width of a letter in the drawing

# The size of a block beside another one in its row, and short names for narrow cells.
_WEIGHT = {"resnet": 2, "transformer": 3}
_SHORT = {
    "self-attention": "self",
    "cross-attention": "text",
    "feed-forward": "ff",
    "convolution": "conv",
    "transformer block": "block",
    "downsampler": "down",
    "upsampler": "up",
}


class Cell(NamedTuple):
    """One operator in the drawing: its place in the list, where it stands, and what is written in it, if it fits."""

    operator: int
    x: float
    y: float
    width: float
    height: float
    label: str


@dataclass(frozen=True)
class OperatorMap:
    """The drawing, with its width and height in its own units.

    `grains` has for each all its cells in the order in which the operators run, the largest operators first; `levels`
    are (y, height, text) of those of a U, the text being the size of the stream, and empty for a chain.
    """

    width: float
    height: float
    grains: tuple[tuple[Cell, ...], ...]
    levels: tuple[tuple[float, float, str], ...]

    def to_dict(self) -> dict:
        """Return what the ES module draws."""
        cells = [[[c.operator, *(round(v, 2) for v in c[1:5]), c.label] for c in grain] for grain in self.grains]
        levels = [list(level) for level in self.levels]
        return {"width": self.width, "height": self.height, "grains": cells, "levels": levels}


def draw_map(operators: Sequence) -> OperatorMap:
    """Place operators (`path`, `kind`, `in_shape`), each path once, in the order in which they run."""
    paths = [op.path for op in operators]
    if not paths or len(set(paths)) < len(paths):
        raise ValueError(f"{len(paths)} operators with {len(set(paths))} paths; give at least one, each with its own.")
    inner = _children(paths)
    inside = {k for found in inner.values() for k in found}
    rows = _rows([i for i in range(len(paths)) if i not in inside], operators)
    places, height, levels = _letter_u(rows, operators) or _chain(len(rows))
    boxes: dict[int, tuple[float, float, float]] = {}  # operator -> x, y, width
    for row, (x, y, width) in zip(rows, places, strict=True):
        weights = [_WEIGHT.get(operators[i].kind, 1) for i in row]
        unit = (width - GAP * (len(row) - 1)) / sum(weights)
        for i, weight in zip(row, weights, strict=True):
            boxes[i] = (x, y, weight * unit)
            x += weight * unit + GAP
    grains, shown, before = [], list(boxes), None
    while shown != before:
        grains.append(tuple(_cell(i, *boxes[i], operators[i].kind) for i in sorted(shown)))
        before, shown = shown, []
        for i in before:
            parts = inner.get(i) or [i]
            x, y, width = boxes[i]
            part = (width - 2 * (len(parts) - 1)) / len(parts)
            boxes.update({k: (x + n * (part + 2), y, part) for n, k in enumerate(parts)})
            shown += parts
    return OperatorMap(WIDTH, height, tuple(grains), levels)


def _cell(operator: int, x: float, y: float, width: float, kind: str) -> Cell:
    names = (kind, _SHORT.get(kind, kind), "")
    label = next(name for name in names if len(name) * _LETTER <= width - 4 or not name)
    return Cell(operator, x, y, width, ROW, label)


def _children(paths: Sequence[str]) -> Mapping[int, list[int]]:
    """Return operator -> those directly inside it."""
    found: dict[int, list[int]] = {}
    for k, path in enumerate(paths):
        around = [i for i, other in enumerate(paths) if path.startswith(f"{other}.")]
        if around:
            found.setdefault(max(around, key=lambda i: len(paths[i])), []).append(k)
    return found


def _rows(outer: Sequence[int], operators: Sequence) -> list[list[int]]:
    """Put what runs one after the other at one place into one row: a resnet and its transformer, a middle block."""

    def place(i: int) -> tuple[str, ...]:
        names = operators[i].path.split(".")
        if names[0] == "mid_block":
            return ("mid_block",)
        if len(names) > 3 and names[2] in ("resnets", "attentions"):
            return (*names[:2], names[3])
        return tuple(names[:2]) if names[0] == "transformer_blocks" else tuple(names)

    return [list(group) for _, group in groupby(outer, place)]


def _letter_u(rows: Sequence[Sequence[int]], operators: Sequence) -> tuple[list, float, tuple] | None:
    """Return (x, y, width) of each row in a U, the height, and the levels; None where there are no two arms."""
    arms: dict[str, dict[int, list[int]]] = {"down_blocks": {}, "up_blocks": {}}
    loose = []  # rows that belong to no arm
    for k, row in enumerate(rows):
        stage = re.match(r"(down_blocks|up_blocks)\.(\d+)\.", operators[row[0]].path)
        where = arms[stage[1]].setdefault(int(stage[2]), []) if stage else loose
        where.append(k)
    down = [arms["down_blocks"][stage] for stage in sorted(arms["down_blocks"])]
    up = [arms["up_blocks"][stage] for stage in sorted(arms["up_blocks"], reverse=True)]
    if not down or not up:
        return None
    first, last = min(map(min, down)), max(map(max, up))
    before, after = [k for k in loose if k < first], [k for k in loose if k > last]
    places: dict[int, tuple[float, float, float]] = {}
    top = max(len(before), len(after))
    for n, k in enumerate(before):
        places[k] = (0, (top - len(before) + n) * STEP, COLUMN)
    for n, k in enumerate(after):
        places[k] = (RIGHT, (top - 1 - n) * STEP, COLUMN)
    y = top * STEP + (BAND if top else 0)
    levels = []
    for level in range(max(len(down), len(up))):
        left, right = ((arm[level] if level < len(arm) else []) for arm in (down, up))
        tall = max(len(left), len(right))
        for n, k in enumerate(left):
            places[k] = (0, y + n * STEP, COLUMN)
        for n, k in enumerate(right):  # the right arm runs upwards
            places[k] = (RIGHT, y + (tall - 1 - n) * STEP, COLUMN)
        shape = operators[rows[(left or right)[0]][0]].in_shape
        levels.append((y, tall * STEP - GAP, f"{shape[-2]}×{shape[-1]}" if len(shape) == 4 else ""))
        y += tall * STEP + BAND
    for k in loose:
        if first < k < last:  # the middle
            places[k] = (WIDTH / 8, y, WIDTH * 3 / 4)
            y += STEP
    return [places[k] for k in range(len(rows))], y, tuple(levels)


def _chain(count: int) -> tuple[list, float, tuple]:
    half = -(-count // 2)
    return [(0 if k < half else RIGHT, k % half * STEP, COLUMN) for k in range(count)], half * STEP, ()
