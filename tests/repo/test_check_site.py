"""What must not be published is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from check_site import faults, toc_pages
from lean_pages import mend

TOC = """\
format: jb-book
root: index
parts:
  - chapters:
      - file: one
        sections:
          - file: sub/two
"""


@pytest.fixture
def book(tmp_path: Path) -> Path:
    (tmp_path / "_toc.yml").write_text(TOC)
    for name in ("index", "one", "sub/two"):
        page = tmp_path / f"site/{name}.html"
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text('<a href="https://example.org/">a link may lead out</a>')
    return tmp_path


def test_a_sound_site_passes(book: Path) -> None:
    assert toc_pages(book) == ["index", "one", "sub/two"]
    assert faults(book, book / "site") == []


def test_a_missing_page_and_an_execution_report(book: Path) -> None:
    (book / "site/sub/two.html").unlink()
    assert "sub/two" in faults(book, book / "site")[0]
    (book / "site/reports").mkdir()
    assert any("execution failed" in fault for fault in faults(book, book / "site"))


@pytest.mark.parametrize(
    "html",
    [
        '<script src="https://cdn.example/x.js"></script>',
        '<script async src="//cdn.example/x.js"></script>',
        '<link rel="stylesheet" href="https://cdn.example/x.css">',
        '<link href="https://cdn.example/x.css" rel="stylesheet">',
        '<img alt="x" src="http://cdn.example/x.png">',
        '<script type="application/vnd.jupyter.widget-view+json">{}</script>',
        "<code>{glue:text}</code>name",
    ],
)
def test_what_is_fetched_from_elsewhere_needs_a_kernel_or_lacks_its_figure(book: Path, html: str) -> None:
    (book / "site/one.html").write_text(html)
    assert len(faults(book, book / "site")) == 1


def test_pages_are_mended() -> None:
    page = (
        '<link rel="preload" as="script" href="_static/scripts/fontawesome.js?digest=1">\n'
        '<script src="../_static/scripts/fontawesome.js?digest=1"></script>\n'
        '<button class="btn search-button-field x" title="Search" aria-label="Search" data-y="z">Search</button>'
        '<button class="btn other" aria-label="Close"></button><div role="list" class="citation-list">'
        '<summary aria-label="Toggle hidden content">Show</summary>'
    )
    assert mend(page) == (
        '<button class="btn search-button-field x" title="Search" data-y="z">Search</button>'
        '<button class="btn other" aria-label="Close"></button><div class="citation-list"><summary>Show</summary>'
    )
