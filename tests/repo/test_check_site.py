"""What must not be published is refused, and what the theme gets wrong is mended."""

from __future__ import annotations

from pathlib import Path

from check_site import faults, toc_pages
from lean_pages import mend

TOC = "format: jb-book\nroot: index\nparts:\n  - chapters:\n    - file: one\n      sections:\n      - file: sub/two\n"
REFUSED = (
    '<script src="https://cdn.example/x.js"></script>',
    '<script async src="//cdn.example/x.js"></script>',
    '<link rel="stylesheet" href="https://cdn.example/x.css">',
    '<link href="https://cdn.example/x.css" rel="stylesheet">',
    '<img alt="x" src="http://cdn.example/x.png">',
    '<script type="application/vnd.jupyter.widget-view+json">{}</script>',
    "<code>{glue:text}</code>name",
)


def test_what_is_missing_fetched_from_elsewhere_or_needs_a_kernel_is_refused(tmp_path: Path) -> None:
    site = tmp_path / "site"
    (tmp_path / "_toc.yml").write_text(TOC)
    (site / "sub").mkdir(parents=True)
    for name in ("index", "one", "sub/two"):
        (site / f"{name}.html").write_text('<a href="https://example.org/">a link may lead out</a>')
    assert toc_pages(tmp_path) == ["index", "one", "sub/two"] and faults(tmp_path, site) == []
    for html in REFUSED:
        (site / "one.html").write_text(html)
        assert len(faults(tmp_path, site)) == 1, html
    (site / "sub/two.html").unlink()
    (site / "reports").mkdir()
    found = faults(tmp_path, site)
    assert "execution failed" in found[0] and "sub/two is in the table of contents" in found[1]


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
