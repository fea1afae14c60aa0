"""`python -m benchmarks gpu`: every stage runs here on the CPU at toy shapes, and nothing that was found is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # as `python -m benchmarks` does
sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))  # last: scripts/ has a module gpu, too

import pruning_lib as pl
from benchmarks.gpu import command, summary, worker
from benchmarks.gpu.stages import STAGES, Stage
from pruning_book import gpu as gpu_tables
from pruning_book.gpu import gpu_runs
from pruning_lib import records as provenance

NAMES = [stage.name for stage in STAGES]
TOY = "throughput"  # the cheapest stage


def gpu(root: Path, *options: str, **more) -> subprocess.CompletedProcess[str]:
    """Run the command as a user does."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **more}
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", "gpu", *options], cwd=root, env=environment, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def dry(root: Path, tmp_path_factory) -> Path:
    """A dry run of all stages, in a folder: work/dry-run and all.tar.gz."""
    folder = tmp_path_factory.mktemp("gpu")
    done = gpu(root, "--dry-run", "--work", str(folder / "work"), "--archive", str(folder / "all.tar.gz"))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (folder / "printed.txt").write_text(done.stdout)
    return folder


def records(folder: Path) -> dict[str, dict]:
    return {
        path.stem.removeprefix("gpu_"): pl.load_record(path)["data"]["runs"][0] for path in folder.glob("gpu_*.json")
    }


@pytest.mark.slow
def test_every_stage_runs_to_its_record(dry: Path) -> None:
    found = records(dry / "work/dry-run")
    assert sorted(found) == sorted(NAMES)
    for name, run in found.items():
        assert run["dry"] and run["hardware"] == "dry run" and run["unfinished"] == "", name
        assert run["parts"] and run["passport"]["device"] == "cpu"
        assert not [part for part in run["parts"].values() if "error" in part or "out_of_memory" in part], name
    ways = {row["way"] for part in found["sd15_speed"]["parts"].values() for row in part["rows"]}
    assert ways == {"fewer steps", "uniform", "DeepCache", "deepcache package", "searched-like"}
    recipes = {(p["recipe"], p["checkpointing"]) for p in found["sd15_training"]["parts"].values()}
    assert {("best", True), ("published", True), ("best", False)} <= recipes
    assert found["tests"]["parts"]["pytest"]["passed"] == 1 and found["tests"]["parts"]["pytest"]["failed"] == []
    for part in found["sd15_training"]["parts"].values():
        assert part["seconds_per_iteration"] > 0 and part["counted_mib"] > 0
    zeros = found["zeros"]["parts"]["linear 64 to 32, 16 tokens"]
    assert {row["form"] for row in zeros["rows"]} == {"dense", "zeros", "csr", "structured"}
    assert list(zeros["refused"]) == ["2:4"], "no CPU runs it"


@pytest.mark.slow
def test_promises_are_those_of_the_schedule_itself(dry: Path) -> None:
    found = records(dry / "work/dry-run")
    for stage in ("sd15_speed", "sd15_compiled", "big_models"):
        for part in found[stage]["parts"].values():
            for row in part["rows"]:
                assert row["promised"] == pytest.approx(1 / row["macs_ratio"])
                assert row["reached"] == pytest.approx(row["times_as_fast"]["value"] * row["macs_ratio"])
    for part in found["sd15_speed"]["parts"].values():
        by = {row["way"]: row for row in part["rows"]}
        assert by["DeepCache"]["macs_ratio"] == by["deepcache package"]["macs_ratio"], "the same pattern"


@pytest.mark.slow
def test_the_summary_and_the_archive_hold_all_of_it(dry: Path, tmp_path: Path) -> None:
    printed, told = (dry / "printed.txt").read_text(), (dry / "work/dry-run/gpu.md").read_text()
    assert "these numbers mean nothing" in told and "All stages are recorded" in printed
    for name in NAMES:
        assert f"| {name} |" in told and f"\n{name} " in printed
    with tarfile.open(dry / "all.tar.gz") as tar:
        inside = tar.getnames()
    assert {f"records/gpu_{name}.json" for name in NAMES} | {"note.json", "work/gpu.md", "work/log.txt"} <= set(inside)
    # A dry run's numbers are nobody's records.
    assert (
        command.main(
            ["--import", str(dry / "all.tar.gz"), "--out", str(tmp_path / "out"), "--work", str(tmp_path / "w")]
        )
        == 0
    )
    assert not list((tmp_path / "out").glob("*.json"))


