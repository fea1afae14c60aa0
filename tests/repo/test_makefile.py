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

    def make(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run make as from a fresh shell; PYTHON is the stand-in unless `arguments` name another."""
        dropped = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "PRUNING_LIB_TORCHVISION_TARGET", "PIP_ARGS")
        environment = {name: value for name, value in os.environ.items() if name not in dropped}
        return subprocess.run(
            ["make", f"PYTHON={self.folder}/python", *arguments],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
        )

    def asked(self) -> list[str]:
        """Return what the stand-ins were asked, set-up apart."""
        return [line for line in self.log.read_text().splitlines() if "setup_env" not in line]


@pytest.fixture
def checkout(tmp_path: Path, root: Path) -> Checkout:
    folder = tmp_path / "my books"  # a space, as a reader's folder may have
    folder.mkdir()
    return Checkout(folder, root)


def test_help_names_every_target(checkout: Checkout, root: Path) -> None:
    (phony,) = re.findall(r"^\.PHONY: (.*)$", (root / "Makefile").read_text(), re.M)
    printed = [line.split()[0] for line in checkout.make().stdout.splitlines()]
    assert sorted(printed) == sorted(phony.split())


def test_everything_runs_in_order_in_a_folder_with_a_space(checkout: Checkout) -> None:
    result = checkout.make("test", "PIP_ARGS=--no-cache-dir")
    assert result.returncode == 0, result.stderr
    wanted = (
        "-m ruff check",
        "pair.py --check",
        "pip install",
        " -m not book",
        "build_book.py",
        "find_chromium.py --install",
        " -m book",
    )
    asked = checkout.asked()
    assert len(asked) == len(wanted)
    for line, part in zip(asked, wanted, strict=True):
        assert part in line
    assert "--no-cache-dir" in asked[2] and "--no-deps" in asked[2]
    assert f"[{checkout.folder}/.tv]" in asked[3]


@pytest.mark.parametrize("failing", ["ruff", "--target", "not book", "build_book.py", "find_chromium.py"])
def test_the_first_failure_ends_it(checkout: Checkout, failing: str) -> None:
    checkout.stand_in(fails=failing)
    assert checkout.make("test").returncode != 0
    assert failing in checkout.asked()[-1]


def test_torchvision_is_fetched_once_and_after_the_set_up(checkout: Checkout) -> None:
    for _ in range(2):
        assert checkout.make("-j4", "unit").returncode == 0
    assert sum("torchvision==" in line for line in checkout.asked()) == 1
    assert "setup_env.py" in checkout.log.read_text().splitlines()[0]


@pytest.mark.parametrize("target", ["book", "gpu", "gpu-wheels"])
def test_a_missing_python_is_named(checkout: Checkout, target: str) -> None:
    result = checkout.make(target, "WHEELS=wheels", "PYTHON=/no/such/python")
    assert result.returncode != 0
    assert "no Python at '/no/such/python'" in result.stderr and "PYTHON=" in result.stderr
    assert not checkout.log.exists()


def test_gpu_runs_in_the_environment_and_passes_options(checkout: Checkout) -> None:
    result = checkout.make("gpu", "MINUTES=8", "ARCHIVE=my gpu.tar.gz", "GPU=--only tests")
    assert result.returncode == 0, result.stderr
    first, second = checkout.log.read_text().splitlines()
    assert "setup_env.py" in first
    assert second.startswith("-m benchmarks gpu --minutes 8 --archive my gpu.tar.gz --only tests ")


def test_gpu_with_wheels_takes_the_python_as_it_is(checkout: Checkout) -> None:
    shutil.rmtree(checkout.folder / ".venv")
    result = checkout.make("gpu", "WHEELS=my wheels", "MINUTES=8")
    assert result.returncode == 0, result.stderr
    (asked,) = checkout.log.read_text().splitlines()
    assert asked.startswith("scripts/gpu.py run --wheels my wheels -- --minutes 8 ")
    assert not (checkout.folder / ".venv").exists()


def test_gpu_wheels_asks_for_a_folder_and_passes_the_version(checkout: Checkout) -> None:
    result = checkout.make("gpu-wheels")
    assert result.returncode != 0 and "make gpu-wheels WHEELS=folder" in result.stderr
    assert not checkout.log.exists()
    assert checkout.make("gpu-wheels", "WHEELS=my wheels", "PYTHON_VERSION=3.12").returncode == 0
    assert checkout.asked()[-1].startswith("scripts/gpu.py collect my wheels --python 3.12 ")


def test_distclean_leaves_a_torchvision_of_yours(checkout: Checkout) -> None:
    mine = checkout.folder / "mine"
    mine.mkdir()
    result = checkout.make("distclean", "TORCHVISION_TARGET=mine")
    assert result.returncode == 0, result.stderr
    assert mine.exists() and not (checkout.folder / ".venv").exists()


def test_serve_without_a_site_says_what_to_do(checkout: Checkout) -> None:
    result = checkout.make("serve")
    assert result.returncode != 0 and "run make book" in result.stderr
