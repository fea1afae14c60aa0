"""The set-up cell: the same text at the top of every chapter, checked by `make lint`.

On Colab it installs the package from the repository's address; elsewhere it only says what it runs on. The address is
the one thing in it that a fork changes: it is kept in pyproject.toml ([tool.pruning-book] repository) and in the
chapters, and `python scripts/setup_cell.py --write` puts the address of this checkout's origin in both. While it is
empty, Colab shows a field to fill in and the cell says so instead of failing inside pip.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "_ext"))

TEMPLATE = """\
import sys

REPOSITORY = "{repository}"  # @param {{type:"string"}}
if "google.colab" in sys.modules:
    assert REPOSITORY, "Write the address of the book's repository in the field above."
    %pip install --quiet "pruning-lib[book,structured] @ git+{{REPOSITORY}}"
from pruning_book import start

session = start()
"""
FENCE = re.compile(
    r"^```\{code-cell\}[^\n]*\n(?P<options>(?:---\n.*?\n---\n|(?::[^\n]*\n)+\n?)?)(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
SETTING = re.compile(r'(?m)^repository = "(?P<url>[^"]*)"$')


def chapters(root: Path) -> list[Path]:
    """Return the chapters' sources in order."""
    return sorted((root / "notebooks").glob("*.md"))


def repository(root: Path = ROOT) -> str:
    """Return the address the chapters install from, empty while none is known."""
    match = SETTING.search((root / "pyproject.toml").read_text(encoding="utf-8"))
    if not match:
        raise SystemExit('pyproject.toml has no `repository = "..."` line under [tool.pruning-book]')
    return match["url"]


def setup_cell(url: str) -> str:
    """Return the text of the set-up cell for the address `url`."""
    return TEMPLATE.format(repository=url)


def first_cell(chapter: str) -> re.Match[str] | None:
    """Return the match of the first code cell of a MyST chapter, with the groups `options` and `code`."""
    return FENCE.search(chapter)


def problem(path: Path, url: str) -> str | None:
    """Return what is wrong with the first code cell of the chapter `path`, None where it is the set-up cell."""
    cell = first_cell(path.read_text(encoding="utf-8"))
    if cell is None:
        return f"{path}: no code cell; a chapter starts with the set-up cell (python scripts/setup_cell.py)"
    if cell["code"] != setup_cell(url):
        return f"{path}: the first code cell is not the set-up cell; run python scripts/setup_cell.py --write"
    return None


def write(root: Path, url: str) -> None:
    """Put `url` in pyproject.toml and the set-up cell in place of the first code cell of every chapter."""
    metadata = root / "pyproject.toml"
    text = metadata.read_text(encoding="utf-8")
    metadata.write_text(SETTING.sub(f'repository = "{url}"', text, count=1), encoding="utf-8")
    for path in chapters(root):
        text = path.read_text(encoding="utf-8")
        cell = first_cell(text)
        if cell:
            path.write_text(text[: cell.start("code")] + setup_cell(url) + text[cell.end("code") :], encoding="utf-8")


def main() -> int:
    from repository import github_url, origin

    parser = argparse.ArgumentParser(description="Print the set-up cell, or write it into every chapter.")
    parser.add_argument("--write", action="store_true", help="rewrite the first cell of every chapter")
    parser.add_argument("--repository", help="address on GitHub; by default that of git's remote 'origin'")
    arguments = parser.parse_args()
    given = arguments.repository or origin(ROOT)
    url = github_url(given) or repository()
    if arguments.repository and not github_url(arguments.repository):
        parser.error(f"{arguments.repository!r} is not a GitHub address; expected https://github.com/OWNER/REPO")
    if not arguments.write:
        print(setup_cell(url), end="")
        return 0
    write(ROOT, url)
    print(f"Set-up cells install from {url or '(no address: none is known)'}; now run `make pair` and commit.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
