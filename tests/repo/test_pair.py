"""Chapters and their notebooks: one way, byte-stable, without outputs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import pair
from mini_book import FRONT_MATTER
from setup_cell import setup_cell

CHAPTER = (
    FRONT_MATTER.replace("Python 3\n", "Some editor's kernel\n")
    + """
# Title

```{code-cell} python3
%s```

One sentence.

```{code-cell} python3
:tags: [hide-input]

1 + 1
```
"""
)


@pytest.fixture
def book(tmp_path: Path, root: Path) -> Path:
    (tmp_path / "notebooks").mkdir()
    for name in ("pyproject.toml", "_config.yml"):
        shutil.copy(root / name, tmp_path)
    source = tmp_path / "notebooks" / "01-x.md"
    source.write_text(CHAPTER % setup_cell(""))
    source.with_suffix(".ipynb").write_text(pair.paired(source))
    return tmp_path


def test_the_books_own_chapters_are_in_step(root: Path) -> None:
    assert pair.check(root) == []


def test_pair_is_stable_and_carries_no_output(book: Path) -> None:
    source = book / "notebooks/01-x.md"
    assert pair.paired(source) == pair.paired(source)
    notebook = json.loads(pair.paired(source))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["outputs"] for cell in code] == [[], []]
    assert [cell["id"] for cell in notebook["cells"]] == ["0", "1", "2", "3"]
    assert code[1]["metadata"] == {"tags": ["hide-input"]}
    assert notebook["metadata"]["kernelspec"]["display_name"] == "Python 3"
    assert pair.check(book) == []


def change_source(book: Path, old: str, new: str) -> None:
    source = book / "notebooks/01-x.md"
    source.write_text(source.read_text().replace(old, new))
    source.with_suffix(".ipynb").write_text(pair.paired(source))


def test_a_changed_source_or_notebook_is_seen(book: Path) -> None:
    source, notebook = book / "notebooks/01-x.md", book / "notebooks/01-x.ipynb"
    told = ["notebooks/01-x.ipynb is not in step with 01-x.md; run `make pair`"]
    text = source.read_text()
    source.write_text(text.replace("1 + 1", "1 + 2"))
    assert pair.check(book) == told
    source.write_text(text)
    cells = json.loads(notebook.read_text())
    cells["cells"][3]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "2"}]
    notebook.write_text(json.dumps(cells, indent=1) + "\n")
    assert pair.check(book) == told
    (book / "notebooks/02-y.ipynb").write_text("{}")
    assert "has no 02-y.md" in pair.check(book)[-1]


def test_another_first_cell_is_seen(book: Path) -> None:
    change_source(book, "session = start()", "session = begin()")
    assert "not the set-up cell" in pair.check(book)[0]


def test_a_cell_inside_a_block_is_seen(book: Path) -> None:
    block = "```\n:::{admonition} Solution\n```{code-cell} python3\n3 + 3\n```\n:::\n"
    change_source(book, "1 + 1\n```\n", f"1 + 1\n{block}")
    assert "keep cells out of ::: blocks" in pair.check(book)[0]
