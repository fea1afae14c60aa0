"""The set-up cell as a reader runs it: here, and in a process that believes it is on Colab."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

from mini_book import chapter
from setup_cell import repository, setup_cell, write

URL = "https://github.com/someone/book"
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
    told = json.dumps([cell, colab])
    done = subprocess.run([sys.executable, "-c", HARNESS], input=told, text=True, capture_output=True, check=True)
    *printed, last = done.stdout.strip().splitlines()
    return json.loads(last), "\n".join(printed)


def test_elsewhere_it_installs_nothing_and_says_what_it_runs_on() -> None:
    seen, printed = run(setup_cell(URL), colab=False)
    assert seen == {"asked": [], "managers": [], "error": None}
    assert re.search(r"^(cpu, replay|cuda, live), Python 3\.\d+\.\d+\npruning-lib [\d.]+, torch 2", printed, re.M)


def test_on_colab_it_installs_the_package_or_says_that_the_address_is_missing() -> None:
    asked = [f'install --quiet "pruning-lib[book,structured] @ git+{URL}"']
    assert run(setup_cell(URL), colab=True)[0] == {"asked": asked, "managers": ["enabled"], "error": None}
    seen, _ = run(setup_cell(""), colab=True)
    assert seen["asked"] == [] and "address of the book's repository" in seen["error"]


def test_write_puts_the_address_everywhere(tmp_path: Path, root: Path) -> None:
    shutil.copy(root / "pyproject.toml", tmp_path)
    path = tmp_path / "notebooks/01-x.md"
    path.parent.mkdir()
    path.write_text(chapter("kept()").replace("python3\nimport sys", "python3\n:tags: [remove-input]\n\nold()", 1))
    write(tmp_path, URL)
    assert repository(tmp_path) == URL
    text = path.read_text()
    assert setup_cell(URL) in text and ":tags: [remove-input]\n" in text and "kept()" in text and "old()" not in text
