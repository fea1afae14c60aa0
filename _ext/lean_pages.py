"""Drop from every page what the theme puts there and this book does not use.

- sphinx-thebe declares the same constants twice on each page, thebe on or off: a SyntaxError in the console.
- pydata-sphinx-theme loads fontawesome.js, 1.5 MB, on each page; its icons are drawn by CSS fonts without it.
"""

from __future__ import annotations

import re
from pathlib import Path

from sphinx.application import Sphinx

FONTAWESOME = re.compile(r'[ \t]*<(?:script|link)\b[^>]*scripts/fontawesome\.js[^>]*>(?:</script>)?\n?')


def is_thebe(script: object) -> bool:
    """Return True for a script entry of sphinx-thebe, by file name or inline body."""
    body = (getattr(script, "attributes", None) or {}).get("body") or ""
    return "thebe" in str(getattr(script, "filename", script)).lower() or "THEBE_JS_URL" in body


def drop_thebe(app: Sphinx, pagename: str, templatename: str, context: dict, doctree: object) -> None:
    context["script_files"] = [script for script in context.get("script_files", []) if not is_thebe(script)]
    context["css_files"] = [sheet for sheet in context.get("css_files", []) if not is_thebe(sheet)]


def drop_fontawesome_script(app: Sphinx, exception: Exception | None) -> None:
    if exception or app.builder.format != "html":
        return
    out = Path(app.outdir)
    for page in out.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        slim = FONTAWESOME.sub("", text)
        if slim != text:
            page.write_text(slim, encoding="utf-8")
    for leftover in (out / "_static" / "scripts").glob("fontawesome.js*"):
        leftover.unlink()


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("html-page-context", drop_thebe, priority=900)
    app.connect("build-finished", drop_fontawesome_script)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
