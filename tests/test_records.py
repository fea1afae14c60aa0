"""Records and their passports: what goes in comes out; what is wrong is refused in words; a failure loses nothing."""

from __future__ import annotations

import json
import os
import re
import subprocess
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pytest
import torch

import pruning_lib as pl
from pruning_lib import records
from pruning_lib.interval import Interval
from pruning_lib.records import RecordError, check_writable, load_record, passport, save_record

STAMP = {"hardware": "a processor", "versions": {}, "seeds": [0], "n": 3, "date": "2026-01-01", "commit": "abc"}
GOOD = {"schema_version": 1, "experiment": "trial", "data": {"x": 1}, "passport": STAMP}


def test_what_goes_in_comes_out(tmp_path):
    told = {  # what is given -> what a record holds
        "text": ("Fréchet, µs", "Fréchet, µs"),
        "nothing": (None, None),
        "yes": (True, True),
        "tensor": (torch.arange(3), [0, 1, 2]),
        "number": (np.float32(0.5), 0.5),
        "interval": (Interval(1.0, 0.5, 1.5, 9), {"value": 1.0, "low": 0.5, "high": 1.5, "n": 9, "level": 0.95}),
        "path": (Path("a/b"), "a/b"),
        3: ((1, 2), [1, 2]),
    }
    data = {name: given for name, (given, _) in told.items()}
    path = save_record(tmp_path / "new/folder/trial.json", "trial", data, STAMP)
    stored = load_record(path)
    assert stored["data"] == {str(name): held for name, (_, held) in told.items()}
    assert stored["experiment"] == "trial" and stored["passport"] == STAMP
    assert "Fréchet" in path.read_text(encoding="utf-8") and path.stat().st_mode & 0o044, "others can read it"
    assert os.listdir(path.parent) == ["trial.json"]


def test_by_name(tmp_path, monkeypatch):
    save_record(tmp_path / "trial.json", "trial", {"x": 1}, STAMP)
    monkeypatch.setenv("PRUNING_LIB_RESULTS", str(tmp_path))
    assert load_record("trial") == GOOD
    (tmp_path / "trial.json").rename(tmp_path / "other.json")
    with pytest.raises(RecordError, match="holds the experiment 'trial', not 'other'"):
        load_record("other")
    for name in ("trial", "2nd"):  # a misspelt name is looked up among the records as well
        with pytest.raises(RecordError, match=rf"no record .*{name}\.json. Records there: other. .*benchmarks {name}`"):
            load_record(name)
    monkeypatch.delenv("PRUNING_LIB_RESULTS")
    (tmp_path / "pruning_book/records").mkdir(parents=True)
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")  # where a chapter runs
    assert records.results_folder().resolve() == (tmp_path / "pruning_book/records").resolve()
    monkeypatch.chdir("/")
    assert (records.results_folder() / "emoji_sd_gate.json").is_file(), "the package must bring the records of the book"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (json.dumps(GOOD)[:40], "no valid JSON.*cut short"),
        ("[1, 2]", "holds list; a record is an object with schema_version, experiment, data, passport"),
        (json.dumps({"data": {}}), "lacks schema_version, experiment, passport; it has data"),
        (json.dumps({**GOOD, "schema_version": 2}), "has schema_version 2; this pruning_lib reads 1"),
        (json.dumps({**GOOD, "passport": {**STAMP, "n": True}}), "passport: n is bool; expected int"),
        (None, "Is a directory"),
    ],
)
def test_a_file_of_another_form(tmp_path, text, said):
    path = tmp_path / "trial.json"
    if text is None:
        path.mkdir()
    else:
        path.write_text(text)
    with pytest.raises(RecordError, match=f"trial.json.*{said}"):
        load_record(path)


