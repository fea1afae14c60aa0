"""What training a pruner leaves behind: numbers, from which schedules of any budget are made."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .._files import check_place
from .budget import check_budget
from .grid import Grid
from .schedule import Schedule
from .sparsity import within_budget

__all__ = ["TrainedPruner"]

_FORMAT = "pruning_lib.pruner/1"


@dataclass(frozen=True, eq=False)
class TrainedPruner:
    """Scores of all cells, and how they came about.

    Attributes:
        grid: what the rows and columns are.
        tables: float64 `[K, T, N]`, one table of scores per budget trained for, in [0, 1]; the higher, the more a cell
            is worth computing. For gates of kind "probability" one table, the probabilities to keep.
        budgets: the K budgets; empty if it was trained for none.
        history: one dict per iteration: "step" (from 1), "seconds", "loss", "sparsity", "macs_ratio", "open" (share of
            open gates behind the first call), "budget", "rows" (the gates, as texts of 0 and 1), "collapsed".
        settings: of the run, as in `PrunerConfig`, with "recipe" and "prompts", how many there were.

    Example:
        >>> trained = pl.train_pruner(pipe, ["lion", "pizza"], steps=20, guidance_scale=3)
        >>> with trained.schedule(keep_macs=0.25).applied(pipe):
        ...     image = pipe("lion", num_inference_steps=20, guidance_scale=3).images[0]
    """

    grid: Grid
    tables: Tensor
    budgets: tuple[float, ...]
    history: list[dict[str, object]]
    settings: dict[str, object]

    @property
    def scores(self) -> Tensor:
        """The last table, float64 `[T, N]`."""
        return self.tables[-1]

    def scores_for(self, keep_macs: float) -> Tensor:
        """Return the table that was trained for the budget nearest to `keep_macs`, float64 `[T, N]`."""
        if not self.budgets:
            return self.scores
        ratios = [abs(math.log(budget / keep_macs)) for budget in self.budgets]
        return self.tables[ratios.index(min(ratios))]

    def schedule(self, keep_macs: float) -> Schedule:
        """Return the schedule that opens the cells of the highest scores, as many as the budget allows.

        Args:
            keep_macs: largest share of the MACs to keep, in (0, 1].

        Raises:
            ValueError: a budget that the first call alone exceeds.
        """
        check_budget(self.grid, keep_macs)
        on = within_budget(self.scores_for(keep_macs), self.grid, keep_macs)
        told = {name: self.settings.get(name) for name in ("recipe", "seed", "iterations", "loss", "prompts")}
        return self.grid.schedule(on, method="DiP-GO", keep_macs=float(keep_macs), **told)

    def curve(self, name: str = "loss") -> tuple[list[int], list]:
        """Return the iterations, from 1, and the values of one figure of the history.

        Raises:
            KeyError: there is none of that name.
        """
        if not self.history or name not in self.history[0]:
            known = ", ".join(self.history[0]) if self.history else "nothing"
            raise KeyError(f"The history has no {name!r}. It has: {known}.")
        return [line["step"] for line in self.history], [line[name] for line in self.history]

    def save(self, path: str | Path) -> Path:
        """Write everything to a .safetensors file.

        Raises:
            ValueError: another ending.
            OSError: a place that cannot be written to.
        """
        path = Path(path)
        if path.suffix != ".safetensors":
            raise ValueError(f"{path} does not end in .safetensors.")
        check_place(path)
        told = {
            "format": _FORMAT, "grid": self.grid.to_dict(), "budgets": list(self.budgets), "history": self.history,
            "settings": self.settings,
        }  # fmt: skip
        save_file({"tables": self.tables.contiguous()}, path, {"pruner": json.dumps(told)})
        return path

    @classmethod
    def load(cls, path: str | Path) -> TrainedPruner:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: no such file.
            ValueError: another file, or a damaged one.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"There is no file {path}.")
        try:
            with safe_open(path, "pt") as file:
                told = json.loads((file.metadata() or {})["pruner"])
                tables = file.get_tensor("tables")
            if told["format"] != _FORMAT:
                raise ValueError(f"its format is {told['format']!r}")
            grid = Grid.from_dict(told["grid"])
            budgets = tuple(float(b) for b in told["budgets"])
            if tuple(tables.shape) != (max(1, len(budgets)), *grid.shape) or not torch.isfinite(tables).all():
                raise ValueError(f"scores of shape {tuple(tables.shape)} for a grid of {grid.shape}")
            return cls(grid, tables, budgets, list(told["history"]), dict(told["settings"]))
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} does not hold a trained pruner, or is damaged: {error}. TrainedPruner.save() writes one."
            ) from error

    def __repr__(self) -> str:
        calls, units = self.grid.shape
        return (
            f"<TrainedPruner: {calls} calls x {units} units, recipe {self.settings.get('recipe')!r}, "
            f"{len(self.history)} iterations>"
        )
