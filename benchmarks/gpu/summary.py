"""What is known already: finished stages, one table of results, and records from another machine."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

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


def rows_of(stage: str, run: dict) -> Iterator[tuple[str, str, str]]:
    """Yield (what, expected, measured) for the parts of a run."""
    for name, part in run["parts"].items():
        if "error" in part or "out_of_memory" in part:
            yield name, "", part.get("error") or "out of memory"
            continue
        if "passed" in part:
            failed = f", failed: {', '.join(part['failed'])}" if part["failed"] else ""
            yield name, "all pass", f"{part['passed']} passed, {part['skipped']} skipped{failed}"
        if "unpruned" in part:
            yield f"{name}: unpruned", "", f"{part['unpruned']['median_ms']:.0f} ms"
        for row in part.get("rows", ()):
            yield from _row(name, row)
        if "seconds_per_iteration" in part:
            yield (
                name,
                f"{part['counted_mib'] / 1024:.1f} GiB",
                (f"{part['peak_mib'] / 1024:.1f} GiB, {part['seconds_per_iteration']:.2f} s an iteration"),
            )
        if "of_floor" in part:
            yield (
                name,
                "1.00 of k + 1 generations",
                f"{part['of_floor']:.2f}, {part['peak_scoring_mib'] / 1024:.1f} GiB",
            )
        if "images_per_second" in part:
            yield name, "", f"{part['images_per_second']:.0f} images/s"


def _row(name: str, row: dict) -> Iterator[tuple[str, str, str]]:
    if "form" in row:
        what, promised = f"{row['form']} {row['sparsity']:g}", row["times_fewer_macs"]
    elif "way" in row:
        what, promised = f"{row['way']}, {row['keep']:g}", row["promised"]
    else:
        what, promised = (f"batch {row['batch']}" if "batch" in row else f"{row['ratio']:g} removed", row["promised"])
    yield f"{name}: {what}", f"{promised:.2f} times", f"{row['times_as_fast']['value']:.2f} times"


def table(folder: Path, hardware: str) -> str:
    """Return all results of a kind of machine as a text table."""
    rows = [HEAD]
    for stage, run in runs(folder):
        if run["hardware"] == hardware:
            rows += [(stage, *row) for row in rows_of(stage, run)]
            rows += [(stage, "not complete", "", run["unfinished"])] * bool(run["unfinished"])
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEAD))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def markdown(folder: Path, *, dry: bool = False) -> str:
    """Return all results as Markdown, machine by machine."""
    lines = ["# Measured on a GPU", ""]
    if dry:
        lines += ["A dry run on the CPU at toy shapes: these numbers mean nothing.", ""]
    machines: dict[str, list[tuple[str, dict]]] = {}
    for stage, run in runs(folder):
        machines.setdefault(run["hardware"], []).append((stage, run))
    for hardware, found in machines.items():
        passport = found[0][1]["passport"]
        versions = ", ".join(f"{name} {version}" for name, version in passport["versions"].items())
        gpu = ", ".join(f"{key} {value}" for key, value in passport.get("gpu", {}).items())
        lines += [
            f"## {hardware}",
            "",
            f"{passport['date']}; {gpu or 'no GPU'}; {versions}; commit {passport['commit']}.",
            "",
        ]
        lines += ["| " + " | ".join(HEAD) + " |", "|---|---|---|---|"]
        for stage, run in found:
            lines += [
                f"| {stage} | {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows_of(stage, run)
            ]
            if run["unfinished"]:
                lines.append(f"| {stage} | not complete | | {run['unfinished'].replace('|', '/')} |")
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
    if sources_hash(root, folders) != sources:
        return ""

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else "?"

    changed, commit = git("status", "--porcelain", "--", *folders), git("rev-parse", "HEAD")
    return "" if changed or commit == "?" else commit


def put_runs(path: Path, mine: list[dict], passport: dict) -> None:
    """Put runs into a record, each in place of an earlier one on the same kind of machine."""
    import pruning_lib as pl

    theirs = pl.load_record(path)["data"]["runs"] if path.is_file() else []
    kept = [run for run in theirs if run["hardware"] not in {one["hardware"] for one in mine}]
    pl.save_record(path, path.stem, {"runs": kept + mine}, passport)


def merge(source: Path, out: Path, commit: str) -> list[str]:
    """Put the runs of some records into others, each in place of an earlier one on the same kind of machine.

    Args:
        source, out: folders of records.
        commit: for passports of a machine that had no repository; "" leaves them as they are.

    Returns:
        The names of the records.
    """
    import pruning_lib as pl

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
