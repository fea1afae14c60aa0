"""Shared by all tests: paths, and the mark that keeps tests of the built book apart from the others."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# The scripts and the book's extensions are programs, not a package; tests import them as they import each other.
ROOMS = ("site", "repo", "weights", "operators", "steps", "training", "book", "gpu", "compat")
sys.path[:0] = [str(ROOT / name) for name in ("scripts", "tests", "_ext", *(f"tests/{room}" for room in ROOMS))]
# No test may wait for a hub.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# What `make quick` runs: quick to start, and between them they touch every room.
QUICK = (
    "repo/test_house.py",
    "repo/test_hygiene.py",
    "test_files.py",
    "test_quality.py",
    "weights/test_masks.py",
    "operators/test_replace.py",
    "steps/test_schedule.py",
    "checkpoint/test_pickle.py",
    "book/test_output.py",
)
MARKS = {"site": pytest.mark.book, "notebooks": pytest.mark.book, "gpu": pytest.mark.gpu}  # folder -> mark of its tests


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        name = item.path.relative_to(ROOT / "tests")
        if name.as_posix() in QUICK:
            item.add_marker(pytest.mark.quick)
        if name.parts[0] in MARKS:
            item.add_marker(MARKS[name.parts[0]])


@pytest.fixture(scope="session")
def root() -> Path:
    """The top of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def site(root: Path) -> Path:
    """The built site."""
    folder = root / "_build" / "html"
    if not (folder / "index.html").exists():
        pytest.fail("There is no built book: run `make book` first.")
    return folder


@pytest.fixture(scope="session")
def tiny_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline without prompts, so small that a call takes milliseconds."""
    from diffusers import DDPMPipeline, DDPMScheduler
    from small_denoisers import build

    folder = tmp_path_factory.mktemp("tiny") / "pipe"
    DDPMPipeline(build("unconditional"), DDPMScheduler()).save_pretrained(folder)
    return folder
