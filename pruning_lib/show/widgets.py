"""The interactive figures of the book, for the reader's own sweeps too."""

from .blocks import BlockExplorer, BlockModel
from .lattice import Axis, Metric, Reading
from .operators import OperatorExplorer
from .painter import PaintedStop, SchedulePainter
from .sprites import Sheet
from .sweep import SweepExplorer
from .worth import CutStop, Worth

__all__ = [
    "Axis", "BlockExplorer", "BlockModel", "CutStop", "Metric", "OperatorExplorer", "PaintedStop", "Reading",
    "SchedulePainter", "Sheet", "SweepExplorer", "Worth",
]  # fmt: skip
