"""A headless Chromium over the built book, the network off: whatever is not the book itself is refused and recorded."""

from __future__ import annotations

import functools
import http.server
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

import find_chromium
from pruning_book.widgets.base import TwinWidget, module_source
from visits import SUB_PATH, Visitor

FLAGS = (
    "--disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update "
    "--disable-sync --disable-dev-shm-usage"
).split()
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
    """Serve the site under a sub-path, as a project site is; anything beside it is not found."""

    def translate_path(self, path: str) -> str:
        if not path.startswith(SUB_PATH):
            return "/nonexistent"
        return super().translate_path("/" + path[len(SUB_PATH) :])

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(scope="session")
def base_url(site: Path) -> Iterator[str]:
    """Address of the site over HTTP, with its sub-path."""
    handler = functools.partial(_Handler, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}{SUB_PATH}"
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
def visitor(browser: Browser, base_url: str, site: Path) -> Visitor:
    """Opens pages and remembers what it saw, so that each page is loaded once for many tests."""
    return Visitor(browser, base_url, site)


@pytest.fixture
def opened(browser: Browser, tmp_path: Path) -> Iterator[Callable[..., Page]]:
    """Open a widget's page from the disk; any error in the console fails the test."""
    errors, contexts = [], []

    def show(widget: TwinWidget, anchor: str = "", **context) -> Page:
        (tmp_path / "page.html").write_text(widget.to_page(), encoding="utf-8")
        contexts.append(browser.new_context(**context))
        page = contexts[-1].new_page()
        page.on("console", lambda message: message.type == "error" and errors.append(message.text))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda r: r.url.startswith(("file:", "data:", "blob:")) or errors.append(r.url))
        page.goto((tmp_path / "page.html").as_uri() + anchor)
        return page

    yield show
    for context in contexts:
        context.close()
    assert errors == []


@pytest.fixture
def live(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Run a widget with a kernel that gives one answer; the first one is given at once."""
    pages = []

    def run(widget: TwinWidget, reply: dict) -> Page:
        page = browser.new_page()
        pages.append(page)
        page.evaluate(KERNEL, [module_source(widget.module), widget.data(), reply])
        page.get_by_text("computing").wait_for()
        page.evaluate("window.answer()")
        return page

    yield run
    for page in pages:
        page.close()
