"""What must not be in the repository: a machine's own paths, files too big for git; and what must: every licence."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

# Folders of one machine, followed by a name, as a home folder is on Linux, macOS and Windows.
MACHINE = re.compile(rb"(?<![\w.~:/-])/(?:home|root|tmp|work|mnt|Users)/\w[\w./-]{2,}|\b[A-Z]:\\Users\\\w+")
VENDORED = ("assets/vendor", "tests/site/vendor")


@pytest.fixture(scope="module")
def tracked(root: Path) -> list[Path]:
    """Every file that git knows, links apart."""
    result = subprocess.run(["git", "-C", str(root), "ls-files", "-z"], capture_output=True, text=True)
    if result.returncode:
        pytest.skip("not a git checkout")
    paths = [root / name for name in result.stdout.split("\0") if name]
    return [path for path in paths if path.is_file() and not path.is_symlink()]


def test_no_file_holds_a_path_of_one_machine(tracked: list[Path], root: Path) -> None:
    for text in (b'"a": "/ho' + b'me/me/x"', b"in /tm" + b"p/run_1/vae", b"C:\\" + b"Users\\me"):
        assert MACHINE.search(text)
    for text in (b"https://example.org/home/page", b"a/tmp/x", b"/tmp", b"~/work/book"):
        assert not MACHINE.search(text)
    own = [path for path in tracked if not path.relative_to(root).as_posix().startswith(VENDORED)]
    found = {str(path.relative_to(root)): MACHINE.findall(path.read_bytes())[:3] for path in own}
    assert {name: paths for name, paths in found.items() if paths} == {}


def test_the_repository_stays_small(tracked: list[Path]) -> None:
    mib = {path.name: path.stat().st_size / 2**20 for path in tracked}
    assert {name: size for name, size in mib.items() if size > 25} == {}
    assert sum(mib.values()) < 60


def test_the_notice_has_what_is_vendored_and_what_the_model_learned_from(root: Path) -> None:
    notice = (root / "NOTICE").read_text(encoding="utf-8")
    folders = [path for base in VENDORED for path in (root / base).iterdir()]
    assert folders
    for folder in folders:
        assert len((folder / "LICENSE").read_text(encoding="utf-8")) > 1000, folder
        assert f"{folder.relative_to(root)}/" in notice
    axe = (root / "tests/site/vendor/axe-core/axe.min.js").read_text(encoding="utf-8")
    (mathjax,) = set(re.findall(r'VERSION="(3[0-9.]+)"', (root / "assets/vendor/mathjax/tex-mml-chtml.js").read_text()))
    told = [f"axe-core {re.match(r'/[*]! axe v([0-9.]+)', axe)[1]},", f"MathJax {mathjax},"]
    told += ["Google LLC, Apache License 2.0", "Twitter, Inc and other contributors, CC BY 4.0"]
    told += ["2017-2019 Miles Johnson, MIT", "2013 Cal Henderson, MIT", "Permission is hereby granted"]
    assert [words for words in told if words not in notice] == []
