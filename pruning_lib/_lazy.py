"""Names of a package that are imported when they are used, so that importing the package costs nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module

__all__ = ["lazy_names"]


def lazy_names(package: str, where: Mapping[str, str]) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` for a package.

    Args:
        package: its `__name__`.
        where: public name -> module below the package that holds it.
    """

    def __getattr__(name: str) -> object:
        known = sys.modules[package].__all__
        if name not in where:
            raise AttributeError(f"module {package!r} has no attribute {name!r}. It has: {', '.join(known)}.")
        value = getattr(import_module(f".{where[name]}", package), name)
        setattr(sys.modules[package], name, value)
        return value

    return __getattr__, lambda: sorted(sys.modules[package].__all__)
