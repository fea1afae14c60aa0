"""Explorers with two lives: in a notebook with a kernel, and as a static page without one."""

from .. import require

require("anywidget", "ipywidgets")
