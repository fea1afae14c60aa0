"""Drop from every page what the theme puts there and this book does not use, and mend what it gets wrong.

- sphinx-thebe declares the same constants twice on each page, thebe on or off: a SyntaxError in the console.
- pydata-sphinx-theme loads fontawesome.js, 1.5 MB, on each page; its icons are drawn by CSS fonts without it.
- The labels of the search button and of folded cells hide their visible text from screen readers, and docutils calls
  a bibliography a list without list items: serious findings of axe-core.
"""

from __future__ import annotations

import re
from pathlib import Path

from sphinx.application import Sphinx

MENDS = (
    (re.compile(r"[ \t]*<(?:script|link)\b[^>]*scripts/fontawesome\.js[^>]*>(?:</script>)?\n?"), ""),
    (re.compile(r'(<button class="[^"]*\bsearch-button-field\b[^>]*?) aria-label="[^"]*"'), r"\1"),
    (re.compile(r'<summary aria-label="Toggle hidden content">'), "<summary>"),
    (re.compile(r'<div role="list" (class="citation-list")'), r"<div \1"),
)
LEFTOVERS = ("_static/scripts/fontawesome.js*", "_static/*webpack-macros.html")


def is_thebe(script: object) -> bool:
    """Return True for a script entry of sphinx-thebe, by file name or inline body."""
    body = (getattr(script, "attributes", None) or {}).get("body") or ""
    return "thebe" in str(getattr(script, "filename", script)).lower() or "THEBE_JS_URL" in body


def drop_thebe(app: Sphinx, pagename: str, templatename: str, context: dict, doctree: object) -> None:
    context["script_files"] = [script for script in context.get("script_files", []) if not is_thebe(script)]
    context["css_files"] = [sheet for sheet in context.get("css_files", []) if not is_thebe(sheet)]


def mend(text: str) -> str:
    """Return a built page without what MENDS takes out."""
    for pattern, replacement in MENDS:
        text = pattern.sub(replacement, text)
    return text


def mend_pages(app: Sphinx, exception: Exception | None) -> None:
    if exception or app.builder.format != "html":
        return
    out = Path(app.outdir)
    for pattern in LEFTOVERS:
        for leftover in out.glob(pattern):
            leftover.unlink()
    for page in out.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        mended = mend(text)
        if mended != text:
            page.write_text(mended, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("html-page-context", drop_thebe, priority=900)
    app.connect("build-finished", mend_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
