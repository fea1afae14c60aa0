"""Widgets on the static page, with no kernel: they draw, and they answer to the keyboard, from the disk too."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Locator

from visits import PHONE, Visitor

pytestmark = pytest.mark.browser

HOST = "[data-pl-widget]"
CONTROLS = "input[type=range], input[type=radio]:checked, select"
# What a reader perceives: words, the controls' own state, pictures and drawings; in the shadow root where there is one.
SEEN = """host => {
  const root = host.shadowRoot ?? host;
  const all = (selector) => [...root.querySelectorAll(selector)];
  const controls = all("input, select").map((c) => [c.value, c.checked, c.getAttribute("aria-valuetext")].join());
  const shown = all("img, svg *, [style]").map((e) => [...e.attributes].map((a) => a.value).join());
  return {
    controls: controls.join("|"), text: root.textContent,
    pictures: [...all("canvas").map((c) => c.toDataURL()), ...shown].join("|"),
    width: host.getBoundingClientRect().width, height: host.getBoundingClientRect().height,
  };
}"""


def pages_with_widgets(site: Path) -> list[str]:
    pages = sorted(str(path.relative_to(site)) for path in site.rglob("*.html"))
    return [page for page in pages if "data-pl-widget" in (site / page).read_text(encoding="utf-8")]


def move(control: Locator) -> None:
    """Move a control by one stop, by keyboard, away from the end it stands at."""
    at_end = control.evaluate(
        "c => c.type === 'range' ? Number(c.value) >= Number(c.max) : c.selectedIndex === c.options?.length - 1"
    )
    control.focus()
    control.press("ArrowLeft" if at_end else "ArrowRight")


def usable(control: Locator) -> bool:
    """Return False for a control that is disabled or has only one stop."""
    return control.evaluate(
        """c => !c.disabled && (c.type === "range" ? Number(c.max) > Number(c.min)
          : c.type === "radio" ? c.getRootNode().querySelectorAll(`[name="${c.name}"]`).length > 1
          : c.options.length > 1)"""
    )


def test_the_book_has_widgets(site: Path) -> None:
    assert pages_with_widgets(site)


@pytest.mark.parametrize("protocol", ["http", "file"])
def test_widgets_draw_and_answer_to_the_keyboard(visitor: Visitor, site: Path, protocol: str) -> None:
    for path in pages_with_widgets(site):
        page, visit = visitor.open(path, protocol)
        for host in page.locator(HOST).all():
            host.scroll_into_view_if_needed()
            host.locator(CONTROLS).first.wait_for(timeout=10_000)
            drawn = host.evaluate(SEEN)
            assert drawn["width"] > 100 and drawn["height"] > 50, f"{path}: nothing drawn"
            for control in filter(usable, host.locator(CONTROLS).all()):
                before = host.evaluate(SEEN)
                move(control)
                page.wait_for_timeout(250)
                after = host.evaluate(SEEN)
                assert after["controls"] != before["controls"], f"{path}: the control did not move"
                changed = after["text"] != before["text"] or after["pictures"] != before["pictures"]
                assert changed, f"{path}: the control moved and nothing else changed"
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
