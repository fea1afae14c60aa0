"""Run one benchmark by name: `python -m benchmarks gpu --dry-run`, `python -m benchmarks score_cost`.

The others are scripts that import each other by bare name, so their folder is put on the path.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent


def main() -> None:
    """Hand the command line to the benchmark that its first word names."""
    names = sorted(path.stem for path in FOLDER.glob("*.py") if not path.stem.startswith("_"))
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    sys.path.insert(0, str(FOLDER))
    if name == "gpu":
        from benchmarks.gpu.command import main as gpu

        raise SystemExit(gpu(sys.argv[2:]))
    if name not in names:
        given = f"There is no benchmark {name!r}. " if name else ""
        print(
            f"{given}Usage: python -m benchmarks NAME [options], with NAME one of: gpu, {', '.join(names)}",
            file=sys.stderr,
        )
        raise SystemExit(2)
    sys.argv = [str(FOLDER / f"{name}.py"), *sys.argv[2:]]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
