"""What `make gpu` found, from the records gpu_<stage>: tables beside what was expected, and rulings on claims.

A table is (head, rows, caption), as `table` takes it; it names the GPUs and n. A record holds one run for each model of
GPU; with several, each has its own block of rows. What no GPU has been asked for is called "not measured".
"""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from IPython.display import HTML

from pruning_lib.latency import Latency, ratio
from pruning_lib.records import RecordError, load_record, record_path

from .output import percent, spread
from .verdicts import Ruling, all_or_some

Run, Part = Mapping[str, Any], Mapping[str, Any]
PACKAGE = "deepcache package"
NO_GPU = "No GPU has been measured yet."


def gpu_runs(stage: str) -> list[Run]:
    """Return the runs of the record gpu_<stage>, one for each model of GPU; none where there is no such record.

    `stage` is of `python -m benchmarks gpu`, as in "sd15_speed". A record that is damaged or of another kind is a
    RecordError.
    """
    path = record_path(f"gpu_{stage}")
    if not path.exists():
        return []
    found = load_record(path.stem)["data"].get("runs")
    fields = {"hardware", "passport", "parts"}
    if not isinstance(found, list) or not all(isinstance(run, dict) and fields <= run.keys() for run in found):
        told = f"{path} has no list of runs, each with {', '.join(sorted(fields))}."
        raise RecordError(f"{told} Restore it from version control, or measure again with `make gpu`.")
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
    """Rule on "the clock follows the MACs": in the record `sd15_speed`, speed is at least `least` of the promise.

    The `deepcache` package is left out, which is not ours. Returns ruling and reason, for `verdict`.
    """
    reached = {
        (run["hardware"], name, row["way"], row["keep"]): row["reached"]
        for run, name, part in parts_of(runs)
        if not failed(part)
        for row in part["rows"]
        if row["way"] != PACKAGE
    }
    if not reached:
        return "not measured", NO_GPU
    met = sum(value >= least for value in reached.values())
    gpu, setting, way, keep = worst = min(reached, key=reached.__getitem__)
    return all_or_some(met, len(reached)), (
        f"{met} of {len(reached)} ways reach it. The least is {reached[worst]:.2f} of the promise: {way}, "
        f"{100 * keep:.0f} % of the MACs, {setting}, {gpu}; full-size SD-1.5 with random weights."
    )


def not_behind(runs: Sequence[Run]) -> tuple[Ruling, str]:
    """Rule on "a schedule is not behind the deepcache package on the same pattern".

    In the record `sd15_speed` both took turns, so rounds are paired: the schedule is behind where the whole 95 %
    interval of its speed against the package's lies below 1.
    """
    against = {}
    for run, name, part in parts_of(runs):
        rows = {}
        for row in [] if failed(part) else part["rows"]:
            rows[row["way"], row["keep"]] = Latency(tuple(row["latency"]["times_ms"]), row["latency"]["warmup"])
        for (way, keep), package in rows.items():
            ours = rows.get(("DeepCache", keep))
            if way == PACKAGE and ours and ours.n == package.n > 1:
                against[run["hardware"], name, keep] = ratio(package, ours)
    if not against:
        return "not measured", NO_GPU
    met = sum(found.high >= 1 for found in against.values())
    gpu, setting, keep = worst = min(against, key=lambda key: against[key].value)
    found = against[worst]
    return all_or_some(met, len(against)), (
        f"Not behind in {met} of {len(against)} comparisons. In the least favourable the schedule is {found.value:.3f} "
        f"({found.low:.3f} to {found.high:.3f}) times as fast as the package: {100 * keep:.0f} % of the MACs, "
        f"{setting}, {gpu}."
    )


def stays_under(runs: Sequence[Run], gib: float = 14, steps: int = 50) -> tuple[Ruling, str]:
    """Rule on "with checkpointing, training in half precision stays under `gib` GiB at `steps` steps".

    From the record `sd15_training`; a training that ran out of memory or failed does not stay under it.
    """
    asked = {
        (run["hardware"], name): part
        for run, name, part in parts_of(runs)
        if part.get("checkpointing") and part.get("steps") == steps and part.get("dtype") in ("float16", "bfloat16")
    }
    peaks = {key: part["peak_mib"] / 1024 for key, part in asked.items() if not failed(part)}
    if not peaks and not any("out_of_memory" in part for part in asked.values()):
        return "not measured", NO_GPU if not asked else "Every training of this kind failed."
    without = [f"{name}, {gpu}: {failed(part)}." for (gpu, name), part in asked.items() if failed(part)]
    most = max(peaks, key=peaks.__getitem__, default=None)
    largest = [f"The largest peak is {peaks[most]:.1f} GiB: {most[1]}, {most[0]}."] if most else []
    met, of = sum(peak < gib for peak in peaks.values()), len(asked)
    return all_or_some(met, of), " ".join([f"{met} of {of} trainings stay under it.", *largest, *without])