@pytest.mark.slow
def test_the_pages_show_what_it_records(dry: Path, monkeypatch) -> None:
    monkeypatch.setenv("PRUNING_LIB_RESULTS", str(dry / "work/dry-run"))
    runs = {name: gpu_runs(name) for name in NAMES}
    processor = pl.load_record(Path(__file__).parents[2] / "pruning_book/records/sd15_scoring.json")["data"]["runs"][0]
    tables = {
        "speed": gpu_tables.speed(runs["sd15_speed"]),
        "compiled": gpu_tables.speed(runs["sd15_compiled"]),
        "big": gpu_tables.speed(runs["big_models"]),
        "zeros": gpu_tables.zeros(runs["zeros"]),
        "training": gpu_tables.training(runs["sd15_training"], runs["sd15_speed"]),
        "channels": gpu_tables.channels(runs["zeros"]),
        "cut": gpu_tables.cut(runs["sd15_operators"]),
        "scoring": gpu_tables.scoring(runs["sd15_operators"], processor),
        "suites": gpu_tables.suites({name: runs[name] for name in ("tests", "tests_compiled")}),
    }
    for name, (head, rows, caption) in tables.items():
        cells = [cell for row in rows for cell in row]
        assert rows and all(len(row) == len(head) for row in rows), name
        assert "not measured" not in cells and "failed" not in cells, name
        assert "dry run" in caption, name
    assert gpu_tables.throughput(runs["throughput"]) != gpu_tables.throughput([])


@pytest.mark.slow
def test_a_second_run_has_nothing_to_do_and_one_stage_is_measured_again(dry: Path, root: Path) -> None:
    work = dry / "work"
    before = {path: path.stat().st_mtime_ns for path in (work / "dry-run").glob("gpu_*.json")}
    done = gpu(root, "--dry-run", "--work", str(work), "--again", TOY)
    assert done.returncode == 0 and "Recorded before on this GPU: tests, " in done.stdout
    changed = [path.name for path, when in before.items() if path.stat().st_mtime_ns != when]
    assert changed == [f"gpu_{TOY}.json"]


