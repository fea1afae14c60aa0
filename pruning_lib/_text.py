"""Small helpers for what we print: a good error names what was given, what is allowed and how to go on."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version

__all__ = ["installed_version", "nearest", "path_levels", "place"]


def installed_version(distribution: str) -> str:
    """Return the version of an installed distribution, "not installed" where there is none."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "not installed"


def nearest(name: str, options: Iterable[str], count: int = 3) -> str:
    """Return a sentence that suggests the options closest to `name`.

    Args:
        name: what the caller asked for.
        options: the names that would have been accepted.
        count: how many suggestions at most.

    Returns:
        `"Did you mean 'a' or 'b'?"`, or, where nothing is close, the whole list.
    """
    options = list(options)
    close = difflib.get_close_matches(name.lower(), [o.lower() for o in options], n=count, cutoff=0.5)
    by_lower = {o.lower(): o for o in options}
    if close:
        return "Did you mean " + " or ".join(repr(by_lower[c]) for c in close) + "?"
    return "Known: " + ", ".join(repr(o) for o in options) + "."


def path_levels(path: str) -> list[str]:
    """Split a path; an index stays with its list: "down_blocks.0.resnets.1" -> ["down_blocks.0", "resnets.1"]."""
    levels: list[str] = []
    for part in path.split("."):
        if part.isdigit() and levels:
            levels[-1] += f".{part}"
        else:
            levels.append(part)
    return levels


def place(value: object, among: Sequence, what: str) -> int:
    """Return where `value` stands in a list.

    Raises:
        ValueError: nowhere; the message calls it `what` and names what is there.
    """
    if value not in among:
        raise ValueError(f"there is no {what} {value!r}. {nearest(str(value), list(map(str, among)))}")
    return list(among).index(value)
