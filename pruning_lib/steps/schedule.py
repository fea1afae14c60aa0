"""A schedule: which unit is computed at which call, and what has to fit before a pipeline may follow it."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .._files import check_place
from .grid import Grid
from .rows import to_rows
from .run import Replay, applied

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from matplotlib.figure import Figure

__all__ = ["Schedule"]

_FORMAT = "pruning_lib.schedule/1"


@dataclass(frozen=True, eq=False)
class Schedule:
    """A table of T calls by N units, True where a unit is computed, False where its last value is used again.

    Attributes:
        grid: what the rows and columns are.
        on: bool `[T, N]`; the first row is all True.
        provenance: where it comes from: method, budget, seeds; plain values.

    Raises:
        ValueError: a table that does not fit the grid, or a first row that is not all on.

    Example:
        >>> schedule = Schedule.load("lion.schedule.json")
        >>> with schedule.applied(pipe):
        ...     image = pipe("lion", num_inference_steps=schedule.steps).images[0]
    """

    grid: Grid
    on: Tensor
    provenance: dict[str, object] = field(default_factory=dict)

    def __post_init__(self):
        object.__setattr__(self, "on", self.grid.check(self.on))

    @property
    def steps(self) -> int:
        """`num_inference_steps` to call the pipeline with."""
        return self.grid.steps

    @property
    def label(self) -> str:
        """A short name: the method it comes from."""
        return str(self.provenance.get("method", "schedule"))

    def live(self) -> Tensor:
        """Return the cells that are on and whose work reaches the picture, bool `[T, N]`."""
        return self.grid.live(self.on)

    def macs(self, *, attention: bool = True) -> int:
        """Return the MACs of one sample over all calls; dead work is never run and not counted."""
        return self.grid.macs_of(self.on, attention=attention)

    def macs_ratio(self, *, attention: bool = True) -> float:
        """Return the share of MACs kept, in (0, 1]."""
        return self.grid.macs_ratio(self.on, attention=attention)

    def applied(self, pipe: DiffusionPipeline) -> AbstractContextManager[Replay]:
        """Let a pipeline follow this schedule inside a `with` block.

        Only live cells are computed; a call with nothing to compute is skipped. On leaving, the pipeline is as it was.
        Image to image, which begins at a later row, computes everything at its first call.

        Args:
            pipe: a pipeline with the denoiser and scheduler this schedule was made for. Its denoiser may be offloaded,
                compiled, or carry LoRA.

        Raises:
            ValueError: another denoiser or scheduler; inside the block, a run with another number of steps. All of
                them before the denoiser is called.
            RuntimeError: a schedule is applied already.
        """
        return applied(self, pipe)

    def plot(self, *, title: str | None = None) -> Figure:
        """Draw the table: computed, dead and reused cells, one row per unit, time to the right."""
        from .drawing import draw_schedule

        return draw_schedule(self, title=title)

    def save(self, path: str | Path) -> Path:
        """Write the schedule as JSON, with all that is needed to check and count it.

        Raises:
            FileNotFoundError, IsADirectoryError: no such folder, or a folder of that name.
        """
        path = Path(path)
        check_place(path)
        path.write_text(json.dumps(self.to_dict(), indent=1) + "\n", "utf-8")
        return path

    def to_dict(self) -> dict[str, object]:
        """Return plain values; rows as texts of 1 (computed) and 0 (reused)."""
        return {"format": _FORMAT, **self.grid.to_dict(), "rows": to_rows(self.on), "provenance": self.provenance}

    @classmethod
    def load(cls, path: str | Path) -> Schedule:
        """Read a schedule.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not a schedule, or a damaged one, with what is wrong.
        """
        path = Path(path)
        try:
            data = json.loads(path.read_text("utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is not valid JSON: {error}. Save the schedule anew.") from error
        return cls.from_dict(data, source=str(path))

    @classmethod
    def from_dict(cls, data: object, *, source: str = "this") -> Schedule:
        """Read what `to_dict` wrote; errors as `load`."""
        if not isinstance(data, dict) or data.get("format") != _FORMAT:
            found = data.get("format") if isinstance(data, dict) else type(data).__name__
            raise ValueError(
                f"{source} is not a schedule: its format is {found!r}, expected {_FORMAT!r}. "
                "Schedule.save() writes one."
            )
        try:
            grid = Grid.from_dict(data)
            rows = data["rows"]
            if any(not isinstance(row, str) or set(row) - {"0", "1"} for row in rows):
                raise ValueError("a row holds something besides 0 and 1")
            if len({len(row) for row in rows}) > 1:
                raise ValueError("its rows are of different lengths")
            on = torch.tensor([[cell == "1" for cell in row] for row in rows], dtype=torch.bool)
            return cls(grid, on, dict(data.get("provenance") or {}))
        except (KeyError, TypeError, ValueError) as error:
            what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise ValueError(f"{source} is a damaged schedule: {what}. Save it anew.") from error

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Schedule) and self.grid == other.grid and bool(torch.equal(self.on, other.on))
        )

    def __repr__(self) -> str:
        calls, units = self.grid.shape
        return (
            f"<Schedule {self.label!r}: {calls} calls x {units} units, {self.macs_ratio():.1%} of the MACs>"
        )