def test_a_place_that_cannot_be_written_to_loses_neither_the_old_record_nor_the_new(tmp_path, monkeypatch):
    save_record(tmp_path / "trial.json", "trial", {"x": "old"}, STAMP)

    def full(*_):
        raise OSError("No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full)
        with pytest.raises(RecordError, match="Cannot write .*No space left.*you may write there") as caught:
            save_record(tmp_path / "trial.json", "trial", {"x": "new"}, STAMP)
    kept = Path(re.search(r"kept as (\S+)\. ", str(caught.value))[1])
    assert load_record(kept)["data"] == {"x": "new"} and os.listdir(tmp_path) == ["trial.json"]
    kept.unlink()
    assert load_record(tmp_path / "trial.json")["data"] == {"x": "old"}
    with pytest.raises(RecordError, match="Nothing was measured yet"):
        check_writable(tmp_path / "trial.json/deeper/trial.json")
    assert check_writable(tmp_path / "new/trial.json") == tmp_path / "new/trial.json"
    assert os.listdir(tmp_path / "new") == []


@pytest.mark.parametrize(
    ("experiment", "data", "stamp", "said"),
    [
        ("trial", {"a": [1, torch.tensor([float("nan")])]}, STAMP, r"data\['a'\]\[1\]\[0\] is nan"),
        ("trial", {"a": object()}, STAMP, r"data\['a'\] is of type object"),
        ("my trial", {}, STAMP, "experiment is 'my trial'"),
        ("trial", {}, {"date": "today"}, "passport lacks hardware"),
    ],
)
def test_what_a_record_cannot_hold(tmp_path, experiment, data, stamp, said):
    with pytest.raises(RecordError, match=said):
        save_record(tmp_path / "trial.json", experiment, data, stamp)
    assert os.listdir(tmp_path) == []


def test_passport_tells_the_truth():
    stamp = passport(seeds=(1, 2), n=5, device="cpu")
    assert (
        stamp["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
        and stamp["versions"]["pruning_lib"] == pl.__version__
    )
    assert (stamp["seeds"], stamp["n"], stamp["device"]) == ([1, 2], 5, "cpu")
    assert stamp["cpu_threads"] == torch.get_num_threads()
    age = datetime.now(timezone.utc) - datetime.fromisoformat(stamp["date"])
    assert 0 <= age.total_seconds() < 60
    assert f"{os.cpu_count()} logical cores" in stamp["hardware"]
    assert os.uname().nodename not in json.dumps(stamp) or len(os.uname().nodename) < 4, "no machine's name"
    for name, value in {"device": "lazy", "seeds": "12", "n": 0}.items():
        with pytest.raises((TypeError, ValueError), match=f"{name}={value!r}"):
            passport(**{"seeds": [], "n": 1, name: value})


class Installed:
    """A distribution, as pip notes where it is from."""

    note, version = None, "1"

    def read_text(self, name: str) -> str | None:
        return self.note if name == "direct_url.json" else None


def test_the_commit_is_that_of_our_repository_or_of_what_pip_installed(tmp_path, monkeypatch):
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@example.org", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def stamp() -> tuple[str, bool | None]:
        found = passport(seeds=[], n=1, device="cpu")
        return found["commit"], found["dirty"]

    for name in [n for n in os.environ if n.startswith("GIT_")]:
        monkeypatch.delenv(name)
    file = tmp_path / "records.py"  # a copy of the file that looks for its commit
    monkeypatch.setattr(records, "__file__", str(file))
    monkeypatch.setattr(records.metadata, "distribution", lambda name: Installed())
    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "theirs")
    file.write_text("original")
    assert stamp() == ("uncommitted", None), "a stranger's repository, which does not track our file"
    monkeypatch.setattr(Installed, "note", '{"vcs_info": {"vcs": "git", "commit_id": "f00d"}}')
    assert stamp() == ("f00d", False)
    git("add", ".")
    git("commit", "-qm", "first")
    (tmp_path / "untracked.txt").write_text("a new file changes nothing that was measured with")
    assert stamp() == (git("rev-parse", "HEAD"), False)
    file.write_text("changed")
    assert stamp() == (git("rev-parse", "HEAD"), True)
