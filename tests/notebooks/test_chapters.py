"""The chapters as the book build executed them: the build is their test, and here is what it must have left behind."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path

import pytest

from execute import PAGE_BUDGET_S, executed
from setup_cell import chapters

NAMES = [path.stem for path in chapters(Path(__file__).resolve().parents[2])]
MAX_PRINTED_LINES = 20


@pytest.fixture(scope="module")
def status(site: Path, root: Path) -> dict:
    """What the build wrote about itself."""
    return json.loads((root / "_build/generated/status.json").read_text(encoding="utf-8"))


def test_there_are_chapters() -> None:
    assert NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_chapter_ran_whole_quietly_and_in_time(status: dict, root: Path, name: str) -> None:
    try:
        notebook = executed(root, root / "notebooks" / f"{name}.md")
    except KeyError:
        pytest.fail(f"{name}, as it reads now, has not been executed: run `make book`")
    printed = []
    for cell in (cell for cell in notebook.cells if cell.cell_type == "code"):
        assert not [output for output in cell.outputs if output.output_type == "error"], cell.source
        texts = [output for output in cell.outputs if output.output_type == "stream"]
        assert "".join(output.text for output in texts if output.name == "stderr") == "", cell.source
        printed.append("".join(output.text for output in texts if output.name == "stdout"))
        assert printed[-1].count("\n") <= MAX_PRINTED_LINES, f"a page from:\n{cell.source}"
    assert "replay, Python 3" in printed[0], "the first cell says what it ran on"
    (page,) = [page for page in status["pages"] if page["page"] == name]
    assert 0 < page["seconds"] <= PAGE_BUDGET_S


def test_status_page_shows_what_was_measured(status: dict, site: Path) -> None:
    html = (site / "book/status.html").read_text(encoding="utf-8")
    shown = [status["built"], status["hardware"]["processor"], *status["versions"].values()]
    shown += [str(page["seconds"]) for page in status["pages"]]
    assert [value for value in shown if value not in html] == []


def test_the_page_on_pipelines_shows_the_record(root: Path, site: Path) -> None:
    record = json.loads((root / "pruning_book/records/support_matrix.json").read_text("utf-8"))
    rows, html = record["data"]["rows"], (site / "book/which-pipelines.html").read_text("utf-8")
    assert len(rows) > 60 and [row["pipeline"] for row in rows if row["pipeline"] not in html] == []
    reasons = {said for row in rows for said in row["found"].values() if said.startswith("refused: ")}
    text = unescape(re.sub("<[^>]+>", "", html))
    assert reasons and [said for said in reasons if said.removeprefix("refused: ")[:60] not in text] == []
    for column in ("schedule", "MACs", "operators"):
        said = [row["found"][column] for row in rows]
        assert said.count("yes") >= 0.9 * len(rows), f"{column}: nine of ten at least"


def test_the_build_executed_nothing_twice(root: Path, site: Path) -> None:
    # Both the script and Sphinx look a notebook up by its cells; had they read them differently, Sphinx would have run
    # it again and the cache would hold more than there are chapters.
    from jupyter_cache import get_cache

    records = get_cache(str(root / "_build/.jupyter_cache")).list_cache_records()
    assert len({record.uri for record in records}) <= len(NAMES)
    assert all("execution_seconds" in record.data for record in records)
