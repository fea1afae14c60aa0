"""What invalidates executed outputs, and what does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from fingerprint import changes, drop_stale, fingerprint


@pytest.fixture
def book(tmp_path: Path) -> Path:
    for name in (
        "pruning_lib/a.py", "pruning_lib/zoo/models/m/unet/weights.safetensors", "pruning_lib/zoo/architectures/x.json",
        "pruning_lib/show/static/w.js", "book/results/sweep.json", "book/index.md", "notebooks/01.md",
        "notebooks/helper.py", "requirements.lock", "requirements-torch.txt", "requirements-no-deps.txt",
        "pruning_lib/__pycache__/a.pyc",
    ):  # fmt: skip
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("1")
    drop_stale(tmp_path)
    (tmp_path / "_build/html").mkdir(parents=True)
    (tmp_path / "_build/.jupyter_cache/executed").write_text("outputs")
    return tmp_path


@pytest.mark.parametrize(
    "name",
    ["pruning_lib/a.py", "pruning_lib/zoo/models/m/unet/weights.safetensors", "pruning_lib/zoo/architectures/x.json",
     "pruning_lib/show/static/w.js", "book/results/sweep.json", "book/results/new.json", "requirements.lock",
     "requirements-torch.txt", "notebooks/helper.py"],
)  # fmt: skip
def test_a_change_drops_the_outputs(book: Path, name: str) -> None:
    (book / name).write_text("2")
    assert drop_stale(book) == [name]
    assert not (book / "_build/.jupyter_cache/executed").exists()
    assert not (book / "_build/html").exists()
    assert drop_stale(book) == []


def test_a_removed_file_drops_the_outputs(book: Path) -> None:
    (book / "book/results/sweep.json").unlink()
    assert drop_stale(book) == ["book/results/sweep.json"]


@pytest.mark.parametrize("name", ["book/index.md", "notebooks/01.md", "pruning_lib/__pycache__/a.pyc"])
def test_prose_and_leftovers_do_not(book: Path, name: str) -> None:
    (book / name).write_text("2")
    assert drop_stale(book) == []
    assert (book / "_build/.jupyter_cache/executed").exists()


def test_outputs_of_unknown_origin_are_dropped(book: Path) -> None:
    (book / "_build/.jupyter_cache/fingerprint.json").unlink()
    assert drop_stale(book)
    assert not (book / "_build/.jupyter_cache/executed").exists()


def test_the_real_fingerprint_covers_library_and_pins(root: Path) -> None:
    names = fingerprint(root).keys()
    assert {"pruning_lib/notebook.py", "requirements.lock", "requirements-torch.txt", "python"} <= names


def test_changes_names_both_sides() -> None:
    assert changes({"a": "1", "b": "1"}, {"b": "2", "c": "1"}) == ["a", "b", "c"]
