"""Write each chapter's .ipynb from its .md, byte for byte the same each time; with --check only compare.

One way only: the MyST Markdown is the source. Cell ids are numbered in order, since jupytext invents new ones on each
run, and outputs never enter git. The .ipynb is what Colab opens.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import jupytext
import nbformat

import execute
from setup_cell import chapters, problem, repository

ROOT = Path(__file__).resolve().parents[1]
# Fixed: part of the cache's key.
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def paired(source: Path) -> str:
    """Return the text of the output-free notebook made from the chapter `source`."""
    notebook = jupytext.read(source, fmt="md:myst")
    clean = nbformat.v4.new_notebook(metadata={"kernelspec": KERNEL, "language_info": {"name": "python"}})
    for number, cell in enumerate(notebook.cells):
        metadata = {key: value for key, value in cell.metadata.items() if key in ("tags", "mystnb")}
        make = nbformat.v4.new_code_cell if cell.cell_type == "code" else nbformat.v4.new_markdown_cell
        clean.cells.append(make(cell.source, id=str(number), metadata=metadata))
    nbformat.validate(clean)
    return nbformat.writes(clean, indent=1) + "\n"


def read_alike(root: Path, source: Path) -> bool:
    """Return True where the book sees the code cells that the notebook has; a cell inside a ::: block it does not."""
    mine = [cell.source for cell in jupytext.read(source, fmt="md:myst").cells if cell.cell_type == "code"]
    return mine == [cell.source for cell in execute.read(root, source).cells if cell.cell_type == "code"]


def check(root: Path) -> list[str]:
    """Return one line for each chapter that is not in step, whose first cell differs, or that has lost its source."""
    faults = []
    for source in chapters(root):
        pair = source.with_suffix(".ipynb")
        if not pair.exists() or pair.read_text(encoding="utf-8") != paired(source):
            faults.append(f"{pair.relative_to(root)} is not in step with {source.name}; run `make pair`")
        if not read_alike(root, source):
            faults.append(f"{source.name}: the book and jupytext see other code cells; keep cells out of ::: blocks")
        fault = problem(source, repository(root))
        if fault:
            faults.append(fault)
    for orphan in sorted((root / "notebooks").glob("*.ipynb")):
        if not orphan.with_suffix(".md").exists():
            faults.append(f"{orphan.relative_to(root)} has no {orphan.stem}.md: the Markdown is the source")
    return faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing, fail where a pair is out of step")
    parser.add_argument("--root", type=Path, default=ROOT)
    arguments = parser.parse_args()
    if arguments.check:
        faults = check(arguments.root)
        print("\n".join(faults) or f"{len(chapters(arguments.root))} chapters in step with their notebooks")
        return bool(faults)
    for source in chapters(arguments.root):
        source.with_suffix(".ipynb").write_text(paired(source), encoding="utf-8")
        print(f"{source.stem}.ipynb")
    return 0


if __name__ == "__main__":
    sys.exit(main())
