"""The interactive figures of the book, for the reader's own sweeps too."""

from .blocks import BlockExplorer, BlockModel
from .lattice import Axis, Metric
from .sprites import Sheet
from .sweep import SweepExplorer
from .twin import TwinWidget, module_source, passport_line

__all__ = [
    "Axis", "BlockExplorer", "BlockModel", "Metric", "Sheet", "SweepExplorer", "TwinWidget", "module_source", "passport_line",
]  # fmt: skip
