"""The set-up cell as a reader runs it: here, and in a process that believes it is on Colab."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from setup_cell import repository, setup_cell, write

# Runs the cell as a notebook does (IPython, so that %pip is a magic), with pip replaced by a record of what was asked,
# and, for Colab, with modules of its name that record what was called. No network, no kernel.
HARNESS = """
import json, sys, types
from IPython.core.interactiveshell import InteractiveShell

cell, colab = json.loads(sys.stdin.read())
asked, managers = [], []
if colab:
    google, package, output = (types.ModuleType(n) for n in ("google", "google.colab", "google.colab.output"))
    output.enable_custom_widget_manager = lambda: managers.append("enabled")
    package.output = output
    sys.modules.update({"google": google, "google.colab": package, "google.colab.output": output})
shell = InteractiveShell.instance()
shell.register_magic_function(lambda line: asked.append(line), "line", "pip")
result = shell.run_cell(cell)
error = result.error_before_exec or result.error_in_exec
print("\\n" + json.dumps({"asked": asked, "managers": managers, "error": str(error) if error else None}))
"""


def run(cell: str, colab: bool) -> tuple[dict, str]:
    result = subprocess.run(
        [sys.executable, "-c", HARNESS], input=json.dumps([cell, colab]), text=True, capture_output=True, check=True
    )
    *printed, last = result.stdout.strip().splitlines()
    return json.loads(last), "\n".join(printed)


def test_elsewhere_it_installs_nothing_and_says_what_it_runs_on() -> None:
    seen, printed = run(setup_cell("https://github.com/someone/book"), colab=False)
    assert seen == {"asked": [], "managers": [], "error": None}
    assert re.search(r"^(cpu, replay|cuda, live), Python 3\.\d+\.\d+\npruning-lib [\d.]+, torch 2", printed, re.M)


def test_on_colab_it_installs_the_package_and_nothing_else() -> None:
    seen, _ = run(setup_cell("https://github.com/someone/book"), colab=True)
    assert seen["asked"] == ['install --quiet "pruning-lib[book,structured] @ git+https://github.com/someone/book"']
    assert seen["managers"] == ["enabled"]
    assert seen["error"] is None


def test_on_colab_without_an_address_it_says_so_before_pip_runs() -> None:
    seen, _ = run(setup_cell(""), colab=True)
    assert seen["asked"] == []
    assert "address of the book's repository" in seen["error"]


def test_it_is_short() -> None:
    assert len([line for line in setup_cell("").splitlines() if line.strip()]) <= 8


def test_write_puts_the_address_everywhere(tmp_path: Path, root: Path) -> None:
    (tmp_path / "notebooks").mkdir()
    shutil.copy(root / "pyproject.toml", tmp_path)
    chapter = tmp_path / "notebooks" / "01-x.md"
    old = "# T\n\n```{code-cell} python3\n:tags: [remove-input]\n\nold()\n```\n\n"
    chapter.write_text(old + "```{code-cell}\nkept()\n```\n")
    write(tmp_path, "https://github.com/someone/book")
    assert repository(tmp_path) == "https://github.com/someone/book"
    text = chapter.read_text()
    assert setup_cell("https://github.com/someone/book") in text
    assert ":tags: [remove-input]\n" in text and "kept()" in text and "old()" not in text


def test_lower_bounds_leave_colabs_packages_alone(root: Path) -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 reads TOML")
    metadata = tomllib.loads((root / "pyproject.toml").read_text())
    for requirement in metadata["project"]["dependencies"]:
        assert ">=" in requirement and not any(sign in requirement for sign in ("==", "<", "~=", "!=")), requirement
