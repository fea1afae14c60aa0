"""Open a page, and write down everything that goes wrong while it is open."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import BrowserContext, Page

DESKTOP = {"width": 1280, "height": 900}
PHONE = {"width": 390, "height": 844}
HOST = "[data-pl-widget]"
CONTROLS = "input[type=range], input[type=radio]:checked, select"
PIXEL = "(c) => [...c.getContext('2d').getImageData(3, 3, 1, 1).data].slice(0, 3)"  # the colour of a canvas
AXE = (Path(__file__).parent / "vendor/axe-core/axe.min.js").read_text(encoding="utf-8")
SETTLED = """async () => {
  if (window.MathJax?.startup?.promise) await MathJax.startup.promise;
  await document.fonts.ready;
  const images = [...document.images].filter((image) => image.loading !== "lazy");
  const settled = (image) => image.complete || new Promise((done) => { image.onload = image.onerror = done; });
  await Promise.all(images.map(settled));
}"""
MATHS = """() => ({
  missing: Math.max(0, document.querySelectorAll(".math").length - document.querySelectorAll("mjx-container").length),
  errors: document.querySelectorAll("mjx-merror, [data-mjx-error]").length,
})"""


def findings(page: Page, theme: str = "light", where: str = "html") -> list[str]:
    """Return axe's serious findings; of a dark theme, which differs in nothing else, those about colours."""
    options = {"resultTypes": ["violations"]}
    if theme == "dark":
        options["runOnly"] = ["color-contrast", "link-in-text-block"]
    result = page.evaluate("([where, options]) => axe.run(where, options)", [where, options])
    return [
        f"{theme}: {found['id']} ({found['impact']}): {found['help']}: {found['nodes'][0]['html'][:200]}"
        for found in result["violations"]
        if found["impact"] in ("serious", "critical")
    ]


def watch(page: Page, own: str) -> list[str]:
    """Return a list that fills with faults: errors, failed requests, and all that is asked of a place but `own`."""
    faults: list[str] = []
    page.on("console", lambda message: message.type == "error" and faults.append(message.text))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("requestfailed", lambda request: faults.append(f"{request.url}: {request.failure}"))
    page.on("response", lambda answer: answer.status >= 400 and faults.append(f"{answer.url}: {answer.status}"))
    inside = (own, "data:", "blob:", "about:")
    page.on("request", lambda request: request.url.startswith(inside) or faults.append(f"asked {request.url}"))
    return faults


@contextmanager
def visit(context: BrowserContext, base: str, path: str) -> Iterator[tuple[Page, list[str]]]:
    """Open the page `path` below `base`, settled, and the list of its faults."""
    page = context.new_page()
    faults = watch(page, base)
    page.goto(base + path)
    page.evaluate(SETTLED)
    yield page, faults
    page.close()
