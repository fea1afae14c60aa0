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


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch) -> Path:
    """A folder with the pins and no environment, in place of the repository."""
    for name in (*setup_env.PINS, "pyproject.toml"):
        (tmp_path / name).write_text(f"# {name}\n")
    venv = tmp_path / ".venv"
    monkeypatch.setattr(setup_env, "ROOT", tmp_path)
    monkeypatch.setattr(setup_env, "VENV", venv)
    monkeypatch.setattr(setup_env, "PYTHON", venv / "bin" / "python")
    monkeypatch.setattr(setup_env, "STAMP", venv / "pruning-lib.stamp")
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


def test_torch_comes_first_and_clean_fid_without_its_dependencies(commands: list[str]) -> None:
    assert setup_env.main() == 0
    options = "--disable-pip-version-check --no-input "
    assert commands == [
        "venv",
        options + "-r requirements-torch.txt",
        options + "-r requirements.lock",
        options + "--no-deps -r requirements-no-deps.txt",
        options + "--no-deps --editable .",
    ]


def test_the_index_of_torch_is_for_torch_only(commands: list[str], monkeypatch) -> None:
    monkeypatch.setenv("TORCH_INDEX", "file:///wheels")
    monkeypatch.setenv("PIP_ARGS", "--no-cache-dir")
    setup_env.main()
    assert [("--index-url file:///wheels" in line) for line in commands] == [False, True, False, False, False]
    assert all("--no-cache-dir" in line for line in commands[1:])


def test_the_second_run_does_nothing_and_a_change_does_what_it_must(commands: list[str], checkout: Path) -> None:
    setup_env.main()
    commands.clear()
    setup_env.main()
    assert commands == []
    (checkout / "pyproject.toml").write_text("# other metadata\n")
    setup_env.main()
    assert len(commands) == 1 and commands[0].endswith("--editable .")
    setup_env.PYTHON.unlink()  # a broken environment is made anew
    setup_env.PYTHON.parent.rmdir()
    setup_env.main()
    assert "venv" in commands


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [(subprocess.CalledProcessError(1, "pip"), 1, "Run make again"), (KeyboardInterrupt(), 130, "run make again")],
)
def test_an_install_that_ends_early_is_not_taken_for_done(
    commands: list[str], monkeypatch, capsys, error: BaseException, status: int, said: str
) -> None:
    def fail(*command: object) -> None:
        raise error

    monkeypatch.setattr(setup_env, "run", fail)
    assert setup_env.main() == status and said in capsys.readouterr().err
    assert not setup_env.STAMP.exists()


def test_making_the_lock_without_uv_names_it(monkeypatch, capsys) -> None:
    monkeypatch.setattr(lock.shutil, "which", lambda name: None)
    assert lock.main() == 1
    assert "pip install uv" in capsys.readouterr().err


def test_an_old_python_is_named(monkeypatch, capsys) -> None:
    monkeypatch.setattr(setup_env, "MINIMUM", (99, 0))
    assert setup_env.main() == 1
    error = capsys.readouterr().err
    assert sys.version.split()[0] in error and "at least 99.0" in error and "PYTHON=" in error


def test_another_reason_for_no_environment_is_shown(checkout: Path) -> None:
    setup_env.VENV.write_text("a file where the folder should be")
    with pytest.raises(SystemExit, match=r"(?s)No virtual environment can be made in .*\.venv:\n.+"):
        setup_env.create_venv()


def test_a_missing_venv_module_is_named(checkout: Path, monkeypatch) -> None:
    monkeypatch.setattr(setup_env.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(setup_env.subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, 1))
    asked: list[list[str]] = []
    monkeypatch.setattr(setup_env, "apt_install", lambda packages, why: asked.append(packages))
    with pytest.raises(SystemExit, match="python3-venv"):
        setup_env.create_venv()
    assert asked == [[f"python{sys.version_info[0]}.{sys.version_info[1]}-venv"]]


def test_without_apt_or_rights_the_packages_are_named(monkeypatch, capsys) -> None:
    monkeypatch.setattr(system_packages.shutil, "which", lambda name: None)
    assert system_packages.apt_install(["chromium"], why="for the site tests") is False
    assert "apt-get install chromium" in capsys.readouterr().err


def test_ubuntus_snap_stub_is_passed_over(tmp_path: Path, monkeypatch) -> None:
    stub, real = tmp_path / "chromium-browser", tmp_path / "google-chrome"
    stub.write_text("#!/bin/sh\nexec /snap/bin/chromium\n")
    real.write_text("\x7fELF")
    for path in (stub, real):
        path.chmod(0o755)
    monkeypatch.delenv("PRUNING_LIB_CHROMIUM", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_chromium.find() == str(real)


def test_a_browser_that_is_not_there_says_what_to_do(monkeypatch, capsys) -> None:
    monkeypatch.setenv("PRUNING_LIB_CHROMIUM", "/no/such/chrome")
    with pytest.raises(SystemExit, match="/no/such/chrome"):
        find_chromium.find()
    monkeypatch.setattr(find_chromium, "find", lambda: None)
    monkeypatch.setattr(find_chromium.sys, "argv", ["find_chromium.py"])
    assert find_chromium.main() == 1
    assert "apt-get install chromium" in capsys.readouterr().err
