"""Loading a pipeline without progress bars and notes: a reader asked for a model, not for a log."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

__all__ = ["quietly"]


@contextmanager
def quietly() -> Iterator[None]:
    """Hold back progress bars and notes about optional packages: a reader asked for a model, not for a log."""
    old = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled(), diffusers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    diffusers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            # the newest diffusers prefers `dtype`; the older ones we also support know only `torch_dtype`
            warnings.filterwarnings("ignore", message=".*torch_dtype", category=FutureWarning)
            yield
    finally:
        transformers_logging.set_verbosity(old)
        if bars[0]:
            transformers_logging.enable_progress_bar()
        if bars[1]:
            diffusers_logging.enable_progress_bar()
