"""Imports inside the package point one way, so that a reader can start at the bottom."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

# What each package may import, besides itself and the package's own small files (_text.py and the like).
ALLOWED = {
    "measure": set(),
    "training": {"measure"},
    "zoo": {"measure", "training"},
    "weights": {"measure", "training"},
    "operators": {"measure", "training"},
    "steps": {"measure", "training"},
    "show": {"measure", "training", "weights", "operators", "steps"},
}


def imported_packages(source: str, package: str) -> set[str]:
    """Return the sub-packages of pruning_lib that a file of `package` names, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.ImportFrom):
            if node.level == 2:
                names = [node.module.split(".")[0]] if node.module else [alias.name for alias in node.names]
            elif node.level == 0 and (node.module or "").startswith("pruning_lib."):
                names = [node.module.split(".")[1]]
        elif isinstance(node, ast.Import):
            names = [a.name.split(".")[1] for a in node.names if a.name.startswith("pruning_lib.")]
        found |= {name for name in names if name in ALLOWED}
    return found - {package}


PACKAGE = Path(__file__).resolve().parents[2] / "pruning_lib"
PACKAGES = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_point_one_way(root: Path, package: str) -> None:
    for path in (PACKAGE / package).rglob("*.py"):
        wrong = imported_packages(path.read_text("utf-8"), package) - ALLOWED[package]
        assert not wrong, f"{path.relative_to(root)} imports {sorted(wrong)}; {package} may use {ALLOWED[package]}"


@pytest.mark.parametrize(
    "line",
    ["from ..zoo.hub import load", "from .. import zoo", "import pruning_lib.loading", "from zoo.__init__ import hub"],
)
def test_a_wrong_import_is_seen(line: str) -> None:
    assert imported_packages(f"def f():\n    {line}\n", "weights") == {"zoo"}
