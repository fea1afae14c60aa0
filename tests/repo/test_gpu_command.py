"""`make gpu` on a machine with a Python of its own: what it adds there, what it leaves alone, and what it says."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import gpu
import gpu_wheels

ROOTS = {"diffusers", "torch-pruning", "deepcache", "clean-fid", "pytest", "huggingface-hub"}
OLD = "0.0.1"


def make_wheel(
    folder: Path,
    name: str,
    version: str = "1.0",
    *,
    tag: str = "py3-none-any",
    requires: tuple[str, ...] = (),
    python: str = ">=3",
    files: dict[str, str] | None = None,
) -> Path:
    """Write a small wheel that pip takes; its one module, where `files` names no other, holds its version."""
    plain = name.replace("-", "_")
    stem = f"{plain}-{version}"
    metadata = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nRequires-Python: {python}"]
    metadata += [f"Requires-Dist: {text}" for text in requires]
    files = (files or {f"{plain}_module.py": f"version = {version!r}\n"}) | {
        f"{stem}.dist-info/METADATA": "\n".join(metadata) + "\n",
        f"{stem}.dist-info/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n",
        f"{stem}.dist-info/RECORD": "",
    }
    folder.mkdir(exist_ok=True)
    path = folder / f"{stem}-{tag}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for inner, text in files.items():
            archive.writestr(inner, text)
    return path


@pytest.fixture
def refused(capsys) -> Callable[..., str]:
    """Return a function that gives the one line with which the command ends."""

    def refuse(*words: object) -> str:
        with pytest.raises(SystemExit) as stopped:
            gpu.main([*map(str, words)])
        error = capsys.readouterr().err
        assert stopped.value.code == 2 and error.count("\n") == 1
        return error

    return refuse


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


def missing(packages: set[str], python: str) -> set[str]:
    """Return what a machine with the expected packages and `packages` would lack."""
    there = closure(set(gpu_wheels.ASSUMED), python) | packages
    return closure(packages, python) - there


# --- which wheels


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13", "3.14"])
def test_with_the_wheels_nothing_is_missing(python: str) -> None:
    assert missing(set(gpu_wheels.PACKAGES), python) == set()


def test_a_wheel_that_was_left_out_is_seen_or_may_be_there() -> None:
    # What these bring depends on their version: huggingface-hub 1 brings certifi and idna, 2 brings other packages.
    perhaps = {"idna", "pygments"}
    for left_out in {*gpu_wheels.PACKAGES} - ROOTS:
        lacking = missing({*gpu_wheels.PACKAGES} - {left_out}, "3.12")
        assert lacking == (set() if left_out in perhaps else {left_out})


def test_every_pin_is_the_locks_but_one_which_old_and_new_machines_take(root: Path) -> None:
    files = [root / "requirements.lock", root / "requirements-no-deps.txt"]
    locked = [tuple(line.split(";")[0].strip().split("==")) for path in files for line in path.open() if "==" in line]
    pins = gpu_wheels.pins()
    assert list(pins) == list(gpu_wheels.PACKAGES)
    for name, version in pins.items():
        (pinned,) = [v for n, v in locked if n == name]
        assert pinned == version or name in gpu_wheels.OTHER_PINS
    hub = pins["huggingface-hub"]
    for who in ("diffusers", "transformers"):
        (asked,) = [r for r in map(Requirement, importlib.metadata.requires(who)) if r.name == "huggingface-hub"]
        assert asked.specifier.contains(hub)
    assert SpecifierSet("<2").contains(hub)  # what transformers 5.17 asks for


# --- collecting them


@pytest.fixture
def index(tmp_path: Path, monkeypatch) -> Path:
    """A package index that is a folder: a wheel of every package, and compiled ones that must not be taken."""
    folder = tmp_path / "index"
    for name, version in gpu_wheels.pins().items():
        make_wheel(folder, name, version, requires=("torch",))
    for tag in ("cp312-cp312-linux_x86_64", "py3-none-linux_x86_64"):
        make_wheel(folder, "charset-normalizer", gpu_wheels.pins()["charset-normalizer"], tag=tag)
    make_wheel(folder, "diffusers", "99.0")
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_ARGS", f"--no-index --find-links '{folder}'")
    return folder


def test_pip_collects_exactly_the_pinned_pure_wheels_once(index: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    folder = tmp_path / "my wheels"
    assert gpu.main(["collect", str(folder), "--python", "3.12"]) == 0
    said = capsys.readouterr().out
    assert f"{len(gpu_wheels.PACKAGES)} wheels, 0.0 MB" in said and f"WHEELS='{folder}'" in said
    found = {path.name for path in folder.iterdir()}
    assert found == {path.name for path in index.glob("*-none-any.whl") if "99.0" not in path.name}
    monkeypatch.setattr(gpu_wheels, "download", lambda *given: pytest.fail("asked the index again"))
    assert gpu.main(["collect", str(folder), "--python", "3.12"]) == 0


def test_a_package_without_a_pure_wheel_is_named_and_none_is_kept(index: Path, tmp_path: Path, refused) -> None:
    version = gpu_wheels.pins()["zipp"]
    (index / f"zipp-{version}-py3-none-any.whl").rename(index / f"zipp-{version}-cp312-cp312-linux_x86_64.whl")
    assert "zipp" in refused("collect", tmp_path / "wheels", "--python", "3.12")
    assert not list((tmp_path / "wheels").glob("*.whl"))


def fake_download(lacking: list[str], version: str, target: Path) -> None:
    for line in lacking:
        make_wheel(target, *line.split("=="))


def test_too_much_is_refused(tmp_path: Path, monkeypatch, refused) -> None:
    def download(lacking: list[str], version: str, target: Path) -> None:
        fake_download(lacking, version, target)
        (largest,) = target.glob("diffusers-*.whl")
        os.truncate(largest, gpu_wheels.LIMIT_MB * 10**6)

    monkeypatch.setattr(gpu_wheels, "download", download)
    error = refused("collect", tmp_path / "wheels")
    assert "20.0 MB" in error and "diffusers" in error
    assert not list((tmp_path / "wheels").glob("*.whl"))


def test_collecting_that_was_interrupted_twice_goes_on(tmp_path: Path, monkeypatch, capsys) -> None:
    def interrupted(lacking: list[str], version: str, target: Path) -> None:
        fake_download(lacking[:3], version, target)
        raise KeyboardInterrupt

    folder = tmp_path / "wheels"
    other = make_wheel(folder, "of-yours")
    for download, status, count in ((interrupted, 130, 0), (interrupted, 130, 0), (fake_download, 0, 17)):
        monkeypatch.setattr(gpu_wheels, "download", download)
        assert gpu.main(["collect", str(folder)]) == status
        assert len({*folder.glob("*.whl")} - {other}) == count
        assert "Traceback" not in capsys.readouterr().err
    assert other.exists() and not (folder / "part").exists()


@pytest.mark.parametrize("version", ["3", "3.x", "3.10", "", "4.1", "3.12.1"])
def test_a_python_version_that_cannot_be(version: str, tmp_path: Path, refused) -> None:
    error = refused("collect", tmp_path / "wheels", "--python", version)
    assert repr(version) in error and "3.11 or later" in error and not (tmp_path / "wheels").exists()


# --- running


class Machine:
    """A machine whose Python has the expected packages and nothing of ours; nothing is run on it."""

    def __init__(self, tmp_path: Path, monkeypatch) -> None:
        self.wheels, self.sites = tmp_path / "wheels", tmp_path / "checkout" / "_build" / "gpu"
        self.versions: dict[str, str | None] = {name: "2000.0" for name in gpu_wheels.ASSUMED}
        self.versions["huggingface-hub"] = gpu_wheels.OTHER_PINS["huggingface-hub"]
        self.requires: dict[str, list[str]] = {}
        self.started: list[tuple[list[str], dict[str, str]]] = []
        for name, version in gpu_wheels.pins().items():
            make_wheel(self.wheels, name, version)
        monkeypatch.setattr(gpu, "SITES", self.sites)
        monkeypatch.setattr(gpu, "installed", self.versions.get)
        monkeypatch.setattr(gpu.importlib.metadata, "requires", lambda name: self.requires.get(name))
        monkeypatch.setattr(gpu.os, "execve", lambda path, command, names: self.started.append((command, names)))

    @property
    def site(self) -> Path:
        return self.sites / f"site-{gpu.RUNNING}"

    def run(self, *options: str) -> int | None:
        return gpu.main(["run", "--wheels", str(self.wheels), "--", *options])

    def added(self) -> set[str]:
        """Return the names of what lies in the folder of modules, by its metadata."""
        return {canonicalize_name(path.name.split("-")[0]) for path in self.site.glob("*.dist-info")}


@pytest.fixture
def machine(tmp_path: Path, monkeypatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


@pytest.fixture
def refuses(machine: Machine, refused) -> Callable[[], str]:
    """Return a function that gives the one line with which a run ends, after which nothing was started."""

    def refuse() -> str:
        error = refused("run", "--wheels", machine.wheels)
        assert not machine.started
        return error

    return refuse


def test_only_what_is_missing_is_added_and_the_options_arrive(machine: Machine, root: Path, monkeypatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "theirs")
    machine.versions |= {"requests": "2.0", "pytest": "8.1"}
    machine.run("--minutes", "8", "--only", "tests")
    assert machine.added() == {*gpu_wheels.PACKAGES} - {"requests", "pytest", "huggingface-hub"}
    ((command, names),) = machine.started
    assert command == [sys.executable, "-m", "benchmarks", "gpu", "--minutes", "8", "--only", "tests"]
    assert names["PYTHONPATH"].split(os.pathsep) == [str(machine.site), str(root), "theirs"]


def test_one_that_is_too_old_is_covered_by_ours(machine: Machine, capsys) -> None:
    machine.versions |= {"diffusers": "0.30", "zipp": "3.1", "pytest": "8.0", "huggingface-hub": "1.5.0"}
    make_wheel(machine.wheels, "importlib-metadata", gpu_wheels.pins()["importlib-metadata"], requires=("zipp>=3.2",))
    make_wheel(
        machine.wheels,
        "diffusers",
        gpu_wheels.pins()["diffusers"],
        requires=("huggingface-hub>=1.32", "torch>=9999", "torchvision"),
    )
    machine.run()
    assert machine.added() == {*gpu_wheels.PACKAGES} - {"pytest"}
    assert "Note" not in capsys.readouterr().out  # what a wheel asks of torch and torchvision is not its to say


def test_the_second_run_unpacks_nothing_and_a_new_wheel_does(machine: Machine) -> None:
    files = {"extra-1.0.data/purelib/extra/__init__.py": "", "extra-1.0.data/scripts/extra": "#!python\n"}
    make_wheel(machine.wheels, "extra", files=files)
    machine.run()
    assert (machine.site / "extra" / "__init__.py").exists(), "modules in a wheel's data folder are found"
    before = machine.site.stat().st_ino
    machine.run()
    assert machine.site.stat().st_ino == before and len(machine.started) == 2
    make_wheel(machine.wheels, "diffusers", "0.100.0")  # a newer one is taken in place of the older one
    machine.run()
    assert machine.site.stat().st_ino != before
    assert (machine.site / "diffusers_module.py").read_text() == "version = '0.100.0'\n"


def test_unpacking_that_was_interrupted_twice_loses_nothing(machine: Machine, monkeypatch, capsys) -> None:
    machine.run()
    make_wheel(machine.wheels, "diffusers", "9999.0")
    unpack, seen = zipfile.ZipFile.extractall, []

    def interrupted(archive: zipfile.ZipFile, folder: Path) -> None:
        seen.append(archive.filename)
        if len(seen) % 4 == 0:
            raise KeyboardInterrupt
        unpack(archive, folder)

    monkeypatch.setattr(zipfile.ZipFile, "extractall", interrupted)
    for _ in range(2):
        assert machine.run() == 130
        assert "same command again" in capsys.readouterr().err
        assert "9999" not in (machine.site / "diffusers_module.py").read_text()
    monkeypatch.setattr(zipfile.ZipFile, "extractall", unpack)
    machine.run()
    assert "9999" in (machine.site / "diffusers_module.py").read_text()
    assert [path.name for path in machine.sites.iterdir()] == [machine.site.name]


def test_no_folder_and_no_wheels_name_the_command(machine: Machine, refuses) -> None:
    command = f"make gpu-wheels WHEELS={machine.wheels} PYTHON_VERSION={gpu.RUNNING}"
    for path in machine.wheels.glob("[!d]*.whl"):
        path.unlink()
    error = refuses()
    assert command in error and "zipp" in error and "diffusers" not in error
    machine.wheels.rename(machine.wheels.parent / "elsewhere")
    error = refuses()
    assert command in error and f"no folder {machine.wheels}" in error


@pytest.mark.parametrize("wrong", [{"tag": "cp27-cp27m-linux_x86_64"}, {"python": "<3"}, {"python": ">=3.99"}])
def test_a_wheel_for_another_python_is_named(machine: Machine, wrong: dict[str, str], refuses) -> None:
    version = gpu_wheels.pins()["zipp"]
    (machine.wheels / f"zipp-{version}-py3-none-any.whl").unlink()
    path = make_wheel(machine.wheels, "zipp", version, **wrong)
    error = refuses()
    assert f"{path.name}: for another Python" in error and f"PYTHON_VERSION={gpu.RUNNING}" in error
    machine.versions["zipp"] = "4.0"  # where the machine has one, the wheel does not matter
    machine.run()
    assert "zipp" not in machine.added()


@pytest.mark.parametrize("name", ["torch", "numpy", "torchvision"])
def test_torch_and_numpy_are_never_taken_from_a_wheel(machine: Machine, name: str, refuses) -> None:
    path = make_wheel(machine.wheels, name, "2.99")
    error = refuses()
    assert path.name in error and "used as installed" in error and not machine.sites.exists()


@pytest.mark.parametrize("cut", ["half", "a byte", "name", "no metadata"])
def test_a_damaged_wheel_is_named(machine: Machine, cut: str, refuses) -> None:
    path = make_wheel(machine.wheels, "zipp", gpu_wheels.pins()["zipp"])
    data = path.read_bytes()
    if cut == "half":
        path.write_bytes(data[: len(data) // 2])
    elif cut == "a byte":  # in a module: only unpacking it can tell
        path.write_bytes(data.replace(b"version =", b"version +", 1))
    elif cut == "name":
        path = path.rename(machine.wheels / "zipp.whl")
    else:
        zipfile.ZipFile(path, "w").close()
    error = refuses()
    assert str(path) in error and "make gpu-wheels" in error and not machine.site.exists()


def test_what_a_python_lacks_is_named(machine: Machine, refuses) -> None:
    machine.versions |= {"torch": None, "accelerate": None}
    error = refuses()
    assert "lacks torch, accelerate" in error and sys.executable in error and "PYTHON=" in error
    machine.versions |= {"torch": "2.5.1+cu124", "accelerate": "1.0"}
    assert "torch 2.5.1+cu124; pruning_lib needs torch>=2.6" in refuses()
    for enough in ("2.11.0a0+git", ""):  # a build of the machine's owner; one without metadata
        machine.versions["torch"] = enough
        machine.run()
    assert len(machine.started) == 2


def test_versions_that_ask_for_each_other_in_vain_are_tried(machine: Machine, monkeypatch, capsys) -> None:
    machine.requires["transformers"] = ["huggingface-hub<1.0", "numpy<1"]
    machine.versions["huggingface-hub"] = "0.36"
    make_wheel(machine.wheels, "diffusers", gpu_wheels.pins()["diffusers"], requires=("huggingface-hub>=1.32",))
    monkeypatch.setattr(gpu, "PROBE", "raise ImportError('no such name')")
    with pytest.raises(SystemExit) as stopped:
        machine.run()
    said = capsys.readouterr()
    assert stopped.value.code == 2 and "ImportError: no such name" in said.err and not machine.started
    assert "Note: transformers asks for huggingface-hub<1.0, there is 1.33.0\n" in said.out
    monkeypatch.setattr(gpu, "PROBE", "pass")  # they get on all the same
    machine.run()
    assert len(machine.started) == 1


@pytest.mark.parametrize("command", ["run", "collect"])
def test_a_place_that_cannot_be_written_is_named(machine: Machine, command: str, monkeypatch, refused) -> None:
    def refuse(path: Path, *given: object, **named: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    words, place = {"run": (["--wheels"], machine.sites), "collect": ([], machine.wheels)}[command]
    assert f"Permission denied: {place}" in refused(command, *words, machine.wheels)


def test_without_a_usable_home_the_caches_lie_in_the_checkout(machine: Machine, tmp_path: Path, monkeypatch) -> None:
    for name in ("HF_HOME", "MPLCONFIGDIR", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert "TRITON_CACHE_DIR" not in gpu.environment(machine.site)
    monkeypatch.setenv("HOME", str(tmp_path / "no such home"))
    monkeypatch.setenv("HF_HOME", "of yours")
    names = gpu.environment(machine.site)
    assert names["HF_HOME"] == "of yours"
    assert names["TRITON_CACHE_DIR"].startswith(str(machine.sites))
    assert names["TRITON_CACHE_DIR"] != names["TORCHINDUCTOR_CACHE_DIR"]


def test_the_whole_way_with_this_python(tmp_path: Path, root: Path) -> None:
    """A checkout with a stand-in for the benchmarks: it imports what came from a wheel, and nothing else changed."""
    checkout = tmp_path / "my checkout"
    (checkout / "scripts").mkdir(parents=True)
    for name in ("gpu.py", "gpu_wheels.py", "setup_env.py", "system_packages.py"):
        (checkout / "scripts" / name).write_text((root / "scripts" / name).read_text())
    (checkout / "pyproject.toml").write_text((root / "pyproject.toml").read_text())
    (checkout / "benchmarks").mkdir()
    (checkout / "benchmarks" / "__main__.py").write_text(
        "import json, sys, extra_module, torch\n"
        "print(json.dumps([sys.argv[1:], extra_module.version, extra_module.__file__, torch.__file__]))\n"
        "sys.exit(7)\n"
    )
    make_wheel(tmp_path / "wheels", "extra", "5.0")
    for name in gpu_wheels.PACKAGES:  # all of these are installed here: an old wheel must not come before them
        make_wheel(tmp_path / "wheels", name, OLD, files={f"{name.replace('-', '_')}/__init__.py": "1 / 0\n"})
    command = [sys.executable, checkout / "scripts" / "gpu.py", "run", "--wheels", "wheels", "--", "--archive", "a b"]
    done = subprocess.run(list(map(str, command)), cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 7, done.stderr
    options, version, module, torch = json.loads(done.stdout.splitlines()[-1])
    assert options == ["gpu", "--archive", "a b"] and version == "5.0"
    assert Path(module).parent == checkout / "_build" / "gpu" / f"site-{gpu.RUNNING}"
    assert Path(torch).is_relative_to(sys.prefix)
    assert importlib.metadata.version("diffusers") != OLD
