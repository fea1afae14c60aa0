"""Internal links and anchors of the built site lead somewhere."""

from __future__ import annotations

from pathlib import Path

from links import broken


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
    heavy = {
        path.name: path.stat().st_size for path in site.rglob("*.html") if path.stat().st_size > 3 * 2**20
    }
    assert heavy == {}
    assert sum(path.stat().st_size for path in site.rglob("*") if path.is_file()) < 60 * 2**20