def test_an_interrupted_run_keeps_its_parts_and_goes_on(root: Path, tmp_path: Path) -> None:
    stage = "big_models"  # of several parts, each of a second or two: time to interrupt it
    begun = [sys.executable, "-m", "benchmarks", "gpu", "--dry-run", "--only", stage, "--work", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        begun, cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    parts = tmp_path / "dry-run/dry-run/parts" / stage
    limit = time.time() + 120
    while not list(parts.glob("*.json")) and time.time() < limit:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    told, _ = process.communicate(timeout=60)
    assert process.returncode == command.STOPPED and "Stopped. Not complete: " in told and stage in told
    assert "Traceback" not in told
    kept = {path: path.read_bytes() for path in parts.glob("*.json")}
    assert kept
    assert gpu(root, "--dry-run", "--only", stage, "--work", str(tmp_path)).returncode == 0
    assert all(path.read_bytes() == text for path, text in kept.items()), "measured once"
    assert records(tmp_path / "dry-run")[stage]["unfinished"] == ""


# --- the worker, with stages of its own ------------------------------------------------------------------------------


def run_of(tmp_path: Path, deadline: float = 1e12) -> worker.Run:
    return worker.Run(
        torch.device("cpu"),
        "NVIDIA Test",
        tmp_path / "work/nvidia-test",
        tmp_path / "work/running",
        tmp_path / "out",
        deadline,
        dry=False,
    )


def measured(monkeypatch, run: worker.Run, **stages) -> int:
    """Run stages that are functions of a `Run`."""
    monkeypatch.setattr(summary, "STAGES", tuple(Stage(name, "a test", 1, 1) for name in stages))
    return worker.run_stages(run, summary.STAGES, stages)


def ending(error: BaseException | None = None):
    def work() -> dict:
        if error is not None:
            raise error
        return {"images_per_second": 3.0}

    return work


def test_what_fails_is_told_and_the_next_is_run(monkeypatch, tmp_path: Path, capfd) -> None:
    def first(run) -> None:
        run.part("good", 1, ending())
        run.part("bad", 1, ending(ValueError("a reason\nand more")), steps=3)
        run.part("large", 1, ending(torch.OutOfMemoryError("CUDA out of memory. Tried\nmore")), steps=5)

    def second(run) -> None:
        raise RuntimeError("before any part")

    assert (
        measured(monkeypatch, run_of(tmp_path), first=first, second=second, third=lambda r: r.part("x", 1, ending()))
        == 0
    )
    found = records(tmp_path / "out")
    parts = found["first"]["parts"]
    assert list(parts) == ["good", "bad", "large"]
    assert parts["bad"]["error"] == "ValueError: a reason" and parts["bad"]["steps"] == 3
    assert parts["large"]["out_of_memory"].startswith("OutOfMemoryError: CUDA") and parts["large"]["steps"] == 5
    assert found["first"]["unfinished"] == "failed: bad", "memory that runs out is a result"
    assert found["second"]["unfinished"] == "RuntimeError: before any part"
    assert summary.finished(tmp_path / "out", "NVIDIA Test") == {"third"}
    assert "Traceback" in capfd.readouterr().err
    # Mended, the same command measures what is missing, and nothing else.
    calls = []

    def mended(run) -> None:
        run.part("good", 1, lambda: calls.append("good") or {})
        run.part("bad", 1, lambda: calls.append("bad") or {"images_per_second": 1.0})
        run.part("large", 1, lambda: calls.append("large") or {})

    measured(monkeypatch, run_of(tmp_path), first=mended)
    assert calls == ["bad"] and summary.finished(tmp_path / "out", "NVIDIA Test") == {"first"}


def test_tests_that_fail_are_in_the_record_and_run_again(monkeypatch, tmp_path: Path) -> None:
    from benchmarks.gpu import measures

    found = iter(({"passed": 3, "skipped": 0, "failed": ["test_a"]}, {"passed": 4, "skipped": 0, "failed": []}))
    monkeypatch.setattr(measures, "_pytest", lambda *_: next(found))
    stage = measures._tests("gpu", 1)
    measured(monkeypatch, run_of(tmp_path), tests=stage)
    run = records(tmp_path / "out")["tests"]
    assert run["parts"]["pytest"]["failed"] == ["test_a"] and run["unfinished"] == "1 failed: test_a"
    assert "failed: test_a" in summary.markdown(tmp_path / "out")
    measured(monkeypatch, run_of(tmp_path), tests=stage)
    run = records(tmp_path / "out")["tests"]
    assert run["parts"]["pytest"]["passed"] == 4 and run["unfinished"] == ""


def test_memory_that_ran_out_is_found_behind_our_own_words(monkeypatch, tmp_path: Path) -> None:
    def explained() -> dict:
        try:
            raise torch.OutOfMemoryError("CUDA out of memory")
        except RuntimeError as error:
            raise MemoryError("Out of memory with batch=1. Try a smaller one.") from error

    measured(monkeypatch, run_of(tmp_path), one=lambda run: run.part("a", 1, explained))
    assert "Try a smaller one" in records(tmp_path / "out")["one"]["parts"]["a"]["out_of_memory"]


def test_a_part_that_would_end_too_late_is_left_for_the_next_time(monkeypatch, tmp_path: Path) -> None:
    def stage(run) -> None:
        run.part("short", 1, ending())
        run.part("long", 1000, ending())

    late = run_of(tmp_path, deadline=time.time() + 60)
    assert measured(monkeypatch, late, one=stage, two=lambda r: r.part("short", 1, ending())) == worker.OUT_OF_TIME
    found = records(tmp_path / "out")
    assert "long" in found["one"]["unfinished"] and list(found["one"]["parts"]) == ["short"]
    assert found["two"]["unfinished"] == "", "what is short enough is still measured"
    assert measured(monkeypatch, run_of(tmp_path), one=stage) == worker.DONE
    assert list(records(tmp_path / "out")["one"]["parts"]) == ["short", "long"]


def test_each_kind_of_gpu_has_a_run_of_its_own(monkeypatch, tmp_path: Path) -> None:
    measured(monkeypatch, run_of(tmp_path), one=lambda run: run.part("a", 1, ending()))
    other = run_of(tmp_path)
    other.hardware, other.work = "NVIDIA Other", tmp_path / "work/nvidia-other"
    assert summary.finished(tmp_path / "out", other.hardware) == set()
    measured(monkeypatch, other, one=lambda run: run.part("a", 1, ending()))
    runs = pl.load_record(tmp_path / "out/gpu_one.json")["data"]["runs"]
    assert [run["hardware"] for run in runs] == ["NVIDIA Test", "NVIDIA Other"]
    told = summary.markdown(tmp_path / "out")
    assert told.index("## NVIDIA Test") < told.index("## NVIDIA Other")


def test_a_process_that_dies_costs_one_stage(monkeypatch, tmp_path: Path) -> None:
    """The supervisor reads which stage was under way and starts another worker behind it."""
    options = command._parser().parse_args(["--out", str(tmp_path / "out"), "--work", str(tmp_path)])
    runner, asked = command._Runner(options, time.time()), []

    def worker_(todo, again) -> int:
        asked.append(list(todo))
        if "sd15_speed" in todo:
            runner.running.write_text("sd15_speed")  # a worker that was killed in this stage leaves this behind
            return -9
        return 0

    monkeypatch.setattr(runner, "worker", worker_)
    assert runner.run(NAMES, []) == 0
    assert asked == [NAMES, NAMES[NAMES.index("sd15_speed") + 1 :]]


def test_a_process_that_does_not_even_begin_is_told(monkeypatch, tmp_path: Path, capsys) -> None:
    options = command._parser().parse_args(["--out", str(tmp_path / "out"), "--work", str(tmp_path)])
    runner = command._Runner(options, time.time())
    monkeypatch.setattr(runner, "worker", lambda *_: 1)
    assert runner.run(NAMES, []) == 1 and "ended with 1 before it began" in capsys.readouterr().out


def test_an_archive_goes_into_another_checkout(monkeypatch, tmp_path: Path, root: Path) -> None:
    measured(monkeypatch, run_of(tmp_path), tests=lambda run: run.part("a", 1, ending()))
    file = tmp_path / "out/gpu_tests.json"
    record = json.loads(file.read_text())
    for passport in (record["passport"], record["data"]["runs"][0]["passport"]):
        passport["commit"] = "uncommitted"  # as on a machine without the repository
    file.write_text(json.dumps(record))
    (tmp_path / "work/log.txt").write_text("log"), (tmp_path / "work/gpu.md").write_text("md")
    command.pack(tmp_path / "a.tar.gz", tmp_path / "out", tmp_path / "work")
    for commit, wanted in (("f" * 40, "f" * 40), ("", "uncommitted")):
        monkeypatch.setattr(summary, "commit_of", lambda *_, c=commit: c)
        there = tmp_path / f"there{wanted[:3]}"
        options = ["--import", str(tmp_path / "a.tar.gz"), "--out", str(there), "--work", str(there / "work")]
        assert command.main(options) == 0
        run = pl.load_record(there / "gpu_tests.json")["data"]["runs"][0]
        assert run["passport"]["commit"] == wanted
        assert list((there / "work/nvidia-test/parts/tests").glob("*.json")), "what was measured is not measured again"


def test_the_commit_is_named_only_if_the_sources_are_the_same(tmp_path: Path) -> None:
    def git(*words: str) -> None:
        subprocess.run(
            ["git", "-c", "user.name=a", "-c", "user.email=a@b", *words], cwd=tmp_path, check=True, capture_output=True
        )

    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/a.py").write_text("1")
    git("init"), git("add", "."), git("commit", "-m", "x")
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
    assert command.main([*options, "--work", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert said in captured.err and len(captured.err.splitlines()) == 1 and not captured.out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(root: Path, tmp_path: Path) -> None:
    done = gpu(root, "--work", str(tmp_path / "w"), "--out", str(tmp_path / "out"))
    assert done.returncode == 2 and "nothing was measured" in done.stdout and "--dry-run" in done.stdout
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
