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
from benchmarks.gpu import command, summary, worker
from benchmarks.gpu.stages import Stage
from pruning_book import gpu as tables

NAMES, GPU = command.NAMES, "NVIDIA Test"


def gpu(root: Path, *options: str) -> subprocess.Popen[str]:
    """Begin the command as a user does."""
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "cwd": root}
    how["env"] = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-m", "benchmarks", "gpu", *options], **how)


def records(folder: Path) -> dict[str, dict]:
    """Return the first run of each record."""
    found = {path.stem.removeprefix("gpu_"): pl.load_record(path) for path in folder.glob("gpu_*.json")}
    return {name: record["data"]["runs"][0] for name, record in found.items()}


@pytest.mark.slow
def test_a_dry_run_fills_records_summary_archive_and_pages(root: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    archive, out = tmp_path / "all.tar.gz", tmp_path / "work/dry-run"
    process = gpu(root, "--dry-run", "--work", str(tmp_path / "work"), "--archive", str(archive))
    printed, _ = process.communicate()
    assert process.returncode == 0 and "All stages are recorded" in printed, printed[-3000:]
    found = records(out)
    assert sorted(found) == sorted(NAMES)
    for name, run in found.items():
        assert run["dry"] and run["parts"] and run["unfinished"] == "", name
        assert not [part for part in run["parts"].values() if "error" in part or "out_of_memory" in part], name
    assert found["tests"]["parts"]["pytest"]["passed"] == 1 and found["tests"]["parts"]["pytest"]["failed"] == []

    told = (out / "gpu.md").read_text()
    assert "these numbers mean nothing" in told
    assert all(f"| {name} |" in told and f"\n{name} " in printed for name in NAMES)
    with tarfile.open(archive) as tar:
        inside = set(tar.getnames())
    assert {f"records/gpu_{name}.json" for name in NAMES} | {"note.json", "work/gpu.md", "work/log.txt"} <= inside
    there = ["--out", str(tmp_path / "out"), "--work", str(tmp_path / "w")]
    assert command.main(["--import", str(archive), *there]) == 0
    assert not list((tmp_path / "out").glob("*.json")), "a dry run's numbers are nobody's records"

    monkeypatch.setenv("PRUNING_LIB_RESULTS", str(out))
    runs = {name: tables.gpu_runs(name) for name in NAMES}
    processor = pl.load_record(root / "pruning_book/records/sd15_scoring.json")["data"]["runs"][0]
    pages = [tables.speed(runs[name]) for name in ("sd15_speed", "sd15_compiled", "big_models")]
    pages += [tables.zeros(runs["zeros"]), tables.channels(runs["zeros"]), tables.cut(runs["sd15_operators"])]
    pages += [tables.training(runs["sd15_training"], runs["sd15_speed"])]
    pages += [tables.scoring(runs["sd15_operators"], processor), tables.suites({"tests": runs["tests"]})]
    for head, rows, caption in pages:
        cells = [cell for row in rows for cell in row]
        assert rows and all(len(row) == len(head) for row in rows), caption
        assert "not measured" not in cells and "failed" not in cells and "dry run" in caption

    before = {path: path.stat().st_mtime_ns for path in out.glob("gpu_*.json")}
    again = ["--dry-run", "--only", "tests,throughput", "--again", "throughput", "--out", str(out), "--work", str(out)]
    assert command.main([*again, "--worker", "1e12"]) == 0
    assert "Recorded before on this GPU: tests (" in capsys.readouterr().out
    assert [path.name for path, when in before.items() if path.stat().st_mtime_ns != when] == ["gpu_throughput.json"]


def test_an_interrupted_run_keeps_its_parts(root: Path, tmp_path: Path) -> None:
    stage = "big_models"  # of several parts, each of a second or two: time to interrupt it
    process = gpu(root, "--dry-run", "--only", stage, "--work", str(tmp_path))
    limit, parts = time.time() + 120, tmp_path / "dry-run/dry-run/parts" / stage
    while not list(parts.glob("*.json")) and time.time() < limit:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    told, _ = process.communicate(timeout=60)
    assert process.returncode == command.STOPPED and "Stopped. Not complete: " in told and "Traceback" not in told
    assert [json.loads(path.read_text())["name"] for path in parts.glob("*.json")]


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


def test_what_fails_is_told_and_measured_again(measured: Callable, tmp_path: Path, capfd) -> None:
    def bad() -> None:
        raise ValueError("a reason\nand more")

    def large() -> None:
        raise MemoryError("Out of memory with batch=1. Try a smaller one.") from torch.OutOfMemoryError("CUDA")

    def first(run) -> None:
        run.part("good", 1, dict)
        run.part("bad", 1, bad, steps=3)
        run.part("large", 1, large)

    found = measured(first=first, second=lambda run: bad(), third=lambda run: run.part("x", 1, dict))
    parts = found["first"]["parts"]
    assert list(parts) == ["good", "bad", "large"]
    assert parts["bad"]["error"] == "ValueError: a reason" and parts["bad"]["steps"] == 3
    assert "Try a smaller one" in parts["large"]["out_of_memory"]
    assert found["first"]["unfinished"] == "failed: bad", "memory that runs out is a result"
    assert found["second"]["unfinished"] == "ValueError: a reason"
    assert summary.finished(tmp_path / "out", GPU) == {"third"} and "Traceback" in capfd.readouterr().err
    calls = []  # mended, the same command measures what is missing, and nothing else
    measured(first=lambda run: [run.part(name, 1, lambda n=name: calls.append(n) or {}) for name in parts])
    assert calls == ["bad"] and summary.finished(tmp_path / "out", GPU) == {"first"}


def test_a_part_that_would_end_too_late_is_left_and_each_gpu_has_a_run_of_its_own(measured: Callable, tmp_path) -> None:
    def stage(run) -> None:
        run.part("short", 1, dict)
        run.part("long", 1000, dict)

    found = measured(time.time() + 60, one=stage)
    assert "long" in found["one"]["unfinished"] and list(found["one"]["parts"]) == ["short"]
    for hardware in (GPU, "NVIDIA Other", GPU):
        measured(hardware=hardware, one=stage)
    runs = pl.load_record(tmp_path / "out/gpu_one.json")["data"]["runs"]
    assert [run["hardware"] for run in runs] == ["NVIDIA Other", GPU] and list(runs[1]["parts"]) == ["short", "long"]


def test_a_process_that_dies_costs_one_stage(monkeypatch, tmp_path: Path, capsys) -> None:
    options = command.parse(["--out", str(tmp_path / "out"), "--work", str(tmp_path)])
    supervisor, asked = command.Supervisor(options, time.time()), []

    def work(todo: list[str]) -> int:
        asked.append(todo)
        if "sd15_speed" not in todo:
            return 0
        supervisor.running.write_text("sd15_speed")  # a worker that was killed in this stage leaves this behind
        return -9

    monkeypatch.setattr(supervisor, "worker", work)
    assert supervisor.run(NAMES) == 0
    assert asked == [NAMES, NAMES[NAMES.index("sd15_speed") + 1 :]]


def test_an_archive_goes_into_another_checkout(measured: Callable, monkeypatch, tmp_path: Path, root: Path) -> None:
    measured(tests=lambda run: run.part("a", 1, dict))
    file = tmp_path / "out/gpu_tests.json"
    commit = json.loads(file.read_text())["passport"]["commit"]
    file.write_text(file.read_text().replace(commit, "uncommitted"))  # as on a machine without the repository
    for name in ("log.txt", "gpu.md"):
        (tmp_path / "work" / name).write_text(name)
    command.pack(tmp_path / "a.tar.gz", tmp_path / "out", tmp_path / "work")
    known = root / "pruning_book/records/gpu_tests.json"  # measured long before
    file.write_bytes(known.read_bytes())
    monkeypatch.setattr(summary, "commit_of", lambda *_: "f" * 40)
    there = tmp_path / "there"
    options = ["--import", str(tmp_path / "a.tar.gz"), "--out", str(file.parent), "--work", str(there)]
    assert command.main(options) == 0
    *kept, mine = pl.load_record(file)["data"]["runs"]
    assert kept == pl.load_record(known)["data"]["runs"] and mine["passport"]["commit"] == "f" * 40
    assert list((there / "nvidia-test/parts/tests").glob("*.json")), "what was measured is not measured again"


def test_bad_input_is_one_line(capsys, tmp_path: Path) -> None:
    for options, said in (
        (["--minutes", "0"], "give a number above 0"),
        (["--only", "speed"], "There is no stage 'speed'. Stages: tests,"),
        (["--import", "no.tar.gz"], "is no archive of this command"),
        (["--out", "/proc/nowhere", "--dry-run"], "Nothing was measured"),
    ):
        assert command.main(["--out", str(tmp_path), *options, "--work", str(tmp_path)]) == 2
        captured = capsys.readouterr()
        assert said in captured.err and len(captured.err.splitlines()) == 1 and not captured.out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(tmp_path: Path, capsys) -> None:
    options = ["--worker", "1e12", "--work", str(tmp_path), "--out", str(tmp_path)]
    assert command.main(options) == command.NO_GPU
    told = capsys.readouterr().out
    assert "nothing was measured" in told and "--dry-run" in told and not list(tmp_path.glob("*.json"))
