"""Write what the status page shows: time for each page, versions, hardware, date. Measured, never typed.

Two files in _build/generated: status.json for programs, status.md, which book/status.md includes.
"""

from __future__ import annotations

import datetime as dt
import json
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from execute import PAGE_BUDGET_S, Run, usable_cores

FOLDER = Path("_build/generated")
PACKAGES = (
    "pruning-lib",
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
    "safetensors",
    "numpy",
    "scipy",
    "matplotlib",
    "anywidget",
    "jupyter-book",
    "sphinx",
    "myst-nb",
    "sphinx-book-theme",
)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _accelerator() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "none"


def _moment(timestamp: float) -> str:
    return dt.datetime.fromtimestamp(timestamp, dt.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


def status(root: Path, runs: Sequence[Run]) -> dict:
    """Return what is known of this build: pages with their seconds, versions, hardware, date."""
    return {
        "built": _moment(dt.datetime.now(dt.timezone.utc).timestamp()),
        "page_budget_s": PAGE_BUDGET_S,
        "pages": [{"page": r.name, "seconds": round(r.seconds, 1), "executed": _moment(r.finished)} for r in runs],
        "hardware": {
            "processor": _processor(),
            "cores": usable_cores(),
            "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
            "accelerator": _accelerator(),
            "system": f"{platform.system()} {platform.machine()}",
        },
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
    }


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", r"\|") for cell in line) + " |" for line in lines)


def page(data: dict) -> str:
    """Return the status as Markdown."""
    names = {"memory_gib": "memory (GiB)"}
    pages = [[f"[](../notebooks/{p['page']}.md)", p["seconds"], p["executed"]] for p in data["pages"]]
    total = sum(p["seconds"] for p in data["pages"])
    return "\n\n".join(
        [
            "## Pages",
            f"Each page may take {data['page_budget_s']} seconds; all of them took {total:.0f}.",
            table(["page", "seconds", "executed"], pages),
            "## Hardware",
            table(["what", "this build"], [[names.get(k, k), v] for k, v in data["hardware"].items()]),
            "## Versions",
            table(["package", "version"], list(data["versions"].items())),
            f"Built {data['built']}.",
            "",
        ]
    )


def write(root: Path, runs: Sequence[Run]) -> None:
    """Write status.json and status.md under `root`/_build/generated."""
    folder = root / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    data = status(root, runs)
    (folder / "status.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    (folder / "status.md").write_text(page(data), encoding="utf-8")
