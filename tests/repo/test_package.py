"""The two packages: every public name is found, importing is cheap, the wheel holds both; and how a chapter starts."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from pruning_book import start

PACKAGES = ("pruning_lib", "pruning_book")


@pytest.mark.parametrize("name", PACKAGES)
def test_every_public_name_is_there_and_an_unknown_one_lists_them(name: str) -> None:
    package = import_module(name)
    for public in package.__all__:
        assert not isinstance(getattr(package, public), ModuleType), public
    assert set(package.__all__) <= set(dir(package))
    with pytest.raises(AttributeError, match=f"no attribute 'fid'. It has: .*{package.__all__[-1]}"):
        package.fid  # noqa: B018


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_importing_costs_nothing_and_using_brings_nothing_of_the_site() -> None:
    done = python(
        "import sys, pruning_lib, pruning_book\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules\n"
        "from pruning_lib import *\n"
        "print([m for m in ('zoo', 'pruning_book.output', 'matplotlib', 'ipywidgets', 'cleanfid') if m in sys.modules])"
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_a_missing_extra_of_the_book_is_named() -> None:
    for room, missing in (("plots", "matplotlib"), ("widgets", "anywidget")):
        done = python(f"import sys; sys.modules[{missing!r}] = None\nimport pruning_book.{room}")
        assert done.returncode and f"This needs {missing}" in done.stderr, done.stderr
        assert 'pip install "pruning-lib[book]"' in done.stderr


def test_wheel_is_complete(tmp_path: Path, root: Path) -> None:
    source = tmp_path / "source"
    for name in PACKAGES:
        shutil.copytree(root / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "LICENSE-TEXT", "NOTICE"):
        shutil.copy(root / name, source)
    (source / "notebooks").mkdir()  # a second top-level folder must not confuse the packaging
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet", "-w", tmp_path]
    result = subprocess.run([*map(str, command), str(source)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    (wheel,) = tmp_path.glob("pruning_lib-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.rsplit("/", 1)[1] for name in names if "/licenses/" in name} == {"LICENSE", "LICENSE-TEXT", "NOTICE"}
    files = {str(path.relative_to(source)) for package in PACKAGES for path in (source / package).rglob("*.*")}
    assert {"pruning_book/records/emoji_sd_gate.json", "pruning_book/models/emoji-sd/model_index.json"} <= files
    assert {name for name in names if ".dist-info/" not in name} == {f for f in files if (source / f).is_file()}
    assert wheel.stat().st_size < 40 * 2**20


def test_a_session_prints_what_it_returns_and_the_environment_decides_the_mode(monkeypatch, capsys) -> None:
    session = start("replay")
    assert capsys.readouterr().out == f"{session}\n"
    assert session.device in ("cpu", "cuda") and not session.live and session.versions["torch"] != "not installed"
    assert "x not installed" in str(replace(session, versions={"x": "not installed"}))
    monkeypatch.setenv("PRUNING_LIB_MODE", "live")
    assert start().live and not start("replay").live
    monkeypatch.setenv("PRUNING_LIB_MODE", "fast")
    with pytest.raises(ValueError, match=r"'fast'.*'replay' or 'live'.*PRUNING_LIB_MODE"):
        start()
