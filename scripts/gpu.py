"""Run `python -m benchmarks gpu` with a Python that is already there, on a machine that may have no network.

    scripts/gpu.py collect FOLDER --python 3.12    where there is a network: the wheels, about 10 MB
    scripts/gpu.py run --wheels FOLDER -- OPTIONS  where there is a GPU: OPTIONS go to `python -m benchmarks gpu`

`run` changes nothing in the Python that runs it. What that Python lacks is unpacked from FOLDER into
_build/gpu/site-X.Y, which only the measurements see; torch and numpy are used as they are.
A wheel is unpacked without pip: a machine's Python may have none, and pip's own settings (a constraints file,
"user" installs, "only in a virtual environment") must not decide what happens here.
"""

from __future__ import annotations

import argparse
import email.parser
import hashlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parent))
from gpu_wheels import ASSUMED, PACKAGES, RUNNING, collect, collecting, stop
from setup_env import ROOT

# Another build of these would not fit the machine's driver, or each other: only installed ones are used.
NEVER = ("torch", "torchvision", "triton", "numpy")
SITES = ROOT / "_build" / "gpu"
LIBRARY = "pruning_lib"
PROBE = "import transformers, torch_pruning, pytest; from diffusers import StableDiffusionPipeline"


@dataclass(frozen=True)
class Wheel:
    """One wheel file: its normalised name, its version, what it asks for, whether this Python can use it."""

    path: Path
    name: str
    version: str
    requires: tuple[str, ...]
    fits: bool


