"""Chapters and their notebooks: one way, byte-stable, without outputs, and with the set-up cell first."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pair
from mini_book import chapter


def test_the_books_own_chapters_are_in_step(root: Path) -> None:
    assert pair.check(root) == []


def test_a_pair_is_stable_and_what_is_out_of_step_is_seen(tmp_path: Path, root: Path) -> None:
    for name in ("pyproject.toml", "_config.yml"):
        shutil.copy(root / name, tmp_path)
    source, notebook = tmp_path / "notebooks/01-x.md", tmp_path / "notebooks/01-x.ipynb"
    source.parent.mkdir()

    def found(text: str, made: str | None = None) -> list[str]:
        """Write the source and its pair, or another notebook, and return what the check says."""
        source.write_text(text)
        notebook.write_text(made or pair.paired(source))
        return pair.check(tmp_path)

    text = chapter("1 + 1")
    assert found(text) == [] and pair.paired(source) == notebook.read_text()
    made = json.loads(notebook.read_text())
    code = [cell for cell in made["cells"] if cell["cell_type"] == "code"]
    assert [cell["outputs"] for cell in code] == [[], []] and code[1]["metadata"] == {"tags": ["hide-input"]}
    assert [cell["id"] for cell in made["cells"]] == ["0", "1", "2", "3"]
    assert made["metadata"]["kernelspec"]["display_name"] == "Python 3"

    told = ["notebooks/01-x.ipynb is not in step with 01-x.md; run `make pair`"]
    assert found(chapter("1 + 2"), notebook.read_text()) == told
    made["cells"][3]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "2"}]
    assert found(text, json.dumps(made, indent=1) + "\n") == told
    assert "not the set-up cell" in found(text.replace("session = start()", "session = begin()"))[0]
    block = "1 + 1\n```\n:::{admonition} Solution\n```{code-cell} python3\n3 + 3\n```\n:::\n"
    assert "keep cells out of ::: blocks" in found(text.replace("1 + 1\n```\n", block))[0]
    (tmp_path / "notebooks/02-y.ipynb").write_text("{}")
    assert "has no 02-y.md" in pair.check(tmp_path)[-1]
