"""What was measured of operators: one changed alone, and the lowest-scored ones changed together.

The operator explorer: take one operator of a drawn denoiser away, or the lowest-scored together, and see.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any, ClassVar

from pruning_lib.checks import nearest, place
from pruning_lib.operators.replace import MODIFICATIONS

from .axes import number
from .base import TwinWidget, passport_line
from .html import MAX_ALT, scrolling, sentences
from .operator_map import draw_map
from .recorded import load_pictured, save_pictured
from .sheet import Sheet, data_url

__all__ = ["PruningStop", "OperatorExplorer", "OperatorResult", "fills", "ranks", "score_text"]

_LABELS = {"score": "score", "harm": "harm, 1 \u2212 mean SSIM", "macs": "MACs saved"}
DECADES = 4  # below the highest score, over which cells fill; what is lower is drawn as nearly empty


@dataclass(frozen=True)
class OperatorResult:
    """What was measured of one operator.

    Attributes:
        path, kind, in_shape, out_shape: as of an `Operator`.
        how: what was done to it, one of `MODIFICATIONS`.
        avg_dist, std_dist: the two parts of its score, >= 0, or None where the changed model gave no finite latents.
        saved_params, saved_macs: what the change saves, for one call at batch 1, with attention products.
        ssim: of each shown picture to the unpruned one.
        mean_ssim: over more pictures: "value", "low", "high".
    """

    path: str
    kind: str
    in_shape: Sequence[int]
    out_shape: Sequence[int]
    how: str
    avg_dist: float | None
    std_dist: float | None
    saved_params: int
    saved_macs: int
    ssim: Sequence[float]
    mean_ssim: Mapping[str, float]

    @property
    def score(self) -> float | None:
        """The paper's score, avg_dist + std_dist."""
        return None if self.avg_dist is None or self.std_dist is None else self.avg_dist + self.std_dist


@dataclass(frozen=True)
class PruningStop:
    """What was measured with the lowest-scored operators removed together.

    Attributes:
        ratio: share of the MACs that was asked for, in [0, 1); at least as much is gone.
        changes: (path, modification) of each.
        params, macs: of what is left; of one call, batch 1, with attention products.
        ssim, mean_ssim: as of `OperatorResult`.
    """

    ratio: float
    changes: Sequence[Sequence[str]]
    params: int
    macs: int
    ssim: Sequence[float]
    mean_ssim: Mapping[str, float]


def ranks(operators: Sequence[OperatorResult]) -> list[int]:
    """Return each operator's place by score, 1 the lowest; equal scores go by the order in which operators run."""
    order = sorted(range(len(operators)), key=lambda i: _or_infinite(operators[i].score))
    found = [0] * len(order)
    for rank, i in enumerate(order, 1):
        found[i] = rank
    return found


def score_text(score: float | None) -> str:
    """Write a score with three figures, whatever its size; None is one that is not finite."""
    return "not finite" if score is None else f"{float(f'{score:.3g}'):g}"


def fills(operators: Sequence[OperatorResult]) -> list[dict]:
    """Return what the cells of a drawing can be filled by.

    Returns:
        For each measure its "name", its "label", and for each operator a "fill" in [0, 1] and "texts". Scores are on a
        logarithmic scale over `DECADES`, the others in proportion to the largest.
    """
    top = max((op.score for op in operators if op.score), default=1.0)
    harm = [max(0.0, 1 - op.mean_ssim["value"]) for op in operators]
    values = {
        "score": [1.0 if op.score is None else _log_share(op.score, top) for op in operators],
        "harm": harm,
        "macs": [max(0, op.saved_macs) for op in operators],
    }
    texts = {
        "score": [score_text(op.score) for op in operators],
        "harm": [number(value, 3) for value in harm],
        "macs": [number(op.saved_macs / 1e6, 2, "M") for op in operators],
    }
    return [
        {
            "name": name,
            "label": _LABELS[name],
            "texts": texts[name],
            "fill": [round(value / (max(found) or 1), 4) for value in found],
        }
        for name, found in values.items()
    ]


def _log_share(score: float, top: float) -> float:
    """Return where a score lies below the highest one, on a logarithmic scale; zero is empty, small ones nearly so."""
    if score <= 0:
        return 0.0
    return max(0.03, 1 + math.log10(score / top) / DECADES)


def _or_infinite(score: float | None) -> float:
    return math.inf if score is None else score


DATA_VERSION = 1
_FIELDS = ("model", "operators", "stops", "prompts", "n")
# Names of the grains by how many there are; the explorer of a denoiser with more numbers those in the middle.
_GRAINS = {1: ("operators",), 2: ("whole blocks", "single layers"), 3: ("whole blocks", "inside", "single layers")}


