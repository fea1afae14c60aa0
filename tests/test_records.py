"""Records and their passports: what goes in comes out; what is wrong is refused in words; a failure loses nothing."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pytest
import torch

from pruning_lib import records
from pruning_lib.interval import Interval
from pruning_lib.records import RecordError, check_writable, load_record, passport, save_record

STAMP = {"hardware": "a processor", "versions": {"torch": "2"}, "seeds": [0], "n": 3, "date": "2026-01-01"}
STAMP["commit"] = "abc"
GOOD = {"schema_version": 1, "experiment": "trial", "data": {"x": 1}, "passport": STAMP}


@pytest.fixture
def locked():
    """A folder with one record, in which this process may not write, whoever runs the tests."""
    folder = Path(tempfile.mkdtemp())
    save_record(folder / "trial.json", "trial", {"x": "old"}, STAMP)
    folder.chmod(0o555)
    root = os.geteuid() == 0
    if root:  # may write anywhere; so become nobody for a moment
        os.seteuid(65534)
    try:
        yield folder
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o755)
        (folder / "trial.json").unlink()
        folder.rmdir()


def test_what_goes_in_comes_out(tmp_path):
    told = {  # what is given -> what a record holds
        "text": ("Fréchet, µs", "Fréchet, µs"),
        "nothing": (None, None),
        "yes": (True, True),
        "tensor": (torch.arange(3), [0, 1, 2]),
        "array": (np.eye(2), [[1, 0], [0, 1]]),
        "number": (np.float32(0.5), 0.5),
        "interval": (Interval(1.0, 0.5, 1.5, 9), {"value": 1.0, "low": 0.5, "high": 1.5, "n": 9, "level": 0.95}),
        "path": (Path("a/b"), "a/b"),
        3: ((1, 2), [1, 2]),
    }
    data = {name: given for name, (given, _) in told.items()}
    path = save_record(tmp_path / "new/folder/trial.json", "trial", data, passport(seeds=[7], n=2))
    stored = load_record(path)
    assert stored["data"] == {str(name): held for name, (_, held) in told.items()}
    assert stored["experiment"] == "trial" and stored["passport"]["seeds"] == [7]
    assert "Fréchet" in path.read_text(encoding="utf-8") and path.stat().st_mode & 0o044, "others can read it"
    assert os.listdir(path.parent) == ["trial.json"]


def test_by_name(tmp_path, monkeypatch):
    save_record(tmp_path / "trial.json", "trial", {"x": 1}, STAMP)
    monkeypatch.setenv("PRUNING_LIB_RESULTS", str(tmp_path))
    assert load_record("trial") == GOOD
    (tmp_path / "trial.json").rename(tmp_path / "other.json")
    with pytest.raises(RecordError, match="holds the experiment 'trial', not 'other'"):
        load_record("other")
    for name in ("trial", "first-trial", "Trial", "2nd"):  # a misspelt name is looked up among the records as well
        with pytest.raises(RecordError, match=rf"no record .*{name}\.json. Records there: other. .*benchmarks {name}`"):
            load_record(name)
    with pytest.raises(RecordError, match="None is neither the name"):
        load_record(None)


def test_where_records_are_looked_up(tmp_path, monkeypatch):
    monkeypatch.delenv("PRUNING_LIB_RESULTS", raising=False)
    (tmp_path / "pruning_book/records").mkdir(parents=True)
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")  # where a chapter runs
    assert records.results_folder().resolve() == (tmp_path / "pruning_book/records").resolve()
    monkeypatch.chdir("/")
    folder = records.results_folder()
    assert folder == Path(records.__file__).resolve().parents[1] / "pruning_book/records"
    assert (folder / "emoji_sd_gate.json").is_file(), "the package must bring the records of the book"


def changed(**changes) -> str:
    return json.dumps({**GOOD, **changes})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no valid JSON.*cut short"),
        (json.dumps(GOOD)[:40], "no valid JSON.*cut short"),
        ("[1, 2]", "holds list; a record is an object with schema_version, experiment, data, passport"),
        (json.dumps({"data": {}}), "lacks schema_version, experiment, passport; it has data"),
        (changed(schema_version=2), "has schema_version 2; this pruning_lib reads 1"),
        (changed(schema_version="1"), "schema_version is str; expected int"),
        (changed(schema_version=True), "schema_version is bool; expected int"),
        (changed(experiment="A trial"), "experiment is 'A trial'"),
        (changed(data=[1]), "data is list; expected dict"),
        (changed(passport={}), "passport lacks hardware, versions, seeds, n, date, commit; it has nothing"),
        (changed(passport={**STAMP, "n": "many"}), "passport: n is str; expected int"),
        ("\udcff\udcfe", "no valid JSON"),
    ],
)
def test_a_file_of_another_form(tmp_path, text, said):
    path = tmp_path / "trial.json"
    path.write_text(text, errors="surrogateescape")
    with pytest.raises(RecordError, match=said) as caught:
        load_record(path)
    assert str(path) in str(caught.value)
    with pytest.raises(RecordError, match="Is a directory"):
        load_record(tmp_path)


def test_no_permission_loses_neither_the_old_record_nor_the_new(locked):
    with pytest.raises(RecordError, match="Permission denied.*you may write there") as caught:
        save_record(locked / "trial.json", "trial", {"x": "new"}, STAMP)
    kept = Path(re.search(r"kept as (\S+)\. ", str(caught.value))[1])
    assert load_record(kept)["data"] == {"x": "new"}
    kept.unlink()
    assert load_record(locked / "trial.json")["data"] == {"x": "old"}
    assert os.listdir(locked) == ["trial.json"]
    with pytest.raises(RecordError, match="Permission denied.*Nothing was measured yet"):
        check_writable(locked / "trial.json")


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for place in (tmp_path / "file/trial.json", tmp_path / "file/deeper/trial.json"):
        with pytest.raises(RecordError, match="Cannot write .*kept as") as caught:
            save_record(place, "trial", {"x": 1}, STAMP)
        Path(re.search(r"kept as (\S+)\. ", str(caught.value))[1]).unlink()
        with pytest.raises(RecordError, match="Nothing was measured yet"):
            check_writable(place)
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(RecordError, match="directory"):
        check_writable(tmp_path / "folder.json")
    assert check_writable(tmp_path / "new/trial.json") == tmp_path / "new/trial.json"
    assert os.listdir(tmp_path / "new") == []


@pytest.mark.parametrize(
    ("experiment", "data", "stamp", "said"),
    [
        ("trial", {"a": [1, float("nan")]}, STAMP, r"data\['a'\]\[1\] is nan"),
        ("trial", {"a": torch.tensor([float("inf")])}, STAMP, r"data\['a'\]\[0\] is inf"),
        ("trial", {"a": object()}, STAMP, r"data\['a'\] is of type object"),
        ("trial", [1], STAMP, "data is list"),
        ("my trial", {}, STAMP, "experiment is 'my trial'"),
        ("trial", {}, {"date": "today"}, "passport lacks hardware"),
    ],
)
def test_what_a_record_cannot_hold(tmp_path, experiment, data, stamp, said):
    with pytest.raises(RecordError, match=said):
        save_record(tmp_path / "trial.json", experiment, data, stamp)
    assert os.listdir(tmp_path) == []


def test_passport_tells_the_truth(monkeypatch):
    import diffusers

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        stamp = passport(seeds=(1, 2), n=5, device="cpu")
    finally:
        torch.set_num_threads(threads)
    assert stamp["versions"]["torch"] == torch.__version__ and stamp["versions"]["diffusers"] == diffusers.__version__
    assert stamp["versions"]["pruning_lib"] == __import__("pruning_lib").__version__
    assert (stamp["seeds"], stamp["n"], stamp["device"], stamp["cpu_threads"]) == ([1, 2], 5, "cpu", 1)
    age = datetime.now(timezone.utc) - datetime.fromisoformat(stamp["date"])
    assert 0 <= age.total_seconds() < 60
    assert f"{os.cpu_count()} logical cores" in stamp["hardware"]
    assert json.loads(json.dumps(stamp)) == stamp
    assert os.uname().nodename not in json.dumps(stamp) or len(os.uname().nodename) < 4, "no machine's name"


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"seeds": "12", "n": 1}, TypeError, "seeds='12'"),
        ({"seeds": [0.5], "n": 1}, TypeError, "whole numbers"),
        ({"seeds": 3, "n": 1}, TypeError, "seeds=3"),
        ({"seeds": [], "n": 1, "device": "lazy"}, ValueError, "cannot use it"),
        ({"seeds": [], "n": 0}, ValueError, "n=0"),
        ({"seeds": [], "n": 1, "device": "warp"}, ValueError, "Unknown device 'warp'"),
    ],
)
def test_a_passport_needs_facts(options, error, said):
    with pytest.raises(error, match=said):
        passport(**options)


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A copy of the file that looks for its commit, in a repository of its own."""
    for name in [n for n in os.environ if n.startswith("GIT_")]:
        monkeypatch.delenv(name)
    file = tmp_path / "pruning_lib/records.py"
    file.parent.mkdir(parents=True)
    file.write_text("original")
    monkeypatch.setattr(records, "__file__", str(file))
    # An installation of this package from elsewhere must not answer for the copy.
    monkeypatch.setattr(
        records.metadata, "distribution", lambda name: type("D", (), {"read_text": lambda s, f: None})()
    )

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@example.org", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    return file, git


def test_commit_and_dirt(repository):
    file, git = repository
    (file.parents[1] / "theirs.txt").write_text("theirs")
    git("add", "theirs.txt")
    git("commit", "-qm", "theirs")
    assert records._commit() == ("uncommitted", None), "a stranger's repository, which does not track our file"
    git("add", ".")
    git("commit", "-qm", "first")
    assert records._commit() == (git("rev-parse", "HEAD"), False)
    (file.parent / "untracked.txt").write_text("a new file changes nothing that was measured with")
    assert records._commit()[1] is False
    file.write_text("changed")
    assert records._commit() == (git("rev-parse", "HEAD"), True)


def test_the_commit_that_pip_installed_from(repository, monkeypatch):
    note = json.dumps({"url": "https://example.org/x", "vcs_info": {"vcs": "git", "commit_id": "f00d"}})
    found = type("D", (), {"read_text": lambda self, name: note if name == "direct_url.json" else None})()
    monkeypatch.setattr(records.metadata, "distribution", lambda name: found)
    assert records._commit() == ("f00d", False)
