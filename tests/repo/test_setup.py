"""Setting up on a machine that lacks something: each lack is named, nothing is asked, nothing half-done is kept."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import find_chromium
import lock
import setup_env
import system_packages

OPTIONS = "--disable-pip-version-check --no-input "


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch) -> Path:
    """A folder with the pins and no environment, in place of the repository."""
    for name in (*setup_env.PINS, "pyproject.toml"):
        (tmp_path / name).write_text(f"# {name}\n")
    venv = tmp_path / ".venv"
    paths = {"ROOT": tmp_path, "VENV": venv, "PYTHON": venv / "bin/python", "STAMP": venv / "pruning-lib.stamp"}
    for name, path in paths.items():
        monkeypatch.setattr(setup_env, name, path)
    return tmp_path


@pytest.fixture
def commands(checkout: Path, monkeypatch) -> list[str]:
    """The commands that would have run; making the environment makes its Python."""
    ran: list[str] = []

    def create() -> None:
        ran.append("venv")
        setup_env.PYTHON.parent.mkdir(parents=True)
        setup_env.PYTHON.touch()

    monkeypatch.setattr(setup_env, "create_venv", create)
    monkeypatch.setattr(setup_env, "run", lambda *command: ran.append(" ".join(map(str, command[4:]))))
    return ran


def test_torch_comes_first_alone_and_from_its_own_index(commands: list[str], monkeypatch) -> None:
    monkeypatch.setenv("TORCH_INDEX", "file:///wheels")
    monkeypatch.setenv("PIP_ARGS", "--no-cache-dir")
    assert setup_env.main() == 0
    assert commands == [
        "venv",
        OPTIONS + "--no-cache-dir --index-url file:///wheels -r requirements-torch.txt",
        OPTIONS + "--no-cache-dir -r requirements.lock",
        OPTIONS + "--no-cache-dir --no-deps -r requirements-no-deps.txt",
        OPTIONS + "--no-cache-dir --no-deps --editable .",
    ]


def test_the_second_run_does_nothing_and_a_change_does_what_it_must(commands: list[str], checkout: Path) -> None:
    setup_env.main()
    assert commands[1] == OPTIONS + "-r requirements-torch.txt"
    commands.clear()
    setup_env.main()
    assert commands == []
    (checkout / "pyproject.toml").write_text("# other metadata\n")
    setup_env.main()
    assert commands == [OPTIONS + "--no-deps --editable ."]
    setup_env.PYTHON.unlink()  # a broken environment is made anew
    setup_env.PYTHON.parent.rmdir()
    setup_env.main()
    assert "venv" in commands


@pytest.mark.parametrize("error", [subprocess.CalledProcessError(1, "pip"), KeyboardInterrupt()])
def test_an_install_that_ends_early_is_not_taken_for_done(commands, monkeypatch, capsys, error: BaseException) -> None:
    def fail(*command: object) -> None:
        raise error

    monkeypatch.setattr(setup_env, "run", fail)
    assert setup_env.main() == (130 if isinstance(error, KeyboardInterrupt) else 1)
    assert "un make again" in capsys.readouterr().err and not setup_env.STAMP.exists()


def test_an_old_python_and_a_missing_uv_are_named(monkeypatch, capsys) -> None:
    monkeypatch.setattr(setup_env, "MINIMUM", (99, 0))
    assert setup_env.main() == 1
    error = capsys.readouterr().err
    assert sys.version.split()[0] in error and "at least 99.0" in error and "PYTHON=" in error
    monkeypatch.setattr(lock.shutil, "which", lambda name: None)
    assert lock.main() == 1 and "pip install uv" in capsys.readouterr().err


def test_why_there_is_no_environment_is_said(checkout: Path, monkeypatch) -> None:
    setup_env.VENV.write_text("a file where the folder should be")
    with pytest.raises(SystemExit, match=r"(?s)No virtual environment can be made in .*\.venv:\n.+"):
        setup_env.create_venv()
    monkeypatch.setattr(setup_env.importlib.util, "find_spec", lambda name: None)
    asked: list[list[str]] = []
    monkeypatch.setattr(setup_env, "apt_install", lambda packages, why: asked.append(packages))
    with pytest.raises(SystemExit, match="python3-venv"):
        setup_env.create_venv()
    assert asked == [[f"python{sys.version_info[0]}.{sys.version_info[1]}-venv"]]


def test_a_browser_is_found_or_what_to_do_is_said(tmp_path: Path, monkeypatch, capsys) -> None:
    stub, real = tmp_path / "chromium-browser", tmp_path / "google-chrome"
    stub.write_text("#!/bin/sh\nexec /snap/bin/chromium\n")  # Ubuntu's
    real.write_text("\x7fELF")
    for path in (stub, real):
        path.chmod(0o755)
    monkeypatch.delenv("PRUNING_LIB_CHROMIUM", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_chromium.find() == str(real)
    monkeypatch.setenv("PRUNING_LIB_CHROMIUM", "/no/such/chrome")
    with pytest.raises(SystemExit, match="/no/such/chrome"):
        find_chromium.find()
    monkeypatch.setattr(find_chromium, "find", lambda: None)
    monkeypatch.setattr(find_chromium.sys, "argv", ["find_chromium.py"])
    assert find_chromium.main() == 1 and "playwright install chromium" in capsys.readouterr().err
    monkeypatch.setattr(system_packages.shutil, "which", lambda name: None)
    assert system_packages.apt_install(["chromium"], why="for the site tests") is False
    assert "apt-get install chromium" in capsys.readouterr().err
