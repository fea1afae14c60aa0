"""The sweep explorer and the block explorer alone in a page on the disk: what is drawn, said, linked and computed."""

from __future__ import annotations

import pytest
from explorer_samples import COLOURS, EVIL, PANEL, UNET, blocks, flat, sweep, weighed

from pruning_book.widgets.axes import Axis, Metric
from pruning_book.widgets.sheet import data_url
from visits import PIXEL

pytestmark = pytest.mark.browser


def test_the_picture_follows_slider_chart_and_address_and_the_slider_speaks(opened) -> None:
    page = opened(sweep(chart=("steps", "ms")))
    slider, now, baseline = page.get_by_role("slider"), page.locator("canvas").last, page.locator("canvas").first
    assert now.evaluate(PIXEL) == pytest.approx(COLOURS[1], abs=3)
    assert slider.get_attribute("aria-valuetext").startswith("steps 4: ms 20.00\u00a0ms")
    page.locator("circle.hit").first.click(force=True)
    assert now.evaluate(PIXEL) == pytest.approx(COLOURS[0], abs=3)
    assert baseline.evaluate(PIXEL) == pytest.approx(COLOURS[2], abs=3)
    assert slider.get_attribute("aria-valuetext").startswith("steps 2: ms 10.00\u00a0ms, score 1.01")
    page.get_by_role("radio").first.focus()
    page.keyboard.press("ArrowRight")
    assert now.evaluate(PIXEL) == pytest.approx(COLOURS[3], abs=3)
    assert page.get_by_role("status").last.text_content().startswith(f"{EVIL}, steps 2: ms 11.00")
    assert page.evaluate("location.hash") == "#steps:prompt=%3C%2Fscript%3E%3Cb%3E&steps=2"
    page = opened(sweep(), "#steps:steps=7")
    assert page.get_by_role("slider").input_value() == "2"
    assert "Steps 7 was not measured; showing 8." in page.locator(".note.warn").text_content()


def test_the_moving_table_shows_the_digits_of_the_static_one(opened) -> None:
    last = "rows => rows.map((r) => r.lastChild.textContent)"
    page = opened(sweep(start={"prompt": EVIL}))
    static = page.locator(".pl-static tbody tr").evaluate_all(last)
    page.locator("summary").click()
    assert page.locator("details tbody tr").evaluate_all(last) == static == ["1,234.50", "0.00", "3.00"]
    page.get_by_role("radio").first.check()
    assert page.locator("details tbody tr").evaluate_all(last) == ["1.01", "0.13", "not measured"]


def test_a_place_that_all_prompts_share_is_drawn_once(opened) -> None:
    """A mean over pictures is the same for each prompt."""
    axes = [Axis("prompt", ["a", "b", "c"]), Axis("method", ["x", "y"]), Axis("steps", [2, 4])]
    metrics = [Metric("ms", [10, 20, 30, 20] * 3, unit="ms"), Metric("ssim", [0.5, 0.75, 0.6, 0.8] * 3, digits=2)]
    page = opened(sweep(axes=axes, images=flat(*[(0, 0, 0)] * 12), metrics=metrics, baseline=None))
    assert page.locator(".chart > svg circle.dot").count() == page.locator(".chart > svg circle.other").count() == 2


def test_the_histogram_follows_the_slider_and_says_what_python_says(opened) -> None:
    explorer = weighed()
    page = opened(explorer)
    slider, picture = page.get_by_role("slider"), page.locator(".histogram svg[role=img]")
    for stop, (key, kept, cuts) in enumerate([("Home", 3, 0), ("ArrowRight", 3, 2), ("End", 2, 4)]):
        slider.press(key)
        words = explorer.histogram.words(PANEL["removed"][stop], PANEL["cuts"][stop])
        said = picture.get_attribute("aria-label").replace("\u00a0", " ")
        assert said == f"Histogram of the weights, steps {[2, 4, 8][stop]}: {words}"
        assert words in page.locator(".histogram .note").text_content().replace("\u00a0", " ")
        assert picture.locator("rect.all").count() == 3 and picture.locator("rect.kept").count() == kept
        assert picture.locator("line.cut").count() == (4 if cuts else 0)
        assert picture.locator("rect.cuts").count() == (2 if cuts == 4 else 0)
    low = [float(x) for x in picture.locator("line.cut").evaluate_all("all => all.map((l) => l.getAttribute('x1'))")]
    assert low == sorted(low) and low[0] + low[3] == pytest.approx(low[1] + low[2]), "the same on both sides of zero"


