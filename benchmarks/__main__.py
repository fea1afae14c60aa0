"""Run one benchmark by name: `python -m benchmarks score_cost`, `python -m benchmarks gpu --dry-run`."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

NOT_ONE = ("__init__", "__main__", "common")


def main() -> None:
    """Hand the command line to the benchmark that its first word names."""
    names = {path.stem: path for path in Path(__file__).parent.glob("*.py") if path.stem not in NOT_ONE}
    names = sorted(name for name, path in names.items() if "def measure(" in path.read_text(encoding="utf-8"))
    name, words = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("", [])
    if name == "gpu":
        raise SystemExit(import_module("benchmarks.gpu.command").main(words))
    if name not in names:
        given = f"There is no benchmark {name!r}. " if name else ""
        known = f"with NAME one of: gpu, {', '.join(names)}"
        print(f"{given}Usage: python -m benchmarks NAME [options], {known}", file=sys.stderr)
        raise SystemExit(2)
    from .common import run

    run(import_module(f"benchmarks.{name}"), words)


if __name__ == "__main__":
    main()