def open_questions(questions: Mapping[str, bool]) -> HTML:
    """Return a list of those questions, what each is about -> whether it has been measured, that are open."""
    lines = "".join(f"<li>{html.escape(text)}</li>" for text, known in questions.items() if not known)
    return HTML(f"<ul>{lines}</ul>" if lines else "<p>Nothing that the records could answer is left open.</p>")


Line = list[str]
Table = tuple[list[str], list[Line], str]

NOT_MEASURED, NONE = "not measured", "–"
HOW = "On a machine with a GPU, make gpu fills this in."
NARROW_UNET = "UNet with fewer channels"  # the part of stage `zeros` that is no single layer
# (form, sparsity) of the record's rows -> what the chapter calls it
FORMS = {
    ("zeros", 0.5): "zeros",
    ("2:4", 0.5): "2:4",
    ("csr", 0.5): "CSR",
    ("csr", 0.99): "CSR",
    ("structured", 0.5): "fewer outputs",
}
TIMES = ["times as fast, promised", "measured", "measured / promised"]


def _build(
    runs: Sequence[Run],
    head: Line,
    lines: Callable[[str, Run, Part], Iterable[Line]],
    what: str,
    *,
    keep: Callable[[str], bool] = lambda name: True,
    ns: Callable[[Run], int] | None = None,
    bare: bool = False,
) -> Table:
    """Put the lines of all parts that `keep` names below one another; GPUs and n are added to the caption `what`.

    `lines` makes the lines of (title, run, part), of parts without figures as well where `bare`; `ns` tells a run's
    number of samples, by default the rounds that its rows count.
    """
    rows, counts, used = [], set(), {}
    for run, name, part in parts_of(runs):
        if not keep(name):
            continue
        title, word = f"{run['hardware']}: {name}" if len(runs) > 1 else name, failed(part)
        used[machine(run)] = None
        empty = [[title, word, *[NONE] * (len(head) - 2)]]
        rows += empty if word and not bare else lines(title, run, part)
        if not word:
            counts.update([ns(run)] if ns else [row["times_as_fast"].get("n", 1) for row in part["rows"]])
    if not rows:
        return head, [["GPU", *[NOT_MEASURED] * (len(head) - 1)]], f"{what}. {_missing(runs)}"
    n = f"; n = {min(counts)}" + (f" to {max(counts)}" if len(counts) > 1 else "") if counts else ""
    return head, rows, f"{what}. {'; '.join(used)}{n}."


def _missing(runs: Sequence[Run]) -> str:
    """Say that something is not measured: on no GPU at all, or not on those that others were measured on."""
    gpus = " and ".join(dict.fromkeys(run["hardware"] for run in runs))
    why = f"the run on {gpus} ended before." if gpus else f"{NO_GPU[0].lower()}{NO_GPU[1:]}"
    return f"Not measured: {why} {HOW}"


def _time(found: Part, digits: int, unit: float = 1.0) -> str:
    """Return a median with its 10th and 90th percentile; `unit` milliseconds are one."""
    ends = zip(("value", "low", "high"), ("median_ms", "p10_ms", "p90_ms"), strict=True)
    return spread({end: found[key] / unit for end, key in ends}, digits)


def _faster(found: Mapping[str, float]) -> str:
    """Return a ratio with its interval, which a single round does not have."""
    return spread(found, 2) if "low" in found else f"{found['value']:.2f}"


def _times(row: Part) -> Line:
    return [f"{row['promised']:.2f}", _faster(row["times_as_fast"]), f"{row['reached']:.2f}"]


def _gib(mib: float | None) -> str:
    return NONE if mib is None else f"{mib / 1024:.1f} GiB"


def _what(words: str, runs: Sequence[Run], keep: Callable[[str], bool]) -> str:
    kinds = sorted({part["dtype"] for _, name, part in parts_of(runs) if keep(name) and "dtype" in part})
    return f"{', '.join([words, *kinds])}; times are medians, p10 to p90"


def _setting(part: Part) -> str:
    pixels = part["pixels"] if "pixels" in part else 8 * part["side"]
    guided = f", guidance {part['guidance']:g}" if "guidance" in part else ""
    return f"{pixels} x {pixels} pixels, {part['dtype']}{guided}"


