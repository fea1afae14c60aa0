"""The environment `make` sets up, and the files that describe it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

tomllib = pytest.importorskip("tomllib", reason="the pins are for Python 3.11 and later")

ROOT = Path(__file__).resolve().parents[2]
METADATA = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = METADATA["optional-dependencies"]
INSTALLED = METADATA["dependencies"] + sum((EXTRAS[name] for name in ("structured", "book", "site", "test")), [])


def requirements(name: str) -> list[Requirement]:
    lines = (line.split("#")[0].strip() for line in (ROOT / name).read_text(encoding="utf-8").splitlines())
    return [Requirement(line) for line in lines if line]


def as_set(lines: list[str]) -> set[str]:
    return {str(Requirement(line)) for line in lines}


PINS = {
    canonicalize_name(pin.name): pin
    for name in ("requirements-torch.txt", "requirements.lock", "requirements-no-deps.txt")
    for pin in requirements(name)
    if pin.marker is None or pin.marker.evaluate()
}


def test_torchvision_is_not_here() -> None:
    # Beside a CPU torch the registry's torchvision fails to load, and takes transformers and diffusers down.
    import torch

    if torch.version.cuda:
        pytest.skip("torch is a CUDA build: torchvision may be healthy")
    assert importlib.util.find_spec("torchvision") is None, "run `make distclean`, then `make test`"


def test_what_torchvision_would_break_imports() -> None:
    code = (
        "from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer\n"
        "from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel\n"
        "from cleanfid.resize import make_resizer\n"
        "make_resizer('PIL', False, 'bicubic', (8, 8))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_every_pin_is_exact_and_installed() -> None:
    for name, pin in PINS.items():
        (specifier,) = pin.specifier
        assert specifier.operator == "=="
        assert pin.specifier.contains(importlib.metadata.version(name).split("+")[0]), name


@pytest.mark.parametrize("requirement", INSTALLED)
def test_the_lock_meets_every_bound(requirement: str) -> None:
    wanted = Requirement(requirement)
    (specifier,) = PINS[canonicalize_name(wanted.name)].specifier
    assert wanted.specifier.contains(specifier.version), f"{requirement} against {specifier.version}"


def test_choices_are_in_the_lock() -> None:
    for chosen in requirements("requirements.in"):
        pin = PINS[canonicalize_name(chosen.name)]
        (specifier,) = pin.specifier
        assert chosen.specifier.contains(specifier.version), f"{chosen} against {pin}: run `make lock`"


def test_traps_stay_closed() -> None:
    assert "jupyter-book<2,>=1.0.4" in as_set(EXTRAS["site"])
    assert {"scipy<1.18"} <= as_set(EXTRAS["fid"]) & as_set(EXTRAS["test"])
    assert "sphinx-book-theme<1.3,>=1.1" in as_set(EXTRAS["site"])  # 1.3 draws a second search box
    runtime = {Requirement(line).name for line in METADATA["dependencies"]}
    assert not runtime & {"torchvision", "clean-fid", "torch-pruning", "matplotlib", "ipywidgets", "anywidget"}
    assert {"torchvision", "clean-fid"}.isdisjoint({pin.name for pin in requirements("requirements.lock")})


def test_environment_yml_says_what_pyproject_says() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    conda = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert f"python{METADATA['requires-python']}" in conda
    listed = as_set([line for line in pip if not line.startswith("-e")])
    assert listed == as_set(INSTALLED)
    assert "-e ." in pip


def test_one_version_number() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == METADATA["version"] == importlib.metadata.version("pruning-lib")
    released = re.search(
        rf"^## {re.escape(METADATA['version'])} \((.*)\)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M
    )
    assert released
    # CITATION.cff gives a date only to what has been released, and the same one.
    assert str(citation.get("date-released", "unreleased")) == released[1]


def test_the_citation_is_complete() -> None:
    # What the Citation File Format 1.2.0 requires, and the values it allows for what we use.
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0" and citation["type"] == "software"
    assert citation["message"] and citation["title"]
    assert citation["license"] == METADATA["license"]["text"]
    assert [author["name"] for author in citation["authors"]] == [author["name"] for author in METADATA["authors"]]
