"""The book's own room: what its chapters and benchmarks need and an engineer's pipeline does not."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

# Imported when they are used: the judge brings transformers, the output Jupyter.
_WHERE = {
    "start": "session",
    "glue": "output",
    "must_fail": "output",
    "picture": "output",
    "table": "output",
    "verdict": "verdicts",
    "captions": "judge",
    "load_clip": "judge",
    "new_concepts": "judge",
    "training_images": "judge",
}

__all__ = list(_WHERE)


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}. It has: {', '.join(__all__)}.")
    value = globals()[name] = getattr(import_module(f".{_WHERE[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


def require(*modules: str) -> None:
    """Check that what the extra "book" brings is installed.

    Raises:
        ImportError: it is not; the message says how to install it.
    """
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise ImportError(f'This needs {" and ".join(missing)}. Install them: pip install "pruning-lib[book]"')
