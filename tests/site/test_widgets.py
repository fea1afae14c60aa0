"""Widgets on the static page, with no kernel: they draw, and they answer to the keyboard, from the disk too."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Locator

from visits import PHONE, Visitor

pytestmark = pytest.mark.browser

HOST = "[data-pl-widget]"
# What a reader perceives: words, the control's own state, pictures and drawings.
SEEN = """host => {
  const root = host.shadowRoot ?? host;
  const controls = [...root.querySelectorAll("input, select, button")].map((c) =>
    [c.value, c.checked, c.getAttribute("aria-valuetext")].join());
  const drawn = [...root.querySelectorAll("canvas")].map((c) => c.toDataURL());
  const shown = [...root.querySelectorAll("img, svg, [style]")].map((e) =>
    [e.getAttribute("src"), e.getAttribute("style"), e.getAttribute("alt"), e.getAttribute("d")].join());
  return {
    controls: controls.join("|"), text: host.innerText, pictures: [...drawn, ...shown].join("|"),
    box: host.getBoundingClientRect().toJSON(), ranges: root.querySelectorAll("input[type=range]").length,
  };
}"""


def pages_with_widgets(site: Path) -> list[str]:
    pages = sorted(str(path.relative_to(site)) for path in site.rglob("*.html"))
    return [page for page in pages if "data-pl-widget" in (site / page).read_text(encoding="utf-8")]


def move(slider: Locator) -> None:
    """Move a slider by one stop, by keyboard, away from the end it stands at."""
    at, end = slider.evaluate("input => [Number(input.value), Number(input.max)]")
    slider.focus()
    slider.press("ArrowLeft" if at >= end else "ArrowRight")


def test_the_book_has_widgets(site: Path) -> None:
    assert pages_with_widgets(site)


@pytest.mark.parametrize("protocol", ["http", "file"])
def test_widgets_draw_and_answer_to_the_keyboard(visitor: Visitor, site: Path, protocol: str) -> None:
    for path in pages_with_widgets(site):
        page, visit = visitor.open(path, protocol)
        page.wait_for_function(
            f"[...document.querySelectorAll('{HOST}')].every((host) => host.childElementCount > 0)"
        )
        for host in page.locator(HOST).all():
            host.scroll_into_view_if_needed()
            before = host.evaluate(SEEN)
            assert before["box"]["width"] > 100 and before["box"]["height"] > 50, f"{path}: nothing drawn"
            assert before["ranges"], f"{path}: no native slider to move by keyboard"
            for slider in host.locator("input[type=range]").all():
                if slider.evaluate("input => Number(input.max) <= Number(input.min) || input.disabled"):
                    continue
                before = host.evaluate(SEEN)
                move(slider)
                page.wait_for_timeout(250)
                after = host.evaluate(SEEN)
                assert after["controls"] != before["controls"], f"{path}: the slider did not move"
                changed = after["text"] != before["text"] or after["pictures"] != before["pictures"]
                assert changed, f"{path}: the slider moved and nothing else changed"
        assert visit.console == [] and visit.outside == [] and visit.failed == []
        page.context.close()


def test_widgets_fit_a_phone(visitor: Visitor, site: Path) -> None:
    for path in pages_with_widgets(site):
        page, _ = visitor.open(path, viewport=PHONE)
        page.wait_for_timeout(300)
        for host in page.locator(HOST).all():
            box = host.bounding_box()
            assert box and box["x"] >= 0 and box["x"] + box["width"] <= PHONE["width"] + 1, path
        page.context.close()
