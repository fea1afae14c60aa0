"""Internal links and anchors of the built site lead somewhere."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from links import broken, read


def test_every_internal_link_resolves(site: Path) -> None:
    assert broken(site) == []


def test_the_checker_sees_what_is_broken(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        '<p id="here"><a href="b.html#there">x</a><a href="#here">x</a><a href="#nope">x</a>'
        '<a href="b.html#nope">x</a><a href="c.html">x</a><img src="d.png"><a href="../e.html">x</a>'
        '<a href="https://example.org/">x</a>'
    )
    (tmp_path / "b.html").write_text('<h1 id="there">x</h1>')
    assert broken(tmp_path) == [
        "a.html -> #nope: no such anchor",
        "a.html -> b.html#nope: no such anchor",
        "a.html -> c.html: no such file",
        "a.html -> d.png: no such file",
        "a.html -> ../e.html: outside the site",
    ]


def test_pages_and_site_keep_their_weight(site: Path) -> None:
    heavy = {path.name: path.stat().st_size for path in site.rglob("*.html") if path.stat().st_size > 3 * 2**20}
    assert heavy == {}
    assert sum(path.stat().st_size for path in site.rglob("*") if path.is_file()) < 60 * 2**20


def weight(site: Path, page: Path) -> int:
    """Return how many bytes of scripts and style sheets `page` loads, MathJax apart."""
    targets = {urlsplit(link).path for link in read(page).links}
    files = {(page.parent / unquote(path)).resolve() for path in targets if path.endswith((".js", ".css"))}
    vendored = (site / "vendor/mathjax").resolve()
    return sum(file.stat().st_size for file in files if not file.is_relative_to(vendored))


def test_no_page_loads_scripts_it_does_not_use(site: Path) -> None:
    # What lies in a `_static` folder at the top is put on every page, and the theme brings 1.5 MB of icons as a script:
    # both cost each reader and fail nothing.
    for path in sorted(site.rglob("*.html")):
        mib = weight(site, path) / 2**20
        assert mib < 1, f"{path.relative_to(site)} loads {mib:.1f} MiB of scripts and styles"


def test_the_weighing_sees_a_heavy_script(tmp_path: Path) -> None:
    for name in ("widget.js", "vendor/mathjax/m.js", "_static/page.css"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("x" * 7)
    page = tmp_path / "sub/page.html"
    page.parent.mkdir()
    sheets = '<link rel="stylesheet" href="../_static/page.css?v=1">'
    page.write_text(f'{sheets}<script src="../widget.js"></script><a href="x.html">x</a>')
    assert weight(tmp_path, page) == 14
    page.write_text(f'{sheets}<script src="../_static/../vendor/mathjax/m.js"></script>')
    assert weight(tmp_path, page) == 7
