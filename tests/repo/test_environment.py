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
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))


def requirements(name: str) -> list[Requirement]:
    lines = (line.split("#")[0].strip() for line in (ROOT / name).read_text(encoding="utf-8").splitlines())
    return [Requirement(line) for line in lines if line]


def as_set(lines: list[str]) -> set[str]:
    return {str(Requirement(line)) for line in lines}


def test_the_lock_is_exact_is_installed_and_meets_every_bound() -> None:
    pins = {}
    for name in ("requirements-torch.txt", "requirements.lock", "requirements-no-deps.txt"):
        for pin in requirements(name):
            if pin.marker is None or pin.marker.evaluate():
                (specifier,) = pin.specifier
                assert specifier.operator == "=="
                assert pin.specifier.contains(importlib.metadata.version(pin.name).split("+")[0]), pin.name
                pins[canonicalize_name(pin.name)] = specifier.version
    for wanted in [*map(Requirement, INSTALLED), *requirements("requirements.in")]:
        version = pins[canonicalize_name(wanted.name)]
        assert wanted.specifier.contains(version), f"{wanted} against {version}: run `make lock`"


def test_traps_stay_closed() -> None:
    assert "jupyter-book<2,>=1.0.4" in as_set(EXTRAS["site"])
    assert {"scipy<1.18"} <= as_set(EXTRAS["fid"]) & as_set(EXTRAS["test"])
    assert "sphinx-book-theme<1.3,>=1.1" in as_set(EXTRAS["site"])  # 1.3 draws a second search box
    runtime = list(map(Requirement, METADATA["dependencies"]))
    optional = {"torchvision", "clean-fid", "torch-pruning", "matplotlib", "ipywidgets", "anywidget"}
    assert optional.isdisjoint(wanted.name for wanted in runtime)
    for wanted in runtime:  # lower bounds alone leave Colab's packages as they are
        assert [specifier.operator for specifier in wanted.specifier] == [">="], wanted
    assert {"torchvision", "clean-fid"}.isdisjoint({pin.name for pin in requirements("requirements.lock")})


def test_torchvision_is_not_here_and_what_it_would_break_imports() -> None:
    # Beside a CPU torch the registry's torchvision fails to load, and takes transformers and diffusers down.
    import torch

    if not torch.version.cuda:
        assert importlib.util.find_spec("torchvision") is None, "run `make distclean`, then `make test`"
    code = (
        "from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer\n"
        "from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel\n"
        "from cleanfid.resize import make_resizer\n"
        "make_resizer('PIL', False, 'bicubic', (8, 8))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_environment_yml_says_what_pyproject_says() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert f"python{METADATA['requires-python']}" in environment["dependencies"] and "-e ." in pip
    assert as_set([line for line in pip if not line.startswith("-e")]) == as_set(INSTALLED)


def test_the_citation_is_complete_and_names_the_one_version() -> None:
    # What the Citation File Format 1.2.0 requires, and the values it allows for what we use.
    assert CITATION["cff-version"] == "1.2.0" and CITATION["type"] == "software"
    assert CITATION["message"] and CITATION["title"] and CITATION["license"] == METADATA["license"]["text"]
    assert [author["name"] for author in CITATION["authors"]] == [author["name"] for author in METADATA["authors"]]
    version = METADATA["version"]
    assert CITATION["version"] == version == importlib.metadata.version("pruning-lib")
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    released = re.search(rf"^## {re.escape(version)} \((.*)\)$", changes, re.M)
    # CITATION.cff gives a date only to what has been released, and the same one.
    assert str(CITATION.get("date-released", "unreleased")) == released[1]
