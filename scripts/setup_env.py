"""Make .venv with the pinned versions, once: `make` calls it, any Python 3.11+ runs it, it needs nothing installed.

A stamp in .venv holds hashes of everything that decides its content; while they are the same there is nothing to do.

Environment:
    TORCH_INDEX: index to take torch from, such as PyTorch's own CPU wheel index; by default pip's configuration.
    PIP_ARGS: more arguments for every `pip install`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shlex
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from system_packages import apt_install

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "pruning-lib.stamp"
PINS = ("requirements-torch.txt", "requirements.lock", "requirements-no-deps.txt")
# diffusers, numpy and scipy at the pinned versions ask for it; the package itself runs on 3.10.
MINIMUM = (3, 11)


def wanted() -> list[str]:
    """Return the two lines the stamp must hold: a hash of the pins and this Python, a hash of our own metadata."""
    pins = hashlib.sha256(f"{sys.version_info[:2]} {ROOT}".encode())
    for name in PINS:
        pins.update((ROOT / name).read_bytes())
    return [pins.hexdigest(), hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest()]


def present() -> list[str]:
    """Return the stamp's lines, empty strings where there is no usable environment."""
    lines = STAMP.read_text().split() if STAMP.is_file() and PYTHON.exists() else []
    return [*lines, "", ""][:2]  # a stamp that was cut short means: make it anew


def run(*command: object) -> None:
    print("$", shlex.join(map(str, command)), flush=True)
    subprocess.run(list(map(str, command)), cwd=ROOT, check=True)


def pip(*arguments: str) -> None:
    extra = shlex.split(os.environ.get("PIP_ARGS", ""))
    run(PYTHON, "-m", "pip", "install", "--disable-pip-version-check", "--no-input", *extra, *arguments)


def create_venv() -> None:
    command = [sys.executable, "-m", "venv", "--clear", str(VENV)]
    result = subprocess.run(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if result.returncode == 0:
        return
    # Debian and Ubuntu ship venv's other half, ensurepip, in a package of its own.
    if importlib.util.find_spec("ensurepip"):
        raise SystemExit(f"No virtual environment can be made in {VENV}:\n{result.stdout.strip()}")
    if not apt_install([f"python{sys.version_info[0]}.{sys.version_info[1]}-venv"], why="to make .venv"):
        raise SystemExit("No virtual environment can be made: install your system's python3-venv, then run make again.")
    run(*command)


def install() -> None:
    index = os.environ.get("TORCH_INDEX")
    # torch first and alone: a later package must find it there, or pip may plan another build of it.
    pip(*(["--index-url", index] if index else []), "-r", "requirements-torch.txt")
    pip("-r", "requirements.lock")
    pip("--no-deps", "-r", "requirements-no-deps.txt")


def main() -> int:
    if sys.version_info < MINIMUM:
        print(
            f"Python {sys.version.split()[0]} is too old for the book's pinned versions: at least "
            f"{'.'.join(map(str, MINIMUM))} is needed. Name another one with `make book PYTHON=/path/to/python3.12`.",
            file=sys.stderr,
        )
        return 1
    pins, metadata = wanted()
    old_pins, old_metadata = present()
    if (old_pins, old_metadata) == (pins, metadata):
        return 0
    try:
        if old_pins != pins:
            print("Setting up .venv (a few minutes the first time, about 2 GB)", flush=True)
            create_venv()
            install()
        pip("--no-deps", "--editable", ".")
    except KeyboardInterrupt:
        print("\nSet-up stopped. Nothing half-done is kept: run make again.", file=sys.stderr)
        return 130
    except subprocess.CalledProcessError as error:
        message = f"Set-up stopped: the command above failed ({error.returncode}). Run make again to retry."
        print(f"\n{message}", file=sys.stderr)
        return 1
    STAMP.write_text(f"{pins}\n{metadata}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
