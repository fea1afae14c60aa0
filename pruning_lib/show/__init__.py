"""Plots and interactive figures. Import what you need: `show.plots`, `show.widgets`."""
