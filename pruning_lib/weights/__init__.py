"""The first grain: single weights, channels, and what a checkpoint need not carry.

Nothing here knows the zoo; models come in as arguments.  Names are imported when used.
"""

from __future__ import annotations

from .._lazy import lazy_names

_WHERE: dict[str, str] = {}

__all__ = list(_WHERE)

__getattr__, __dir__ = lazy_names(__name__, _WHERE)