def test_the_drawn_denoiser_answers_to_keyboard_mouse_and_links(opened) -> None:
    page = opened(blocks())
    slider, say = page.get_by_role("slider"), page.locator(".say")
    assert say.text_content() == "small, conv_out: 30.0\u00a0% of the parameters, 3.00\u00a0M of 10.00\u00a0M."
    assert page.locator("line.skip").count() == 2
    boxes = page.locator("g.block").evaluate_all(
        """all => all.map((g) => [g.querySelector('text').textContent,
          Number(g.firstChild.getAttribute('x')), Number(g.firstChild.getAttribute('y'))])"""
    )
    at = {name: (x, y) for name, x, y in boxes}  # a block stands where the data flow
    assert at["down_blocks.0"][1] == at["up_blocks.1"][1] < at["down_blocks.1"][1] == at["up_blocks.0"][1]
    assert at["mid_block"][1] == max(y for _, y in at.values()) and len(set(at.values())) == len(UNET) == 8
    slider.press("ArrowLeft")
    assert slider.get_attribute("aria-valuetext") == say.text_content()
    assert say.text_content().startswith("small, up_blocks.1: 10.0\u00a0%")
    page.locator("g.block", has_text="mid_block").click()
    assert page.locator("g.chosen").text_content() == "mid_block10.0\u00a0%"
    page.get_by_role("radio", name="latency").check()
    assert page.locator("g.block", has_text="up_blocks.1").text_content() == "up_blocks.142.9\u00a0%"
    page.evaluate("location.hash = '#blocks:model=chain&measure=latency&block=transformer_blocks.13'")
    page.wait_for_function("document.querySelector('#blocks').shadowRoot.querySelectorAll('g.block').length === 28")
    assert say.text_content() == "chain, transformer_blocks.13: latency not measured."


def test_with_a_kernel_the_stop_is_computed_and_shown_beside_the_record(live) -> None:
    histogram = {"removed": [0, 77, 0], "cut": None}
    reply = {"image": data_url(flat((1, 2, 3))[0]), "metrics": {"ms": 400}, "histogram": histogram}
    page = live(weighed(), reply)
    page.get_by_text("live: computed just now").wait_for()
    assert page.locator("tbody tr").first.locator("td").last.text_content() == "400.00\u00a0msrecorded: 20.00"
    assert page.locator("canvas").last.evaluate(PIXEL) == [1, 2, 3]
    assert "77 of 1,030 removed" in page.locator(".histogram .note").text_content()
    assert page.locator("canvas").first.evaluate(PIXEL) == pytest.approx(COLOURS[2], abs=3)
    slider = page.get_by_role("slider")
    for key in ("ArrowRight", "ArrowLeft", "ArrowLeft"):
        slider.press(key)
    asked = "window.asked.map((state) => state.steps)"
    assert page.evaluate(asked) == [4, 8]
    page.evaluate("window.answer()")
    # While the kernel worked, only the newest wish was kept, and the answer to the old one is not shown.
    assert page.evaluate(asked) == [4, 8, 2] and page.locator(".badge").text_content() == "computing\u2026"
    page.evaluate("window.answer({ metrics: { ms: 200 } })")
    page.get_by_text("200.00\u00a0ms").first.wait_for()
    assert page.evaluate("location.hash") == ""
    page.evaluate("window.leave()")
    assert page.evaluate("window.listening()") == 0
