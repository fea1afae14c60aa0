"""A book of one page over a library of one number, built by the real build script in a folder of its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = "notebooks/01-mini"
FRONT_MATTER = """\
---
jupytext:
  text_representation:
    extension: .md
    format_name: myst
kernelspec:
  display_name: Python 3
  language: python
  name: python3
---
"""
CHAPTER = (
    FRONT_MATTER
    + """
# A mini chapter

```{{code-cell}} python3
{setup}```

Text.

```{{code-cell}} python3
{code}
```
"""
)
NOTEBOOK_MODULE = "def start():\n    print('started')\n"


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


class MiniBook:
    """The miniature's files; `build()` runs scripts/build_book.py on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("_config.yml", "pyproject.toml", "requirements.lock"):
            shutil.copy(ROOT / name, folder)
        for name in ("_ext", "scripts", "assets", "book/_static"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        _write(folder / "_toc.yml", f"format: jb-book\nroot: book/index\nchapters:\n  - file: {PAGE}\n")
        _write(folder / "book/index.md", "# Mini\n\nHello.\n")
        _write(folder / "book/references.bib", "")
        _write(folder / "pruning_book/__init__.py", NOTEBOOK_MODULE)
        self.library(1)
        self.chapter("from pruning_lib import ANSWER\n\nprint('the answer is', ANSWER)")

    def library(self, answer: int) -> None:
        """Let the library's one number be `answer`."""
        _write(self.folder / "pruning_lib/__init__.py", f"ANSWER = {answer}\n")

    def chapter(self, code: str) -> None:
        """Write the chapter with `code` in its second cell, and its pair."""
        from setup_cell import setup_cell

        _write(self.folder / f"{PAGE}.md", CHAPTER.format(setup=setup_cell(""), code=code))
        self._run("scripts/pair.py", "--root", str(self.folder))

    def index(self, text: str) -> None:
        """Replace the text of the root page."""
        _write(self.folder / "book/index.md", text)

    def git(self, *arguments: str) -> None:
        """Run git in the miniature."""
        subprocess.run(["git", *arguments], cwd=self.folder, check=True, capture_output=True)

    def _options(self) -> dict:
        # The miniature's own library, not the installed one.
        own = {"PYTHONPATH": str(self.folder), "NO_COLOR": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        return {
            "cwd": self.folder,
            "env": os.environ | own,
            "text": True,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.STDOUT,
        }

    def _run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, *command], **self._options())

    def build(self) -> tuple[int, str]:
        """Build the miniature; return the exit status and all that was printed."""
        result = self._run("scripts/build_book.py", "--root", str(self.folder))
        return result.returncode, result.stdout

    def interrupted_build(self, seen: Path) -> tuple[int, str]:
        """Build it, press Ctrl-C once the file `seen` is there; return the exit status and all that was printed."""
        command = [sys.executable, "scripts/build_book.py", "--root", str(self.folder)]
        process = subprocess.Popen(command, **self._options(), start_new_session=True)
        deadline = time.monotonic() + 60
        while not seen.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=60)
        return process.returncode, output

    def build_without_fingerprint(self) -> tuple[int, str]:
        """Build it as jupyter-book alone would, strictly."""
        program = "from jupyter_book.cli.main import main; main()"
        result = self._run("-c", program, "build", "--all", "-W", "--keep-going", ".")
        return result.returncode, result.stdout

    def page(self) -> str:
        """Return the built chapter."""
        return (self.folder / f"_build/html/{PAGE}.html").read_text(encoding="utf-8")
