"""Load a page of the book once and write down everything the tests ask about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from playwright.sync_api import Browser, Page, Route

SUB_PATH = "/some/project/"
DESKTOP = {"width": 1280, "height": 900}
PHONE = {"width": 390, "height": 844}
PIXEL = "(c) => [...c.getContext('2d').getImageData(3, 3, 1, 1).data].slice(0, 3)"  # the colour of a canvas
AXE = Path(__file__).parent / "vendor" / "axe-core" / "axe.min.js"

SETTLED = """async () => {
  if (window.MathJax?.startup?.promise) await MathJax.startup.promise;
  await document.fonts.ready;
  const images = [...document.images].filter((image) => image.loading !== "lazy");
  const settled = (image) => image.complete || new Promise((done) => { image.onload = image.onerror = done; });
  await Promise.all(images.map(settled));
}"""
IMAGES = """() => [...document.images].map((image) => ({
  alt: image.getAttribute("alt"), src: image.getAttribute("src"),
  broken: image.loading !== "lazy" && image.naturalWidth === 0,
}))"""
MATHS = """() => ({
  wanted: document.querySelectorAll(".math").length,
  typeset: document.querySelectorAll("mjx-container").length,
  errors: document.querySelectorAll("mjx-merror, [data-mjx-error]").length,
})"""
OVERFLOW = """() => {
  const width = document.documentElement.clientWidth;
  const scrolls = (element) => {
    for (let at = element; at && at !== document.body; at = at.parentElement)
      if (/auto|scroll|hidden|clip/.test(getComputedStyle(at).overflowX)) return true;
    return false;
  };
  const main = document.querySelector("main") ?? document.body;
  const wide = [...main.querySelectorAll("*")].filter((element) =>
    element.getBoundingClientRect().right > width + 1 && element.checkVisibility() && !scrolls(element));
  return {
    page: document.documentElement.scrollWidth - width,
    elements: wide.slice(0, 5).map((element) => `${element.tagName}.${element.className}`),
  };
}"""


@dataclass
class Visit:
    """What one visit to a page saw."""

    status: int | None = None
    console: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    images: list[dict] = field(default_factory=list)
    maths: dict = field(default_factory=dict)
    overflow: dict = field(default_factory=dict)
    findings: dict[str, list[str]] = field(default_factory=dict)
    shots: dict[str, bytes] = field(default_factory=dict)
    themes: dict[str, str] = field(default_factory=dict)


class Visitor:
    """Opens pages over HTTP or from the disk, with everything that is not the site refused."""

    def __init__(self, browser: Browser, base_url: str, site: Path) -> None:
        self.browser, self.base = browser, {"http": base_url, "file": site.as_uri() + "/"}
        self._seen: dict[tuple[str, str], Visit] = {}

    def open(self, path: str, protocol: str = "http", viewport: dict | None = None) -> tuple[Page, Visit]:
        """Return the page `path` ("book/index.html"), loaded and settled, and the visit that records it."""
        visit = Visit()
        context = self.browser.new_context(viewport=viewport or DESKTOP)
        allowed = (self.base[protocol], "data:", "blob:", "about:")

        def gate(route: Route) -> None:
            if route.request.url.startswith(allowed):
                route.continue_()
            else:
                visit.outside.append(route.request.url)
                route.abort()

        context.route("**/*", gate)
        page = context.new_page()
        page.on("console", lambda message: message.type == "error" and visit.console.append(message.text))
        page.on("pageerror", lambda error: visit.console.append(str(error)))
        page.on("requestfailed", lambda request: visit.failed.append(f"{request.url}: {request.failure}"))
        page.on("response", lambda r: r.status >= 400 and visit.failed.append(f"{r.url}: {r.status}"))
        answer = page.goto(self.base[protocol] + path, wait_until="load")
        visit.status = answer.status if answer else None
        page.evaluate(SETTLED)
        return page, visit

    def visit(self, path: str, protocol: str = "http") -> Visit:
        """Return what a visit to `path` saw; the first call makes it."""
        key = (path, protocol)
        if key not in self._seen:
            page, visit = self.open(path, protocol)
            visit.images, visit.maths = page.evaluate(IMAGES), page.evaluate(MATHS)
            if protocol == "http":
                self._look(page, visit)
            page.context.close()
            self._seen[key] = visit
        return self._seen[key]

    @staticmethod
    def _look(page: Page, visit: Visit) -> None:
        page.evaluate(AXE.read_text(encoding="utf-8"))
        for theme in ("light", "dark"):
            page.emulate_media(color_scheme=theme, reduced_motion="reduce")
            page.wait_for_function("(theme) => document.documentElement.dataset.theme === theme", arg=theme)
            page.wait_for_timeout(150)  # the theme's own colour transition
            visit.themes[theme] = page.evaluate("document.documentElement.dataset.theme")
            visit.shots[theme] = page.screenshot()
            result = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
            visit.findings[theme] = [
                f"{found['id']} ({found['impact']}): {found['help']}: {found['nodes'][0]['html'][:200]}"
                for found in result["violations"]
                if found["impact"] in ("serious", "critical")
            ]
        page.set_viewport_size(PHONE)
        page.wait_for_timeout(150)
        visit.overflow = page.evaluate(OVERFLOW)
        visit.shots["phone"] = page.screenshot()
