"""The chapters as the book build executed them: the build is their test, and here is what it must have left behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from nbformat import NotebookNode

from execute import PAGE_BUDGET_S, executed
from setup_cell import chapters

ROOT = Path(__file__).resolve().parents[2]
NAMES = [path.stem for path in chapters(ROOT)]
MAX_PRINTED_LINES = 20


@pytest.fixture(scope="session")
def status(site: Path, root: Path) -> dict:
    """What the build wrote about itself."""
    return json.loads((root / "_build/generated/status.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session", params=NAMES)
def chapter(request: pytest.FixtureRequest, site: Path, root: Path) -> NotebookNode:
    """One executed chapter."""
    try:
        return executed(root, root / "notebooks" / f"{request.param}.md")
    except KeyError:
        pytest.fail(f"{request.param}, as it reads now, has not been executed: run `make book`")


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def text_of(outputs: list[NotebookNode], name: str) -> str:
    return "".join(output.text for output in outputs if output.output_type == "stream" and output.name == name)


def test_there_are_chapters() -> None:
    assert NAMES


def test_every_cell_ran_without_error(chapter: NotebookNode) -> None:
    cells = code_cells(chapter)
    assert cells
    for cell in cells:
        assert not [output for output in cell.outputs if output.output_type == "error"], cell.source


def test_no_cell_writes_to_stderr(chapter: NotebookNode) -> None:
    for cell in code_cells(chapter):
        assert text_of(cell.outputs, "stderr") == "", cell.source


def test_the_first_cell_says_what_it_ran_on(chapter: NotebookNode) -> None:
    assert "replay, Python 3" in text_of(code_cells(chapter)[0].outputs, "stdout")


def test_no_cell_prints_a_page(chapter: NotebookNode) -> None:
    for cell in code_cells(chapter):
        lines = text_of(cell.outputs, "stdout").count("\n")
        assert lines <= MAX_PRINTED_LINES, f"{lines} lines from:\n{cell.source}"


@pytest.mark.parametrize("name", NAMES)
def test_page_keeps_its_time_budget(status: dict, name: str) -> None:
    (page,) = [page for page in status["pages"] if page["page"] == name]
    assert 0 < page["seconds"] <= PAGE_BUDGET_S


def test_status_page_shows_what_was_measured(status: dict, site: Path) -> None:
    html = (site / "book/status.html").read_text(encoding="utf-8")
    shown = [status["built"], status["hardware"]["processor"], *status["versions"].values()]
    shown += [str(page["seconds"]) for page in status["pages"]]
    for value in shown:
        assert value in html, value


def test_the_build_executed_nothing_twice(root: Path, site: Path) -> None:
    # Both the script and Sphinx look a notebook up by its cells; had they read them differently, Sphinx would have run
    # it again and the cache would hold more than there are chapters.
    from jupyter_cache import get_cache

    records = get_cache(str(root / "_build/.jupyter_cache")).list_cache_records()
    assert len({record.uri for record in records}) <= len(NAMES)
    assert all("execution_seconds" in record.data for record in records)
