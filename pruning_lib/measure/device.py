"""Is this device there?  Asked before any work starts."""

from __future__ import annotations

import torch

__all__ = ["best_device", "check_device", "synchronise"]


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
        raise ValueError(
            f"Unknown device {device!r}. Use 'cpu', 'cuda', 'cuda:0', 'mps' or the like."
        ) from error
    if found.type == "meta":
        raise ValueError(
            "device='meta' has shapes and no values, so nothing can run there. Use 'cpu' or 'cuda'."
        )
    if found.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not count:
            raise ValueError(
                f"device={str(device)!r} was asked for, but torch sees no CUDA GPU. "
                "In Colab: Runtime > Change runtime type > GPU. Or use device='cpu'."
            )
        if (found.index or 0) >= count:
            raise ValueError(
                f"device={str(device)!r} was asked for, but there are {count} GPUs, numbered from 0."
            )
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
