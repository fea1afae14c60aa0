"""The passport of a measurement: where, when, with what and how often it was made."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

import torch

from .._text import installed_version
from .device import best_device, check_device

__all__ = ["passport"]

_PACKAGES = ("torch", "diffusers", "transformers", "numpy")


def passport(*, seeds: Sequence[int], n: int, device: str | torch.device | None = None) -> dict[str, object]:
    """Describe the present machine and software, to be kept beside what was measured.

    Args:
        seeds: every seed that decides the result; empty where nothing is random.
        n: number of samples or timed calls behind a figure, >= 1.
        device: where it ran. Default: the GPU if there is one, else the CPU.

    Returns:
        Plain JSON types: `hardware` (name of the processor that did the work), `device`, `cpu_threads`, `os`,
        `python`, `versions` (package -> version), `seeds`, `n`, `date` (UTC, ISO 8601), `commit` (of the repository
        this package runs from, or that it was installed from; "uncommitted" where neither is known) and `dirty` (True
        if a tracked file of that repository was changed since; None where unknown). On an NVIDIA GPU also `gpu`:
        driver, CUDA's version, memory in MiB, compute capability, and clocks in MHz and power limit in W where
        `nvidia-smi` tells them.

    Raises:
        TypeError: seeds that are no whole numbers.
        ValueError: n < 1, or a device that is not there.
    """
    if not isinstance(seeds, Sequence) or not all(type(s) is int for s in seeds):
        raise TypeError(f"seeds={seeds!r}; expected a list of whole numbers, as in [0, 1].")
    if not isinstance(n, int) or isinstance(n, bool) or n < 1:
        raise ValueError(f"n={n!r}; expected the number of samples behind a figure, >= 1.")
    device = best_device() if device is None else check_device(device)
    commit, dirty = _commit()
    return {
        "hardware": _hardware(device),
        **({"gpu": _gpu(device)} if device.type == "cuda" else {}),
        "device": str(device),
        "cpu_threads": torch.get_num_threads(),
        "os": _system(),
        "python": platform.python_version(),
        "versions": {**{name: installed_version(name) for name in _PACKAGES}, "pruning_lib": _own_version()},
        "seeds": list(seeds),
        "n": n,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit,
        "dirty": dirty,
    }


def _hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = ""
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    name = (
        name
        or _output("sysctl", "-n", "machdep.cpu.brand_string")
        or platform.processor()
        or platform.machine()
    )
    return f"{name}, {os.cpu_count()} logical cores"


# what nvidia-smi is asked for -> what the passport calls it
_READ_OFF = {
    "driver_version": "driver", "clocks.sm": "sm_clock_mhz", "clocks.max.sm": "sm_clock_max_mhz",
    "clocks.mem": "memory_clock_mhz", "power.limit": "power_limit_w",
}  # fmt: skip


def _gpu(device: torch.device) -> dict[str, object]:
    """Describe a CUDA GPU: what PyTorch knows of it, and what `nvidia-smi` says now."""
    known = torch.cuda.get_device_properties(device)
    found: dict[str, object] = {
        "cuda": torch.version.cuda, "memory_mib": known.total_memory // 2**20,
        "capability": f"{known.major}.{known.minor}",
    }  # fmt: skip
    index = torch.cuda.current_device() if device.index is None else device.index
    asked = (f"--query-gpu={','.join(_READ_OFF)}", "--format=csv,noheader,nounits", f"--id={index}")
    said = [value.strip() for value in _output("nvidia-smi", *asked).split(",")]
    if len(said) == len(_READ_OFF):  # else there is no nvidia-smi, or it does not know one of these words
        found |= {name: value for name, value in zip(_READ_OFF.values(), said, strict=True) if "N/A" not in value}
    return found


def _system() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError, AttributeError):
        return f"{platform.system()} {platform.release()}"


def _own_version() -> str:
    from .. import __version__

    return __version__


def _commit() -> tuple[str, bool | None]:
    folder = Path(__file__).parent
    # A package inside somebody's environment may lie in a repository that is not its own: ask whether git tracks it.
    if _output("git", "-C", str(folder), "ls-files", "--error-unmatch", Path(__file__).name):
        commit = _output("git", "-C", str(folder), "rev-parse", "HEAD")
        if commit:
            return commit, bool(
                _output("git", "-C", str(folder), "status", "--porcelain", "--untracked-files=no")
            )
    try:  # installed with pip from a repository, as the set-up cells on Colab do: pip notes the commit (PEP 610)
        note = json.loads(metadata.distribution("pruning-lib").read_text("direct_url.json") or "{}")
        return note["vcs_info"]["commit_id"], False
    except (metadata.PackageNotFoundError, KeyError, ValueError):
        return "uncommitted", None


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
