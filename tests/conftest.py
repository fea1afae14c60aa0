"""Shared by all tests: paths, and the mark that keeps tests of the built book apart from the others."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# The scripts and the book's extensions are programs, not a package; tests import them as they import each other.
PROGRAMS = (
    "scripts",
    "tests",
    "_ext",
    "tests/site",
    "tests/repo",
    "tests/weights",
    "tests/operators",
    "tests/steps",
    "tests/training",
    "tests/book",
    "tests/gpu",
)
sys.path[:0] = [str(ROOT / name) for name in PROGRAMS]
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
        if item.path.relative_to(ROOT / "tests").as_posix() in QUICK:
            item.add_marker(pytest.mark.quick)
        for folder, mark in MARKS.items():
            if ROOT / "tests" / folder in item.path.parents:
                item.add_marker(mark)


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
    import torch
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    folder = tmp_path_factory.mktemp("tiny") / "pipe"
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(folder)
    return folder
