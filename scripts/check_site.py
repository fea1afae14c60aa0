"""Refuse a built site that must not be published: what a strict build does not notice."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

# Anything the browser fetches by itself: scripts, style sheets, images, fonts, frames. Plain links may lead out.
OUTSIDE = r"""\s*=\s*["']\s*(?:https?:)?//[^"']+"""
FETCHED = re.compile(
    r"<(?:script|img|iframe|source|video|audio|embed|object)\b[^>]*?\b(?:src|data|srcset|poster)" + OUTSIDE + "|"
    r"<link\b(?=[^>]*\brel\s*=\s*[\"'][^\"']*(?:stylesheet|preload|prefetch|preconnect|icon))[^>]*\bhref" + OUTSIDE,
    re.IGNORECASE,
)
DEAD_WIDGET = "application/vnd.jupyter.widget-view+json"


def toc_pages(root: Path) -> list[str]:
    """Return every page of the table of contents, without suffix, the root first."""
    toc = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))
    pages: list[str] = []

    def walk(node: object) -> None:
        if isinstance(node, dict):
            pages.extend(str(node[key]) for key in ("root", "file") if key in node)
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)

    walk(toc)
    return pages


def faults(root: Path, site: Path) -> list[str]:
    """Return one line for each reason not to publish `site`, built from the book at `root`."""
    found = []
    if (site / "reports").exists():
        found.append("an execution failed: tracebacks lie in " + str(site / "reports"))
    for page in toc_pages(root):
        path = site / f"{page}.html"
        if not path.exists():
            found.append(f"{page} is in the table of contents and was not built")
    for path in sorted(site.rglob("*.html")):
        text = path.read_text(encoding="utf-8")
        name = path.relative_to(site)
        if DEAD_WIDGET in text:
            found.append(f"{name} holds a widget that needs a kernel; give it a text/html twin (CONTRIBUTING.md)")
        if "{glue:" in text:
            found.append(f"{name} shows the name of a figure, not its value: a glue role inside quotes or code")
        found += [f"{name} fetches from another host: {match[0][:120]}" for match in FETCHED.finditer(text)]
    return found
