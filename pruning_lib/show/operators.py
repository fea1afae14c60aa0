"""The operator explorer: take one operator of a drawn denoiser away, or the lowest-scored together, and see."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

from .._text import nearest, place
from ..operators import MODIFICATIONS
from .fallback import operator_fallback
from .operator_map import draw_map
from .recorded import load_pictured, save_pictured
from .sprites import Sheet
from .twin import TwinWidget, passport_line
from .worth import CutStop, Worth, fills, ranks

__all__ = ["OperatorExplorer"]

DATA_VERSION = 1
_FIELDS = ("model", "operators", "stops", "prompts", "n")
# Names of the grains by how many there are; the explorer of a denoiser with more numbers those in the middle.
_GRAINS = {
    1: ("operators",),
    2: ("whole blocks", "single layers"),
    3: ("whole blocks", "inside", "single layers"),
}


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
        self, name: str, model: str, operators: Sequence[Worth | Mapping], stops: Sequence[CutStop | Mapping],
        prompts: Sequence[str], images: Any, *, n: int, title: str, picture: str = "generated image",
        start: Mapping[str, Any] | None = None, passport: Mapping | str | None = None,
        on_change: Callable[[dict], Mapping] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(name, on_change=on_change)
        self.model, self.n, self.title, self.picture = model, n, title, picture
        self.operators = [op if isinstance(op, Worth) else Worth(**op) for op in operators]
        self.stops = [stop if isinstance(stop, CutStop) else CutStop(**stop) for stop in stops]
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
        self.ranked = [
            op for _, op in sorted(zip(self.ranks, self.operators, strict=True), key=lambda pair: pair[0])
        ]
        given = {
            "prompt": self.prompts[0], "operator": self.ranked[len(self.ranked) // 2].path,
            "ratio": self.stops[len(self.stops) // 2].ratio, **(start or {}),
        }  # fmt: skip
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
                raise ValueError(
                    f"{label} has {len(what.ssim)} values of ssim for {len(self.prompts)} prompts."
                )
        for path in {path for stop in self.stops for path, _ in stop.changes} - set(paths):
            raise ValueError(
                f"a stop removes {path!r}, which is not among the operators. {nearest(path, paths)}"
            )

    @classmethod
    def from_record(cls, record: str | Path, name: str, **options: Any) -> OperatorExplorer:
        """Make an explorer from a record that `save` wrote; `options` as for the class.

        Raises:
            RecordError: the record cannot be read or is of another kind, or its sheet is missing or another one.
        """
        data, sheet, passport = load_pictured(
            record, "an operator explorer", _FIELDS,
            lambda data: len(data["prompts"]) * (len(data["stops"]) + len(data["operators"])),
        )  # fmt: skip
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
            "model": self.model, "n": self.n, "prompts": self.prompts,
            "operators": [asdict(op) for op in self.operators], "stops": [asdict(stop) for stop in self.stops], **more,
        }  # fmt: skip
        return save_pictured(path, experiment, data, self.sheet, passport, quality=quality)

    def data(self) -> dict:
        """Return what the module draws."""
        whole, shown = self.stops[0], self.map.to_dict()
        count = len(shown["grains"])
        grains = _GRAINS.get(count) or (
            "whole blocks",
            *(f"level {k}" for k in range(2, count)),
            "single layers",
        )
        return {
            "version": DATA_VERSION, "name": self.name, "title": self.title, "picture": self.picture,
            "model": self.model, "passport": self.passport, "prompts": self.prompts, "n": self.n,
            "start": self.start,
            "whole": {"params": whole.params, "macs": whole.macs}, "map": shown, "grains": list(grains),
            "measures": fills(self.operators), "modifications": dict(MODIFICATIONS),
            "operators": [
                {"path": op.path, "kind": op.kind, "how": op.how, "score": op.score, "avg": op.avg_dist,
                 "std": op.std_dist, "rank": rank, "ssim": list(op.ssim), "mean": dict(op.mean_ssim),
                 "shapes": ["\u00d7".join(map(str, s[1:])) for s in (op.in_shape, op.out_shape)],
                 "saved": {"params": op.saved_params, "macs": op.saved_macs}}
                for op, rank in zip(self.operators, self.ranks, strict=True)
            ],
            "stops": [
                {"ratio": stop.ratio, "count": len(stop.changes),
                 "removed": [self.paths.index(path) for path, _ in stop.changes], "params": stop.params,
                 "macs": stop.macs, "ssim": list(stop.ssim), "mean": dict(stop.mean_ssim)}
                for stop in self.stops
            ],
            "sheet": {
                "src": self.sheet.url(), "columns": self.sheet.columns, "width": self.sheet.width,
                "height": self.sheet.height,
            },
        }  # fmt: skip

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
