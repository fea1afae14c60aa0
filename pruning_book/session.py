"""The first cell of every chapter: say what this run is, and make Colab ready for the widgets.

Two words the book uses throughout: *replay*, a page shows recorded results beside what a CPU can recompute in a
minute; *live*, the same cells recompute the heavy results too.
"""

from __future__ import annotations

import importlib
import os
import platform
import sys
from dataclasses import dataclass

from pruning_lib.checks import installed_version

MODES = ("replay", "live")
_REPORTED = ("pruning-lib", "torch", "diffusers", "transformers")


@dataclass(frozen=True)
class Session:
    """What a notebook runs on: "cuda" or "cpu", "replay" or "live", and package name -> version."""

    device: str
    mode: str
    versions: dict[str, str]

    @property
    def live(self) -> bool:
        """True where heavy cells should recompute."""
        return self.mode == "live"

    def __str__(self) -> str:
        packages = ", ".join(f"{name} {number}" for name, number in self.versions.items())
        return f"{self.device}, {self.mode}, Python {platform.python_version()}\n{packages}"


def start(mode: str | None = None) -> Session:
    """Print device, mode and versions, in two short lines; on Colab, allow third-party widgets.

    `mode` is "replay" or "live"; by default the environment variable PRUNING_LIB_MODE, else "live" where CUDA is there
    and "replay" elsewhere. Returns the `Session`, so that a chapter can say `if session.live:`.
    """
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    mode = mode or os.environ.get("PRUNING_LIB_MODE") or ("live" if device == "cuda" else "replay")
    if mode not in MODES:
        where = "the argument of start() or the environment variable PRUNING_LIB_MODE"
        raise ValueError(f"mode is {mode!r}; allowed: {' or '.join(map(repr, MODES))}. Change {where}.")
    if "google.colab" in sys.modules:
        # Colab draws only the widgets of ipywidgets itself unless it is told otherwise.
        importlib.import_module("google.colab.output").enable_custom_widget_manager()
    session = Session(device, mode, {name: installed_version(name) for name in _REPORTED})
    print(session)
    return session