def installed(name: str) -> str | None:
    """Return an installed package's version; '' where only its module is found; None without either."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        module = {"pillow": "PIL"}.get(name, name)
        return "" if name in ASSUMED and importlib.util.find_spec(module) else None


def lack(names: list[str]) -> NoReturn:
    """End because this Python lacks packages that are not brought along."""
    stop(
        f"{sys.executable} lacks {', '.join(names)}. `make gpu` brings small packages only: "
        "install these for it, or name another Python, PYTHON=/path/to/python3"
    )


def read_wheel(path: Path) -> Wheel:
    """Read a wheel's name and metadata; one that cannot be read ends the program."""
    from packaging.specifiers import SpecifierSet
    from packaging.tags import sys_tags
    from packaging.utils import InvalidWheelFilename, parse_wheel_filename

    try:
        name, version, _, tags = parse_wheel_filename(path.name)
        with zipfile.ZipFile(path) as archive:
            (metadata,) = [n for n in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", n)]
            fields = email.parser.BytesParser().parsebytes(archive.read(metadata), headersonly=True)
    except (InvalidWheelFilename, zipfile.BadZipFile, ValueError) as error:
        stop(f"{path} is no whole wheel ({error}): remove it, then {collecting(path.parent)}")
    running = ".".join(map(str, sys.version_info[:3]))
    fits = SpecifierSet(fields.get("Requires-Python", "")).contains(running) and bool(tags & set(sys_tags()))
    return Wheel(path, str(name), str(version), tuple(fields.get_all("Requires-Dist", [])), fits)


def demands(wheels: list[Wheel]) -> dict[str, list[tuple[str, str]]]:
    """Return who asks for which versions of a package: pyproject.toml, what is installed, and the wheels."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    # read as text: tomllib came with Python 3.11
    bounds = re.findall(r'"([\w-]+>=[\d.]+)', (ROOT / "pyproject.toml").read_text("utf-8"))
    texts = {LIBRARY: bounds} | {name: importlib.metadata.requires(name) for name in ASSUMED if installed(name)}
    texts |= {wheel.name: wheel.requires for wheel in wheels}
    found: dict[str, list[tuple[str, str]]] = {}
    for who, lines in texts.items():
        for asked in map(Requirement, lines or ()):
            if asked.marker is None or asked.marker.evaluate({"extra": ""}):
                found.setdefault(canonicalize_name(asked.name), []).append((who, str(asked.specifier)))
    return found


def met(version: str | None, what: str) -> bool:
    """Return whether a version is one of those asked for; one that is not known ('') is taken to be."""
    from packaging.specifiers import SpecifierSet

    return version == "" or version is not None and SpecifierSet(what).contains(version, prereleases=True)


def choose(folder: Path) -> tuple[list[Wheel], list[str]]:
    """Return the wheels that this Python needs, and what is asked for in vain."""
    from packaging.version import Version

    if not folder.is_dir():
        stop(f"There is no folder {folder}. On a machine with a network: {collecting(folder)}")
    wheels = [read_wheel(path) for path in sorted(folder.glob("*.whl"))]
    if refused := [wheel.path.name for wheel in wheels if wheel.name in NEVER]:
        stop(f"{', '.join(refused)} in {folder}: {', '.join(NEVER)} are used as installed; remove the file")
    best = {w.name: w for w in sorted(wheels, key=lambda w: Version(w.version)) if w.fits}
    there = {name: installed(name) for name in {*ASSUMED, *PACKAGES, *best}}
    if lacking := [name for name in PACKAGES if there[name] is None and name not in best]:
        other = [wheel.path.name for wheel in wheels if wheel.name in lacking]
        note = f" ({', '.join(other)}: for another Python)" if other else ""
        stop(
            f"{folder} lacks wheels for Python {RUNNING} of {', '.join(lacking)}{note}. "
            f"On a machine with a network: {collecting(folder)}"
        )
    if absent := [name for name in ASSUMED if there[name] is None and name not in best]:
        lack(absent)
    asked = demands(list(best.values()))
    # An installed one that does not do stays where it is: ours comes first on the path of the measurements.
    unfit = {n for n, pairs in asked.items() if n in best and not all(met(there[n], what) for _, what in pairs)}
    chosen = [wheel for name, wheel in sorted(best.items()) if there[name] is None or name in unfit]
    return chosen, doubts(chosen, asked)


def doubts(chosen: list[Wheel], asked: dict[str, list[tuple[str, str]]]) -> list[str]:
    """Return the demands of and on the chosen wheels that are not met; end where one of the library is not."""
    ours = {wheel.name: wheel.version for wheel in chosen}
    found = []
    for name, who, what in ((name, *pair) for name, pairs in asked.items() for pair in pairs):
        version = ours[name] if name in ours else installed(name)
        if met(version, what):
            continue
        if who == LIBRARY and name in ASSUMED:
            stop(f"{sys.executable} has {name} {version}; pruning_lib needs {name}{what}: upgrade it there")
        # clean-fid asks for torchvision, which nothing here needs
        if who != LIBRARY and name not in NEVER and (who in ours or name in ours):
            found.append(f"{who} asks for {name}{what}, there is {version or 'none'}")
    return found


def unpack(wheels: list[Wheel]) -> Path:
    """Unpack wheels into the folder of this Python's version, unless they are there already; return it."""
    site, part = SITES / f"site-{RUNNING}", SITES / f"part-{RUNNING}"
    stamp = "".join(f"{w.path.name} {hashlib.sha256(w.path.read_bytes()).hexdigest()}\n" for w in wheels)
    if (site / "wheels.txt").is_file() and (site / "wheels.txt").read_text("utf-8") == stamp:
        return site
    shutil.rmtree(part, ignore_errors=True)  # of a run that was interrupted
    part.mkdir(parents=True)
    for wheel in wheels:
        try:
            with zipfile.ZipFile(wheel.path) as archive:
                archive.extractall(part)
        except (zipfile.BadZipFile, zlib.error) as error:
            stop(f"{wheel.path} is damaged ({error}): remove it, then {collecting(wheel.path.parent)}")
    for library in part.glob("*.data/*lib"):  # where a wheel may put some of its modules
        shutil.copytree(library, part, dirs_exist_ok=True)
    (part / "wheels.txt").write_text(stamp, "utf-8")
    if site.exists():
        shutil.rmtree(site)
    os.replace(part, site)  # whole or not at all
    return site


def environment(site: Path) -> dict[str, str]:
    """Return the environment of the measurements: our modules first; without a usable home, caches of our own."""
    paths = [str(site), str(ROOT), os.environ.get("PYTHONPATH", "")]
    changed = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    if not os.access(os.path.expanduser("~"), os.W_OK):
        for name in ("HF_HOME", "MPLCONFIGDIR", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"):
            changed.setdefault(name, str(SITES / "cache" / name.lower()))
    return changed


def run(folder: Path, options: list[str]) -> NoReturn:
    """Make the folder of modules and go over into `python -m benchmarks gpu`."""
    if importlib.util.find_spec("packaging") is None:  # then nothing else can be compared either
        lack([name for name in ASSUMED if installed(name) is None])
    chosen, open_demands = choose(folder)
    site = unpack(chosen)
    variables = environment(site)
    used = ", ".join(f"{name} {installed(name)}" for name in ("torch", "transformers", "numpy"))
    added = ", ".join(f"{wheel.name} {wheel.version}" for wheel in chosen) or "nothing"
    print(f"Python {RUNNING} with {used} as installed; added in {site}: {added}", flush=True)
    if open_demands:
        print("Note:", "; ".join(open_demands), flush=True)
        probe = subprocess.run([sys.executable, "-c", PROBE], env=variables, capture_output=True, text=True)
        if probe.returncode:
            said = re.findall(r"^\w*Error: .+", probe.stderr, re.M) or ["no reason given"]
            stop(f"These versions do not work together (see the note): {said[-1]}. Upgrade them in {sys.executable}")
    os.execve(sys.executable, [sys.executable, "-m", "benchmarks", "gpu", *options], variables)


def main(arguments: list[str]) -> int:
    """Run one of the two commands; returns the exit status."""
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    arguments, options = arguments[:cut], arguments[cut + 1 :]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("collect", help="fill a folder with wheels, from the package index")
    one.add_argument("folder", type=Path)
    one.add_argument("--python", default=RUNNING, metavar="X.Y", help="the other machine's Python version")
    two = commands.add_parser("run", help="measure with this Python; what follows -- goes to the measurements")
    two.add_argument("--wheels", type=Path, required=True, metavar="FOLDER")
    given = parser.parse_args(arguments)
    try:
        if given.command == "collect":
            return collect(given.folder, given.python)
        run(given.wheels, options)
    except KeyboardInterrupt:
        print("\nStopped. Nothing half-done is kept: give the same command again.", file=sys.stderr)
        return 130
    except OSError as error:
        where = "" if error.filename is None else f": {error.filename}"
        stop(f"{error.strerror}{where}. This command must read the wheels and write to their folder or the checkout")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
