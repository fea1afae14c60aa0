"""The book's own room: what its chapters and benchmarks need and an engineer's pipeline does not."""

from __future__ import annotations

from importlib.util import find_spec

from pruning_lib import lazily

# Imported when they are used: the judge brings transformers, the output Jupyter.
_WHERE = {
    "start": "session",
    "verdict": "verdicts",
    **dict.fromkeys(("glue", "must_fail", "picture", "table"), "output"),
    **dict.fromkeys(("captions", "load_clip", "new_concepts", "training_images"), "judge"),
}

__all__ = list(_WHERE)

__getattr__, __dir__ = lazily(__name__, _WHERE)


def require(*modules: str) -> None:
    """Check that what the extra "book" brings is installed; an ImportError says how to install it."""
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise ImportError(f'This needs {" and ".join(missing)}. Install them: pip install "pruning-lib[book]"')
