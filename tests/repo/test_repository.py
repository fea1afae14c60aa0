"""The address of the repository from git's remote."""

from __future__ import annotations

import subprocess
from pathlib import Path

from repository import default_branch, github_url, origin

GOOD = """https://github.com/some-one/a.book https://github.com/some-one/a.book.git
https://github.com/some-one/a.book/ https://user:secret@github.com/some-one/a.book.git
git@github.com:some-one/a.book.git ssh://git@github.com/some-one/a.book.git
ssh://git@github.com:22/some-one/a.book git://github.com/some-one/a.book.git""".split()
BAD = """/srv/git/book https://gitlab.com/a/b.git https://github.com.evil.org/a/b git@notgithub.com:a/b
https://github.com/only-owner https://evil.org/github.com/a/b""".split()


def test_every_form_of_a_github_remote_and_nothing_else() -> None:
    assert {github_url(remote) for remote in [*GOOD, GOOD[-1] + "\n"]} == {"https://github.com/some-one/a.book"}
    assert {github_url(remote) for remote in [*BAD, "", None]} == {None}


def test_origin_of_a_checkout(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        subprocess.run(["git", "-C", str(tmp_path), *arguments], check=True, capture_output=True)

    assert origin(tmp_path) is None  # not a checkout
    git("init", "--quiet")
    assert origin(tmp_path) is None  # no remote
    git("remote", "add", "origin", "git@github.com:a/b.git")
    assert origin(tmp_path) == "git@github.com:a/b.git" and default_branch(tmp_path) == "main"
    git("symbolic-ref", "refs/remotes/origin/HEAD", "refs/remotes/origin/trunk")
    assert default_branch(tmp_path) == "trunk"
    (tmp_path / "copy-inside").mkdir()
    assert origin(tmp_path / "copy-inside") is None  # a copy inside another checkout has no remote of its own
