"""The operator explorer alone in a page on the disk: keyboard, mouse, links, words and a kernel."""

from __future__ import annotations

import pytest
from explorer_samples import EVIL, PATHS, flat, operator_colour, operators
from playwright.sync_api import Page

from pruning_book.widgets.sheet import data_url
from visits import PIXEL

pytestmark = pytest.mark.browser

STOPS = 3


def pictures(page: Page) -> list[list[int]]:
    """Return the colours of the unpruned picture and of the other one."""
    return [page.locator("canvas").nth(k).evaluate(PIXEL) for k in range(2)]


def shows(page: Page, place: int, prompt: int = 0) -> bool:
    whole, now = pictures(page)
    return [*whole, *now] == pytest.approx([*operator_colour(prompt, 0), *operator_colour(prompt, place)], abs=3)


def facts(page: Page) -> dict[str, list[str]]:
    rows = page.locator(".compact tbody").first.locator("tr")
    cells = rows.evaluate_all("rows => rows.map((r) => [...r.children].map((c) => c.firstChild?.textContent ?? ''))")
    return {name.replace("\u00a0", " "): [text.replace("\u00a0", " ") for text in rest] for name, *rest in cells}


def test_the_slider_steps_through_the_operators_and_speaks(opened) -> None:
    page = opened(operators(start={"operator": "conv_in"}))
    one = page.get_by_role("slider").first
    assert shows(page, STOPS)
    one.press("ArrowRight")
    assert page.locator("output").first.text_content() == PATHS[1] and shows(page, STOPS + 1)
    spoken = one.get_attribute("aria-valuetext")
    said = "Without down_blocks.0.resnets.0 (resnet): score 0.75, rank 5 of 14; SSIM of this picture 0.950"
    assert spoken.startswith(said)
    assert page.locator(".say").text_content() == spoken
    found = facts(page)
    assert found["score"][1] == "0.75" and found["its parts"][1] == "0.5 + 0.25" and found["rank"][1] == "5 of 14"
    assert found["mean SSIM"] == ["1.000", "0.950 (0.850 to 1.000)"]
    assert found["parameters"] == ["0.10 M", "0.10 M"] and found["MACs of a call"] == ["1.00 M", "0.99 M"]
    assert found["what is done to it"][1] == "identity"
    one.press("End")
    assert page.locator("output").first.text_content() == "conv_out" and shows(page, STOPS + 13)


def test_the_ratio_slider_removes_the_lowest_and_shows_only_what_was_recorded(opened) -> None:
    page = opened(operators())
    page.locator("summary").click()
    names = page.locator("details tbody th").all_text_contents()
    assert names[0] == "mid_block.resnets.0" and names[-1] == "up_blocks.0.upsamplers.0" and len(names) == len(PATHS)
    many = page.get_by_role("slider").nth(1)
    many.press("End")
    assert page.locator("details tbody th").all_text_contents() == ["0", "1", "3"]
    assert shows(page, 2)
    said = "Without the 3 lowest-scored operators: 30.0 % of the MACs and 20.0 % of the parameters are gone; "
    said += "SSIM of this picture 0.800"
    assert many.get_attribute("aria-valuetext").replace("\u00a0", " ").startswith(said)
    gone = page.locator("g.gone")
    assert {g.get_attribute("id") for g in gone.all()} == {f"worth-cell-{PATHS.index(p)}" for p in (PATHS[9], PATHS[8])}
    page.get_by_role("radio", name="single layers").check()
    assert gone.count() == 3 and shows(page, 2), "the attention is seen among the single layers"
    many.press("Home")
    assert page.locator(".say").text_content() == "Nothing is removed." and shows(page, 0)
    assert many.get_attribute("max") == "2" and gone.count() == 0


def test_cells_answer_to_mouse_and_arrow_keys_and_a_finer_view_keeps_the_place(opened) -> None:
    page = opened(operators(start={"operator": "conv_in"}))
    drawing, shown = page.get_by_role("listbox"), page.locator("output").first
    page.locator("#worth-cell-9").click()
    assert shown.text_content() == "mid_block.resnets.0" and shows(page, STOPS + 9)
    assert page.locator("g.chosen").get_attribute("aria-selected") == "true"
    assert drawing.get_attribute("aria-activedescendant") == "worth-cell-9"
    page.locator("#worth-cell-0").click()
    drawing.focus()
    page.keyboard.press("ArrowDown")
    assert shown.text_content() in (PATHS[1], PATHS[3])
    page.keyboard.press("ArrowUp")
    for _ in range(2):  # there is nothing further right
        page.keyboard.press("ArrowRight")
        assert shown.text_content() == "conv_out"
    assert page.locator("#worth-cell-13").get_attribute("aria-label") == "conv_out, convolution, score 10"
    page.locator("#worth-cell-3").click()
    for view, path in (("single layers", PATHS[5]), ("inside", PATHS[4]), ("whole blocks", PATHS[3])):
        page.get_by_role("radio", name=view).check()
        assert shown.text_content() == path
    page.get_by_role("radio", name="MACs saved").check()
    assert page.locator("#worth-cell-13").get_attribute("aria-label").endswith("MACs saved 0.13\u00a0M")
    page.get_by_role("radio", name=EVIL).check()
    assert shows(page, STOPS + 3, prompt=1)


def test_links_set_it_and_say_what_was_not_recorded(opened) -> None:
    page = opened(operators(), f"#worth:prompt=lion&operator={PATHS[5]}")
    assert page.locator("output").first.text_content() == PATHS[5] and page.locator("g.cell").count() > 8
    page.evaluate("location.hash = '#worth:ratio=0.2'")
    page.get_by_text("Ratio 0.2 was not recorded; showing 0.25.").wait_for()
    assert shows(page, 2)
    page.get_by_role("slider").nth(1).press("Home")
    assert page.evaluate("location.hash") == "#worth:prompt=lion&ratio=0"


def test_with_a_kernel_the_picture_is_drawn_anew(live) -> None:
    page = live(operators(start={"operator": "conv_in"}), {"image": data_url(flat((1, 2, 3))[0]), "ssim": 0.321})
    page.get_by_text("live: computed just now").wait_for()
    assert pictures(page)[1] == [1, 2, 3] and "SSIM of this picture 0.321" in page.locator(".say").text_content()
    page.get_by_role("slider").nth(1).press("End")
    asked = [{"prompt": "lion", "operator": "conv_in"}, {"prompt": "lion", "ratio": 0.25}]
    assert page.evaluate("window.asked") == asked
    page.evaluate("window.answer()")
    page.get_by_text("live: computed just now").wait_for()
    page.get_by_role("radio", name="MACs saved").check()
    assert page.evaluate("window.asked") == asked, "another filling needs no new picture"
    assert pictures(page)[1] == [1, 2, 3]
