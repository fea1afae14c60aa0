"""Tables of what `make gpu` measured, from the records gpu_<stage>; each says "not measured" where there is none.

A table is (head, rows, caption), as `page.table` takes it. It names the GPUs and n, and shows what was expected beside
what was measured. A record holds one run for each model of GPU; with several, each has its own block of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from .comparison_tables import percent, spread
from .gpu_records import Part, Run, failed, machine, parts_of

__all__ = ["NARROW_UNET", "channels", "cut", "scoring", "speed", "suites", "throughput", "training", "zeros"]

Line = list[str]
Table = tuple[list[str], list[Line], str]

NOT_MEASURED, NONE = "not measured", "–"
NOTHING = "Not measured: no GPU has been measured yet. On a machine with one, make gpu fills this in."
NARROW_UNET = "UNet with fewer channels"  # the part of stage `zeros` that is no single layer
# (form, sparsity) of the record's rows -> what the chapter calls it
FORMS = {("zeros", 0.5): "zeros", ("2:4", 0.5): "2:4", ("csr", 0.5): "CSR", ("csr", 0.99): "CSR",
         ("structured", 0.5): "fewer outputs"}  # fmt: skip
TIMES = ["times as fast, promised", "measured", "measured / promised"]


def _build(
    runs: Sequence[Run], head: Line, lines: Callable[[str, Run, Part], Iterable[Line]], what: str, *,
    keep: Callable[[str], bool] = lambda name: True, ns: Callable[[Run], int] | None = None,
    bare: bool = False,
) -> Table:  # fmt: skip
    """Put the lines of all parts below one another.

    Args:
        runs: of a record.
        head: names of the columns.
        lines: (title, run, part) -> its lines; the title names the GPU where there are several.
        what: the caption, without a full stop; GPUs and n are added.
        keep: tells by its name whether a part belongs to the table.
        ns: number of samples behind a run's parts; default: of rounds, as the rows say.
        bare: `lines` takes parts without figures, too.
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
        return head, [["GPU", *[NOT_MEASURED] * (len(head) - 1)]], f"{what}. {NOTHING}"
    n = f"; n = {min(counts)}" + (f" to {max(counts)}" if len(counts) > 1 else "") if counts else ""
    return head, rows, f"{what}. {'; '.join(used)}{n}."


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

    Args:
        named: only parts with this in their name, as in "batch 4".
        model: what the caption calls it.
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

    Args:
        speeds: of the record `sd15_speed`: the time of four unpruned generations is what the chapter's formula expects.
    """
    whole = {
        (run["hardware"], part["steps"], part["dtype"]): part["unpruned"]["median_ms"] / 1000
        for run, _, part in parts_of(speeds) if not failed(part) and part["batch"] == 1
    }  # fmt: skip

    def lines(title: str, run: Run, part: Part) -> Iterator[Line]:
        word, counted = failed(part), part.get("counted_mib")
        one = whole.get((run["hardware"], part.get("steps"), part.get("dtype")))
        yield [
            title, _gib(part.get("before_mib")), _gib(counted), word or _gib(part["peak_mib"]),
            NONE if word or not counted else f"{part['peak_mib'] / counted:.2f}",
            NONE if one is None else f"{4 * one:.1f} s", NONE if word else f"{part['seconds_per_iteration']:.1f} s",
        ]  # fmt: skip

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
    """Return what scoring took on a processor and on GPUs: records `sd15_scoring` and `sd15_operators`.

    Args:
        processor: the CPU's run of the record `sd15_scoring`.
    """

    def lasting(seconds: float) -> str:
        return f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 60:.0f} min"

    def row(name: str, part: Part) -> Line:
        if failed(part):
            return [name, failed(part), *[NONE] * 5]
        return [
            name, f"{len(part['operators'])} operators, latents {part['size']} x {part['size']}, "
            f"{part['steps']} steps, guidance {part['guidance']:g}, {part['dtype']}",
            lasting(part["floor_seconds"]), lasting(part["seconds"]), f"{part['of_floor']:.2f}",
            _gib(part["weights_mib"]), _gib(part["peak_scoring_mib"]),
        ]  # fmt: skip

    found = [(run, part) for run, name, part in parts_of(runs) if name == "scoring"]
    rows = [row(run["hardware"], part) for run, part in found] or [["GPU", *[NOT_MEASURED] * 6]]
    head = ["machine", "scored", "floor of k + 1 generations", "took", "took / floor", "weights", "peak memory"]
    caption = "Scoring at full size, once on each machine (n = 1): expected beside measured."
    caption += f" GPU: {'; '.join(machine(run) for run, _ in found)}." if found else f" GPU: {NOTHING}"
    return head, [row(processor["passport"]["hardware"], processor), *rows], caption


def suites(found: Mapping[str, Sequence[Run]]) -> Table:
    """Return how many tests passed on which GPU, and name those that did not: records `tests`, `tests_compiled`.

    Args:
        found: what the tests are called -> runs of the record.
    """
    rows, names, used = [], [], {}
    for title, run, part in [(t, run, part) for t, runs in found.items() for run, _, part in parts_of(runs)]:
        used[machine(run)] = None
        line, word = [f"{title}, {run['hardware']}"], failed(part)
        if word:
            rows.append([*line, word, NONE, NONE, NONE])
            continue
        names += part["failed"]
        seconds = f"{part['seconds']:.0f}" if "seconds" in part else NONE
        rows.append([*line, str(part["passed"]), str(len(part["failed"])), str(part["skipped"]), seconds])
    what = "The library's tests that use a GPU"
    head = ["tests", "passed", "failed", "skipped", "seconds"]
    if not rows:
        return head, [["GPU", *[NOT_MEASURED] * 4]], f"{what}. {NOTHING}"
    return head, rows, f"{what}. {'; '.join(used)}." + (f" Failed: {', '.join(names)}." if names else "")


def throughput(runs: Sequence[Run]) -> str:
    """Return, in a few words, how many pictures a second emoji-sd's training takes on GPUs: record `throughput`."""
    words = [
        f"{name}: {failed(part) or format(part['images_per_second'], '.0f')} ({run['passport']['hardware']})"
        for run, name, part in parts_of(runs)
    ]
    return "; ".join(words) or NOT_MEASURED
