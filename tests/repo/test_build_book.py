"""The build script on a miniature book: real builds, a few seconds each."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from matplotlib.font_manager import FontManager

import build_book
from mini_book import PAGE, MiniBook

pytestmark = pytest.mark.slow
JUPYTER_BOOK = ("-c", "from jupyter_book.cli.main import main; main()", "build", "--all", "-W", "--keep-going", ".")


@pytest.fixture
def book(tmp_path: Path) -> MiniBook:
    folder = tmp_path / "my books"  # a space, as a reader's folder may have
    folder.mkdir()
    return MiniBook(folder)


def test_a_change_of_the_library_reaches_the_page_and_buttons_follow_the_remote(book: MiniBook) -> None:
    code, output = book.build()
    assert code == 0 and "the answer is 1" in book.page(), output
    assert "no remote 'origin'" in output and "colab.research.google.com" not in book.page()

    # The trap itself: jupyter-book alone is content, and the page is wrong. If this ever fails, the fingerprint
    # has lost its reason.
    book.write("pruning_lib/__init__.py", "ANSWER = 2\n")
    code, output = book.build(*JUPYTER_BOOK)
    assert code == 0 and "the answer is 1" in book.page(), output
    code, output = book.build()
    assert code == 0 and "the answer is 2" in book.page(), output
    assert "pruning_lib/__init__.py" in output

    # Nothing changed: no kernel starts, and prose may change freely.
    book.write("book/index.md", "# Mini\n\nOther words.\n")
    for command in (["init", "--quiet"], ["remote", "add", "origin", "git@github.com:someone/a-fork.git"]):
        subprocess.run(["git", *command], cwd=book.folder, check=True)
    code, output = book.build()
    assert code == 0 and "in the cache" in output and "the answer is 2" in book.page(), output
    assert f"colab.research.google.com/github/someone/a-fork/blob/main/{PAGE}.ipynb" in book.page()
    assert f"https://github.com/someone/a-fork/edit/main/{PAGE}.md" in book.page()


def test_what_a_reader_keeps_for_matplotlib_changes_no_page(book: MiniBook, monkeypatch) -> None:
    book.write("home/matplotlibrc", "figure.dpi: 7\n")
    own = {"__class__": "FontManager", "_version": FontManager.__version__, "ttflist": [], "afmlist": []}
    book.write(f"home/fontlist-v{FontManager.__version__}.json", json.dumps(own))  # and no font known at all
    monkeypatch.setenv("MPLCONFIGDIR", str(book.folder / "home"))
    book.chapter(
        "import matplotlib.font_manager as fonts\n\n"
        "print('dots', fonts.mpl.rcParams['figure.dpi'], 'mathematics', 'cmr10' in fonts.get_font_names())"
    )
    code, output = book.build()
    assert code == 0 and "dots 100.0 mathematics True" in book.page(), output


def test_a_failing_cell_a_dead_kernel_and_a_warning_fail_every_build(book: MiniBook) -> None:
    for cell, words in {"1 / 0": "ZeroDivisionError", "import os\n\nos._exit(1)": f"kernel of {PAGE}.md died"}.items():
        book.chapter(cell)
        code, output = book.build()
        assert code not in (0, 130) and words in output, output
    assert "Traceback" not in output
    book.chapter("import ipywidgets\n\nipywidgets.IntSlider()")
    code, output = book.build()
    assert code and "needs a kernel" in output, output
    book.write("book/index.md", "# Mini\n\n[nowhere](nowhere.md)\n")
    for _ in range(2):  # jupyter-book alone is green the second time
        code, output = book.build()
        assert code and "nowhere" in output, output


def test_ctrl_c_ends_the_build_and_the_next_one_is_sound(book: MiniBook, tmp_path: Path) -> None:
    started = tmp_path / "started"
    book.chapter(
        "import os, pathlib, time\n"
        f"first = not pathlib.Path({str(started)!r}).exists()\n"
        f"pathlib.Path({str(started)!r}).write_text(str(os.getpid()))\n"
        "time.sleep(300 if first else 0)\n"
        "print('finished')"
    )
    process = book.start("scripts/build_book.py", "--root", str(book.folder))
    while not (started.exists() and started.read_text()) and process.poll() is None:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "Stopped." in output and "nbclient" not in output  # the kernel may say that it was interrupted; we do not
    assert not Path(f"/proc/{started.read_text()}").exists(), "the kernel still runs"
    code, output = book.build()
    assert code == 0 and "finished" in book.page(), output


def test_a_folder_that_cannot_be_written_is_named(monkeypatch, capsys) -> None:
    def fail(root: Path) -> int:
        raise error

    monkeypatch.setattr(build_book, "build", fail)
    monkeypatch.setattr(build_book.sys, "argv", ["build_book.py"])
    error = PermissionError(errno.EACCES, "Permission denied", "_build/generated/status.json")
    assert build_book.main() == 1
    assert "Cannot write _build/generated/status.json: Permission denied" in capsys.readouterr().err
    error = FileNotFoundError(errno.ENOENT, "No such file or directory", "_toc.yml")
    with pytest.raises(FileNotFoundError):
        build_book.main()
