"""The book's own room: what its chapters and benchmarks need and an engineer's pipeline does not."""

from __future__ import annotations

from importlib.util import find_spec

from pruning_lib import lazily

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

__getattr__, __dir__ = lazily(__name__, _WHERE)


def require(*modules: str) -> None:
    """Check that what the extra "book" brings is installed.

    Raises:
        ImportError: it is not; the message says how to install it.
    """
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise ImportError(f'This needs {" and ".join(missing)}. Install them: pip install "pruning-lib[book]"')
