"""The command `python -m benchmarks gpu`: options, the worker's supervisor, the archive and the summary.

The supervisor imports no torch. It starts a worker, keeps what that says, ends it in time, and starts another for what
is left when one dies. After every stage it renews the archive: a machine that is lent may go at any moment.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from pathlib import Path

from . import summary
from .stages import DONE, NO_GPU, OUT_OF_TIME, STAGES

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "pruning_book" / "records"
WORK = ROOT / "_build" / "gpu"
NAMES = [stage.name for stage in STAGES]
USAGE, STOPPED = 2, 130
GRACE = 5  # seconds before the limit at which the worker is ended
SOURCES = ("pruning_lib", "pruning_book", "zoo", "benchmarks", "tests/gpu")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = parse(arguments)
    try:
        if options.imported:
            return unpack(options)
        return work(options) if options.worker else supervise(options)
    except ValueError as error:
        print(f"gpu: {error}", file=sys.stderr)
        return USAGE


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks gpu", description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--minutes", type=float, help="end in this time; the same command goes on later")
    add("--archive", type=Path, metavar="FILE", help="keep records, gpu.md and log in this .tar.gz")
    add("--import", dest="imported", type=Path, metavar="FILE", help="put an archive into these records")
    add("--dry-run", action="store_true", help="every stage on the CPU, at toy shapes")
    add("--only", metavar="NAMES", default="", help="these stages, separated by commas")
    add("--again", metavar="NAMES", default="", help="measure these stages anew")
    add("--list", action="store_true", help="name the stages, with their times")
    add("--out", type=Path, help="folder of the records; default: pruning_book/records")
    add("--work", type=Path, default=WORK, help="folder of single parts, the log and gpu.md")
    add("--worker", metavar="DEADLINE", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.only, options.again = ([*filter(None, names.split(","))] for names in (options.only, options.again))
    return options


# --- the worker ------------------------------------------------------------------------------------------------------


def work(options: argparse.Namespace) -> int:
    """Run the stages that were asked for, in this process."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch

    from .measures import MEASURES
    from .worker import Run, run_stages

    if options.dry_run:
        device, hardware = torch.device("cpu"), "dry run"
    elif torch.cuda.is_available():
        device, hardware = torch.device("cuda"), torch.cuda.get_device_name(0)
    else:
        reason = "this PyTorch was built without CUDA" if torch.version.cuda is None else "PyTorch finds no CUDA GPU"
        print(
            f"gpu: {reason} (torch {torch.__version__}), so nothing was measured. Run it on a machine with an NVIDIA "
            "GPU and a CUDA build of PyTorch; --dry-run tries every stage on the CPU."
        )
        return NO_GPU
    (options.work / "hardware").write_text(hardware, "utf-8")
    folder = options.work / summary.slug(hardware)
    for name in options.again:
        shutil.rmtree(folder / "parts" / name, ignore_errors=True)
    known = summary.finished(options.out, hardware) - set(options.again)
    wanted = [stage for stage in STAGES if stage.name in options.only]
    print(f"# {hardware}, torch {torch.__version__}, {time.strftime('%Y-%m-%d %H:%M:%S')}", flush=True)
    if passed := [stage.name for stage in wanted if stage.name in known]:
        print(f"Recorded before on this GPU: {', '.join(passed)} (--again NAME measures one anew).", flush=True)
    run = Run(device, hardware, folder, options.work / "running", options.out, options.worker, options.dry_run)
    return run_stages(run, [stage for stage in wanted if stage.name not in known], MEASURES)


# --- the supervisor --------------------------------------------------------------------------------------------------


def supervise(options: argparse.Namespace) -> int:
    """Check the options, then let workers measure."""
    started = time.time()
    if options.minutes is not None and not 0 < options.minutes < 10_000:
        raise ValueError(f"--minutes {options.minutes:g}; give a number above 0, such as 8.")
    if options.list:
        print("\n".join(f"{stage.name:16} about {stage.seconds:4} s  {stage.what}" for stage in STAGES))
        return DONE
    for name in [*options.only, *options.again]:
        if name not in NAMES:
            raise ValueError(f"There is no stage {name!r}. Stages: {', '.join(NAMES)}.")
    # What a dry run finds means nothing, so it never comes near the records.
    options.work = (options.work / "dry-run" if options.dry_run else options.work).resolve()
    options.out = (options.out or (options.work if options.dry_run else RESULTS)).resolve()
    for place in (options.out, options.work, *([options.archive.parent] if options.archive else [])):
        _check_place(place)
    return Supervisor(options, started).run([name for name in NAMES if name in options.only or not options.only])


