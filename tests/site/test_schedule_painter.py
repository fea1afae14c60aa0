"""The schedule painter alone in a page on the disk: counts, mouse, keyboard, links, words and a kernel."""

from __future__ import annotations

import pytest
import torch
from explorer_samples import PROMPTS, UNITS, flat, grid, painter, random_grid, random_table, schedule_colour
from playwright.sync_api import BrowserContext, Page

from pruning_book.widgets.base import module_source
from pruning_book.widgets.schedule_editor import grid_data
from pruning_book.widgets.sheet import data_url
from pruning_lib.steps.schedule import decode_table, encode_table
from visits import PHONE, PIXEL

pytestmark = pytest.mark.browser


def picture(page: Page, which: int = 1) -> list[int] | None:
    """Return the colour of a picture, None where nothing is drawn."""
    *rgb, alpha = page.locator("canvas").nth(which).evaluate(PIXEL.replace(".slice(0, 3)", ""))
    return rgb if alpha else None


def shows(page: Page, stop: int, prompt: int = 0) -> bool:
    whole, now = (picture(page, k) or [] for k in (0, 1))
    return [*whole, *now] == pytest.approx([*schedule_colour(prompt, 0), *schedule_colour(prompt, stop)], abs=3)


def said(page: Page) -> str:
    return page.locator(".say").text_content().replace("\u00a0", " ")


def cell(page: Page, step: int, unit: int):
    """Return a cell; steps and units count from zero."""
    return page.locator(f"#painter-cell-{step}-{unit}")


def table(page: Page) -> list[str]:
    """Return what each step's cells are: c computed, d dead, r reused."""
    cells = page.locator(".paint tbody tr").evaluate_all(
        "rows => rows.map((row) => [...row.querySelectorAll('td')].map((td) => td.className[0]))"
    )
    return ["".join(column) for column in zip(*cells, strict=True)]


def ratio(*rows: str) -> str:
    """Return the share of MACs that Python counts."""
    return f"{100 * grid().macs_ratio(decode_table(rows)):.1f} % of the MACs"


# One table is counted by both languages.

COUNT = """async ([source, cases, addresses]) => {
  const m = await import(URL.createObjectURL(new Blob([source], { type: "text/javascript" })));
  const counted = cases.map(([rows, grid]) => {
    const alive = m.live(m.read(rows), grid), called = m.calls(alive, grid);
    return { live: m.write(alive), called, back: m.write(m.fromHex(m.toHex(m.read(rows)), rows.length, rows[0].length)),
      macs: m.cost(alive, called, grid.macs, grid.base_macs),
      without: m.cost(alive, called, grid.macs_without_attention, grid.base_macs_without_attention) };
  });
  return [counted, addresses.map((text) => m.fromHex(text, 4, 4) !== null)];
}"""


def test_the_page_counts_as_python_does(context: BrowserContext) -> None:
    generator = torch.Generator().manual_seed(5)
    grids, tables = [], []
    for k in range(100):
        units, steps = 2 + k % 11, 2 + k % 7
        grids.append(random_grid(units, steps, generator))
        tables.append(random_table((steps, units), generator, (k % 10 + 0.5) / 10))
    page = context.new_page()
    cases = [[rows, grid_data(g)] for g, rows in zip(grids, tables, strict=True)]
    addresses = ["f0f0", "", "xyz", "fff", "fffff"]
    found, whole = page.evaluate(COUNT, [module_source("painter_counting"), cases, addresses])
    page.close()
    assert whole == [True] + [False] * 4, "an address that is no table is refused"
    dead = skipped = 0
    for g, rows, told in zip(grids, tables, found, strict=True):
        on = decode_table(rows)
        assert told["live"] == encode_table(g.live(on)) and told["called"] == g.calls(on).tolist()
        assert told["macs"] == g.macs_of(on) and told["without"] == g.macs_of(on, attention=False)
        assert told["back"] == rows, "a table survives the address"
        dead += int((on & ~g.live(on)).sum())
        skipped += int((~g.calls(on)).sum())
    assert dead > 60 and skipped > 10, "the cases must hold what is to be counted"


