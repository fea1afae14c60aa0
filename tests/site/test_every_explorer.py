"""What each explorer must do alone in a page on the disk: stand without JavaScript, fit a phone, survive failures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from explorer_samples import COLOURS, blocks, operator_colour, operators, painter, schedule_colour, sweep, weighed
from playwright.sync_api import BrowserContext, Page

from pruning_book.widgets.base import TwinWidget
from visits import AXE, PHONE, PIXEL, findings

pytestmark = pytest.mark.browser

# As the book's theme sets them: name, ground, ink.
THEMES = (("light", "#ffffff", "#323232"), ("dark", "#14181e", "#ced6dd"))
THEME = """([theme, ground, ink]) => {
  document.documentElement.dataset.theme = theme;
  document.body.style.background = ground;
  const root = document.documentElement.style;
  root.setProperty("--pst-color-background", ground);
  root.setProperty("--pst-color-text-base", ink);
}"""


def fine_view(page: Page) -> None:
    page.get_by_role("radio", name="single layers").check()
    page.get_by_role("slider").nth(1).press("End")


def cut_and_listed(page: Page) -> None:
    page.locator("#painter-cell-2-3").click()
    page.locator("summary").click()


class Sample(NamedTuple):
    """An explorer."""

    make: Callable[[], TwinWidget]
    changed: Callable[[Page], None] = lambda page: None  # what a reader may do, so that more of it is looked at
    recorded: tuple[int, int, int] | None = None  # the picture it shows when a live run fails; None without a kernel
    numbers: tuple[str, ...] = ()  # of a live answer, beside the picture


SAMPLES = {
    "sweep": Sample(sweep, recorded=COLOURS[1]),
    "weighed": Sample(weighed),
    "blocks": Sample(blocks),
    "operators": Sample(lambda: operators(start={"operator": "conv_in"}), fine_view, operator_colour(0, 3), ("ssim",)),
    "painter": Sample(painter, cut_and_listed, schedule_colour(0, 1), ("ssim", "ms", "whole_ms")),
}
EVERY = pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES)
LIVE = {name: sample for name, sample in SAMPLES.items() if sample.recorded}


@EVERY
def test_without_javascript_in_print_and_after_a_failed_start_the_static_side_stands(
    opened, context: BrowserContext, tmp_path: Path, sample: Sample
) -> None:
    page = opened(sample.make(), java_script_enabled=False)
    assert page.locator(".pl-static table").first.is_visible()
    page = opened(sample.make())
    assert not page.locator(".pl-static table").first.is_visible() and page.locator(".app").is_visible()
    page.emulate_media(media="print")
    assert page.locator(".pl-static table").first.is_visible() and not page.locator(".app").is_visible()

    head, data = sample.make().to_page().split('<script type="application/json">', 1)
    data, tail = data.split("</script>", 1)
    lists = {key for key, value in json.loads(data).items() if isinstance(value, list)}
    broken = json.dumps(json.loads(data) | dict.fromkeys(lists))
    file = tmp_path / "broken.html"
    file.write_text(f'{head}<script type="application/json">{broken}</script>{tail}', encoding="utf-8")
    page = context.new_page()
    page.goto(file.as_uri())
    assert page.locator(".pl-static table").first.is_visible() and page.get_by_role("slider").count() == 0
    page.close()


@EVERY
def test_it_fits_a_phone_and_passes_axe(opened, sample: Sample) -> None:
    page = opened(sample.make(), viewport=PHONE)
    page.evaluate(AXE)
    for change in {lambda page: None, sample.changed}:
        change(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        for theme in THEMES:
            page.evaluate(THEME, theme)
            assert findings(page, theme[0], ".pl-twin") == []


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"error": "RuntimeError: no memory"}, "RuntimeError: no memory"),
        ({"image": "data:image/png;base64,eA=="}, "Its picture could not be read."),
    ],
)
@pytest.mark.parametrize("sample", LIVE.values(), ids=LIVE)
def test_a_failed_run_says_so_and_shows_the_record(live, sample: Sample, fault: dict, words: str) -> None:
    page = live(sample.make(), {**dict.fromkeys(sample.numbers, 1), **fault})
    page.get_by_text("The live run failed, so this is the recorded").wait_for()
    assert words in page.locator(".note.warn").text_content()
    assert page.locator(".badge").text_content() == "recorded"
    assert page.locator("canvas").last.evaluate(PIXEL) == pytest.approx(list(sample.recorded), abs=3)
