"""The operator explorer of chapter 7: one operator of a drawn denoiser taken away, or the lowest-scored together."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from html import escape
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image
from torch import Tensor

from pruning_lib.checks import nearest, place
from pruning_lib.operators.plan import Plan
from pruning_lib.operators.remove import change_operators
from pruning_lib.operators.replace import MODIFICATIONS
from pruning_lib.quality import ssim
from pruning_lib.records import load_record

from .base import mean_text, number, scrolling, sentences
from .operator_map import draw_map
from .pictured import Prompted
from .sheet import to_pil
from .sparsity import MODEL, draw, quiet

DECADES = 4  # below the highest score, over which cells fill; what is lower is drawn as nearly empty
EXTREMES = 8  # scores shown at each end of the list, where the page does not move
# Names of the grains by how many there are; where there are more, those in the middle are numbered.
_GRAINS = {1: ["operators"], 3: ["whole blocks", "inside", "single layers"]}
PROMPTS = ("lion", "pizza", "red heart", "rocket")
# Shares of the MACs to remove, the lowest-scored operators first.
STOPS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.7)


@dataclass(frozen=True)
class OperatorResult:
    """What was measured of one operator, with its `path`, `kind` and shapes, as of an `Operator`.

    `how` is what was done to it, one of `MODIFICATIONS`; `avg_dist` and `std_dist` the two parts of its score, >= 0, or
    None where the changed model gave no finite latents; `saved_params` and `saved_macs` what the change saves, for one
    call at batch 1, with attention products; `ssim` of each shown picture to the unpruned one; `mean_ssim` over more
    pictures: "value", "low", "high".
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

    `ratio` is the share of the MACs that was asked for, in [0, 1); at least as much is gone. `changes` are the (path,
    modification) of each; `params` and `macs` of what is left, of one call at batch 1, with attention products; `ssim`
    and `mean_ssim` as of `OperatorResult`.
    """

    ratio: float
    changes: Sequence[Sequence[str]]
    params: int
    macs: int
    ssim: Sequence[float]
    mean_ssim: Mapping[str, float]


def score_text(score: float | None) -> str:
    """Write a score with three figures, whatever its size; None is one that is not finite."""
    return "not finite" if score is None else f"{float(f'{score:.3g}'):g}"


def fills(operators: Sequence[OperatorResult]) -> list[dict]:
    """Return what cells can be filled by: "name", "label", and for each operator a "fill" in [0, 1] and "texts".

    Scores are on a logarithmic scale over `DECADES`, the others in proportion to the largest.
    """
    scores = [op.score for op in operators]
    top = max(filter(None, scores), default=1.0)

    def level(score: float | None) -> float:
        if not score:
            return 1.0 if score is None else 0.0
        return max(0.03, 1 + math.log10(score / top) / DECADES)

    harm = [max(0.0, 1 - op.mean_ssim["value"]) for op in operators]
    saved = [number(op.saved_macs / 1e6, 2, "M") for op in operators]
    measures = (
        ("score", "score", [score_text(score) for score in scores], [level(score) for score in scores]),
        ("harm", "harm, 1 \u2212 mean SSIM", [number(value, 3) for value in harm], harm),
        ("macs", "MACs saved", saved, [max(0, op.saved_macs) for op in operators]),
    )
    found = []
    for name, label, texts, values in measures:
        most = max(values) or 1
        fill = [round(value / most, 4) for value in values]
        found.append({"name": name, "label": label, "texts": texts, "fill": fill})
    return found


class OperatorExplorer(Prompted):
    """What each operator is worth: the picture without it, its score and its cost; and many removed at once.

    Args:
        name: identifies the figure; an address ending in `#name:operator=mid_block.resnets.0` or `#name:ratio=0.2` sets
            it.
        model: the denoiser's name, for readers.
        operators: every operator, in the order in which they run.
        stops: of the ratio slider, ascending; the first removes nothing and so is the unpruned model.
        prompts: of the shown pictures.
        images: for each prompt, one picture for each stop and then one for each operator, as `Pictured` takes them.
        n: pictures behind each mean SSIM.
        start: "prompt", "operator" (a path) and "ratio" shown first; by default the first prompt, the operator of the
            median score and the middle stop. The picture without the operator is shown.
        options: `title`, `picture`, `passport` and `on_change`, which is called with `{"prompt", "operator"}` or
            `{"prompt", "ratio"}` where a kernel is there; it returns `{"image": picture of the same size, "ssim": to
            the unpruned one}`.
    """

    module: ClassVar[str] = "operator_explorer"
    kind: ClassVar[str] = "an operator explorer"
    fields: ClassVar[tuple[str, ...]] = ("model", "operators", "stops", "prompts", "n")

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
        start: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        self.operators = [op if isinstance(op, OperatorResult) else OperatorResult(**op) for op in operators]
        self.stops = [stop if isinstance(stop, PruningStop) else PruningStop(**stop) for stop in stops]
        self.map = draw_map(self.operators)
        self.paths = [op.path for op in self.operators]
        self.ratios = [stop.ratio for stop in self.stops]
        if not self.stops or self.stops[0].changes or self.ratios != sorted(set(self.ratios)):
            raise ValueError(f"ratios are {self.ratios}; give ascending ones, the first with nothing removed.")
        for path in {path for stop in self.stops for path, _ in stop.changes} - set(self.paths):
            raise ValueError(f"a stop removes {path!r}, which is not among the operators. {nearest(path, self.paths)}")
        changes = [(f"ratio {stop.ratio}", stop.ssim) for stop in self.stops]
        changes += [(op.path, op.ssim) for op in self.operators]
        counted = f"{len(self.stops)} stops and {len(self.operators)} operators each"
        super().__init__(name, images, model=model, prompts=prompts, n=n, changes=changes, counted=counted, **options)
        # The lowest score first; equal ones in the order in which they run, those that are not finite last.
        self.ranked = sorted(self.operators, key=lambda op: math.inf if op.score is None else op.score)
        shown = {"operator": self.ranked[len(self.ranked) // 2].path, "ratio": self.ratios[len(self.ratios) // 2]}
        shown = {"prompt": self.prompts[0], **shown, **(start or {})}
        among = {"prompt": self.prompts, "operator": self.paths, "ratio": self.ratios}
        self.start = {key.replace("ratio", "stop"): place(shown[key], known, key) for key, known in among.items()}

    @staticmethod
    def count(data: Mapping[str, Any]) -> int:
        return len(data["prompts"]) * (len(data["stops"]) + len(data["operators"]))

    def record(self) -> dict[str, Any]:
        operators, stops = ([asdict(found) for found in part] for part in (self.operators, self.stops))
        return {**super().record(), "operators": operators, "stops": stops}

    def data(self) -> dict:
        """Return what the module draws."""
        whole, drawn = self.stops[0], self.map.to_dict()
        count = len(drawn["grains"])
        grains = _GRAINS.get(count) or ["whole blocks", *(f"level {k}" for k in range(2, count)), "single layers"]
        ranks = {op.path: rank for rank, op in enumerate(self.ranked, 1)}
        operators, stops = [], []
        for op in self.operators:
            shapes = ["\u00d7".join(map(str, shape[1:])) for shape in (op.in_shape, op.out_shape)]
            told = {"path": op.path, "kind": op.kind, "how": op.how, "score": op.score}
            told |= {"avg": op.avg_dist, "std": op.std_dist, "rank": ranks[op.path], "ssim": list(op.ssim)}
            saved = {"params": op.saved_params, "macs": op.saved_macs}
            operators.append({**told, "mean": dict(op.mean_ssim), "shapes": shapes, "saved": saved})
        for stop in self.stops:
            removed = [self.paths.index(path) for path, _ in stop.changes]
            told = {"ratio": stop.ratio, "count": len(removed), "removed": removed}
            told |= {"params": stop.params, "macs": stop.macs}
            stops.append({**told, "ssim": list(stop.ssim), "mean": dict(stop.mean_ssim)})
        return {
            **super().data(),
            "whole": {"params": whole.params, "macs": whole.macs},
            "map": drawn,
            "grains": grains,
            "measures": fills(self.operators),
            "modifications": dict(MODIFICATIONS),
            "operators": operators,
            "stops": stops,
            "sheet": self.tiles(self.sheet.url()),
        }

    def tile(self, prompt: str, *, operator: str | None = None, ratio: float = 0.0) -> Image.Image:
        """Return a recorded picture: without one operator, or at a stop of the slider; by default the unpruned one."""
        if operator is not None:
            return self.tile_of(prompt, len(self.stops) + place(operator, self.paths, "operator"))
        return self.tile_of(prompt, place(ratio, self.ratios, "ratio"))

    def fallback_html(self) -> str:
        """Return the drawing filled by scores, pictures at the start, and tables of the stops and extreme scores."""
        prompt, chosen = self.prompts[self.start["prompt"]], self.paths[self.start["operator"]]
        stop, whole = self.stops[self.start["stop"]], self.stops[0]
        shown = [("unpruned", self.tile(prompt)), (f"without {chosen}", self.tile(prompt, operator=chosen))]
        shown.append((f"without the {len(stop.changes)} lowest-scored", self.tile(prompt, ratio=stop.ratio)))
        rows = []
        for found in self.stops:
            gone = [1 - found.macs / whole.macs, 1 - found.params / whole.params]
            cells = [f"{number(100 * share, 1)} %" for share in gone]
            rows.append([str(len(found.changes)), *cells, mean_text(found.mean_ssim)])
        caption = sentences(self.title, f"The lowest-scored operators of {self.model} removed together")
        head = ["operators removed", "MACs removed", "parameters removed", f"mean SSIM, n = {self.n}"]
        stops = scrolling("The stops of the slider", caption, head, rows)
        rows = [
            [op.path, str(rank), score_text(op.score), mean_text(op.mean_ssim), number(op.saved_macs / 1e6, 2)]
            for rank, op in enumerate(self.ranked, 1)
        ]
        caption = "All scores."
        if len(rows) > 2 * EXTREMES:
            caption = f"The lowest and the highest of {len(rows)} scores."
            rows = [*rows[:EXTREMES], *rows[-EXTREMES:]]
        head = ["operator", "rank", "score", f"mean SSIM, n = {self.n}", "MACs saved, M"]
        table = scrolling("Scores of operators", caption, head, rows, self.passport)
        return f"{self._drawing()}{self.pair(shown, prompt)}{stops}{table}"

    def _drawing(self) -> str:
        """Return the largest operators as the ES module draws them, filled by their scores."""
        drawn, measure, parts = self.map, fills(self.operators)[0], []
        for y, height, text in drawn.levels:
            where = f'x="{drawn.width / 2}" y="{y + height / 2 + 2:.1f}" text-anchor="middle"'
            parts.append(f"<text {where}>{escape(text)}</text>")
        for cell in drawn.grains[0]:
            box = f'x="{cell.x:.1f}" y="{cell.y:.1f}" height="{cell.height:.1f}" rx="3"'
            full = cell.width * measure["fill"][cell.operator]
            parts.append(
                f'<rect {box} width="{full:.1f}" fill="var(--pl-fill)"/>'
                f'<rect {box} width="{cell.width:.1f}" fill="none" stroke="var(--pl-edge)"/>'
                f'<text x="{cell.x + cell.width / 2:.1f}" y="{cell.y + cell.height / 2 + 4:.1f}" text-anchor="middle">'
                f"{escape(cell.label)}</text>"
            )
        words = f"The operators of {self.model} as a drawing, each filled by its {measure['label']}. "
        words += f"Lowest: {self.ranked[0].path}; highest: {self.ranked[-1].path}."
        return (
            f'<svg viewBox="-1 -1 {drawn.width + 2} {drawn.height + 2}" role="img" aria-label="{escape(words)}" '
            f'style="width:100%;max-width:26rem;font-size:10.5px;fill:var(--pl-ink)">{"".join(parts)}</svg>'
            f'<p class="pl-passport">A fuller cell has a higher score, drawn logarithmically.</p>'
        )

    def __repr__(self) -> str:
        parts = f"{len(self.operators)} operators of {self.model}, {len(self.stops)} stops"
        return f"OperatorExplorer({self.name!r}: {parts})"


def changed_pictures(pipe: Any, changes: Plan | Mapping[str, str], prompts: Sequence[str], *, first: int = 0) -> Tensor:
    """Draw, as `draw` does, with operators changed (a plan, or path -> modification), and put them back."""
    with change_operators(pipe.unet, changes):
        return draw(pipe, prompts, first=first)[0]


def operator_explorer(
    record: str | Path = "operator_explorer", *, load: Callable[[str], Any] | None = None
) -> OperatorExplorer:
    """Return the explorer of chapter 7, from the record that `benchmarks/operator_explorer.py` writes.

    With `load`, as `pruning_lib.load`, each choice changes the loaded model where a kernel is there, draws, and puts
    everything back.
    """
    data = load_record(record)["data"]
    # A picture that is visibly changed and still known again is a good one to begin with.
    first = min(data["operators"], key=lambda op: abs(op["mean_ssim"]["value"] - 0.75))["path"]
    how = {op["path"]: {op["path"]: op["how"]} for op in data["operators"]}
    stops = {stop["ratio"]: dict(stop["changes"]) for stop in data["stops"]}
    pipeline = cache(lambda: quiet(load(MODEL)))

    @cache
    def picture(prompt: str, operator: str | None = None, ratio: float | None = None) -> Tensor:
        changes = how[operator] if operator else stops[ratio or 0.0]
        return changed_pictures(pipeline(), changes, [prompt], first=data["prompts"].index(prompt))

    def on_change(state: dict) -> dict:
        image = picture(**state)
        return {"image": to_pil(image)[0], "ssim": ssim(picture(state["prompt"]), image).item()}

    return OperatorExplorer.from_record(
        record,
        "operator-explorer",
        title="What is each operator worth?",
        picture="64 x 64 image from emoji-sd",
        start={"operator": first},
        on_change=on_change if load else None,
    )
