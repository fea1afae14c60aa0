"""`python -m benchmarks gpu`: every stage runs here on the CPU at toy shapes, and nothing that was found is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # benchmarks is no part of what is installed

import pruning_lib as pl
from benchmarks.gpu import command, measures, summary, worker
from benchmarks.gpu.stages import Stage
from pruning_book import gpu as tables
from pruning_lib import records as provenance

NAMES, GPU = command.NAMES, "NVIDIA Test"


def gpu(root: Path, *options: str) -> subprocess.Popen[str]:
    """Begin the command as a user does."""
    words = [sys.executable, "-m", "benchmarks", "gpu", *options]
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(words, cwd=root, env={**os.environ, "OMP_NUM_THREADS": "1"}, **how)


def records(folder: Path) -> dict[str, dict]:
    """Return the first run of each record."""
    found = {path.stem.removeprefix("gpu_"): pl.load_record(path) for path in folder.glob("gpu_*.json")}
    return {name: record["data"]["runs"][0] for name, record in found.items()}


# --- a dry run of all stages


@pytest.fixture(scope="module")
def dry(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What it leaves in a folder: work/dry-run, all.tar.gz, and what it printed."""
    folder = tmp_path_factory.mktemp("gpu")
    process = gpu(root, "--dry-run", "--work", str(folder / "work"), "--archive", str(folder / "all.tar.gz"))
    told, _ = process.communicate()
    assert process.returncode == 0, told[-3000:]
    (folder / "printed.txt").write_text(told)
    return folder


@pytest.mark.slow
def test_every_stage_runs_to_its_record(dry: Path) -> None:
    found = records(dry / "work/dry-run")
    assert sorted(found) == sorted(NAMES)
    for name, run in found.items():
        assert run["dry"] and run["hardware"] == "dry run" and run["unfinished"] == "", name
        assert run["parts"] and run["passport"]["device"] == "cpu"
        assert not [part for part in run["parts"].values() if "error" in part or "out_of_memory" in part], name
    for stage in ("sd15_speed", "sd15_compiled", "big_models"):
        for row in (row for part in found[stage]["parts"].values() for row in part["rows"]):
            assert row["promised"] == pytest.approx(1 / row["macs_ratio"])
            assert row["reached"] == pytest.approx(row["times_as_fast"]["value"] * row["macs_ratio"])
    (speed,) = found["sd15_speed"]["parts"].values()
    by = {row["way"]: row for row in speed["rows"]}
    assert by.keys() == {"fewer steps", "uniform", "DeepCache", "deepcache package", "searched-like"}
    assert by["DeepCache"]["macs_ratio"] == by["deepcache package"]["macs_ratio"], "the same pattern"
    trained = found["sd15_training"]["parts"].values()
    assert {(part["recipe"], part["checkpointing"]) for part in trained} >= {("best", False), ("published", True)}
    assert all(part["seconds_per_iteration"] > 0 and part["counted_mib"] > 0 for part in trained)
    assert found["tests"]["parts"]["pytest"]["passed"] == 1 and found["tests"]["parts"]["pytest"]["failed"] == []
    zeros = found["zeros"]["parts"]["linear 64 to 32, 16 tokens"]
    assert {row["form"] for row in zeros["rows"]} == {"dense", "zeros", "csr", "structured"}
    assert list(zeros["refused"]) == ["2:4"], "no CPU runs it"


@pytest.mark.slow
def test_the_summary_and_the_archive_hold_all_of_it(dry: Path, tmp_path: Path) -> None:
    printed, told = (dry / "printed.txt").read_text(), (dry / "work/dry-run/gpu.md").read_text()
    assert "these numbers mean nothing" in told and "All stages are recorded" in printed
    for name in NAMES:
        assert f"| {name} |" in told and f"\n{name} " in printed
    with tarfile.open(dry / "all.tar.gz") as tar:
        inside = set(tar.getnames())
    assert {f"records/gpu_{name}.json" for name in NAMES} | {"note.json", "work/gpu.md", "work/log.txt"} <= inside
    options = ["--import", str(dry / "all.tar.gz"), "--out", str(tmp_path / "out"), "--work", str(tmp_path / "w")]
    assert command.main(options) == 0
    assert not list((tmp_path / "out").glob("*.json")), "a dry run's numbers are nobody's records"


