"""A headless Chromium over the built book, which finds no host but this one."""

from __future__ import annotations

import functools
import http.server
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

import find_chromium
from pruning_book.widgets.base import TwinWidget, module_source
from visits import DESKTOP, watch

FLAGS = (
    "--disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update "
    "--disable-sync --disable-dev-shm-usage"
).split()
FLAGS.append("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")
# The kernel's part, played by a script: it writes down what it was asked, and answers when it is told to.
KERNEL = """async ([source, data, reply]) => {
  const module = await import(URL.createObjectURL(new Blob([source], { type: "text/javascript" })));
  const values = { data: {}, request: {}, response: {} }, listeners = {};
  const answers = [];
  window.asked = [];
  window.answer = (other) => answers.shift()(other);
  const model = {
    get: (name) => values[name],
    set: (name, value) => { values[name] = value; },
    on: (event, call) => { (listeners[event] ??= []).push(call); },
    off: (event, call) => { listeners[event] = listeners[event].filter((other) => other !== call); },
    save_changes: () => {
      const { view, number, state, want } = values.request;
      const give = (name, value) => { values[name] = value; listeners[`change:${name}`].forEach((call) => call()); };
      if (want === "data") return setTimeout(() => give("data", data));
      window.asked.push(state);
      answers.push((other) => give("response", { view, number, ...(other ?? reply) }));
    },
  };
  window.leave = module.default.render({ model, el: document.body });
  window.listening = () => Object.values(listeners).flat().length;
}"""


class _Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(scope="session")
def base_url(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of the site over HTTP, under a sub-path as a project site is; its files are not found beside it."""
    top = tmp_path_factory.mktemp("server")
    (top / "some").mkdir()
    (top / "some/project").symlink_to(site)
    handler = functools.partial(_Handler, directory=str(top))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/some/project/"
        server.shutdown()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    path = find_chromium.find()
    if path is None:
        pytest.fail(find_chromium.MISSING)
    flags = FLAGS + (["--no-sandbox"] if os.geteuid() == 0 else [])  # Chromium's sandbox refuses root
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=flags)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def context(browser: Browser) -> BrowserContext:
    """One window for all pages, so that what they share is fetched once."""
    return browser.new_context(viewport=DESKTOP)


@pytest.fixture
def opened(browser: Browser, context: BrowserContext, tmp_path: Path) -> Iterator[Callable[..., Page]]:
    """Open a widget's page from the disk; any error in the console fails the test."""
    pages, faults, file = [], [], tmp_path / "page.html"

    def show(widget: TwinWidget, anchor: str = "", **options) -> Page:
        file.write_text(widget.to_page(), encoding="utf-8")
        pages.append(browser.new_page(**options) if options else context.new_page())
        faults.append(watch(pages[-1], "file:"))
        pages[-1].goto(file.as_uri() + anchor)
        return pages[-1]

    yield show
    for page in pages:
        page.close()
    assert not any(faults), faults


@pytest.fixture
def live(context: BrowserContext) -> Iterator[Callable[..., Page]]:
    """Run a widget with a kernel that gives one answer; the first one is given at once."""
    page = context.new_page()

    def run(widget: TwinWidget, reply: dict) -> Page:
        page.evaluate(KERNEL, [module_source(widget.module), widget.data(), reply])
        page.get_by_text("computing").wait_for()
        page.evaluate("window.answer()")
        return page

    yield run
    page.close()