def speed(runs: Sequence[Run], named: str = "", model: str = "Stable Diffusion 1.5") -> Table:
    """Return ways to run a pipeline, below the unpruned one: records `sd15_speed`, `sd15_compiled`, `big_models`.

    Only parts with `named` in their name, as in "batch 4"; `model` is what the caption calls it.
    """
    settings = {_setting(part) for _, _, part in parts_of(runs, named) if not failed(part)}

    def lines(title: str, run: Run, part: Part) -> Iterator[Line]:
        title += f", {_setting(part)}" if len(settings) > 1 else ""
        whole, eager, how = part["unpruned"], part.get("eager_unpruned"), "unpruned"
        if eager:
            how += f", compiled in {part['compile_seconds']:.0f} s, {part['graphs']} graphs"
            ratio = f"{whole['median_ms'] / eager['median_ms']:.2f}"
            before = f"{title}: unpruned, not compiled"
            yield [before, "100 %", NONE, _time(eager, 2, 1000), NONE, ratio, NONE]
        yield [f"{title}: {how}", "100 %", NONE, _time(whole, 2, 1000), "1", "1", NONE]
        for row in part["rows"]:
            name, kept = f"{row['way']}, {percent(row['keep'])} asked", percent(row["macs_ratio"], 1)
            yield [name, kept, str(row["calls"]), _time(row["latency"], 2, 1000), *_times(row)]

    what = f"{', '.join(filter(None, [model, named]))}, full size, random weights; seconds are medians, p10 to p90"
    what += f"; {settings.pop()}" if len(settings) == 1 else ""
    head = ["way, share of MACs", "MACs kept", "calls", "seconds", *TIMES]
    return _build(runs, head, lines, what, keep=lambda name: named in name)


def training(runs: Sequence[Run], speeds: Sequence[Run]) -> Table:
    """Return memory and time of an iteration of the pruner's training, expected and measured: record `sd15_training`.

    `speeds` are of the record `sd15_speed`: the chapter's formula expects the time of four unpruned generations.
    """
    whole = {
        (run["hardware"], part["steps"], part["dtype"]): part["unpruned"]["median_ms"] / 1000
        for run, _, part in parts_of(speeds)
        if not failed(part) and part["batch"] == 1
    }

    def lines(title: str, run: Run, part: Part) -> Iterator[Line]:
        word, counted = failed(part), part.get("counted_mib")
        one = whole.get((run["hardware"], part.get("steps"), part.get("dtype")))
        share = NONE if word or not counted else f"{part['peak_mib'] / counted:.2f}"
        memory = [_gib(part.get("before_mib")), _gib(counted), word or _gib(part["peak_mib"]), share]
        took = NONE if word else f"{part['seconds_per_iteration']:.1f} s"
        yield [title, *memory, NONE if one is None else f"{4 * one:.1f} s", took]

    head = ["setting", "before", "memory, counted", "memory, peak", "peak / counted", "four generations", "took"]
    what = "One training iteration of the pruner at full size, random weights, one prompt"
    return _build(runs, head, lines, what, ns=lambda run: run["passport"]["n"], bare=True)


def zeros(runs: Sequence[Run]) -> Table:
    """Return how fast single layers are with zeros, sparse, and smaller, beside their MACs: record `zeros`."""
    promised: dict[tuple[str, float], float] = {}
    refused: dict[str, None] = {}  # sentences, in order, each once

    def lines(title: str, run: Run, part: Part) -> Iterator[Line]:
        found = {(row["form"], row["sparsity"]): row for row in part["rows"]}
        promised.update({column: found[column]["times_fewer_macs"] for column in FORMS if column in found})
        reasons = [f"{form} was refused: {why.split('. ')[0]}" for form, why in part.get("refused", {}).items()]
        refused.update(dict.fromkeys(f"{reason.rstrip('.')}." for reason in reasons))
        (dense,) = (row for row in part["rows"] if row["form"] == "dense")
        without = {column: "refused" if column[0] in part.get("refused", {}) else NONE for column in FORMS}
        cells = {**without, **{column: _faster(row["times_as_fast"]) for column, row in found.items()}}
        yield [title, _time(dense, 3), *(cells[column] for column in FORMS)]

    what = _what("Times as fast as the dense layer, random weights", runs, one := lambda name: name != NARROW_UNET)
    head = ["layer", "dense, ms", *(f"{FORMS[column]}, {percent(column[1])} less" for column in FORMS)]
    head, rows, caption = _build(runs, head, lines, what, keep=one)
    if promised:
        rows.insert(0, ["times fewer MACs", "1", *(f"{promised[c]:.3g}" if c in promised else NONE for c in FORMS)])
    return head, rows, " ".join([caption, *refused])