@pytest.mark.slow
def test_the_pages_show_what_it_records(dry: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNING_LIB_RESULTS", str(dry / "work/dry-run"))
    runs = {name: tables.gpu_runs(name) for name in NAMES}
    processor = pl.load_record(root / "pruning_book/records/sd15_scoring.json")["data"]["runs"][0]
    for name, (head, rows, caption) in {
        "speed": tables.speed(runs["sd15_speed"]),
        "compiled": tables.speed(runs["sd15_compiled"]),
        "big": tables.speed(runs["big_models"]),
        "zeros": tables.zeros(runs["zeros"]),
        "training": tables.training(runs["sd15_training"], runs["sd15_speed"]),
        "channels": tables.channels(runs["zeros"]),
        "cut": tables.cut(runs["sd15_operators"]),
        "scoring": tables.scoring(runs["sd15_operators"], processor),
        "suites": tables.suites({name: runs[name] for name in ("tests", "tests_compiled")}),
    }.items():
        cells = [cell for row in rows for cell in row]
        assert rows and all(len(row) == len(head) for row in rows), name
        assert "not measured" not in cells and "failed" not in cells and "dry run" in caption, name
    assert tables.throughput(runs["throughput"]) != tables.throughput([])


@pytest.mark.slow
def test_a_second_run_measures_only_what_is_asked_again(dry: Path, root: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (dry / "work/dry-run").glob("gpu_*.json")}
    told, _ = gpu(root, "--dry-run", "--work", str(dry / "work"), "--again", "throughput").communicate()
    assert "Recorded before on this GPU: tests, " in told and "All stages are recorded" in told
    assert [path.name for path, when in before.items() if path.stat().st_mtime_ns != when] == ["gpu_throughput.json"]


def test_an_interrupted_run_keeps_its_parts_and_goes_on(root: Path, tmp_path: Path) -> None:
    stage = "big_models"  # of several parts, each of a second or two: time to interrupt it
    options = ("--dry-run", "--only", stage, "--work", str(tmp_path))
    process, limit, parts = gpu(root, *options), time.time() + 120, tmp_path / "dry-run/dry-run/parts" / stage
    while not list(parts.glob("*.json")) and time.time() < limit:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    told, _ = process.communicate(timeout=60)
    assert process.returncode == command.STOPPED and "Stopped. Not complete: " in told and "Traceback" not in told
    kept = {path: path.read_bytes() for path in parts.glob("*.json")}
    assert kept and gpu(root, *options).wait() == 0
    assert all(path.read_bytes() == text for path, text in kept.items()), "measured once"
    assert records(tmp_path / "dry-run")[stage]["unfinished"] == ""


# --- the worker, with stages of its own ------------------------------------------------------------------------------


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., dict[str, dict]]:
    """Run stages that are functions of a `Run`; returns their records."""

    def measure(deadline: float = 1e12, hardware: str = GPU, **stages) -> dict[str, dict]:
        work = tmp_path / "work" / summary.slug(hardware)
        run = worker.Run(torch.device("cpu"), hardware, work, tmp_path / "running", tmp_path / "out", deadline, False)
        monkeypatch.setattr(summary, "STAGES", tuple(Stage(name, "a test", 1, 1) for name in stages))
        late = worker.run_stages(run, summary.STAGES, stages) == worker.OUT_OF_TIME
        found = records(tmp_path / "out")
        assert late == any("no time was left" in run["unfinished"] for run in found.values())
        return found

    return measure


def good() -> dict:
    return {"images_per_second": 3.0}


def raising(error: BaseException) -> Callable[[], dict]:
    def work() -> dict:
        raise error

    return work


