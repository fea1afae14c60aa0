"""Is this name known, is this device there: an error names what was given, what is allowed and how to go on."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version

import torch


def installed_version(distribution: str) -> str:
    """Return the version of an installed distribution, "not installed" where there is none."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "not installed"


def nearest(name: str, options: Iterable[str]) -> str:
    """Return `"Did you mean 'a' or 'b'?"`, with up to three options; where none is close, the whole list."""
    by_lower = {option.lower(): option for option in options}
    close = difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.5)
    if close:
        return "Did you mean " + " or ".join(repr(by_lower[c]) for c in close) + "?"
    return "Known: " + ", ".join(map(repr, by_lower.values())) + "."


def printable(text: object, most: int = 1000) -> str:
    """Return text from anywhere as a terminal may show it: the unprintable escaped, the middle of what is long cut."""
    text = str(text)
    if len(text) > most:
        text = f"{text[: 3 * most // 5]} … {text[-most // 3 :]}"
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in text)


def path_levels(path: str) -> list[str]:
    """Split a path; an index stays with its list: "down_blocks.0.resnets.1" -> ["down_blocks.0", "resnets.1"]."""
    return re.split(r"\.(?!\d+(?:\.|$))", path)


def text_table(head: Sequence[str], rows: Sequence[Sequence[str]], total: Sequence[str] = (), *, left: int = 1) -> str:
    """Return cells as aligned text: a rule below the head and above the total, the first `left` columns to the left."""
    columns = []
    for i, column in enumerate(zip(head, *rows, *([total] if total else []), strict=True)):
        width = max(map(len, column))
        columns.append([cell.ljust(width) if i < left else cell.rjust(width) for cell in column])
    first, *lines = ("  ".join(row) for row in zip(*columns, strict=True))
    rule = "-" * len(first)
    if total:
        lines.insert(-1, rule)
    return "\n".join([first, rule, *lines])


def place(value: object, among: Sequence, what: str) -> int:
    """Return where `value` stands in a list; else the ValueError names what is there."""
    if value not in among:
        raise ValueError(f"there is no {what} {value!r}. {nearest(str(value), list(map(str, among)))}")
    return list(among).index(value)


def check_whole(name: str, value: object, least: int) -> int:
    """Return `value` if it is a whole number of at least `least`; the ValueError says what it is called."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name}={value!r}; it must be a whole number >= {least}.")
    return value


def check_number(name: str, value: object, interval: str) -> float:
    """Return `value` if it is a number, and no truth value, in an interval such as "[0, 1)" or "(0, inf)"."""
    low, high = map(float, interval[1:-1].split(","))
    inside = isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high
    if not inside or (value, interval[0]) == (low, "(") or (value, interval[-1]) == (high, ")"):
        raise ValueError(f"{name}={value!r}; it must be a number in {interval}.")
    return value


def check_device(device: str | torch.device) -> torch.device:
    """Return `device`, such as "cpu", "cuda:1" or "mps"; an unknown name or one that is not there is a ValueError."""
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"Unknown device {device!r}. Use 'cpu', 'cuda', 'cuda:0', 'mps' or the like.") from error
    if found.type == "meta":
        raise ValueError("device='meta' has shapes and no values, so nothing can run there. Use 'cpu' or 'cuda'.")
    asked = f"device={str(device)!r} was asked for, but"
    if found.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not count:
            raise ValueError(
                f"{asked} torch sees no CUDA GPU. In Colab: Runtime > Change runtime type > GPU. Or use device='cpu'."
            )
        if (found.index or 0) >= count:
            raise ValueError(f"{asked} there are {count} GPUs, numbered from 0.")
    elif found.type != "cpu":
        try:  # the rarer ones (mps, xpu, …) are there if they can hold a tensor
            torch.empty(0, device=found)
        except (RuntimeError, AssertionError, ImportError) as error:
            reason = re.split(r"\.\s|\n", str(error))[0]
            raise ValueError(f"{asked} torch cannot use it: {reason}. Use 'cpu' or 'cuda'.") from error
    return found


def best_device() -> torch.device:
    """Return the accelerator if there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def synchronise(device: torch.device) -> None:
    """Wait until all work queued on `device` is done; a CPU has no queue."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
