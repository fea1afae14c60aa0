"""The build script on a miniature book: real builds, a few seconds each."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

import build_book
from mini_book import PAGE, MiniBook

pytestmark = pytest.mark.slow


@pytest.fixture
def book(tmp_path: Path) -> MiniBook:
    folder = tmp_path / "my books"  # a space, as a reader's folder may have
    folder.mkdir()
    return MiniBook(folder)


def test_a_change_of_the_library_reaches_the_page(book: MiniBook) -> None:
    code, output = book.build()
    assert code == 0, output
    assert "the answer is 1" in book.page()

    book.library(2)
    # The trap itself: jupyter-book alone is content, and the page is wrong. If this ever fails, the fingerprint
    # has lost its reason.
    code, output = book.build_without_fingerprint()
    assert code == 0, output
    assert "the answer is 1" in book.page()

    code, output = book.build()
    assert code == 0, output
    assert "pruning_lib/__init__.py" in output
    assert "the answer is 2" in book.page()

    # Nothing changed: no kernel starts, and prose may change freely.
    book.index("# Mini\n\nOther words.\n")
    code, output = book.build()
    assert code == 0, output
    assert "in the cache" in output
    assert "the answer is 2" in book.page()


def test_buttons_follow_the_remote(book: MiniBook) -> None:
    code, output = book.build()
    assert code == 0, output
    assert "Buttons left out" in output and "no remote 'origin'" in output
    assert "colab.research.google.com" not in book.page()

    book.git("init", "--quiet")
    book.git("remote", "add", "origin", "git@github.com:someone/a-fork.git")
    code, output = book.build()
    assert code == 0, output
    assert f"colab.research.google.com/github/someone/a-fork/blob/main/{PAGE}.ipynb" in book.page()
    assert f"https://github.com/someone/a-fork/edit/main/{PAGE}.md" in book.page()

    book.git("remote", "set-url", "origin", "https://gitlab.com/someone/a-fork.git")
    code, output = book.build()
    assert code == 0, output
    assert "not on GitHub" in output
    assert "colab.research.google.com" not in book.page()


def test_a_failing_cell_fails_every_build(book: MiniBook) -> None:
    book.chapter("1 / 0")
    for _ in range(2):  # jupyter-book alone is green the second time
        code, output = book.build()
        assert code != 0
        assert "ZeroDivisionError" in output


def test_a_warning_fails_every_build(book: MiniBook) -> None:
    book.index("# Mini\n\n[nowhere](nowhere.md)\n")
    for _ in range(2):
        code, output = book.build()
        assert code != 0
        assert "nowhere" in output


def test_a_widget_that_needs_a_kernel_is_refused(book: MiniBook) -> None:
    book.chapter("import ipywidgets\n\nipywidgets.IntSlider()")
    code, output = book.build()
    assert code != 0
    assert "needs a kernel" in output


def test_ctrl_c_ends_the_build_and_the_next_one_is_sound(book: MiniBook, tmp_path: Path) -> None:
    started = tmp_path / "started"
    book.chapter(
        "import os, pathlib, time\n"
        f"first = not pathlib.Path({str(started)!r}).exists()\n"
        f"pathlib.Path({str(started)!r}).write_text(str(os.getpid()))\n"
        "time.sleep(300 if first else 0)\n"
        "print('finished')"
    )
    code, output = book.interrupted_build(started)
    assert code == 130, output
    assert "Stopped." in output and "nbclient" not in output  # the kernel may say that it was interrupted; we do not
    assert not Path(f"/proc/{started.read_text()}").exists(), "the kernel still runs"
    code, output = book.build()
    assert code == 0, output
    assert "finished" in book.page()


def test_a_kernel_that_dies_is_named(book: MiniBook) -> None:
    book.chapter("import os\n\nos._exit(1)")
    code, output = book.build()
    assert code not in (0, 130)
    assert "The kernel of notebooks/01-mini.md died" in output and "Traceback" not in output


def test_a_folder_that_cannot_be_written_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def fail(root: Path) -> int:
        raise error

    monkeypatch.setattr(build_book, "build", fail)
    monkeypatch.setattr(build_book.sys, "argv", ["build_book.py", "--root", str(tmp_path)])
    error = PermissionError(errno.EACCES, "Permission denied", "_build/generated/status.json")
    assert build_book.main() == 1
    assert "Cannot write _build/generated/status.json: Permission denied" in capsys.readouterr().err
    error = OSError(errno.ENOSPC, "No space left on device")
    assert build_book.main() == 1
    assert "make room" in capsys.readouterr().err
    error = FileNotFoundError(errno.ENOENT, "No such file or directory", "_toc.yml")
    with pytest.raises(FileNotFoundError):
        build_book.main()