def test_what_fails_is_told_and_measured_again(measured: Callable, tmp_path: Path, capfd) -> None:
    def first(run) -> None:
        run.part("good", 1, good)
        run.part("bad", 1, raising(ValueError("a reason\nand more")), steps=3)
        run.part("large", 1, raising(torch.OutOfMemoryError("CUDA out of memory. Tried\nmore")), steps=5)
        explained = MemoryError("Out of memory with batch=1. Try a smaller one.")
        explained.__cause__ = torch.OutOfMemoryError("CUDA out of memory")
        run.part("explained", 1, raising(explained))

    second = raising(RuntimeError("before any part"))
    found = measured(first=first, second=lambda run: second(), third=lambda run: run.part("x", 1, good))
    parts = found["first"]["parts"]
    assert list(parts) == ["good", "bad", "large", "explained"]
    assert parts["bad"]["error"] == "ValueError: a reason" and parts["bad"]["steps"] == 3
    assert parts["large"]["out_of_memory"].startswith("OutOfMemoryError: CUDA") and parts["large"]["steps"] == 5
    assert "Try a smaller one" in parts["explained"]["out_of_memory"]
    assert found["first"]["unfinished"] == "failed: bad", "memory that runs out is a result"
    assert found["second"]["unfinished"] == "RuntimeError: before any part"
    assert summary.finished(tmp_path / "out", GPU) == {"third"}
    assert "Traceback" in capfd.readouterr().err
    calls = []  # mended, the same command measures what is missing, and nothing else
    measured(first=lambda run: [run.part(name, 1, lambda n=name: calls.append(n) or {}) for name in parts])
    assert calls == ["bad"] and summary.finished(tmp_path / "out", GPU) == {"first"}


def test_tests_that_fail_are_in_the_record_and_run_again(measured: Callable, monkeypatch, tmp_path: Path) -> None:
    found = iter(({"passed": 3, "skipped": 0, "failed": ["test_a"]}, {"passed": 4, "skipped": 0, "failed": []}))
    monkeypatch.setattr(measures, "_pytest", lambda *_: next(found))
    stage = measures.MEASURES["tests"]
    run = measured(tests=stage)["tests"]
    assert run["parts"]["pytest"]["failed"] == ["test_a"] and run["unfinished"] == "1 failed: test_a"
    assert "failed: test_a" in summary.markdown(tmp_path / "out")
    run = measured(tests=stage)["tests"]
    assert run["parts"]["pytest"]["passed"] == 4 and run["unfinished"] == ""


def test_a_part_that_would_end_too_late_is_left_for_the_next_time(measured: Callable) -> None:
    def stage(run) -> None:
        run.part("short", 1, good)
        run.part("long", 1000, good)

    found = measured(time.time() + 60, one=stage, two=lambda run: run.part("short", 1, good))
    assert "long" in found["one"]["unfinished"] and list(found["one"]["parts"]) == ["short"]
    assert found["two"]["unfinished"] == "", "what is short enough is still measured"
    assert list(measured(one=stage)["one"]["parts"]) == ["short", "long"]


def test_each_kind_of_gpu_has_a_run_of_its_own(measured: Callable, tmp_path: Path) -> None:
    for hardware in (GPU, "NVIDIA Other", GPU):
        measured(hardware=hardware, one=lambda run: run.part("a", 1, good))
    runs = pl.load_record(tmp_path / "out/gpu_one.json")["data"]["runs"]
    assert [run["hardware"] for run in runs] == ["NVIDIA Other", GPU]
    told = summary.markdown(tmp_path / "out")
    assert 0 < told.index("## NVIDIA Other") < told.index(f"## {GPU}")


# --- the supervisor, the archive, and what is said


def test_a_process_that_dies_costs_one_stage(monkeypatch, tmp_path: Path, capsys) -> None:
    options = command.parse(["--out", str(tmp_path / "out"), "--work", str(tmp_path)])
    supervisor, asked, end = command.Supervisor(options, time.time()), [], 0

    def work(todo: list[str]) -> int:
        asked.append(todo)
        if "sd15_speed" not in todo:
            return end
        supervisor.running.write_text("sd15_speed")  # a worker that was killed in this stage leaves this behind
        return -9

    monkeypatch.setattr(supervisor, "worker", work)
    assert supervisor.run(NAMES) == 0
    assert asked == [NAMES, NAMES[NAMES.index("sd15_speed") + 1 :]]
    monkeypatch.setattr(supervisor, "worker", lambda todo: 1)
    monkeypatch.setattr(supervisor, "log", (tmp_path / "log.txt").open("a"))
    assert supervisor.run(NAMES) == 1 and "ended with 1 before it began" in capsys.readouterr().out


