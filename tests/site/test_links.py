"""Internal links and anchors of the built site lead somewhere, and no page is heavy; no browser is needed."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LINKS = {"a": "href", "link": "href", "img": "src", "script": "src", "iframe": "src", "source": "src"}


class Reader(HTMLParser):
    """The links and anchors of a page."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = {"", "top"}
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.anchors.update(value for key in ("id", "name") if (value := values.get(key)))
        target = values.get(LINKS.get(tag, ""))
        if target is not None:
            self.links.append(target)


def broken(site: Path) -> list[str]:
    """Return "page -> target: reason" for each internal link of `site` that leads nowhere."""
    site = site.resolve()
    pages = {path: Reader(path) for path in sorted(site.rglob("*.html"))}
    found = []
    for path, reader in pages.items():
        for link in reader.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            name = f"{path.relative_to(site)} -> {link}"
            if not target.is_relative_to(site):
                found.append(f"{name}: outside the site")
            elif not target.exists():
                found.append(f"{name}: no such file")
            elif target in pages and unquote(parts.fragment) not in pages[target].anchors:
                found.append(f"{name}: no such anchor")
    return found


def weight(site: Path, page: Path) -> int:
    """Return how many bytes of scripts and style sheets `page` loads, MathJax apart."""
    targets = {urlsplit(link).path for link in Reader(page).links}
    files = {(page.parent / unquote(path)).resolve() for path in targets if path.endswith((".js", ".css"))}
    vendored = (site / "vendor/mathjax").resolve()
    return sum(file.stat().st_size for file in files if not file.is_relative_to(vendored))


def test_every_internal_link_resolves(site: Path) -> None:
    assert broken(site) == []


def test_pages_and_site_keep_their_weight(site: Path) -> None:
    # What lies in a `_static` folder at the top is put on every page, and the theme brings 1.5 MB of icons as a script:
    # both cost each reader and fail nothing.
    for path in site.rglob("*.html"):
        assert path.stat().st_size < 3 * 2**20 and weight(site, path) < 2**20, path.relative_to(site)
    assert sum(path.stat().st_size for path in site.rglob("*") if path.is_file()) < 60 * 2**20


def test_what_is_broken_or_heavy_is_seen(tmp_path: Path) -> None:
    page = (
        '<p id="here"><a href="#here"><a href="#nope"><a href="c.html"><a href="../e.html"><script src="x.js"></script>'
    )
    (tmp_path / "a.html").write_text(
        page + '<script src="vendor/mathjax/m.js"></script><a href="https://example.org/">'
    )
    (tmp_path / "vendor/mathjax").mkdir(parents=True)
    for name in ("x.js", "vendor/mathjax/m.js"):
        (tmp_path / name).write_text("x" * 7)
    assert weight(tmp_path, tmp_path / "a.html") == 7
    reasons = [line.rpartition(": ")[2] for line in broken(tmp_path)]
    assert reasons == ["no such anchor", "no such file", "outside the site"]