def channels(runs: Sequence[Run]) -> Table:
    """Return whole UNets with fewer channels: record `zeros`."""

    def lines(title: str, run: Run, part: Part) -> Iterator[Line]:
        yield [f"{title}: unpruned", "100 %", _time(part["unpruned"], 1), "1", "1", NONE]
        for row in part["rows"]:
            kept = percent(row["macs_ratio"], 1)
            yield [f"ratio {row['ratio']:g}", kept, _time(row["latency"], 1), *_times(row)]

    what = _what("SD-1.5's UNet with fewer channels, one call", runs, unet := lambda name: name == NARROW_UNET)
    return _build(runs, ["UNet", "MACs kept", "ms", *TIMES], lines, what, keep=unet)


def cut(runs: Sequence[Run]) -> Table:
    """Return the time of SD-1.5 without its least important operators, by batch: record `sd15_operators`."""

    def lines(title: str, run: Run, part: Part) -> Iterator[Line]:
        title = f"{title}, {percent(part['removed'])} of the MACs asked, {part['operators']} operators"
        for row in part["rows"]:
            times = [_time(row[which], 1) for which in ("whole", "cut")]
            yield [f"{title}: batch {row['batch']}", percent(part["macs_ratio"], 1), *times, *_times(row)]

    head = ["what", "MACs kept", "ms, whole", "ms, cut", *TIMES]
    what = _what("One call of full-size SD-1.5, random weights", runs, only := lambda name: name == "cut")
    return _build(runs, head, lines, what, keep=only)


def scoring(runs: Sequence[Run], processor: Part) -> Table:
    """Return what scoring took on a processor, a run of `sd15_scoring`, and on GPUs: record `sd15_operators`."""

    def lasting(seconds: float) -> str:
        return f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 60:.0f} min"

    def row(name: str, part: Part) -> Line:
        if failed(part):
            return [name, failed(part), *[NONE] * 5]
        what = f"{len(part['operators'])} operators, latents {part['size']} x {part['size']}, {part['steps']} steps, "
        what += f"guidance {part['guidance']:g}, {part['dtype']}"
        times = [lasting(part["floor_seconds"]), lasting(part["seconds"]), f"{part['of_floor']:.2f}"]
        return [name, what, *times, _gib(part["weights_mib"]), _gib(part["peak_scoring_mib"])]

    found = [(run, part) for run, name, part in parts_of(runs) if name == "scoring"]
    rows = [row(run["hardware"], part) for run, part in found] or [["GPU", *[NOT_MEASURED] * 6]]
    head = ["machine", "scored", "floor of k + 1 generations", "took", "took / floor", "weights", "peak memory"]
    caption = "Scoring at full size, once on each machine (n = 1): expected beside measured."
    caption += f" GPU: {'; '.join(machine(run) for run, _ in found)}." if found else f" GPU: {_missing(runs)}"
    return head, [row(processor["passport"]["hardware"], processor), *rows], caption


def suites(found: Mapping[str, Sequence[Run]]) -> Table:
    """Return how many tests, name -> runs, passed on which GPU, and which failed: records `tests`, `tests_compiled`."""
    rows, names, used = [], [], {}
    for title, runs in found.items():
        for run, _, part in parts_of(runs):
            used[machine(run)] = None
            cells = [failed(part), NONE, NONE, NONE]
            if not failed(part):
                names += part["failed"]
                counts = (part["passed"], len(part["failed"]), part["skipped"])
                cells = [*map(str, counts), f"{part['seconds']:.0f}" if "seconds" in part else NONE]
            rows.append([f"{title}, {run['hardware']}", *cells])
    what = "The library's tests that use a GPU"
    head = ["tests", "passed", "failed", "skipped", "seconds"]
    if not rows:
        return head, [["GPU", *[NOT_MEASURED] * 4]], f"{what}. {_missing([])}"
    return head, rows, f"{what}. {'; '.join(used)}." + (f" Failed: {', '.join(names)}." if names else "")


def throughput(runs: Sequence[Run]) -> str:
    """Return, in a few words, how many pictures a second emoji-sd's training takes on GPUs: record `throughput`."""
    words = []
    for run, name, part in parts_of(runs):
        found = failed(part) or f"{part['images_per_second']:.0f}"
        words.append(f"{name}: {found} ({run['passport']['hardware']})")
    return "; ".join(words) or NOT_MEASURED
