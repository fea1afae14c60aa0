"""Point the book's buttons (Colab, repository, edit, issue) at the GitHub repository this checkout came from.

The address is read from `git remote get-url origin` at build time, so a fork's site links to the fork. With no such
remote, or one that is not on GitHub (Colab opens only GitHub), the buttons are left out and the build says so.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.util import logging

__all__ = ["default_branch", "github_url", "origin"]

logger = logging.getLogger(__name__)

# https://[user[:secret]@]github.com/OWNER/REPO[.git], git@github.com:OWNER/REPO.git, ssh://git@github.com[:22]/OWNER/REPO
GITHUB = re.compile(
    r"^(?:(?:https?|ssh|git)://(?:[^/@]+@)?github\.com(?::\d+)?/|(?:[^/@]+@)?github\.com:)"
    r"(?P<owner>[\w.-]+)/(?P<repo>[\w.-]+?)(?:\.git)?/?$"
)


def github_url(remote: str | None) -> str | None:
    """Return "https://github.com/OWNER/REPO" for a GitHub remote in any of git's forms, None for anything else."""
    match = GITHUB.match(remote.strip()) if remote else None
    return f"https://github.com/{match['owner']}/{match['repo']}" if match else None


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        result = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True)
    except FileNotFoundError:  # no git on this machine
        return None
    return result.stdout.strip() or None if result.returncode == 0 else None


def origin(folder: Path) -> str | None:
    """Return the address of the remote "origin" of the checkout whose top is `folder`, None where there is none."""
    top = _git(folder, "rev-parse", "--show-toplevel")
    # A copy that lies inside some other checkout must not take that one's remote.
    if top is None or Path(top).resolve() != Path(folder).resolve():
        return None
    return _git(folder, "remote", "get-url", "origin")


def default_branch(folder: Path) -> str:
    """Return the branch that origin/HEAD names, "main" where it is not known."""
    head = _git(folder, "symbolic-ref", "--short", "refs/remotes/origin/HEAD")
    return head.split("/", 1)[1] if head else "main"


def set_buttons(app: Sphinx, config: Config) -> None:
    remote = origin(Path(app.srcdir))
    url = github_url(remote)
    if url is None:
        reason = "git has no remote 'origin'" if remote is None else "the remote 'origin' is not on GitHub"
        logger.info("Buttons left out (Colab, repository, edit, issue): %s.", reason)
        return
    logger.info("Buttons (Colab, repository, edit, issue) lead to %s", url)
    config.html_theme_options.update(
        repository_url=url,
        repository_branch=default_branch(Path(app.srcdir)),
        path_to_docs="",
        launch_buttons={"notebook_interface": "jupyterlab", "colab_url": "https://colab.research.google.com"},
        use_repository_button=True,
        use_issues_button=True,
        use_edit_page_button=True,
    )


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("config-inited", set_buttons)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
