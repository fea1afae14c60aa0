"""What `make gpu` found, from the records gpu_<stage>: their runs, and the rulings that follow from them."""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from IPython.display import HTML

from ..measure.latency import Latency, ratio
from ..measure.record import RecordError, load_record, record_path
from .claims import Ruling

__all__ = ["follows_macs", "gpu_runs", "measured", "not_behind", "open_questions", "stays_under"]

Run, Part = Mapping[str, Any], Mapping[str, Any]
PACKAGE = "deepcache package"
HALF = ("float16", "bfloat16")
NO_GPU = "No GPU has been measured yet."


def gpu_runs(stage: str) -> list[Run]:
    """Return the runs of the record gpu_<stage>, one for each model of GPU; none where there is no such record.

    Args:
        stage: of `python -m benchmarks gpu`, as in "sd15_speed".

    Raises:
        RecordError: the record is there, but damaged or of another kind.
    """
    name = f"gpu_{stage}"
    if not record_path(name).exists():
        return []
    found = load_record(name)["data"].get("runs")
    fields = {"hardware", "passport", "parts"}
    if not isinstance(found, list) or not all(
        isinstance(run, dict) and fields <= run.keys() for run in found
    ):
        raise RecordError(
            f"{record_path(name)} has no list of runs, each with {', '.join(sorted(fields))}. "
            "Restore it from version control, or measure again with `make gpu`."
        )
    return found


def failed(part: Part) -> str:
    """Return "out of memory" or "failed" for a part without figures, else nothing."""
    return "out of memory" if "out_of_memory" in part else "failed" if "error" in part else ""


def parts_of(runs: Iterable[Run], named: str = "") -> Iterator[tuple[Run, str, Part]]:
    """Yield (run, name, part) for every part whose name contains `named`, those without figures as well."""
    for run in runs:
        for name, part in run["parts"].items():
            if named in name:
                yield run, name, part


def measured(runs: Iterable[Run], named: str = "") -> bool:
    """Return whether some part with `named` in its name has figures."""
    return any(not failed(part) for _, _, part in parts_of(runs, named))


def machine(run: Run) -> str:
    """Return the GPU of a run with its memory, driver and PyTorch, as far as the passport knows them, and the day."""
    stamp = run["passport"]
    gpu = stamp.get("gpu") or {}
    facts = [
        "dry run at toy shapes" if run.get("dry") else "",
        f"{gpu['memory_mib'] / 1024:.0f} GiB" if gpu.get("memory_mib") else "",
        f"driver {gpu['driver']}" if gpu.get("driver") else "",
        f"CUDA {gpu['cuda']}" if gpu.get("cuda") else "",
        f"torch {stamp['versions'].get('torch', 'unknown')}",
        stamp["date"][:10],
    ]
    return f"{stamp['hardware']} ({', '.join(filter(None, facts))})"


def follows_macs(runs: Sequence[Run], least: float = 0.95) -> tuple[Ruling, str]:
    """Rule on "the clock follows the MACs": measured speed is at least `least` of what they promise.

    Everything at every setting that was timed: it holds; some of it: in part. The `deepcache` package is left out,
    which is not ours.

    Args:
        runs: of the record `sd15_speed`.
        least: share of the promise.

    Returns:
        Ruling and reason, for `claims.verdict`.
    """
    reached = {
        (run["hardware"], name, row["way"], row["keep"]): row["reached"]
        for run, name, part in parts_of(runs) if not failed(part)
        for row in part["rows"] if row["way"] != PACKAGE
    }  # fmt: skip
    if not reached:
        return "not measured", NO_GPU
    met = sum(value >= least for value in reached.values())
    gpu, setting, way, keep = worst = min(reached, key=reached.__getitem__)
    return _ruling(met, len(reached)), (
        f"{met} of {len(reached)} ways reach it. The least is {reached[worst]:.2f} of the promise: {way}, "
        f"{100 * keep:.0f} % of the MACs, {setting}, {gpu}; full-size SD-1.5 with random weights."
    )


def not_behind(runs: Sequence[Run]) -> tuple[Ruling, str]:
    """Rule on "a schedule is not behind the deepcache package on the same pattern".

    Both took turns, so rounds are paired: the schedule is behind where the whole 95 % interval of its speed against the
    package's lies below 1. Nowhere behind: it holds; somewhere: in part; everywhere: it does not hold.

    Args:
        runs: of the record `sd15_speed`.

    Returns:
        Ruling and reason, for `claims.verdict`.
    """
    against = {}
    for run, name, part in parts_of(runs):
        rows = {} if failed(part) else {(row["way"], row["keep"]): _latency(row) for row in part["rows"]}
        for (way, keep), package in rows.items():
            ours = rows.get(("DeepCache", keep))
            if way == PACKAGE and ours and ours.n == package.n > 1:
                against[run["hardware"], name, keep] = ratio(package, ours)
    if not against:
        return "not measured", NO_GPU
    met = sum(found.high >= 1 for found in against.values())
    gpu, setting, keep = worst = min(against, key=lambda key: against[key].value)
    found = against[worst]
    return _ruling(met, len(against)), (
        f"Not behind in {met} of {len(against)} comparisons. In the least favourable the schedule is {found.value:.3f} "
        f"({found.low:.3f} to {found.high:.3f}) times as fast as the package: {100 * keep:.0f} % of the MACs, "
        f"{setting}, {gpu}."
    )


def stays_under(runs: Sequence[Run], gib: float = 14, steps: int = 50) -> tuple[Ruling, str]:
    """Rule on "with checkpointing, training in half precision stays under `gib` GiB at `steps` steps".

    Every such training stays under it: it holds; some: in part. One that ran out of memory or failed does not.

    Args:
        runs: of the record `sd15_training`.
        gib: the limit.
        steps: of the sampler.

    Returns:
        Ruling and reason, for `claims.verdict`.
    """
    asked = {
        (run["hardware"], name): part for run, name, part in parts_of(runs)
        if part.get("checkpointing") and part.get("steps") == steps and part.get("dtype") in HALF
    }  # fmt: skip
    peaks = {key: part["peak_mib"] / 1024 for key, part in asked.items() if not failed(part)}
    if not peaks and not any("out_of_memory" in part for part in asked.values()):
        return "not measured", NO_GPU if not asked else "Every training of this kind failed."
    without = [f"{name}, {gpu}: {failed(part)}." for (gpu, name), part in asked.items() if failed(part)]
    most = max(peaks, key=peaks.__getitem__, default=None)
    largest = [f"The largest peak is {peaks[most]:.1f} GiB: {most[1]}, {most[0]}."] if most else []
    met = sum(peak < gib for peak in peaks.values())
    return _ruling(met, len(asked)), " ".join(
        [f"{met} of {len(asked)} trainings stay under it.", *largest, *without]
    )


def open_questions(questions: Mapping[str, bool]) -> HTML:
    """Return a list of what is not known.

    Args:
        questions: what it is about -> whether it has been measured; what has is left out.
    """
    lines = "".join(f"<li>{html.escape(text)}</li>" for text, known in questions.items() if not known)
    return HTML(
        f"<ul>{lines}</ul>" if lines else "<p>Nothing that the records could answer is left open.</p>"
    )


def _ruling(met: int, of: int) -> Ruling:
    return "holds" if met == of else "holds in part" if met else "does not hold"


def _latency(row: Part) -> Latency:
    return Latency(tuple(row["latency"]["times_ms"]), row["latency"]["warmup"])