def _check_place(folder: Path) -> None:
    """Make a folder and a file in it, before anything is measured."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(
            f"Nothing can be written to {folder}: {error.strerror or error}. Nothing was measured. Give another folder "
            "with --out (records), --work (parts and log) or --archive."
        ) from error


class Supervisor:
    """Starts workers until nothing is left to do, time is up, or somebody stops it."""

    def __init__(self, options: argparse.Namespace, started: float):
        self.options, self.work, self.running = options, options.work, options.work / "running"
        self.deadline = started + 60 * options.minutes - GRACE if options.minutes else time.time() + 10**7
        self.log = (self.work / "log.txt").open("a", encoding="utf-8")

    def run(self, todo: list[str]) -> int:
        """Measure `todo`; returns the exit status."""
        self.running.unlink(missing_ok=True)
        # A machine that is taken back: as Ctrl-C. And a shell starts what runs in the background deaf to Ctrl-C.
        for kind in (signal.SIGTERM, signal.SIGINT):
            signal.signal(kind, signal.default_int_handler)
        try:
            status = self.measure(todo)
        except KeyboardInterrupt:
            status = STOPPED
        if status == NO_GPU:
            return status
        # Somebody may press Ctrl-C twice: what follows takes a moment and must not be cut off.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        self.running.unlink(missing_ok=True)
        self.keep()
        self.tell(status)
        signal.signal(signal.SIGINT, before)
        return status

    def measure(self, todo: list[str]) -> int:
        """Start one worker after the other; each that dies costs the stage that was under way."""
        while todo:
            code = self.worker(todo)
            if not self.running.is_file():
                if code not in (DONE, OUT_OF_TIME, NO_GPU):
                    self.say(f"The process ended with {code} before it began with a stage.")
                return code
            name = self.running.read_text("utf-8")
            if code == OUT_OF_TIME:
                self.say(f"   {name}: ended in the middle, because time was up")
                return code
            self.running.unlink()
            self.say(f"   {name}: the process ended with {code}; another one runs the stages after it")
            todo = todo[todo.index(name) + 1 :]
        return DONE

    def worker(self, todo: list[str]) -> int:
        """Run one worker to its end, and return what it ended with."""
        again = [name for name in self.options.again if name in todo]
        words = {"--worker": self.deadline, "--only": ",".join(todo), "--again": ",".join(again)}
        words |= {"--out": self.options.out, "--work": self.work}
        command = [sys.executable, "-m", "benchmarks", "gpu", *(str(word) for pair in words.items() for word in pair)]
        process = subprocess.Popen(
            command + ["--dry-run"] * self.options.dry_run,
            cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        late = threading.Event()

        def out_of_time() -> None:
            late.set()
            _kill(process)

        timer = threading.Timer(max(0.1, self.deadline - time.time()), out_of_time)
        timer.daemon = True
        timer.start()
        try:
            for line in process.stdout:
                self.say(line.rstrip("\n"))
                if line.startswith("=="):
                    self.keep()  # what the stage before it left
            return OUT_OF_TIME if (code := process.wait()) and late.is_set() else code
        except KeyboardInterrupt:
            _kill(process)
            raise
        finally:
            timer.cancel()

    def say(self, text: str) -> None:
        """Write to the terminal and to the log."""
        print(text, flush=True)
        self.log.write(text + "\n")
        self.log.flush()

    def keep(self) -> None:
        """Renew gpu.md and the archive."""
        text = summary.markdown(self.options.out, dry=self.options.dry_run)
        (self.work / "gpu.md").write_text(text, "utf-8")
        if self.options.archive:
            pack(self.options.archive, self.options.out, self.work)

    def tell(self, status: int) -> None:
        """Print the summary and how to go on."""
        file, archive = self.work / "hardware", self.options.archive
        hardware = file.read_text("utf-8") if file.is_file() else ""
        self.say("\n" + summary.table(self.options.out, hardware))
        done = summary.finished(self.options.out, hardware)
        told = {OUT_OF_TIME: "Time is up. ", STOPPED: "Stopped. "}.get(status, "")
        if left := [name for name in NAMES if name not in done]:
            told += f"Not complete: {', '.join(left)}. The same command goes on with them."
        self.say(f"\n{told or 'All stages are recorded.'}\nRecords: {self.options.out}. Summary and log: {self.work}.")
        if archive:
            self.say(f"Archive: {archive}; `python -m benchmarks gpu --import FILE` puts it into a checkout.")
        self.log.close()


def _kill(process: subprocess.Popen) -> None:
    """End a worker and what it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        process.kill()
    process.wait()


# --- archive and import ----------------------------------------------------------------------------------------------


def pack(archive: Path, records: Path, work: Path) -> None:
    """Write records, parts, gpu.md and the log into one file, whole or not at all."""
    part = archive.with_name(f".{archive.name}.part")
    with tarfile.open(part, "w:gz") as tar, tempfile.TemporaryDirectory() as place:
        note = Path(place) / "note.json"
        note.write_text(json.dumps({"sources": summary.sources_hash(ROOT, SOURCES)}), "utf-8")
        tar.add(note, "note.json")
        for path in sorted(records.glob("gpu_*.json")):
            tar.add(path, f"records/{path.name}")
        for path in (work / "log.txt", work / "gpu.md", *sorted(work.glob("*/parts/*/*.json"))):
            tar.add(path, f"work/{path.relative_to(work).as_posix()}")
    os.replace(part, archive)


def unpack(options: argparse.Namespace) -> int:
    """Put an archive's records beside those that are there, and its parts where the command goes on from."""
    out = options.out or RESULTS
    _check_place(out)
    try:
        with tempfile.TemporaryDirectory() as folder, tarfile.open(options.imported, "r:gz") as tar:
            place = Path(folder)
            tar.extractall(place, filter="data")
            sources = json.loads((place / "note.json").read_text("utf-8"))["sources"]
            commit = summary.commit_of(ROOT, SOURCES, sources)
            names = summary.merge(place / "records", out, commit)
            shutil.copytree(place / "work", options.work, dirs_exist_ok=True)
    except (OSError, tarfile.TarError, KeyError, EOFError) as error:
        raise ValueError(
            f"{options.imported} is no archive of this command: {error}. Give the file that --archive wrote."
        ) from error
    told = "measured with other sources than these, or with changes that are not committed: no passport names a commit"
    told = f"measured with the sources of commit {commit[:10]}" if commit else told
    print(f"Imported {', '.join(names) or 'nothing'} into {out}; {told}.")
    return DONE
