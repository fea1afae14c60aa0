"""The Makefile itself, with stand-ins for Python that note what they were asked; nothing is installed or built."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

STAND_IN = """\
#!/bin/sh
echo "$* [$PRUNING_LIB_TORCHVISION_TARGET]" >> "{log}"
case "$*" in *"{fails}"*) exit 3;; *--target*) mkdir -p "{tv}";; esac
"""


class Checkout:
    """A folder with the Makefile, and a .venv whose Python is a stand-in."""

    def __init__(self, folder: Path, root: Path) -> None:
        self.folder, self.log = folder, folder / "log"
        (folder / ".venv/bin").mkdir(parents=True)
        shutil.copy(root / "Makefile", folder)
        self.stand_in()

    def stand_in(self, fails: str = "no such command") -> None:
        """Let a command that holds the text `fails` fail."""
        for path in (self.folder / "python", self.folder / ".venv/bin/python"):
            path.write_text(STAND_IN.format(log=self.log, fails=fails, tv=self.folder / ".tv"))
            path.chmod(0o755)

    def make(self, *arguments: str, fails: str = "") -> str:
        """Run make as from a fresh shell, where it must fail with the words `fails`, if given; return what it said."""
        dropped = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "PRUNING_LIB_TORCHVISION_TARGET", "PIP_ARGS")
        env = {name: value for name, value in os.environ.items() if name not in dropped}
        command = ["make", f"PYTHON={self.folder}/python", *arguments]
        done = subprocess.run(command, cwd=self.folder, env=env, capture_output=True, text=True)
        assert (done.returncode != 0 and fails in done.stderr) if fails else done.returncode == 0, done.stderr
        return done.stdout

    def asked(self) -> list[str]:
        """Return what the stand-ins were asked, set-up apart."""
        return [line for line in self.log.read_text().splitlines() if "setup_env" not in line]


@pytest.fixture
def checkout(tmp_path: Path, root: Path) -> Checkout:
    return Checkout(tmp_path / "my books", root)  # a space, as a reader's folder may have


def test_help_names_every_target(checkout: Checkout, root: Path) -> None:
    (phony,) = re.findall(r"^\.PHONY: (.*)$", (root / "Makefile").read_text(), re.M)
    assert sorted(line.split()[0] for line in checkout.make().splitlines()) == sorted(phony.split())


def test_everything_runs_in_order_and_the_first_failure_ends_it(checkout: Checkout) -> None:
    checkout.make("-j4", "test", "PIP_ARGS=--no-cache-dir")
    told = "-m ruff check|pair.py --check|pip install|-m not book|build_book.py|find_chromium.py --install| -m book"
    asked = checkout.asked()
    assert [part in line for line, part in zip(asked, told.split("|"), strict=True)] == [True] * 7
    assert "--no-cache-dir" in asked[2] and "--no-deps" in asked[2] and "torchvision==" in asked[2]
    assert f"[{checkout.folder}/.tv]" in asked[3]
    assert "setup_env.py" in checkout.log.read_text().splitlines()[0]
    for failing in ("ruff", "not book", "build_book.py", "find_chromium.py"):
        checkout.stand_in(fails=failing)
        checkout.make("test", fails="Error")
        assert failing in checkout.asked()[-1]
    assert sum("torchvision==" in line for line in checkout.asked()) == 1, "it is fetched once"


def test_gpu_runs_in_the_environment_or_with_the_python_as_it_is(checkout: Checkout) -> None:
    checkout.make("gpu", "MINUTES=8", "ARCHIVE=my gpu.tar.gz", "GPU=--only tests")
    first, second = checkout.log.read_text().splitlines()
    assert "setup_env.py" in first
    assert second.startswith("-m benchmarks gpu --minutes 8 --archive my gpu.tar.gz --only tests ")
    shutil.rmtree(checkout.folder / ".venv")
    checkout.make("gpu", "WHEELS=my wheels", "MINUTES=8")
    assert checkout.log.read_text().splitlines()[2].startswith("scripts/gpu.py run --wheels my wheels -- --minutes 8 ")
    checkout.make("gpu-wheels", "WHEELS=my wheels", "PYTHON_VERSION=3.12")
    assert checkout.asked()[-1].startswith("scripts/gpu.py collect my wheels --python 3.12 ")
    assert not (checkout.folder / ".venv").exists()


def test_what_is_missing_is_named(checkout: Checkout) -> None:
    for target in ("book", "gpu", "gpu-wheels"):
        checkout.make(target, "WHEELS=wheels", "PYTHON=/no/such/python", fails="no Python at '/no/such/python'")
    checkout.make("gpu-wheels", fails="make gpu-wheels WHEELS=folder")
    assert not checkout.log.exists()
    checkout.make("serve", fails="run make book")


def test_distclean_leaves_a_torchvision_of_yours(checkout: Checkout) -> None:
    mine = checkout.folder / "mine"
    mine.mkdir()
    checkout.make("distclean", "TORCHVISION_TARGET=mine")
    assert mine.exists() and not (checkout.folder / ".venv").exists()
