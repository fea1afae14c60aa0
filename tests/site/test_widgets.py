"""Every page straight from the disk, with no kernel: its maths is typeset, its widgets answer to the keyboard."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext

from check_site import toc_pages
from visits import CONTROLS, HOST, MATHS, visit

PAGES = [f"{page}.html" for page in toc_pages(Path(__file__).resolve().parents[2])]
# What a reader perceives: words, the controls' own state, pictures and drawings; in the shadow root where there is one.
SEEN = """host => {
  const root = host.shadowRoot ?? host;
  const all = (selector) => [...root.querySelectorAll(selector)];
  const controls = all("input, select").map((c) => [c.value, c.checked, c.getAttribute("aria-valuetext")].join());
  const shown = all("img, svg *, [style]").map((e) => [...e.attributes].map((a) => a.value).join());
  const pictures = all("canvas").map((c) => c.toDataURL());
  return { controls: controls.join("|"), rest: [root.textContent, ...pictures, ...shown].join("|") };
}"""
KEEP = f"host => {{ host.seen = ({SEEN})(host); }}"
CHANGED = f"""host => {{
  const now = ({SEEN})(host);
  return now.controls !== host.seen.controls && now.rest !== host.seen.rest;
}}"""
# The key that moves a control by one stop, away from the end it stands at; none if it is disabled or has only one.
KEY = """c => {
  const others = c.type === "radio" && c.getRootNode().querySelectorAll(`[name="${c.name}"]`).length;
  const free = c.type === "range" ? Number(c.max) > Number(c.min) : (c.options?.length ?? others) > 1;
  const last = c.type === "range" ? Number(c.value) >= Number(c.max) : c.selectedIndex === c.options?.length - 1;
  return c.disabled || !free ? null : last ? "ArrowLeft" : "ArrowRight";
}"""

pytestmark = pytest.mark.browser


def test_the_book_has_maths_and_widgets(site: Path) -> None:
    texts = [(site / page).read_text(encoding="utf-8") for page in PAGES]
    assert all(any(word in text for text in texts) for word in ('class="math', "data-pl-widget"))


@pytest.mark.parametrize("path", PAGES)
def test_a_page_from_the_disk(context: BrowserContext, site: Path, path: str) -> None:
    with visit(context, site.as_uri() + "/", path) as (page, faults):
        assert page.evaluate(MATHS) == {"missing": 0, "errors": 0}
        for host in page.locator(HOST).all():
            host.locator(CONTROLS).first.wait_for()
            box = host.bounding_box()
            assert box["width"] > 100 and box["height"] > 50, "nothing drawn"
            handle = host.element_handle()
            for control in host.locator(CONTROLS).all():
                key = control.evaluate(KEY)
                if key:
                    host.evaluate(KEEP)
                    control.press(key)
                    page.wait_for_function(CHANGED, arg=handle, timeout=10_000)
    assert faults == []
