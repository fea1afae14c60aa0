"""The wheels that `make gpu WHEELS=folder` adds to a Python with PyTorch: which, and `scripts/gpu.py collect`."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

from setup_env import MINIMUM, ROOT

# What a machine with PyTorch is expected to have, with all that these ask for themselves.
ASSUMED = "torch transformers accelerate safetensors numpy scipy pillow tqdm typer matplotlib packaging".split()
# What is brought along, each with all that it asks for; a test follows the chain of requirements to its end.
PACKAGES = """
diffusers importlib-metadata zipp lazy-importer huggingface-hub requests charset-normalizer idna urllib3 certifi
torch-pruning deepcache clean-fid pytest iniconfig pluggy pygments
""".split()
PINS = ("requirements.lock", "requirements-no-deps.txt")
# diffusers 0.42 cannot be imported beside a huggingface-hub before 1.32, transformers 5.17 beside one from 2.0 on.
OTHER_PINS = {"huggingface-hub": "1.33.0"}
LIMIT_MB = 20
RUNNING = f"{sys.version_info[0]}.{sys.version_info[1]}"


def stop(message: str) -> NoReturn:
    """End with one clear line and exit status 2."""
    print(message, file=sys.stderr)
    raise SystemExit(2)


def collecting(folder: Path) -> str:
    """Return the command that collects the wheels for the Python that runs now."""
    return f"make gpu-wheels WHEELS={shlex.quote(str(folder))} PYTHON_VERSION={RUNNING}"


def pins() -> dict[str, str]:
    """Return the pinned version of each of PACKAGES."""
    found: dict[str, str] = {}
    for name in PINS:
        found |= dict(re.findall(r"^([\w.-]+)==([^\s;]+)", (ROOT / name).read_text("utf-8"), re.M))
    found |= OTHER_PINS
    return {name: found[name] for name in PACKAGES}


def held(folder: Path, name: str, version: str) -> list[Path]:
    """Return the pure-Python wheel of one version in a folder, if it is there."""
    names = {path: path.name.lower().replace("_", "-") for path in folder.glob("*-none-any.whl")}
    return [path for path, lowered in names.items() if lowered.startswith(f"{name}-{version}-")]


def download(lacking: list[str], version: str, target: Path) -> None:
    """Let pip download wheels that are pure Python; any other ends the program, as does a missing network."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--no-deps", "--only-binary=:all:", "--dest", str(target), "--python-version", version]
    # these tags, and no platform's: the same folder then does for every machine
    command += ["--implementation", "py", "--abi", "none", "--platform", "any"]
    command += [*shlex.split(os.environ.get("PIP_ARGS", "")), *lacking]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip() and "WARNING" not in line]
        errors = [line for line in said if line.startswith("ERROR")] or said[-1:] or ["no reason given"]
        stop(f"pip could not collect the wheels (none was kept): {errors[0]}")


def collect(folder: Path, version: str) -> int:
    """Fill `folder` with the wheels of PACKAGES for one Python version ('3.12'), from the package index."""
    if not re.fullmatch(r"3\.\d+", version) or tuple(map(int, version.split("."))) < MINIMUM:
        least = ".".join(map(str, MINIMUM))
        stop(f"--python {version!r}: give a version as 3.12; the pinned wheels need Python {least} or later")
    if folder.exists() and not folder.is_dir():
        stop(f"{folder} is a file: name a folder for the wheels")
    wanted = pins()
    part = folder / "part"  # moved from here when all are there: an interrupted run leaves no half a wheel
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    lacking = [f"{name}=={pin}" for name, pin in wanted.items() if not held(folder, name, pin)]
    if lacking:
        print(f"Collecting {len(lacking)} wheels for Python {version}", flush=True)
        download(lacking, version, part)
    files = [path for name, pin in wanted.items() for path in (held(folder, name, pin) or held(part, name, pin))]
    total = sum(path.stat().st_size for path in files) / 1e6
    if total > LIMIT_MB:
        largest = max(files, key=lambda path: path.stat().st_size).name
        stop(f"The wheels take {total:.1f} MB, more than {LIMIT_MB} (the largest: {largest}); none was kept")
    for path in part.iterdir():
        os.replace(path, folder / path.name)
    part.rmdir()
    print(f"{len(files)} wheels, {total:.1f} MB, in {folder}. On the machine with the GPU:")
    print(f"  make gpu PYTHON=python3 WHEELS={shlex.quote(str(folder))}")
    return 0
