"""Every page of the table of contents over HTTP under a sub-path: in both themes, on a phone, and its search."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, BrowserContext

from check_site import toc_pages
from visits import AXE, CONTROLS, HOST, MATHS, PHONE, findings, visit

PAGES = [f"{page}.html" for page in toc_pages(Path(__file__).resolve().parents[2])]
LOOKS_LIKE_A_FILE = re.compile(r"^(\S*/)?[\w.-]+\.(png|jpe?g|svg|gif|webp)$", re.IGNORECASE)
IMAGES = """() => [...document.images].map((image) => ({
  alt: (image.getAttribute("alt") ?? "").trim(), src: image.getAttribute("src"),
  broken: image.loading !== "lazy" && image.naturalWidth === 0,
}))"""
# Wait for the theme, and for its own colour transition.
THEME = "(theme) => document.documentElement.dataset.theme === theme && document.getAnimations().length === 0"
# Two thirds of a chapter's elements are coloured words of code: of each kind, axe looks at one.
PLAINER = """() => {
  const kinds = new Set();
  for (const word of document.querySelectorAll(".highlight span")) {
    const kind = `${word.className} in ${word.parentElement.className}`;
    kinds.has(kind) ? word.replaceWith(...word.childNodes) : kinds.add(kind);
  }
}"""
# What is wider than the screen and does not scroll by itself.
OVERFLOW = """() => {
  const width = document.documentElement.clientWidth;
  const scrolls = (element) => {
    for (let at = element; at && at !== document.body; at = at.parentElement)
      if (/auto|scroll|hidden|clip/.test(getComputedStyle(at).overflowX)) return true;
    return false;
  };
  const main = document.querySelector("main") ?? document.body;
  const wide = [...main.querySelectorAll("*")].filter((element) => {
    const box = element.getBoundingClientRect();
    const out = box.right > width + 1 || (box.left < 0 && element.matches("[data-pl-widget]"));
    return out && element.checkVisibility() && (element.matches("[data-pl-widget]") || !scrolls(element));
  });
  const found = wide.slice(0, 5).map((element) => `${element.tagName}.${element.className}`);
  return document.documentElement.scrollWidth > width ? ["the page", ...found] : found;
}"""

pytestmark = pytest.mark.browser


@pytest.mark.parametrize("path", PAGES)
def test_a_page_in_both_themes_and_on_a_phone(context: BrowserContext, base_url: str, path: str) -> None:
    with visit(context, base_url, path) as (page, faults):
        assert page.evaluate(MATHS) == {"missing": 0, "errors": 0}
        for image in page.evaluate(IMAGES):
            alt = image["alt"]
            assert not image["broken"], f"{image['src']} does not load"
            # An image without a description gets its file name as alt from Sphinx.
            assert alt and not LOOKS_LIKE_A_FILE.match(alt), f"{image['src']} has alt {alt!r}"
            assert len(alt) <= 250, f"{image['src']}: alt of {len(alt)} characters; say the rest in the caption"
        for host in page.locator(HOST).all():
            host.locator(CONTROLS).first.wait_for()
        page.evaluate(AXE)
        page.evaluate(PLAINER)
        for theme in ("light", "dark"):
            page.emulate_media(color_scheme=theme, reduced_motion="reduce")
            page.wait_for_function(THEME, arg=theme)
            grey = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("L"), float)
            assert grey.std() > 5, "a blank page"
            assert np.median(grey) > 200 if theme == "light" else np.median(grey) < 80
            assert findings(page, theme) == []
        page.set_viewport_size(PHONE)
        assert page.evaluate(OVERFLOW) == []
    assert faults == []


def test_the_theme_button_switches_and_search_finds_a_word(browser: Browser, base_url: str) -> None:
    context = browser.new_context()
    with visit(context, base_url, "search.html?q=pruning") as (page, faults):
        page.wait_for_selector("#search-results li a", timeout=10_000)
        button = page.locator(".theme-switch-button").locator("visible=true").first
        seen = {page.evaluate("document.documentElement.dataset.mode")}
        for _ in range(2):
            button.click()
            seen.add(page.evaluate("document.documentElement.dataset.mode"))
    context.close()
    assert seen == {"auto", "light", "dark"} and faults == []
