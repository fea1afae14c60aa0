"""What must not be in the repository: a machine's own paths, files too big for git; and what must: every licence."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

# Folders of one machine, followed by a name, as a home folder is on Linux, macOS and Windows.
MACHINE = re.compile(rb"(?<![\w.~:/-])/(?:home|root|tmp|work|mnt|Users)/\w[\w./-]{2,}|\b[A-Z]:\\Users\\\w+")
FILE_LIMIT_MIB = 25
TOTAL_LIMIT_MIB = 60


@pytest.fixture(scope="module")
def tracked(root: Path) -> list[Path]:
    """Every file that git knows, links apart."""
    result = subprocess.run(["git", "-C", str(root), "ls-files", "-z"], capture_output=True, text=True)
    if result.returncode:
        pytest.skip("not a git checkout")
    paths = [root / name for name in result.stdout.split("\0") if name]
    return [path for path in paths if path.is_file() and not path.is_symlink()]


def test_no_file_holds_a_path_of_one_machine(tracked: list[Path], root: Path) -> None:
    vendored = (root / "assets/vendor", root / "tests/site/vendor")
    own = [path for path in tracked if not any(folder in path.parents for folder in vendored)]
    found = {str(path.relative_to(root)): MACHINE.findall(path.read_bytes())[:3] for path in own}
    assert {name: paths for name, paths in found.items() if paths} == {}


def test_the_search_for_paths_finds_them() -> None:
    for text in (b'"a": "/ho' + b'me/me/x"', b"in /tm" + b"p/run_1/vae", b"C:\\" + b"Users\\me"):
        assert MACHINE.search(text)
    for text in (b"https://example.org/home/page", b"a/tmp/x", b"/tmp", b"~/work/book"):
        assert not MACHINE.search(text)


def test_the_repository_stays_small(tracked: list[Path]) -> None:
    sizes = {path.name: path.stat().st_size / 2**20 for path in tracked}
    assert {name: size for name, size in sizes.items() if size > FILE_LIMIT_MIB} == {}
    assert sum(sizes.values()) < TOTAL_LIMIT_MIB


def test_the_notice_has_what_is_vendored_and_what_the_model_learned_from(root: Path) -> None:
    notice = (root / "NOTICE").read_text(encoding="utf-8")
    folders = [path for base in ("assets/vendor", "tests/site/vendor") for path in (root / base).iterdir()]
    assert folders
    for folder in folders:
        assert len((folder / "LICENSE").read_text(encoding="utf-8")) > 1000, folder
        assert f"{folder.relative_to(root)}/" in notice
    axe = (root / "tests/site/vendor/axe-core/axe.min.js").read_text(encoding="utf-8")
    assert f"axe-core {re.match(r'/[*]! axe v([0-9.]+)', axe)[1]}," in notice
    (mathjax,) = set(re.findall(r'VERSION="(3[0-9.]+)"', (root / "assets/vendor/mathjax/tex-mml-chtml.js").read_text()))
    assert f"MathJax {mathjax}," in notice
    holders = ("Google LLC, Apache License 2.0", "Twitter, Inc and other contributors, CC BY 4.0")
    authors = ("2017-2019 Miles Johnson, MIT", "2013 Cal Henderson, MIT", "Permission is hereby granted")
    for holder in holders + authors:
        assert holder in notice
