"""The interactive figures of the book, for the reader's own sweeps too."""

from .blocks import BlockExplorer, BlockModel
from .lattice import Axis, Metric, Reading
from .sprites import Sheet
from .sweep import SweepExplorer

__all__ = ["Axis", "BlockExplorer", "BlockModel", "Metric", "Reading", "Sheet", "SweepExplorer"]
