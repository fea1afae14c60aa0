"""What chapter 7 draws: pictures without one operator or without many, recorded or with a kernel anew."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor

from pruning_lib.operators.plan import Plan
from pruning_lib.operators.remove import change_operators
from pruning_lib.quality import ssim
from pruning_lib.records import load_record

from .operators import OperatorExplorer
from .sheet import to_pil
from .sparsity import MODEL, draw, quiet

PROMPTS = ("lion", "pizza", "red heart", "rocket")
# Shares of the MACs to remove, the lowest-scored operators first.
STOPS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.7)


def changed_pictures(pipe: Any, changes: Plan | Mapping[str, str], prompts: Sequence[str], *, first: int = 0) -> Tensor:
    """Draw with some operators changed (a plan, or path -> modification), and put them back; see `draw`.

    Returns:
        Floats in [0, 1], `[n, 3, h, w]`.
    """
    with change_operators(pipe.unet, changes):
        return draw(pipe, prompts, first=first)[0]


def operator_explorer(
    record: str | Path = "operator_explorer", *, load: Callable[[str], Any] | None = None
) -> OperatorExplorer:
    """Return the explorer of chapter 7.

    Args:
        record: name or file of the record, as `benchmarks/operator_explorer.py` writes it.
        load: `pruning_lib.load`. With it, where a kernel is there, each choice changes the loaded model, draws, and
            puts everything back.
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
