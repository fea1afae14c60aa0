"""What is known already: finished stages, one table of results, and records from another machine."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pruning_lib as pl

from .stages import STAGES

HEAD = ("stage", "what", "expected", "measured")


def slug(name: str) -> str:
    """Return a name that is a file name everywhere."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")


def runs(folder: Path) -> Iterator[tuple[str, dict]]:
    """Yield (stage, run) for every run in the records of a folder."""
    for stage in STAGES:
        path = folder / f"gpu_{stage.name}.json"
        if path.is_file():
            for run in json.loads(path.read_text("utf-8"))["data"]["runs"]:
                yield stage.name, run


def finished(folder: Path, hardware: str) -> set[str]:
    """Return the stages that are complete on a kind of machine."""
    return {stage for stage, run in runs(folder) if run["hardware"] == hardware and not run["unfinished"]}


def rows_of(stage: str, run: dict) -> Iterator[tuple[str, str, str, str]]:
    """Yield (stage, what, expected, measured) for the parts of a run."""
    for name, part in run["parts"].items():
        for what, expected, measured in _part_rows(part):
            yield stage, f"{name}{what}", expected, measured
    if run["unfinished"]:
        yield stage, "not complete", "", run["unfinished"]


def _part_rows(part: dict) -> Iterator[tuple[str, str, str]]:
    if "error" in part or "out_of_memory" in part:
        yield "", "", part.get("error") or "out of memory"
        return
    if "passed" in part:
        failed = f", failed: {', '.join(part['failed'])}" if part["failed"] else ""
        yield "", "all pass", f"{part['passed']} passed, {part['skipped']} skipped{failed}"
    if "unpruned" in part:
        yield ": unpruned", "", f"{part['unpruned']['median_ms']:.0f} ms"
    for row in part.get("rows", ()):
        promised = row["times_fewer_macs" if "form" in row else "promised"]
        yield f": {_row_name(row)}", f"{promised:.2f} times", f"{row['times_as_fast']['value']:.2f} times"
    if "seconds_per_iteration" in part:
        took = f"{part['peak_mib'] / 1024:.1f} GiB, {part['seconds_per_iteration']:.2f} s an iteration"
        yield "", f"{part['counted_mib'] / 1024:.1f} GiB", took
    if "of_floor" in part:
        took = f"{part['of_floor']:.2f}, {part['peak_scoring_mib'] / 1024:.1f} GiB"
        yield "", "1.00 of k + 1 generations", took
    if "images_per_second" in part:
        yield "", "", f"{part['images_per_second']:.0f} images/s"


def _row_name(row: dict) -> str:
    if "form" in row:
        return f"{row['form']} {row['sparsity']:g}"
    if "way" in row:
        return f"{row['way']}, {row['keep']:g}"
    return f"batch {row['batch']}" if "batch" in row else f"{row['ratio']:g} removed"


def table(folder: Path, hardware: str) -> str:
    """Return all results of a kind of machine as a text table."""
    rows = [HEAD]
    for stage, run in runs(folder):
        if run["hardware"] == hardware:
            rows += rows_of(stage, run)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def markdown(folder: Path, *, dry: bool = False) -> str:
    """Return all results as Markdown, machine by machine."""
    lines = ["# Measured on a GPU", ""]
    if dry:
        lines += ["A dry run on the CPU at toy shapes: these numbers mean nothing.", ""]
    machines: dict[str, list[tuple[str, dict]]] = {}
    for stage, run in runs(folder):
        machines.setdefault(run["hardware"], []).append((stage, run))
    for hardware, found in machines.items():
        stamp = found[0][1]["passport"]
        versions = ", ".join(f"{name} {version}" for name, version in stamp["versions"].items())
        gpu = ", ".join(f"{key} {value}" for key, value in stamp.get("gpu", {}).items()) or "no GPU"
        lines += [f"## {hardware}", "", f"{stamp['date']}; {gpu}; {versions}; commit {stamp['commit']}.", ""]
        rows = [HEAD, ["---"] * len(HEAD), *(row for stage, run in found for row in rows_of(stage, run))]
        lines += [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]
        lines.append("")
    return "\n".join(lines)


def sources_hash(root: Path, folders: tuple[str, ...]) -> str:
    """Return one hash of all Python files below some folders: did two checkouts measure with the same code?"""
    found = hashlib.sha256()
    for path in sorted(path for name in folders for path in (root / name).rglob("*.py")):
        found.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()


def commit_of(root: Path, folders: tuple[str, ...], sources: str) -> str:
    """Return the commit of this checkout if its sources are the ones that were measured with, else ""."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else "?"

    if sources_hash(root, folders) != sources or git("status", "--porcelain", "--", *folders):
        return ""
    return git("rev-parse", "HEAD").strip("?")


def put_runs(path: Path, mine: list[dict], passport: dict) -> None:
    """Put runs into a record, each in place of an earlier one on the same kind of machine."""
    theirs = pl.load_record(path)["data"]["runs"] if path.is_file() else []
    kept = [run for run in theirs if run["hardware"] not in {one["hardware"] for one in mine}]
    pl.save_record(path, path.stem, {"runs": kept + mine}, passport)


def merge(source: Path, out: Path, commit: str) -> list[str]:
    """Put the runs of a folder's records into those of another, but none of a dry run; return the records' names.

    `commit` is for passports of a machine that had no repository; "" leaves them as they are.
    """
    names = []
    for path in sorted(source.glob("gpu_*.json")):
        record = pl.load_record(path)
        mine = [run for run in record["data"]["runs"] if not run["dry"]]
        for passport in [record["passport"], *(run["passport"] for run in mine)]:
            if commit and passport["commit"] == "uncommitted":
                passport |= {"commit": commit, "dirty": False}
        if mine:
            put_runs(out / path.name, mine, record["passport"])
            names.append(path.stem)
    return names
