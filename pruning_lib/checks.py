"""Small helpers for what we print: a good error names what was given, what is allowed and how to go on.

Is this device there?  Asked before any work starts.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version

import torch

__all__ = ["best_device", "check_device", "installed_version", "nearest", "path_levels", "place", "synchronise"]


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


def check_device(device: str | torch.device) -> torch.device:
    """Return `device` as a `torch.device` that this machine has.

    Args:
        device: "cpu", "cuda", "cuda:1", "mps" or the like.

    Raises:
        ValueError: an unknown name, or a device that is not there.
    """
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"Unknown device {device!r}. Use 'cpu', 'cuda', 'cuda:0', 'mps' or the like.") from error
    if found.type == "meta":
        raise ValueError("device='meta' has shapes and no values, so nothing can run there. Use 'cpu' or 'cuda'.")
    if found.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not count:
            raise ValueError(
                f"device={str(device)!r} was asked for, but torch sees no CUDA GPU. "
                "In Colab: Runtime > Change runtime type > GPU. Or use device='cpu'."
            )
        if (found.index or 0) >= count:
            raise ValueError(f"device={str(device)!r} was asked for, but there are {count} GPUs, numbered from 0.")
    if found.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError("device='mps' was asked for, but torch has no Metal backend here. Use device='cpu'.")
    if found.type not in ("cpu", "cuda", "mps"):
        try:  # the rarer ones (xpu, hpu, …) are there if they can hold a tensor
            torch.empty(0, device=found)
        except (RuntimeError, AssertionError, ImportError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise ValueError(
                f"device={str(device)!r} was asked for, but torch cannot use it: {reason}. Use 'cpu' or 'cuda'."
            ) from error
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
