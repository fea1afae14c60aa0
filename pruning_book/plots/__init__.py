"""Figures of the chapters: data in, a figure with its alternative text out."""

from .. import require

require("matplotlib")
