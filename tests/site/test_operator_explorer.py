"""The operator explorer alone in a page on the disk: keyboard, mouse, links, words, a kernel, print and phones."""

from __future__ import annotations

import pytest
from operator_samples import PATHS, colour, explorer
from PIL import Image
from playwright.sync_api import Browser, Page

from pruning_book.widgets.base import module_source
from pruning_book.widgets.sheet import data_url
from visits import AXE, PHONE

pytestmark = pytest.mark.browser

PIXEL = "(c) => [...c.getContext('2d').getImageData(3, 3, 1, 1).data].slice(0, 3)"
STOPS = 3


def pictures(page: Page) -> list[list[int]]:
    """Return the colours of the unpruned picture and of the other one."""
    return [page.locator("canvas").nth(k).evaluate(PIXEL) for k in range(2)]


def shows(page: Page, place: int, prompt: int = 0) -> bool:
    whole, now = pictures(page)
    return whole == pytest.approx(colour(prompt, 0), abs=3) and now == pytest.approx(colour(prompt, place), abs=3)


def facts(page: Page) -> dict[str, list[str]]:
    rows = page.locator(".compact tbody").first.locator("tr")
    cells = rows.evaluate_all("rows => rows.map((r) => [...r.children].map((c) => c.firstChild?.textContent ?? ''))")
    return {name.replace("\u00a0", " "): [text.replace("\u00a0", " ") for text in rest] for name, *rest in cells}


def test_the_slider_steps_through_the_operators_and_speaks(opened) -> None:
    page = opened(explorer(start={"operator": "conv_in"}))
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
    page = opened(explorer())
    many = page.get_by_role("slider").nth(1)
    many.press("End")
    assert shows(page, 2)
    said = "Without the 3 lowest-scored operators: 30.0 % of the MACs and 20.0 % of the parameters are gone; "
    said += "SSIM of this picture 0.800"
    assert many.get_attribute("aria-valuetext").replace("\u00a0", " ").startswith(said)
    gone = page.locator("g.gone")
    assert {g.get_attribute("id") for g in gone.all()} == {f"worth-cell-{PATHS.index(p)}" for p in (PATHS[9], PATHS[8])}
    page.get_by_role("radio", name="single layers").check()
    assert page.locator("g.gone").count() == 3 and shows(page, 2), "the attention is seen among the single layers"
    many.press("Home")
    assert page.locator(".say").text_content() == "Nothing is removed." and shows(page, 0)
    assert many.get_attribute("max") == "2" and page.locator("g.gone").count() == 0


def test_cells_answer_to_the_mouse_and_to_the_arrow_keys(opened) -> None:
    page = opened(explorer(start={"operator": "conv_in"}))
    drawing = page.get_by_role("listbox")
    page.locator("#worth-cell-9").click()
    assert page.locator("output").first.text_content() == "mid_block.resnets.0" and shows(page, STOPS + 9)
    assert page.locator("g.chosen").get_attribute("aria-selected") == "true"
    assert drawing.get_attribute("aria-activedescendant") == "worth-cell-9"
    page.locator("#worth-cell-0").click()
    drawing.focus()
    page.keyboard.press("ArrowDown")
    assert page.locator("output").first.text_content() in (PATHS[1], PATHS[3])
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowRight")
    assert page.locator("output").first.text_content() == "conv_out"
    page.keyboard.press("ArrowRight")
    assert page.locator("output").first.text_content() == "conv_out", "there is nothing further right"
    label = page.locator("#worth-cell-13").get_attribute("aria-label")
    assert label == "conv_out, convolution, score 10"


def test_a_finer_view_keeps_the_place(opened) -> None:
    page = opened(explorer(start={"operator": PATHS[3]}))
    shown = page.locator("output").first
    for view, path in (("single layers", PATHS[5]), ("inside", PATHS[4]), ("whole blocks", PATHS[3])):
        page.get_by_role("radio", name=view).check()
        assert shown.text_content() == path
    page.get_by_role("radio", name="MACs saved").check()
    assert page.locator("#worth-cell-13").get_attribute("aria-label").endswith("MACs saved 0.13\u00a0M")
    page.get_by_role("radio", name="a <b> & 'c'").check()
    assert shows(page, STOPS + 3, prompt=1)


