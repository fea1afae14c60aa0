"""Every page of the table of contents, in a real browser, over HTTP under a sub-path and straight from the disk."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from check_site import toc_pages
from visits import Visitor

PAGES = [f"{page}.html" for page in toc_pages(Path(__file__).resolve().parents[2])]
EVERY = pytest.mark.parametrize("path", PAGES)
BOTH = pytest.mark.parametrize("protocol", ["http", "file"])
LOOKS_LIKE_A_FILE = re.compile(r"^(\S*/)?[\w.-]+\.(png|jpe?g|svg|gif|webp)$", re.IGNORECASE)

pytestmark = pytest.mark.browser


@BOTH
@EVERY
def test_page_loads_with_a_clean_console(visitor: Visitor, path: str, protocol: str) -> None:
    visit = visitor.visit(path, protocol)
    assert visit.status in ((200,) if protocol == "http" else (0, 200, None))
    assert visit.console == []
    assert visit.failed == []


@BOTH
@EVERY
def test_page_asks_no_other_host(visitor: Visitor, path: str, protocol: str) -> None:
    assert visitor.visit(path, protocol).outside == []


@EVERY
def test_every_image_is_there_and_described(visitor: Visitor, path: str) -> None:
    for image in visitor.visit(path).images:
        assert not image["broken"], f"{image['src']} does not load"
        alt = (image["alt"] or "").strip()
        # An image without a description gets its file name as alt from Sphinx.
        assert alt and not LOOKS_LIKE_A_FILE.match(alt), f"{image['src']} has alt {image['alt']!r}"
        assert len(alt) <= 250, f"{image['src']}: alt of {len(alt)} characters; say the rest in the caption"


@BOTH
@EVERY
def test_maths_is_typeset(visitor: Visitor, path: str, protocol: str) -> None:
    maths = visitor.visit(path, protocol).maths
    assert maths["typeset"] >= maths["wanted"]
    assert maths["errors"] == 0


@EVERY
def test_nothing_scrolls_sideways_on_a_phone(visitor: Visitor, path: str) -> None:
    overflow = visitor.visit(path).overflow
    assert overflow["page"] <= 0
    assert overflow["elements"] == []


@EVERY
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_no_serious_accessibility_finding(visitor: Visitor, path: str, theme: str) -> None:
    assert visitor.visit(path).findings[theme] == []


@EVERY
def test_both_themes_draw(visitor: Visitor, path: str) -> None:
    visit = visitor.visit(path)
    assert visit.themes == {"light": "light", "dark": "dark"}
    grey = {name: np.asarray(Image.open(io.BytesIO(shot)).convert("L"), float) for name, shot in visit.shots.items()}
    assert all(picture.std() > 5 for picture in grey.values()), "a blank page"
    assert np.median(grey["light"]) > 200 > 80 > np.median(grey["dark"])


def test_the_theme_button_switches(visitor: Visitor) -> None:
    page, _ = visitor.open(PAGES[0])
    button = page.locator(".theme-switch-button").locator("visible=true").first
    seen = {page.evaluate("document.documentElement.dataset.mode")}
    for _ in range(2):
        button.click()
        seen.add(page.evaluate("document.documentElement.dataset.mode"))
    page.context.close()
    assert seen == {"auto", "light", "dark"}


def test_the_book_has_maths(visitor: Visitor) -> None:
    # Without this, a book that lost all its formulas would pass the test above.
    assert sum(visitor.visit(path).maths["typeset"] for path in PAGES) > 0


def test_search_finds_a_word(visitor: Visitor) -> None:
    page, visit = visitor.open("search.html?q=pruning")
    page.wait_for_selector("#search-results li a", timeout=10_000)
    page.context.close()
    assert visit.outside == []
