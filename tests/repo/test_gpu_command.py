"""`make gpu` on a machine with a Python of its own: what it adds there, what it leaves alone, and what it says."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import gpu
import gpu_wheels

ROOTS = {"diffusers", "torch-pruning", "deepcache", "clean-fid", "pytest", "huggingface-hub"}
PINS = gpu_wheels.pins()


def make_wheel(folder: Path, name: str, version: str = "1.0", *, tag="py3-none-any", requires=(), python=">=3") -> Path:
    """Write a small wheel that pip takes; its one module holds its version."""
    folder.mkdir(exist_ok=True)
    stem = f"{name.replace('-', '_')}-{version}"
    path, info = folder / f"{stem}-{tag}.whl", f"{stem}.dist-info"
    asked = "".join(f"Requires-Dist: {text}\n" for text in requires)
    about = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nRequires-Python: {python}\n{asked}"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{stem.partition('-')[0]}_module.py", f"version = {version!r}\n")
        archive.writestr(f"{info}/METADATA", about)
        archive.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


def refused(capsys, *words: object) -> str:
    """Return the one line with which the command ends."""
    with pytest.raises(SystemExit) as stopped:
        gpu.main([*map(str, words)])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.count("\n") == 1
    return error


def closure(names: set[str], python: str) -> set[str]:
    """Return packages with all that they ask for on one Python, from what is installed here."""
    marks = {"extra": "", "python_version": python, "python_full_version": f"{python}.0"}
    found, todo = set(), list(names)
    while todo:
        name = canonicalize_name(todo.pop())
        if name not in found | {"torchvision"}:  # see README, "torchvision"
            found.add(name)
            asked = map(Requirement, importlib.metadata.requires(name) or [])
            todo += [one.name for one in asked if one.marker is None or one.marker.evaluate(marks)]
    return found


@pytest.mark.parametrize("python", ["3.11", "3.14"])
def test_with_the_wheels_nothing_is_missing(python: str) -> None:
    ours, theirs = {*gpu_wheels.PACKAGES}, closure({*gpu_wheels.ASSUMED}, python)
    assert closure(ours, python) <= ours | theirs
    assert ours <= closure({*ROOTS}, python), "none is brought in vain"


def test_every_pin_is_the_locks_but_one_which_old_and_new_machines_take(root: Path) -> None:
    files = [root / "requirements.lock", root / "requirements-no-deps.txt"]
    locked = dict(line.split(";")[0].strip().split("==") for path in files for line in path.open() if "==" in line)
    assert list(PINS) == list(gpu_wheels.PACKAGES)
    assert all(locked[name] == version or name in gpu_wheels.OTHER_PINS for name, version in PINS.items())
    for who in ("diffusers", "transformers"):
        (asked,) = [r for r in map(Requirement, importlib.metadata.requires(who)) if r.name == "huggingface-hub"]
        assert asked.specifier.contains(PINS["huggingface-hub"])
    assert PINS["huggingface-hub"].startswith("1.")  # what transformers 5.17 asks for


def test_pip_collects_exactly_the_pinned_pure_wheels_once(tmp_path: Path, monkeypatch, capsys) -> None:
    index, folder = tmp_path / "index", tmp_path / "my wheels"
    wanted = {make_wheel(index, name, version, requires=("torch",)).name for name, version in PINS.items()}
    make_wheel(index, "charset-normalizer", PINS["charset-normalizer"], tag="cp312-cp312-linux_x86_64")
    make_wheel(index, "diffusers", "99.0")
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_ARGS", f"--no-index --find-links '{index}'")
    assert gpu.main(["collect", str(folder), "--python", "3.12"]) == 0
    said = capsys.readouterr().out
    assert f"{len(gpu_wheels.PACKAGES)} wheels, 0.0 MB" in said and f"WHEELS='{folder}'" in said
    assert {path.name for path in folder.iterdir()} == wanted
    (index / f"zipp-{PINS['zipp']}-py3-none-any.whl").unlink()  # and one without a pure wheel is named
    assert "zipp" in refused(capsys, "collect", tmp_path / "wheels", "--python", "3.12")
    assert not list((tmp_path / "wheels").glob("*.whl"))


def test_collecting_that_was_interrupted_goes_on_and_too_much_is_refused(tmp_path: Path, monkeypatch, capsys) -> None:
    def download(lacking: list[str], version: str, target: Path) -> None:
        paths = [make_wheel(target, *line.split("==")) for line in lacking]
        os.truncate(paths[0], gpu_wheels.LIMIT_MB * 10**6)

    def interrupted(lacking: list[str], version: str, target: Path) -> None:
        download(lacking[:3], version, target)
        raise KeyboardInterrupt

    folder = tmp_path / "wheels"
    monkeypatch.setattr(gpu_wheels, "download", interrupted)
    assert gpu.main(["collect", str(folder)]) == 130 and not list(folder.glob("*.whl"))
    assert "Traceback" not in capsys.readouterr().err
    monkeypatch.setattr(gpu_wheels, "download", download)
    assert "20.0 MB" in refused(capsys, "collect", folder) and not list(folder.glob("*.whl"))
    monkeypatch.setattr(os, "truncate", lambda *given: None)
    assert gpu.main(["collect", str(folder)]) == 0 and len([*folder.iterdir()]) == len(PINS)
    for version in ("3.x", "3.10", "3.12.1"):
        assert "3.11 or later" in refused(capsys, "collect", tmp_path / "other", "--python", version)


class Machine:
    """A machine whose Python has the expected packages and nothing of ours; nothing is run on it."""

    def __init__(self, tmp_path: Path, monkeypatch) -> None:
        self.wheels, self.sites = tmp_path / "wheels", tmp_path / "checkout" / "_build" / "gpu"
        self.versions = dict.fromkeys(gpu_wheels.ASSUMED, "2000.0") | gpu_wheels.OTHER_PINS
        self.site, self.started, self.requires = self.sites / f"site-{gpu.RUNNING}", [], {}
        for name, version in PINS.items():
            make_wheel(self.wheels, name, version)
        monkeypatch.setattr(gpu, "SITES", self.sites)
        monkeypatch.setattr(gpu, "installed", self.versions.get)
        monkeypatch.setattr(gpu.importlib.metadata, "requires", lambda name: self.requires.get(name))
        monkeypatch.setattr(gpu.os, "execve", lambda path, command, names: self.started.append((command, names)))

    def run(self, *options: str) -> int | None:
        return gpu.main(["run", "--wheels", str(self.wheels), "--", *options])

    def added(self) -> set[str]:
        """Return the names of what lies in the folder of modules, by its metadata."""
        return {canonicalize_name(path.name.split("-")[0]) for path in self.site.glob("*.dist-info")}


@pytest.fixture
def machine(tmp_path: Path, monkeypatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def test_only_what_is_missing_is_added_once_and_the_options_arrive(machine: Machine, root: Path, monkeypatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "theirs")
    machine.versions |= {"requests": "2.0", "pytest": "8.1"}
    machine.run("--minutes", "8", "--only", "tests")
    assert machine.added() == {*gpu_wheels.PACKAGES} - {"requests", "pytest", "huggingface-hub"}
    ((command, names),) = machine.started
    assert command == [sys.executable, "-m", "benchmarks", "gpu", "--minutes", "8", "--only", "tests"]
    assert names["PYTHONPATH"].split(os.pathsep) == [str(machine.site), str(root), "theirs"]
    before = machine.site.stat().st_ino
    machine.run()
    assert machine.site.stat().st_ino == before, "the second run unpacks nothing"
    make_wheel(machine.wheels, "diffusers", "9999.0")  # a newer one is taken in place of the older one
    unpack = zipfile.ZipFile.extractall
    for extract, status in ((lambda *_: (_ for _ in ()).throw(KeyboardInterrupt), 130), (unpack, None)):
        assert "9999" not in (machine.site / "diffusers_module.py").read_text(), "whole or not at all"
        monkeypatch.setattr(zipfile.ZipFile, "extractall", extract)
        assert machine.run() == status
    assert "9999" in (machine.site / "diffusers_module.py").read_text()
    assert [path.name for path in machine.sites.iterdir()] == [machine.site.name]


def test_one_that_is_too_old_is_covered_and_versions_that_may_not_fit_are_tried(machine, monkeypatch, capsys) -> None:
    machine.versions |= {"diffusers": "0.30", "zipp": "3.1", "pytest": "8.0", "huggingface-hub": "0.36"}
    machine.requires["transformers"] = ["huggingface-hub<1.0", "numpy<1"]
    make_wheel(machine.wheels, "importlib-metadata", PINS["importlib-metadata"], requires=("zipp>=3.2",))
    asked = ("huggingface-hub>=1.32", "torch>=9999", "torchvision")  # the last two are not a wheel's to say
    make_wheel(machine.wheels, "diffusers", PINS["diffusers"], requires=asked)
    monkeypatch.setattr(gpu, "PROBE", "raise ImportError('no such name')")
    with pytest.raises(SystemExit):
        machine.run()
    said = capsys.readouterr()
    assert "ImportError: no such name" in said.err and not machine.started
    assert "Note: transformers asks for huggingface-hub<1.0, there is 1.33.0\n" in said.out
    monkeypatch.setattr(gpu, "PROBE", "pass")  # they get on all the same
    machine.run()
    assert len(machine.started) == 1 and machine.added() == {*gpu_wheels.PACKAGES} - {"pytest"}


def test_what_cannot_work_is_named_in_one_line(machine: Machine, capsys) -> None:
    def says(*words: str) -> None:
        error = refused(capsys, "run", "--wheels", machine.wheels)
        assert not machine.started and all(word in error for word in words), error

    collect = f"make gpu-wheels WHEELS={machine.wheels} PYTHON_VERSION={gpu.RUNNING}"
    zipp = machine.wheels / f"zipp-{PINS['zipp']}-py3-none-any.whl"
    data = zipp.read_bytes()
    zipp.write_bytes(data.replace(b"version =", b"version +", 1))  # in a module: only unpacking it can tell
    says(str(zipp), "make gpu-wheels")
    zipp.unlink()
    says(collect, "zipp")
    make_wheel(machine.wheels, "zipp", PINS["zipp"], python=">=3.99")
    says(f"{zipp.name}: for another Python", collect)
    zipp.write_bytes(data)
    path = make_wheel(machine.wheels, "torch", "2.99")
    says(path.name, "used as installed")
    path.unlink()
    machine.versions |= {"torch": None, "accelerate": None}
    says("lacks torch, accelerate", sys.executable, "PYTHON=")
    machine.versions |= {"torch": "2.5.1", "accelerate": "1.0"}
    says("torch 2.5.1; pruning_lib needs torch>=2.6")
    machine.wheels.rename(machine.wheels.parent / "elsewhere")
    says(collect, f"no folder {machine.wheels}")


def test_the_whole_way_with_this_python(tmp_path: Path, root: Path) -> None:
    """A checkout with a stand-in for the benchmarks: it imports what came from a wheel, and nothing else changed."""
    checkout = tmp_path / "my checkout"
    for name in ("gpu.py", "gpu_wheels.py", "setup_env.py", "system_packages.py", "../pyproject.toml"):
        (checkout / "scripts").mkdir(parents=True, exist_ok=True)
        (checkout / "scripts" / name).write_text((root / "scripts" / name).read_text())
    (checkout / "benchmarks").mkdir()
    program = "import json, sys, extra_module\nprint(json.dumps([sys.argv[1:], extra_module.__file__]))\nsys.exit(7)\n"
    (checkout / "benchmarks/__main__.py").write_text(program)
    make_wheel(tmp_path / "wheels", "extra", "5.0")
    for name in gpu_wheels.PACKAGES:  # all of these are installed here: an old wheel must not come before them
        make_wheel(tmp_path / "wheels", name, "0.0.1")
    command = [sys.executable, str(checkout / "scripts/gpu.py"), "run", "--wheels", "wheels", "--", "--archive", "a b"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 7, done.stderr
    options, module = json.loads(done.stdout.splitlines()[-1])
    site = checkout / "_build/gpu" / f"site-{gpu.RUNNING}"
    assert options == ["gpu", "--archive", "a b"] and Path(module).parent == site
    assert [path.name for path in site.glob("*.dist-info")] == ["extra-5.0.dist-info"]
