"""What invalidates executed outputs, and what does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from fingerprint import drop_stale, fingerprint, remove

OURS = """pruning_lib/a.py pruning_book/models/m/unet/weights.safetensors pruning_lib/architectures/x.json
pruning_book/widgets/static/w.js pruning_book/records/sweep.json requirements.lock requirements-torch.txt
requirements-no-deps.txt notebooks/helper.py""".split()
OTHERS = ["book/index.md", "notebooks/01.md", "pruning_lib/__pycache__/a.pyc"]
STAMP, OUTPUTS = "_build/.jupyter_cache/fingerprint.json", "_build/.jupyter_cache/executed"


@pytest.fixture
def book(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.delenv("PRUNING_LIB_MODE", raising=False)
    for name in OURS + OTHERS:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
    drop_stale(tmp_path)
    (tmp_path / "_build/html").mkdir(parents=True)
    return tmp_path


def test_a_change_drops_the_outputs_and_prose_does_not(book: Path) -> None:
    for name in [*OURS, "pruning_book/records/new.json"]:
        (book / OUTPUTS).write_text("outputs")
        (book / name).write_text("2")
        assert drop_stale(book) == [name]
        assert not (book / OUTPUTS).exists() and not (book / "_build/html").exists()
        assert drop_stale(book) == []
    (book / name).unlink()
    assert drop_stale(book) == [name]
    (book / OUTPUTS).write_text("outputs")
    for name in OTHERS:
        (book / name).write_text("2")
        assert drop_stale(book) == [] and (book / OUTPUTS).exists()


def test_outputs_of_another_mode_or_unknown_origin_are_dropped(book: Path, monkeypatch) -> None:
    monkeypatch.setenv("PRUNING_LIB_MODE", "replay")  # what a build runs in where nothing is said
    assert drop_stale(book) == []
    monkeypatch.setenv("PRUNING_LIB_MODE", "live")
    assert drop_stale(book) == ["mode"]
    for left in ("", (book / STAMP).read_text()[:40]):  # none, or cut short
        (book / OUTPUTS).write_text("outputs")
        (book / STAMP).write_text(left)
        assert drop_stale(book) and not (book / OUTPUTS).exists()
        assert drop_stale(book) == []


def test_what_cannot_be_removed_stops_the_build(book: Path, monkeypatch) -> None:
    def refuse(folder: Path) -> None:
        raise PermissionError(13, "Permission denied", str(folder / "executed"))

    monkeypatch.setattr("fingerprint.shutil.rmtree", refuse)
    stamp = (book / STAMP).read_text()
    (book / "pruning_lib/a.py").write_text("2")
    with pytest.raises(SystemExit, match=r"Cannot remove .*executed: Permission denied.*run make again"):
        drop_stale(book)
    assert (book / STAMP).read_text() == stamp  # or the next build is content
    with pytest.raises(SystemExit, match="Old results must not stay"):
        remove(book / "_build/html")


def test_the_real_fingerprint_covers_library_and_pins(root: Path) -> None:
    names = fingerprint(root).keys()
    assert {"pruning_book/session.py", "requirements.lock", "requirements-torch.txt", "python"} <= names