def test_an_archive_goes_into_another_checkout(measured: Callable, monkeypatch, tmp_path: Path, root: Path) -> None:
    measured(tests=lambda run: run.part("a", 1, good))
    file = tmp_path / "out/gpu_tests.json"
    record = json.loads(file.read_text())
    for passport in (record["passport"], record["data"]["runs"][0]["passport"]):
        passport["commit"] = "uncommitted"  # as on a machine without the repository
    file.write_text(json.dumps(record))
    for name in ("log.txt", "gpu.md"):
        (tmp_path / "work" / name).write_text(name)
    command.pack(tmp_path / "a.tar.gz", tmp_path / "out", tmp_path / "work")
    theirs = pl.load_record(root / "pruning_book/records/gpu_tests.json")["data"]["runs"]  # measured long before
    for commit, wanted in (("f" * 40, "f" * 40), ("", "uncommitted")):
        monkeypatch.setattr(summary, "commit_of", lambda *_, c=commit: c)
        there = tmp_path / f"there{wanted[:3]}"
        there.mkdir()
        (there / "gpu_tests.json").write_bytes((root / "pruning_book/records/gpu_tests.json").read_bytes())
        options = ["--import", str(tmp_path / "a.tar.gz"), "--out", str(there), "--work", str(there / "work")]
        assert command.main(options) == 0
        *kept, mine = pl.load_record(there / "gpu_tests.json")["data"]["runs"]
        assert kept == theirs and mine["passport"]["commit"] == wanted
        assert list((there / "work/nvidia-test/parts/tests").glob("*.json")), "what was measured is not measured again"


def test_the_commit_is_named_only_if_the_sources_are_the_same(tmp_path: Path) -> None:
    def git(*words: str) -> None:
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", *who, *words], cwd=tmp_path, check=True, capture_output=True)

    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/a.py").write_text("1")
    for words in (["init"], ["add", "."], ["commit", "-m", "x"]):
        git(*words)
    measured_with = summary.sources_hash(tmp_path, ("lib",))
    assert len(summary.commit_of(tmp_path, ("lib",), measured_with)) == 40
    assert summary.commit_of(tmp_path, ("lib",), "other") == ""
    (tmp_path / "lib/a.py").write_text("2")
    assert summary.commit_of(tmp_path, ("lib",), summary.sources_hash(tmp_path, ("lib",))) == "", "not committed"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--minutes", "0"], "give a number above 0"),
        (["--only", "speed"], "There is no stage 'speed'. Stages: tests,"),
        (["--again", "nothing"], "There is no stage 'nothing'"),
        (["--import", "no.tar.gz"], "is no archive of this command"),
        (["--out", "/proc/nowhere", "--dry-run"], "Nothing was measured"),
    ],
)
def test_bad_input_is_one_line(options: list[str], said: str, capsys, tmp_path: Path) -> None:
    assert command.main(["--out", str(tmp_path), *options, "--work", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert said in captured.err and len(captured.err.splitlines()) == 1 and not captured.out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(root: Path, tmp_path: Path) -> None:
    process = gpu(root, "--work", str(tmp_path / "w"), "--out", str(tmp_path / "out"))
    told, _ = process.communicate()
    assert process.returncode == 2 and "nothing was measured" in told and "--dry-run" in told
    assert not list((tmp_path / "out").glob("*.json"))


def test_a_passport_names_driver_and_clocks(monkeypatch) -> None:
    known = type("Known", (), {"total_memory": 80 * 2**30, "major": 9, "minor": 0})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: known)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(provenance, "_output", lambda *_: "580.1, 1980, 1980, [N/A], 700.00")
    found = provenance._gpu(torch.device("cuda"))
    assert found["driver"] == "580.1" and found["sm_clock_mhz"] == "1980" and found["memory_mib"] == 80 * 1024
    assert "memory_clock_mhz" not in found, "what cannot be read is left out"
    monkeypatch.setattr(provenance, "_output", lambda *_: "")
    assert "driver" not in provenance._gpu(torch.device("cuda"))
