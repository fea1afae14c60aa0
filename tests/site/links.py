"""Follow every link inside a built site, without a browser: files and anchors, in HTML as it was written."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LINKS = {"a": "href", "link": "href", "img": "src", "script": "src", "iframe": "src", "source": "src"}


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = {"", "top"}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.anchors.update(value for key in ("id", "name") if (value := values.get(key)))
        target = values.get(LINKS.get(tag, ""))
        if target is not None:
            self.links.append(target)


def read(page: Path) -> _Reader:
    """Return the links and anchors of the file `page`."""
    reader = _Reader()
    reader.feed(page.read_text(encoding="utf-8"))
    return reader


def broken(site: Path) -> list[str]:
    """Return "page -> target: reason" for each internal link of `site` that leads nowhere."""
    pages = {path.resolve(): read(path) for path in sorted(site.rglob("*.html"))}
    found = []
    for path, reader in pages.items():
        for link in reader.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            name = f"{path.relative_to(site.resolve())} -> {link}"
            if not target.is_relative_to(site.resolve()):
                found.append(f"{name}: outside the site")
            elif not target.exists():
                found.append(f"{name}: no such file")
            elif target in pages and unquote(parts.fragment) not in pages[target].anchors:
                found.append(f"{name}: no such anchor")
    return found
