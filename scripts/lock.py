"""Write requirements.lock from requirements.in: exact versions for Python 3.11 and later, on any system.

Needs uv (`pip install uv`). torch and what its CUDA build brings are left out: requirements-torch.txt installs torch
first, from whatever index the user chose.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SEPARATE = re.compile(r"^(torch|triton|nvidia-[\w-]+|cuda-[\w-]+)(==|\s|$)")
HEADER = "# Made by `make lock` from requirements.in; do not edit. For the book's own environment only.\n"


def main() -> int:
    if not shutil.which("uv"):
        print("`make lock` needs uv, which is not on the path: pip install uv", file=sys.stderr)
        return 1
    command = ["uv", "pip", "compile", "--universal", "--python-version", "3.11", "--no-annotate", "--no-header"]
    result = subprocess.run([*command, *sys.argv[1:], "requirements.in"], cwd=ROOT, text=True, capture_output=True)
    if result.returncode:
        print(result.stderr, file=sys.stderr)
        return result.returncode
    lines = [line for line in result.stdout.splitlines() if not SEPARATE.match(line) and not line.startswith("--")]
    (ROOT / "requirements.lock").write_text(HEADER + "\n".join(lines) + "\n")
    print(f"requirements.lock: {len(lines)} packages")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
