"""Widgets with two lives: an anywidget where a kernel answers, plain HTML with the same ES module everywhere else.

A `TwinWidget` gives a page a static picture and table, its data as JSON, and the module's text, which replaces the
static part by the moving one; with JavaScript off, in print, or after an error, the static part is what one sees.
Nothing is fetched, so it works under any path, from a file on disk, in Colab's frames and in exported notebooks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from decimal import ROUND_HALF_UP, Decimal
from functools import cache
from html import escape
from importlib import resources
from typing import Any, ClassVar

_IMPORT = re.compile(r'^import \{[^}]*\} from "\./(\w+)\.js";\n', re.MULTILINE)


def static_text(file: str) -> str:
    """Return the text of a file of `widgets/static`."""
    return resources.files("pruning_book.widgets").joinpath("static", file).read_text(encoding="utf-8")


@cache
def module_source(kind: str) -> str:
    """Return one self-contained ES module: `static/<kind>.js` with the modules it imports put before it.

    A module that is written into a page has no address, so relative imports would not resolve.
    """
    parts: dict[str, str] = {}

    def collect(name: str) -> None:
        text = static_text(f"{name}.js")
        for other in _IMPORT.findall(text):
            if other not in parts:
                collect(other)
        text = _IMPORT.sub("", text)
        parts[name] = text if name == kind else re.sub(r"^export (?=function|const)", "", text, flags=re.MULTILINE)

    collect(kind)
    source = "\n".join(parts.values())
    left = re.search(r"^\s*(?:import\b|export\b.*\bfrom\b).*|\bimport\s*\(.*", source, re.MULTILINE)
    if left:
        raise ValueError(f'static/{kind}.js: write imports as `import {{ a, b }} from "./file.js";`, not {left[0]!r}')
    if re.search(r"</script|<!--", source, re.IGNORECASE):
        raise ValueError(f"static/{kind}.js must not contain '</script' or '<!--': it is written into HTML pages")
    return source


def json_for_html(data: Any) -> str:
    """Return JSON that may stand inside a script element: no text in it can end the element."""
    return json.dumps(data, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")


def number(value: float | None, digits: int, unit: str = "") -> str:
    """Return a value as the widgets write it: fixed decimals, commas between thousands; "not measured" for None.

    Halves of the shortest decimal form are rounded up, as browsers do (1.005 becomes 1.01).
    """
    if value is None:
        return "not measured"
    rounded = Decimal(repr(float(value))).quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP)
    return f"{rounded if rounded else abs(rounded):,}" + (f"\u00a0{unit}" if unit else "")


def refuse(what: str, *faults: tuple[bool, str]) -> None:
    """Raise a ValueError that says the first fault that is there."""
    for there, fault in faults:
        if there:
            raise ValueError(f"{what} {fault}")


def mean_text(mean: Mapping[str, float]) -> str:
    """Write "value", "low" and "high" of a mean SSIM."""
    return f"{number(mean['value'], 3)} ({number(mean['low'], 3)} to {number(mean['high'], 3)})"


def sentences(*texts: str) -> str:
    """Join texts, each ended by a full stop unless it has an end of its own."""
    return escape(" ".join(text if text[-1] in ".?!" else text + "." for text in texts if text))


def scrolling(label: str, caption: str, head: Sequence[str], rows: Sequence[Sequence[str]], passport: str = "") -> str:
    """Return a table in a box that scrolls sideways and can be reached by keyboard, and a line on where it is from.

    `head` is HTML, and so are cells behind a row's first that bring their own element; others are plain text.
    """
    cells = "".join(f'<th scope="col">{text}</th>' if text else "<td></td>" for text in head)
    body = ""
    for first, *others in rows:
        others = [cell if cell.startswith("<td") else f"<td>{escape(cell)}</td>" for cell in others]
        body += f'<tr><th scope="row">{escape(first)}</th>{"".join(others)}</tr>'
    return (
        f'<div class="pl-scroll" tabindex="0" role="region" aria-label="{escape(label)}"><table>'
        f"<caption>{caption}</caption><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table></div>"
        + (f'<p class="pl-passport">{escape(passport)}</p>' if passport else "")
    )


def passport_line(passport: Mapping | str | None) -> str:
    """Return where, when and with what something was measured, as `passport()` says it, as one line; "" for None.

    Fields that are missing are left out; a finished sentence stays as it is.
    """
    if passport is None or isinstance(passport, str):
        return passport or ""
    versions = passport.get("versions") or {}
    commit = str(passport.get("commit") or "")
    if commit and commit != "uncommitted":
        commit = f"commit {commit[:10]}" + (" with changes" if passport.get("dirty") else "")
    on_cpu, threads = passport.get("device", "cpu") == "cpu", passport.get("cpu_threads")
    parts = [
        f"Measured on {passport['hardware']}" if passport.get("hardware") else "",
        f"{threads} thread{'' if threads == 1 else 's'}" if threads and on_cpu else "",
        f"n = {passport['n']}" if passport.get("n") is not None else "",
        *(f"{name} {versions[name]}" for name in ("torch", "diffusers") if name in versions),
        str(passport.get("date") or "")[:10],
        commit,
    ]
    return ", ".join(part for part in parts if part)


class TwinWidget:
    """Base of the interactive figures. Subclasses name their ES module and give data and a static fallback.

    `name` identifies the widget in its page and in links (`#name:axis=stop`): lower-case letters, digits, hyphens.
    `on_change` is called with the chosen state, recomputes and returns what the subclass documents; giving it makes the
    widget live where a kernel is connected.
    """

    module: ClassVar[str] = ""

    def __init__(self, name: str, *, on_change: Callable[[dict], Mapping] | None = None) -> None:
        if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9-]*", name):
            like = "it must be like 'steps-1': a lower-case letter, then letters, digits, hyphens"
            raise ValueError(f"name is {name!r}; {like}")
        if on_change is not None and not callable(on_change):
            raise ValueError(f"on_change is {on_change!r}; give a function that takes the state as a dict, or None")
        self.name, self.on_change = name, on_change
        self._widget: Any = None

    data: Callable[[], dict]  # what the module draws, as JSON-ready values; with `version` and `name`
    fallback_html: Callable[[], str]  # the static picture and table

    def answer(self, state: dict) -> dict:
        """Return the live answer to `state` as JSON-ready values; called by the live side only."""
        return dict(self.on_change(state))

    def to_html(self) -> str:
        """Return the HTML that a notebook output or a page holds."""
        return (
            f"<style>{static_text('twin.css')}</style>"
            f'<div class="pl-twin" id="{self.name}" data-pl-widget="{self.module}">'
            f'<div class="pl-static">{self.fallback_html()}</div>'
            f'<script type="application/json">{json_for_html(self.data())}</script></div>'
            f'<script type="module">\n{module_source(self.module)}\nmountAll("{self.module}", mount);\n</script>'
        )

    def to_page(self) -> str:
        """Return a whole HTML page with only this widget, to be saved and opened anywhere."""
        return (
            '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{self.name}</title></head>"
            f'<body style="font-family:system-ui,sans-serif;margin:1rem">{self.to_html()}</body></html>'
        )

    def widget(self) -> Any:
        """Return the anywidget side, made on the first call; an ImportError says that anywidget is not installed."""
        if self._widget is None:
            self._widget = _live(self)
        return self._widget

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        bundle: dict[str, Any] = {"text/plain": repr(self), "text/html": self.to_html()}
        if self.on_change is None:
            return bundle, {}
        try:
            shown = self.widget()._repr_mimebundle_()
        except ImportError:  # the HTML twin shows the record
            return bundle, {}
        view, metadata = shown if isinstance(shown, tuple) else (shown or {}, {})
        bundle.update({mime: value for mime, value in view.items() if mime.endswith("widget-view+json")})
        return bundle, metadata  # Colab finds there where its widget manager is

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"


def _live(twin: TwinWidget) -> Any:
    """Return an anywidget with the same module, answered by the widget's Python function.

    The browser writes the trait `request` (`view`, `number`, and `want: "data"` or `state`); Python writes `data` or
    `response` (same `view` and `number`). Until a browser asks, `data` stays empty: a page that is built by executing a
    notebook stores the traits of every widget, and would hold pictures and numbers a second time.
    """
    import anywidget
    import traitlets

    def answered(state: Mapping) -> dict:
        try:
            answer = twin.answer(dict(state))
            json.dumps(answer, allow_nan=False)
        except Exception as error:  # the reader sees it in the widget, beside the recorded stop
            return {"error": f"{type(error).__name__}: {error}"}
        return answer

    class Live(anywidget.AnyWidget):
        _esm = module_source(twin.module)
        _css = static_text("twin.css")
        data = traitlets.Dict().tag(sync=True)
        request = traitlets.Dict().tag(sync=True)
        response = traitlets.Dict().tag(sync=True)

        @traitlets.observe("request")
        def _on_request(self, change: dict) -> None:
            request = change["new"]
            if request.get("want") == "data":
                # Other views of the same widget may have been given the data before; then nothing changes.
                self.data = twin.data()
            elif "state" in request:
                asked = {"view": request.get("view"), "number": request.get("number")}
                self.response = {**asked, **answered(request["state"])}

    return Live()
