"""The live side of a `TwinWidget`: an anywidget with the same ES module, answered by the widget's Python function."""

from __future__ import annotations

import json
from typing import Any

from .twin import TwinWidget, module_source, static_text

__all__ = ["live_widget"]


def live_widget(twin: TwinWidget) -> Any:
    """Return an `anywidget.AnyWidget` for `twin`.

    The browser writes the trait `request` (`view`, `number`, and `want: "data"` or `state`); Python writes `data` or
    `response` (same `view` and `number`). Until a browser asks, `data` stays empty: a page that is built by executing
    a notebook stores the traits of every widget, and would hold pictures and numbers a second time.

    Raises:
        ImportError: anywidget is not installed.
    """
    import anywidget
    import traitlets

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
                self.response = {
                    "view": request.get("view"),
                    "number": request.get("number"),
                    **_answer(request["state"]),
                }

    def _answer(state: dict) -> dict:
        try:
            answer = twin.answer(dict(state))
            json.dumps(answer, allow_nan=False)
        except Exception as error:  # the reader sees it in the widget, beside the recorded stop
            return {"error": f"{type(error).__name__}: {error}"}
        return answer

    return Live()