def test_a_cell_is_switched_and_everything_follows(opened) -> None:
    page = opened(painter(start={"schedule": "everything"}))
    assert said(page) == "100.0 % of the MACs in 4 of 4 calls. SSIM of this picture 1.000." and shows(page, 0)
    cell(page, 1, 3).click()  # nobody reads the rest of this step any more
    assert table(page) == ["cccc", "dddr", "cccc", "cccc"]
    assert said(page).startswith(f"{ratio('1111', '1110', '1111', '1111')} in 3 of 4 calls; 3 computed cells")
    assert "No picture was recorded" in said(page) and picture(page) is None
    assert page.locator(".badge").text_content() == "no picture"
    assert page.locator("th.skipped").text_content() == "2"
    assert cell(page, 1, 0).get_attribute("aria-label") == f"{UNITS[0]}, step 2: computed, but dead work"
    assert cell(page, 1, 3).get_attribute("aria-selected") == "false"
    cell(page, 3, 3).click()  # the same picture as every 2nd step, dead work besides
    assert shows(page, 1) and said(page).startswith("50.0 % of the MACs in 2 of 4 calls; 6 computed cells are")
    assert "SSIM of this picture 0.900" in said(page)
    page.get_by_role("button", name="Switch dead work off").click()
    assert table(page) == ["cccc", "rrrr"] * 2 and shows(page, 1)
    assert said(page).startswith("50.0 % of the MACs in 2 of 4 calls. ")
    for _ in range(3):
        page.get_by_role("button", name="Undo").click()
    assert table(page) == ["cccc"] * 4 and shows(page, 0)
    assert page.get_by_role("button", name="Undo").is_disabled()


def test_a_skip_connection_keeps_its_source_alive_and_the_first_step_stays(opened) -> None:
    page = opened(painter(start={"schedule": "everything"}))
    for first in (cell(page, 0, 1), page.locator("th[role=columnheader]").nth(1)):
        first.click()
        assert table(page) == ["cccc"] * 4
        assert "nothing can be used again yet" in page.locator(".note.warn").text_content()
    cell(page, 2, 2).click()  # the middle is reused; the first layer is still read, across
    assert table(page)[2] == "cdrc"


def test_rows_columns_and_drags_paint_many_cells(opened) -> None:
    page = opened(painter(start={"schedule": "everything"}))
    for painted in (["cccc", "rrrr", "cccc", "cccc"], ["cccc"] * 4):
        page.locator("th[role=columnheader]").nth(2).click()
        assert table(page) == painted
    page.locator("th[role=rowheader]").nth(3).click()
    assert table(page) == ["cccc", *["dddr"] * 3] and said(page).startswith("25.0 % of the MACs in 1 of 4")
    page.get_by_role("button", name="Undo").click()
    cell(page, 1, 1).hover()
    page.mouse.down()
    for step in (2, 3):
        cell(page, step, 1).hover()
    page.mouse.up()
    assert table(page) == ["cccc", *["crcc"] * 3]
    cell(page, 2, 1).hover()
    page.mouse.down()
    page.mouse.up()
    assert table(page) == ["cccc", "crcc", "cccc", "crcc"], "a press without a drag is a click"


def test_by_keyboard(opened) -> None:
    page = opened(painter(start={"schedule": "everything"}))

    def press(*keys: str) -> list[str]:
        for key in keys:
            page.keyboard.press(key)
        return table(page)

    cell(page, 1, 0).focus()
    assert cell(page, 1, 0).get_attribute("tabindex") == "0"
    assert press("ArrowRight", "ArrowDown", "Space")[2] == "crcc"
    assert page.locator(".paint [tabindex='0']").count() == 1
    assert cell(page, 2, 1).evaluate("(td) => td === td.getRootNode().activeElement")
    heard = page.locator(".hidden[role=status]").text_content().replace("\u00a0", " ")
    assert heard == said(page) and heard.startswith(ratio("1111", "1111", "1011", "1111"))
    assert press("Home", "Enter") == ["cccc"] * 4  # on the unit's name
    assert press("Enter") == ["cccc", *["crcc"] * 3]
    assert press("Control+End", "Space")[3] == "drdr"
    # along the header to step 3; a corner holds nothing
    assert press("Control+Home", "ArrowUp", "ArrowUp", "ArrowLeft", "ArrowRight", "ArrowRight", "Space")[2] == "cccc"