class OperatorExplorer(TwinWidget):
    """What each operator is worth: the picture without it, its score and its cost; and many removed at once.

    Args:
        name: identifies the figure in its page; an address ending in `#name:operator=mid_block.resnets.0` or
            `#name:ratio=0.2` sets it.
        model: the denoiser's name, for readers.
        operators: every operator, in the order in which they run.
        stops: of the ratio slider, ascending; the first removes nothing and so is the unpruned model.
        prompts: of the shown pictures.
        images: for each prompt, one picture for each stop and then one for each operator; as a `SweepExplorer` takes.
        n: pictures behind each mean SSIM.
        title: one line above the controls.
        picture: what the pictures are.
        start: "prompt", "operator" (a path) and "ratio" shown first; by default the first prompt, the operator of the
            median score and the middle stop. The picture without the operator is shown.
        passport: of the record, or a sentence.
        on_change: called with `{"prompt", "operator"}` or `{"prompt", "ratio"}` where a kernel is there; returns
            `{"image": picture of the same size, "ssim": to the unpruned one}`.

    Raises:
        ValueError: lists that do not fit together, or an unknown start.
    """

    module: ClassVar[str] = "operator_explorer"

    def __init__(
        self,
        name: str,
        model: str,
        operators: Sequence[OperatorResult | Mapping],
        stops: Sequence[PruningStop | Mapping],
        prompts: Sequence[str],
        images: Any,
        *,
        n: int,
        title: str,
        picture: str = "generated image",
        start: Mapping[str, Any] | None = None,
        passport: Mapping | str | None = None,
        on_change: Callable[[dict], Mapping] | None = None,
    ) -> None:
        super().__init__(name, on_change=on_change)
        self.model, self.n, self.title, self.picture = model, n, title, picture
        self.operators = [op if isinstance(op, OperatorResult) else OperatorResult(**op) for op in operators]
        self.stops = [stop if isinstance(stop, PruningStop) else PruningStop(**stop) for stop in stops]
        self.prompts, self.passport = list(prompts), passport_line(passport)
        self.map = draw_map(self.operators)
        self._check_lists()
        self.sheet = images if isinstance(images, Sheet) else Sheet.pack(images)
        each = len(self.stops) + len(self.operators)
        if self.sheet.count != each * len(self.prompts):
            raise ValueError(
                f"there are {self.sheet.count} images; {len(self.prompts)} prompts with {len(self.stops)} stops and "
                f"{len(self.operators)} operators each make {each * len(self.prompts)}."
            )
        self.paths = [op.path for op in self.operators]
        self.ranks = ranks(self.operators)
        self.ranked = [op for _, op in sorted(zip(self.ranks, self.operators, strict=True), key=lambda pair: pair[0])]
        given = {
            "prompt": self.prompts[0],
            "operator": self.ranked[len(self.ranked) // 2].path,
            "ratio": self.stops[len(self.stops) // 2].ratio,
            **(start or {}),
        }
        self.start = {
            "prompt": place(given["prompt"], self.prompts, "prompt"),
            "operator": place(given["operator"], self.paths, "operator"),
            "stop": place(given["ratio"], [stop.ratio for stop in self.stops], "ratio"),
        }

    def _check_lists(self) -> None:
        ratios = [stop.ratio for stop in self.stops]
        if not ratios or self.stops[0].changes or ratios != sorted(set(ratios)):
            raise ValueError(f"ratios are {ratios}; give ascending ones, the first with nothing removed.")
        if not self.prompts or len(set(self.prompts)) < len(self.prompts):
            raise ValueError(f"prompts are {self.prompts}; give at least one, none twice.")
        paths = [op.path for op in self.operators]
        for what in (*self.operators, *self.stops):
            label = getattr(what, "path", None) or f"ratio {what.ratio}"
            if len(what.ssim) != len(self.prompts):
                raise ValueError(f"{label} has {len(what.ssim)} values of ssim for {len(self.prompts)} prompts.")
        for path in {path for stop in self.stops for path, _ in stop.changes} - set(paths):
            raise ValueError(f"a stop removes {path!r}, which is not among the operators. {nearest(path, paths)}")

    @classmethod
    def from_record(cls, record: str | Path, name: str, **options: Any) -> OperatorExplorer:
        """Make an explorer from a record that `save` wrote; `options` as for the class.

        Raises:
            RecordError: the record cannot be read or is of another kind, or its sheet is missing or another one.
        """
        data, sheet, passport = load_pictured(
            record,
            "an operator explorer",
            _FIELDS,
            lambda data: len(data["prompts"]) * (len(data["stops"]) + len(data["operators"])),
        )
        options.setdefault("passport", passport)
        parts = [data[key] for key in ("model", "operators", "stops", "prompts")]
        return cls(name, *parts, sheet, n=data["n"], **options)

    def save(
        self, path: str | Path, experiment: str, passport: Mapping, *, quality: int | None = None, **more: Any
    ) -> Path:
        """Write the figures as a record, `<path>.json`, and the pictures as a sheet beside it.

        Args:
            path: the record's file, ending in .json.
            experiment: its name.
            passport: as `measure.passport` returns it.
            quality: of the sheet, 1 to 100; None stores it without loss.
            more: further data, JSON-ready.

        Raises:
            RecordError: the place cannot be written to.
        """
        data = {
            "model": self.model,
            "n": self.n,
            "prompts": self.prompts,
            "operators": [asdict(op) for op in self.operators],
            "stops": [asdict(stop) for stop in self.stops],
            **more,
        }
        return save_pictured(path, experiment, data, self.sheet, passport, quality=quality)

    def data(self) -> dict:
        """Return what the module draws."""
        whole, shown = self.stops[0], self.map.to_dict()
        count = len(shown["grains"])
        grains = _GRAINS.get(count) or ("whole blocks", *(f"level {k}" for k in range(2, count)), "single layers")
        return {
            "version": DATA_VERSION,
            "name": self.name,
            "title": self.title,
            "picture": self.picture,
            "model": self.model,
            "passport": self.passport,
            "prompts": self.prompts,
            "n": self.n,
            "start": self.start,
            "whole": {"params": whole.params, "macs": whole.macs},
            "map": shown,
            "grains": list(grains),
            "measures": fills(self.operators),
            "modifications": dict(MODIFICATIONS),
            "operators": [
                {
                    "path": op.path,
                    "kind": op.kind,
                    "how": op.how,
                    "score": op.score,
                    "avg": op.avg_dist,
                    "std": op.std_dist,
                    "rank": rank,
                    "ssim": list(op.ssim),
                    "mean": dict(op.mean_ssim),
                    "shapes": ["\u00d7".join(map(str, s[1:])) for s in (op.in_shape, op.out_shape)],
                    "saved": {"params": op.saved_params, "macs": op.saved_macs},
                }
                for op, rank in zip(self.operators, self.ranks, strict=True)
            ],
            "stops": [
                {
                    "ratio": stop.ratio,
                    "count": len(stop.changes),
                    "removed": [self.paths.index(path) for path, _ in stop.changes],
                    "params": stop.params,
                    "macs": stop.macs,
                    "ssim": list(stop.ssim),
                    "mean": dict(stop.mean_ssim),
                }
                for stop in self.stops
            ],
            "sheet": {
                "src": self.sheet.url(),
                "columns": self.sheet.columns,
                "width": self.sheet.width,
                "height": self.sheet.height,
            },
        }

    def tile(self, prompt: str, *, operator: str | None = None, ratio: float = 0.0) -> Any:
        """Return a recorded picture: without one operator, or at a stop of the slider; by default the unpruned one."""
        each, p = len(self.stops) + len(self.operators), place(prompt, self.prompts, "prompt")
        if operator is not None:
            return self.sheet.tile(p * each + len(self.stops) + place(operator, self.paths, "operator"))
        return self.sheet.tile(p * each + place(ratio, [stop.ratio for stop in self.stops], "ratio"))

    def answer(self, state: dict) -> dict:
        """Return what `on_change` computed for `state`, checked and ready for the page."""
        given = dict(self.on_change(state))
        return {"image": self.sheet.url_of(given["image"]), "ssim": float(given["ssim"])}

    def fallback_html(self) -> str:
        """Return the drawing, pictures at the start, and tables of the stops and of the extreme scores."""
        return operator_fallback(self)

    def __repr__(self) -> str:
        parts = f"{len(self.operators)} operators of {self.model}, {len(self.stops)} stops"
        return f"OperatorExplorer({self.name!r}: {parts})"


EXTREMES = 8  # scores shown at each end of the list, where the page does not move


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
        rows.append(f'<tr><th scope="row">{len(found.changes)}</th>{cells}<td>{_mean(found.mean_ssim)}</td></tr>')
    caption = sentences(explorer.title, f"The lowest-scored operators of {explorer.model} removed together")
    head = ["operators removed", "MACs removed", "parameters removed", f"mean SSIM, n = {explorer.n}"]
    stops = scrolling("The stops of the slider", caption, head, rows, "")
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
    table = scrolling("Scores of operators", caption, head, rows, explorer.passport)
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