def test_links_set_it_and_say_what_was_not_recorded(opened) -> None:
    page = opened(explorer(), f"#worth:prompt=lion&operator={PATHS[5]}")
    assert page.locator("output").first.text_content() == PATHS[5] and page.locator("g.cell").count() > 8
    page.evaluate("location.hash = '#worth:ratio=0.2'")
    page.get_by_text("Ratio 0.2 was not recorded; showing 0.25.").wait_for()
    assert shows(page, 2)
    page.get_by_role("slider").nth(1).press("Home")
    assert page.evaluate("location.hash") == "#worth:prompt=lion&ratio=0"


def test_the_table_lists_all_from_the_lowest_score(opened) -> None:
    page = opened(explorer())
    page.locator("summary").click()
    names = page.locator("details tbody th").all_text_contents()
    assert names[0] == "mid_block.resnets.0" and names[-1] == "up_blocks.0.upsamplers.0" and len(names) == len(PATHS)
    page.get_by_role("slider").nth(1).press("End")
    assert page.locator("details tbody th").all_text_contents() == ["0", "1", "3"]


def test_without_javascript_and_in_print_the_static_side_stands(opened) -> None:
    page = opened(explorer(), java_script_enabled=False)
    assert page.locator(".pl-static table").first.is_visible() and page.locator(".pl-static svg").is_visible()
    page = opened(explorer())
    page.emulate_media(media="print")
    assert page.locator(".pl-static table").first.is_visible() and not page.locator(".app").is_visible()


@pytest.mark.parametrize("view", ["whole blocks", "single layers"])
def test_it_fits_a_phone_and_passes_axe(opened, view: str) -> None:
    page = opened(explorer(), viewport=PHONE)
    page.get_by_role("radio", name=view).check()
    page.get_by_role("slider").nth(1).press("End")
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    page.evaluate(AXE.read_text(encoding="utf-8"))
    for theme, ground, ink in (("light", "#ffffff", "#323232"), ("dark", "#14181e", "#ced6dd")):
        page.evaluate(
            "([theme, ground, ink]) => { document.documentElement.dataset.theme = theme;"
            "document.body.style.background = ground; const root = document.documentElement.style;"
            "root.setProperty('--pst-color-background', ground); root.setProperty('--pst-color-text-base', ink); }",
            [theme, ground, ink],
        )
        found = page.evaluate("axe.run('.pl-twin', {resultTypes: ['violations']})")["violations"]
        assert [f"{theme}: {v['id']}: {v['nodes'][0]['html'][:150]}" for v in found] == []


# The kernel's part, played by a script: it writes down what it was asked, and answers when it is told to.
KERNEL = """async ([source, data, reply]) => {
  const module = await import(URL.createObjectURL(new Blob([source], { type: "text/javascript" })));
  const values = { data: {}, request: {}, response: {} }, listeners = {};
  window.asked = [];
  const answers = [];
  window.answer = () => answers.shift()();
  const model = {
    get: (name) => values[name], set: (name, value) => { values[name] = value; },
    on: (event, call) => { (listeners[event] ??= []).push(call); }, off: () => {},
    save_changes: () => {
      const { view, number, state, want } = values.request;
      const give = (name, value) => { values[name] = value; listeners[`change:${name}`].forEach((call) => call()); };
      if (want === "data") return setTimeout(() => give("data", data));
      window.asked.push(state);
      answers.push(() => give("response", { view, number, ...reply }));
    },
  };
  module.default.render({ model, el: document.body });
}"""


def run_live(browser: Browser, reply: dict) -> Page:
    page = browser.new_page()
    data = explorer(start={"operator": "conv_in"}).data()
    page.evaluate(KERNEL, [module_source("operator_explorer"), data, reply])
    page.get_by_text("computing").wait_for()
    page.evaluate("window.answer()")
    return page


def test_with_a_kernel_the_picture_is_drawn_anew(browser: Browser) -> None:
    image = data_url(Image.new("RGB", (8, 6), (1, 2, 3)))
    page = run_live(browser, {"image": image, "ssim": 0.321})
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
    page.close()


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        ({"error": "RuntimeError: no memory"}, "RuntimeError: no memory"),
        ({"image": "data:image/png;base64,eA==", "ssim": 1}, "Its picture could not be read."),
    ],
)
def test_a_failed_run_says_so_and_shows_the_record(browser: Browser, reply: dict, words: str) -> None:
    page = run_live(browser, reply)
    page.get_by_text(f"The live run failed, so this is the recorded picture. {words}").wait_for()
    assert page.locator(".badge").text_content() == "recorded" and shows(page, STOPS)
    page.close()
