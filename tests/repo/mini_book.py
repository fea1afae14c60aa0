"""A book of one page over a library of one number, built by the real build script in a folder of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setup_cell import setup_cell

ROOT = Path(__file__).resolve().parents[2]
PAGE = "notebooks/01-mini"
CHAPTER = """\
---
jupytext:
  text_representation:
    extension: .md
    format_name: myst
kernelspec:
  display_name: Some editor's kernel
  language: python
  name: python3
---

# A mini chapter

```{code-cell} python3
%s```

One sentence.

```{code-cell} python3
:tags: [hide-input]

%s
```
"""


def chapter(code: str) -> str:
    """Return the source of a chapter with `code` in its second cell."""
    return CHAPTER % (setup_cell(""), code)


class MiniBook:
    """The miniature's files, and programs that run in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("_config.yml", "pyproject.toml", "requirements.lock"):
            shutil.copy(ROOT / name, folder)
        for name in ("_ext", "scripts", "assets", "book/_static"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        self.write("_toc.yml", f"format: jb-book\nroot: book/index\nchapters:\n  - file: {PAGE}\n")
        self.write("book/index.md", "# Mini\n\nHello.\n")
        self.write("book/references.bib", "")
        self.write("pruning_book/__init__.py", "def start():\n    print('started')\n")
        self.write("pruning_lib/__init__.py", "ANSWER = 1\n")
        self.chapter("from pruning_lib import ANSWER\n\nprint('the answer is', ANSWER)")

    def write(self, name: str, text: str) -> None:
        """Write one of its files."""
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / name).write_text(text, encoding="utf-8")

    def chapter(self, code: str) -> None:
        """Write the chapter with `code` in its second cell, and its pair."""
        self.write(f"{PAGE}.md", chapter(code))
        self.start("scripts/pair.py", "--root", str(self.folder)).wait()

    def start(self, *command: str) -> subprocess.Popen[str]:
        """Start a program in the miniature, with the miniature's own library."""
        own = {"PYTHONPATH": str(self.folder), "NO_COLOR": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        pipes = {"text": True, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "start_new_session": True}
        return subprocess.Popen([sys.executable, *command], cwd=self.folder, env=os.environ | own, **pipes)

    def build(self, *command: str) -> tuple[int, str]:
        """Build it, by the real script or by `command`; return the exit status and all that was printed."""
        process = self.start(*(command or ("scripts/build_book.py", "--root", str(self.folder))))
        printed, _ = process.communicate(timeout=300)
        return process.returncode, printed

    def page(self) -> str:
        """Return the built chapter."""
        return (self.folder / f"_build/html/{PAGE}.html").read_text(encoding="utf-8")
