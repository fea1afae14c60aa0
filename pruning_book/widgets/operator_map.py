"""Where the operators of a denoiser stand in its drawing: a U for a UNet, two columns for a chain of blocks.

Made from nothing but paths, kinds and the order in which operators run, so it draws any denoiser whose operators
`find_operators` lists.  Operators lie inside one another, so there are several *grains*: whole blocks, what lies inside
them, and so on down to single layers; each grain fills the same places.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

__all__ = ["Cell", "OperatorMap", "draw_map"]

WIDTH, ROW, GAP = 360, 28, 4
COLUMN = 156  # of the U's arms; between them there is room for a size
BAND = 8  # between two levels of the U

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
_LETTER = 6.0  # width of a letter in the drawing
_STAGE = re.compile(r"(down_blocks|up_blocks)\.(\d+)\.")


@dataclass(frozen=True)
class Cell:
    """One operator in the drawing.

    Attributes:
        operator: its place in the list.
        x, y, width, height: in the drawing's units.
        label: what is written in it; empty where there is no room.
    """

    operator: int
    x: float
    y: float
    width: float
    height: float
    label: str


@dataclass(frozen=True)
class OperatorMap:
    """The drawing.

    Attributes:
        width, height: in its own units.
        grains: for each, all its cells in the order in which the operators run; the first holds the largest operators.
        levels: (y, height, text) of the levels of a U, the text being the size of the stream; empty for a chain.
    """

    width: float
    height: float
    grains: tuple[tuple[Cell, ...], ...]
    levels: tuple[tuple[float, float, str], ...]

    def to_dict(self) -> dict:
        """Return what the ES module draws."""
        cells = [
            [[c.operator, round(c.x, 2), round(c.y, 2), round(c.width, 2), round(c.height, 2), c.label] for c in grain]
            for grain in self.grains
        ]
        return {
            "width": self.width,
            "height": self.height,
            "grains": cells,
            "levels": [list(level) for level in self.levels],
        }


def draw_map(operators: Sequence) -> OperatorMap:
    """Place operators in a drawing.

    Args:
        operators: at least one, in the order in which they run; each has `path`, `kind` and `in_shape`, as an
            `Operator` has.

    Raises:
        ValueError: no operators, or one path twice.
    """
    paths = [op.path for op in operators]
    if not paths or len(set(paths)) < len(paths):
        raise ValueError(f"{len(paths)} operators with {len(set(paths))} paths; give at least one, each with its own.")
    inner = _children(paths)
    rows = _rows([i for i in range(len(paths)) if not _inside(paths[i], paths)], operators)
    places, height, levels = _letter_u(rows, operators) or _chain(rows)
    outer: dict[int, tuple[float, float, float]] = {}
    for row, (x, y, width) in zip(rows, places, strict=True):
        outer.update(_share(row, x, y, width, operators))
    grains, shown = [], list(outer)
    boxes = dict(outer)
    while True:
        grains.append(tuple(_cell(i, *boxes[i], operators[i].kind) for i in sorted(shown)))
        deeper = []
        for i in shown:
            parts = inner.get(i) or [i]
            x, y, width = boxes[i]
            part = (width - 2 * (len(parts) - 1)) / len(parts)
            boxes.update({k: (x + n * (part + 2), y, part) for n, k in enumerate(parts)})
            deeper += parts
        if deeper == shown:
            break
        shown = deeper
    return OperatorMap(WIDTH, height, tuple(grains), levels)


def _inside(path: str, paths: Sequence[str]) -> bool:
    return any(path.startswith(f"{other}.") for other in paths)


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
    stages = [_STAGE.match(operators[row[0]].path) for row in rows]
    arms: dict[str, dict[int, list[int]]] = {"down_blocks": {}, "up_blocks": {}}
    for k, stage in enumerate(stages):
        if stage:
            arms[stage[1]].setdefault(int(stage[2]), []).append(k)
    down, up = arms["down_blocks"], arms["up_blocks"]
    if not down or not up:
        return None
    depth = max(len(down), len(up))
    first, last = (min(k for found in down.values() for k in found), max(k for found in up.values() for k in found))
    before = [k for k in range(len(rows)) if k < first]
    after = [k for k in range(len(rows)) if k > last]
    middle = [k for k in range(len(rows)) if stages[k] is None and k not in before and k not in after]
    places: dict[int, tuple[float, float, float]] = {}
    step, right = ROW + GAP, WIDTH - COLUMN
    top = max(len(before), len(after))
    for n, k in enumerate(before):
        places[k] = (0, (top - len(before) + n) * step, COLUMN)
    for n, k in enumerate(after):
        places[k] = (right, (top - 1 - n) * step, COLUMN)
    y = top * step + (BAND if top else 0)
    levels = []
    downs, ups = sorted(down), sorted(up, reverse=True)
    for level in range(depth):
        left = down[downs[level]] if level < len(downs) else []
        other = up[ups[level]] if level < len(ups) else []
        tall = max(len(left), len(other))
        for n, k in enumerate(left):
            places[k] = (0, y + n * step, COLUMN)
        for n, k in enumerate(other):  # the right arm runs upwards
            places[k] = (right, y + (tall - 1 - n) * step, COLUMN)
        levels.append((y, tall * step - GAP, _size(operators[rows[(left or other)[0]][0]])))
        y += tall * step + BAND
    for n, k in enumerate(middle):
        places[k] = (WIDTH / 8, y + n * step, WIDTH * 3 / 4)
    y += len(middle) * step
    return [places[k] for k in range(len(rows))], y, tuple(levels)


def _chain(rows: Sequence[Sequence[int]]) -> tuple[list, float, tuple]:
    half, step = -(-len(rows) // 2), ROW + GAP
    right = WIDTH - COLUMN
    return [(0 if k < half else right, k % half * step, COLUMN) for k in range(len(rows))], half * step, ()


def _size(operator) -> str:
    shape = operator.in_shape
    return f"{shape[-2]}×{shape[-1]}" if len(shape) == 4 else ""


def _share(row: Sequence[int], x: float, y: float, width: float, operators: Sequence) -> dict[int, tuple]:
    """Divide a row among its operators."""
    weights = [_WEIGHT.get(operators[i].kind, 1) for i in row]
    unit = (width - GAP * (len(row) - 1)) / sum(weights)
    found = {}
    for i, weight in zip(row, weights, strict=True):
        found[i] = (x, y, weight * unit)
        x += weight * unit + GAP
    return found


def _cell(operator: int, x: float, y: float, width: float, kind: str) -> Cell:
    names = (kind, _SHORT.get(kind, kind), "")
    label = next(name for name in names if len(name) * _LETTER <= width - 4 or not name)
    return Cell(operator, x, y, width, ROW, label)