def test_presets_prompts_and_the_list_of_all(opened) -> None:
    page = opened(painter())
    select = page.get_by_role("combobox")
    assert shows(page, 1) and select.input_value() == "1"
    select.select_option("the last layer")
    assert shows(page, 2) and table(page) == ["cccc", *["rrrc"] * 3]
    assert page.get_by_text("About the last layer.").is_visible()
    page.get_by_role("radio", name=PROMPTS[1]).check()
    assert shows(page, 2, prompt=1) and "SSIM of this picture 0.600" in said(page)
    cell(page, 1, 3).click()
    assert select.input_value() == "-1" and picture(page) is None
    page.locator("summary").click()
    rows = page.locator("details tbody th").all_text_contents()
    assert rows == ["everything", "every 2nd step", "the last layer"]
    page.locator(".chart .hit").first.click(force=True)  # of the first group, the fewest MACs
    assert shows(page, 1, prompt=1) and page.locator(".chart .legend").text_content().count("whole steps") == 1


def test_links_bring_a_table_and_say_what_is_wrong(opened) -> None:
    page = opened(painter(), "#painter:prompt=lion&schedule=the%20last%20layer")
    assert shows(page, 2)
    page.evaluate("location.hash = '#painter:on=f7ff'")
    page.get_by_text("No picture was recorded").first.wait_for()
    assert table(page) == ["cccc", "rccc", "cccc", "cccc"]
    cell(page, 1, 0).click()
    assert page.evaluate("location.hash").endswith("on=ffff")
    page.evaluate("location.hash = '#painter:schedule=nothing&on=f'")
    page.get_by_text("There is no recorded schedule nothing. The address holds no table").wait_for()
    page.evaluate("location.hash = '#painter:on=0ff7'")
    page.wait_for_function("location.hash.endsWith('fff7')")
    assert table(page) == [*["cccc"] * 3, "rccc"], "the first step is always computed"


def test_ten_steps_are_wide_enough_for_a_finger(opened) -> None:
    wide = grid(timesteps=tuple(float(999 - 99 * t) for t in range(10)), steps=10)
    full = {"ssim": [1, 1], "mean": {"value": 1, "low": 1, "high": 1}}
    stops = [{"name": "everything", "group": "g", "on": ["1111"] * 10, **full}]
    page = opened(painter(grid=wide, stops=stops, images=flat((0, 0, 0), (0, 0, 0))), viewport=PHONE)
    size = cell(page, 9, 3).bounding_box()
    assert size["width"] >= 24 and size["height"] >= 24
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


def test_with_a_kernel_any_table_is_drawn(live) -> None:
    image = data_url(flat((1, 2, 3))[0])
    page = live(painter(), {"image": image, "ssim": 0.321, "ms": 50, "whole_ms": 100})
    page.locator(".badge", has_text="live").wait_for()
    assert picture(page) == [1, 2, 3] and "SSIM of this picture 0.321" in said(page)
    cell(page, 1, 3).click()
    page.wait_for_function("window.asked.length === 2")
    assert page.evaluate("window.asked[1]") == {"prompt": "lion", "on": ["1111", "0001", "1111", "0000"]}
    page.evaluate("window.answer()")
    page.locator(".badge", has_text="live").wait_for()
    assert picture(page) == [1, 2, 3] and page.get_by_text("time of this run").is_visible()
    cell(page, 1, 0).click()  # the first layer, now read by the last one: another picture
    page.wait_for_function("window.asked.length === 3")
    cell(page, 1, 1).click()  # read by nobody: the same picture, nothing is asked
    page.wait_for_timeout(400)
    assert page.evaluate("window.asked.length") == 3 and table(page)[1] == "cdrc"
