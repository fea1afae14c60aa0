"""Runs stages, functions of a `Run`, one after the other, and keeps every part in a file the moment it is there.

When a stage ends, its parts go into its record. One process runs them all, because starting CUDA takes long; a part
that leaves the GPU unusable ends the process, and the supervisor in `command` starts another one for what is left.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

import pruning_lib as pl
from pruning_lib.checks import synchronise
from pruning_lib.processes import is_out_of_memory

from ..common import write_whole
from .stages import BROKEN, DONE, OUT_OF_TIME, Stage
from .summary import put_runs, slug


class OutOfTime(Exception):
    """The next part would not end in time."""


class Incomplete(Exception):
    """Something failed; what did not is kept, and the stage is tried again."""


@dataclass
class Run:
    """What a stage is given.

    Attributes:
        hardware: what the record calls this machine.
        work, out: folders of its parts and of the records.
        running: a file that holds the name of the stage that is under way, for the supervisor.
        deadline: when to be done, in seconds since 1970.
        dry: True for toy shapes.
        stage, failed: the stage that is under way, and its parts that failed.
        pace: how many times as long as on a data-centre GPU the last part took.
    """

    device: torch.device
    hardware: str
    work: Path
    running: Path
    out: Path
    deadline: float
    dry: bool
    stage: str = ""
    failed: list[str] = field(default_factory=list)
    pace: float = 1.0

    def at(self, real: object, toy: object) -> object:
        """Return a setting: the one that counts, or in a dry run the toy one."""
        return toy if self.dry else real

    def part(self, name: str, seconds: float, work: Callable[[], dict], **facts: object) -> dict:
        """Measure one part, or read it if it was measured before.

        Args:
            seconds: what it takes on a data-centre GPU, roughly; with less time left, at this GPU's pace, it is left
                and `OutOfTime` raised.
            work: returns what was found, JSON types.
            facts: what is known beforehand; part of the result, also where memory ran out.
        """
        path = self._path(name)
        if path.is_file() and "error" not in (kept := json.loads(path.read_text("utf-8"))):
            return kept
        if time.time() + (0 if self.dry else seconds * self.pace) > self.deadline:
            raise OutOfTime(name)
        started = time.time()
        try:
            found = work()
            self.pace = max(1.0, (time.time() - started) / seconds)
        except Exception as error:  # noted, and the next part is run
            if out_of_memory(error):
                found = {"out_of_memory": one_line(error)}
            else:
                traceback.print_exc()
                self.failed.append(name)
                found = {"error": one_line(error)}
        self.tidy()
        found = {"name": name, **facts, **found, "took_seconds": round(time.time() - started, 2), "ended": time.time()}
        write_whole(path, json.dumps(found, indent=1))
        note = found.get("error") or found.get("out_of_memory") or ""
        print(f"  {name}: {found['took_seconds']:.1f} s{', ' + note if note else ''}", flush=True)
        if "error" in found:
            self.check_alive()
        return found

    def forget(self, name: str) -> None:
        """Let a part be measured again."""
        self._path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self.work / "parts" / self.stage / f"{slug(name)}.json"

    def tidy(self) -> None:
        """Give memory back, so that a part's peak is its own."""
        gc.collect()
        if self.device.type == "cuda":
            with contextlib.suppress(RuntimeError):  # a broken device is found by `check_alive`
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats(self.device)

    def check_alive(self) -> None:
        """End the process if the GPU answers no more: an illegal access breaks every later call as well."""
        try:
            synchronise(self.device)
            torch.ones(1, device=self.device).item()
        except RuntimeError as error:
            print(f"The GPU is unusable in this process: {one_line(error)}", flush=True)
            os._exit(BROKEN)

    def parts(self, stage: str) -> dict[str, dict]:
        """Return what is kept of a stage, in the order in which it was measured."""
        found = [json.loads(path.read_text("utf-8")) for path in (self.work / "parts" / stage).glob("*.json")]
        return {part["name"]: part for part in sorted(found, key=lambda part: part["ended"])}


def run_stages(run: Run, stages: Sequence[Stage], measures: Mapping[str, Callable[[Run], None]]) -> int:
    """Run stages, each to its record; `measures` holds the function of each. Returns what the process ends with."""
    status = DONE
    for stage in stages:
        run.stage, run.failed = stage.name, []
        write_whole(run.running, stage.name)
        print(f"== {stage.name}: {stage.what} (about {stage.seconds} s)", flush=True)
        started, unfinished = time.time(), ""
        try:
            measures[stage.name](run)
            unfinished = f"failed: {', '.join(run.failed)}" if run.failed else ""
        except OutOfTime as error:
            status, unfinished = OUT_OF_TIME, f"no time was left for {error}; the same command goes on from there"
        except Incomplete as error:
            unfinished = str(error)
        except Exception as error:
            traceback.print_exc()
            unfinished = one_line(error)
        passport = pl.passport(seeds=[0], n=stage.n, device=run.device)
        mine = {"hardware": run.hardware, "passport": passport, "unfinished": unfinished, "dry": run.dry}
        put_runs(run.out / f"gpu_{stage.name}.json", [{**mine, "parts": run.parts(stage.name)}], passport)
        run.running.unlink(missing_ok=True)
        print(f"   {time.time() - started:.0f} s{'; ' + unfinished if unfinished else ''}", flush=True)
        run.tidy()
        run.check_alive()
    return status


def out_of_memory(error: BaseException | None) -> bool:
    """Tell whether memory ran out, also where this package explained it in other words."""
    return error is not None and (is_out_of_memory(error) or out_of_memory(error.__cause__))


def one_line(error: BaseException) -> str:
    """Return an error's first line, with its kind."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"[:300]
