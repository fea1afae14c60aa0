"""The house: how large its rooms may be, that imports point downwards and never in a circle, how long the walks are."""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WINGS = ("pruning_lib/structured", "pruning_lib/checkpoint")
# Lines of Python that each room may have, docstrings and blanks counted: ceilings to be lowered as the rooms shrink.
# The house is meant to hold 7,000, 2,200, 6,000, 5,500 and 11,000, the library in 40 files.
ROOMS = {
    "the library": (("pruning_lib",), WINGS, 9500),
    "its wings": (WINGS, (), 2640),
    "the book's room": (("pruning_book",), (), 6700),
    "the zoo and the benchmarks": (("zoo", "benchmarks"), (), 6400),
    "the tests": (("tests",), ("tests/compat",), 12700),
    "the tiny pipelines": (("tests/compat",), (), 2500),
}
LIBRARY_FILES = 45
# A walk: the functions it starts from, and what it passes through on the way down.
WALKS = {
    "magnitude": ("pruning_lib.weights.magnitude",),
    "LD-Pruner": ("pruning_lib.operators.score", "pruning_lib.operators.remove"),
    "DiP-GO": ("pruning_lib.steps.training", "pruning_lib.steps.schedule"),
}
WALK_LINES = 2800
# Floors of the library, the lowest first: a file may import files of its own floor and of those below.
FLOORS = (
    ("checks", "files"),
    ("interval", "records"),
    ("denoisers", "capture", "macs", "latency", "quality", "processes", "sampling"),
    ("finetuning",),
    ("weights", "operators", "steps", "structured", "checkpoint"),
    ("loading",),
    ("commands", "pruning_commands", "__main__", "__init__"),
)
# Grains and wings stand side by side.
APART = ("weights", "operators", "steps", "checkpoint")


def python_files(folders: Iterable[str], without: Iterable[str] = ()) -> list[Path]:
    found = {path for folder in folders for path in (ROOT / folder).rglob("*.py")}
    return sorted(path for path in found if not any(ROOT / left in path.parents for left in without))


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(source: str, module: str, is_package: bool, known: set[str]) -> set[str]:
    """Return the modules of `known` that a source names in any import: at its top, in functions, for annotations."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".")[: None if is_package else -1]
            above = above[: len(above) - node.level + 1] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            found |= {name if (name := f"{base}.{alias.name}") in known else base for alias in node.names}
    return {name for name in found & known if name != module}


@pytest.fixture(scope="module")
def arrows() -> dict[str, set[str]]:
    """Module -> modules it imports, for library, book, zoo and benchmarks."""
    paths = {module_name(path): path for path in python_files(("pruning_lib", "pruning_book", "zoo", "benchmarks"))}
    known = set(paths)
    told = {name: (path.read_text("utf-8"), name, path.name == "__init__.py") for name, path in paths.items()}
    return {name: imports(*what, known) for name, what in told.items()}


def reached(arrows: dict[str, set[str]], start: Iterable[str]) -> set[str]:
    found, todo = set(), list(start)
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            todo += arrows[name]
    return found


def lines_of_code(source: str) -> int:
    """Return the lines that hold code: no blank lines, comments and docstrings."""
    docs = {
        line
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for line in range(node.lineno, node.end_lineno + 1)
    }
    held = set()
    dull = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in dull:
            held |= set(range(token.start[0], token.end[0] + 1))
    return len(held - docs)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_keeps_its_size(room: str) -> None:
    folders, without, limit = ROOMS[room]
    sizes = [len(path.read_text("utf-8").splitlines()) for path in python_files(folders, without)]
    assert sum(sizes) <= limit, f"{room}: {sum(sizes)} lines in {len(sizes)} files; at most {limit}"
    assert room != "the library" or len(sizes) <= LIBRARY_FILES


@pytest.mark.parametrize("walk", WALKS)
def test_a_walk_is_read_in_an_hour(arrows: dict[str, set[str]], walk: str) -> None:
    files = {name: ROOT / f"{name.replace('.', '/')}.py" for name in reached(arrows, WALKS[walk])}
    lines = {name: lines_of_code(path.read_text("utf-8")) for name, path in files.items() if path.is_file()}
    told = ", ".join(f"{name} {count}" for name, count in sorted(lines.items(), key=lambda row: -row[1]))
    assert sum(lines.values()) <= WALK_LINES, f"{walk}: {sum(lines.values())} lines of code: {told}"


def floor(module: str) -> int:
    part = (module.split(".") + ["__init__"])[1]
    return next(number for number, floor in enumerate(FLOORS) if part in floor)


def test_arrows_point_downwards_and_never_in_a_circle(arrows: dict[str, set[str]]) -> None:
    assert not {name for name in arrows if name in reached(arrows, arrows[name])}
    wrong = []
    rooms = {"pruning_lib": {"pruning_lib"}, "pruning_book": {"pruning_lib", "pruning_book"}}
    rooms |= {"zoo": {*rooms["pruning_book"], "zoo"}, "benchmarks": {*rooms["pruning_book"], "zoo", "benchmarks"}}
    for name, found in arrows.items():
        here = name.split(".")
        for other in found:
            there = other.split(".")
            if there[0] not in rooms[here[0]]:
                wrong.append(f"{name} imports {other}")
            elif here[0] == there[0] == "pruning_lib" and len(here) > 1 and len(there) > 1:
                apart = here[1] != there[1] and {here[1], there[1]} <= set(APART)
                if apart or floor(other) > floor(name):
                    wrong.append(f"{name} imports {other}")
    assert not wrong


def test_all_imports_are_seen() -> None:
    source = "from . import a\ndef f():\n    from ..x.b import c\nif TYPE_CHECKING:\n    import p.x.d as e\n"
    known = {"p.y.a", "p.x.b", "p.x.d", "p.y.m"}
    assert imports(source, "p.y.m", False, known) == {"p.y.a", "p.x.b", "p.x.d"}
    assert imports("from .m import f\n", "p.y", True, known) == {"p.y.m"}


def test_code_is_counted_without_what_explains_it() -> None:
    assert lines_of_code('"""A\n\nB"""\n\n# why\nx = (\n    1\n)\n\n\ndef f():\n    """Doc."""\n    return x\n') == 5
