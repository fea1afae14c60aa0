"""What invalidates executed outputs, and what does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from fingerprint import changes, drop_stale, fingerprint, remove


@pytest.fixture
def book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("PRUNING_LIB_MODE", raising=False)
    for name in (
        "pruning_lib/a.py",
        "pruning_book/models/m/unet/weights.safetensors",
        "pruning_lib/architectures/x.json",
        "pruning_book/widgets/static/w.js",
        "pruning_book/records/sweep.json",
        "book/index.md",
        "notebooks/01.md",
        "notebooks/helper.py",
        "requirements.lock",
        "requirements-torch.txt",
        "requirements-no-deps.txt",
        "pruning_lib/__pycache__/a.pyc",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("1")
    drop_stale(tmp_path)
    (tmp_path / "_build/html").mkdir(parents=True)
    (tmp_path / "_build/.jupyter_cache/executed").write_text("outputs")
    return tmp_path


@pytest.mark.parametrize(
    "name",
    [
        "pruning_lib/a.py",
        "pruning_book/models/m/unet/weights.safetensors",
        "pruning_lib/architectures/x.json",
        "pruning_book/widgets/static/w.js",
        "pruning_book/records/sweep.json",
        "pruning_book/records/new.json",
        "requirements.lock",
        "requirements-torch.txt",
        "notebooks/helper.py",
    ],
)
def test_a_change_drops_the_outputs(book: Path, name: str) -> None:
    (book / name).write_text("2")
    assert drop_stale(book) == [name]
    assert not (book / "_build/.jupyter_cache/executed").exists()
    assert not (book / "_build/html").exists()
    assert drop_stale(book) == []


def test_a_removed_file_drops_the_outputs(book: Path) -> None:
    (book / "pruning_book/records/sweep.json").unlink()
    assert drop_stale(book) == ["pruning_book/records/sweep.json"]


@pytest.mark.parametrize("name", ["book/index.md", "notebooks/01.md", "pruning_lib/__pycache__/a.pyc"])
def test_prose_and_leftovers_do_not(book: Path, name: str) -> None:
    (book / name).write_text("2")
    assert drop_stale(book) == []
    assert (book / "_build/.jupyter_cache/executed").exists()


def test_outputs_of_unknown_origin_are_dropped(book: Path) -> None:
    (book / "_build/.jupyter_cache/fingerprint.json").unlink()
    assert drop_stale(book)
    assert not (book / "_build/.jupyter_cache/executed").exists()


def test_outputs_of_another_mode_are_dropped(book: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNING_LIB_MODE", "replay")  # what a build runs in where nothing is said
    assert drop_stale(book) == []
    monkeypatch.setenv("PRUNING_LIB_MODE", "live")
    assert drop_stale(book) == ["mode"]


def test_a_stamp_that_was_cut_short_is_no_obstacle(book: Path) -> None:
    stamp = book / "_build/.jupyter_cache/fingerprint.json"
    stamp.write_text(stamp.read_text()[:40])
    assert drop_stale(book)
    assert not (book / "_build/.jupyter_cache/executed").exists()
    assert drop_stale(book) == []


def test_what_cannot_be_removed_stops_the_build(book: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: Path) -> None:
        raise PermissionError(13, "Permission denied", str(folder / "executed"))

    monkeypatch.setattr("fingerprint.shutil.rmtree", refuse)
    stamp = (book / "_build/.jupyter_cache/fingerprint.json").read_text()
    (book / "pruning_lib/a.py").write_text("2")
    with pytest.raises(SystemExit, match=r"Cannot remove .*executed: Permission denied.*run make again"):
        drop_stale(book)
    assert (book / "_build/.jupyter_cache/fingerprint.json").read_text() == stamp  # or the next build is content
    with pytest.raises(SystemExit, match="Old results must not stay"):
        remove(book / "_build/html")


def test_the_real_fingerprint_covers_library_and_pins(root: Path) -> None:
    names = fingerprint(root).keys()
    assert {"pruning_book/start.py", "requirements.lock", "requirements-torch.txt", "python"} <= names


def test_changes_names_both_sides() -> None:
    assert changes({"a": "1", "b": "1"}, {"b": "2", "c": "1"}) == ["a", "b", "c"]
