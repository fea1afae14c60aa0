"""Verdicts on what is said about pruning, decided by records and not by the author.

Each function below `verdict` returns (ruling, because) for one claim, by a rule that its docstring states and the page
repeats. Arguments are data of records of those names, None where a record has not been made; "not measured" then.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from IPython.display import HTML

from .output import percent, spread
from .plots.comparison import Cells

Ruling = Literal["holds", "holds in part", "does not hold", "not measured"]
Data = Mapping[str, Any]
_MARKS = {"holds": "✔", "holds in part": "◐", "does not hold": "✘", "not measured": "–"}


def verdict(claim: str, ruling: Ruling, because: str, *, source: str = "the popular account") -> HTML:
    """Return a box with a claim, who says it (`source`), a ruling, and one or two sentences with what was measured.

    Compute `ruling` and the numbers in `because` from a record, so that the box follows the measurement. Another
    ruling, or an empty claim or reason, is a ValueError.
    """
    if ruling not in _MARKS:
        raise ValueError(f"ruling={ruling!r}; allowed: {', '.join(map(repr, get_args(Ruling)))}.")
    if not claim.strip() or not because.strip():
        raise ValueError("A verdict needs a claim and what was measured; one of them is empty.")
    return HTML(
        '<div class="admonition pl-verdict" role="note">'
        f'<p class="admonition-title">Claim: {html.escape(claim)}</p>'
        f'<p><strong><span aria-hidden="true">{_MARKS[ruling]}</span> {ruling.capitalize()}.</strong> '
        f"{html.escape(because)}</p>"
        f"<p><small>Said by {html.escape(source)}.</small></p></div>"
    )


def all_or_some(met: int, of: int) -> Ruling:
    """Return the ruling where so many of all conditions are met."""
    return "holds" if met == of else "holds in part" if met else "does not hold"


# Zeros are not speed

# What the chapter calls the ways to write a file -> what the record of sizes calls them.
WAYS = {
    "dense": "dense",
    "CSR": "csr",
    "compressed-sparse": "sparse",
    "zip": "zipped",
    "compressed-sparse, zipped": "sparse_zipped",
}
SMALLEST = "compressed-sparse, zipped"


def share(row: Data, way: str) -> float:
    """Return the size of a file as a share of the dense one's, for a row of the record of sizes."""
    return row["bytes"][WAYS[way]] / row["bytes"]["dense"]


def sparsity_for(times: float, rows: Sequence[Data]) -> float:
    """Return the sparsity, linear between the stops, at which the smallest file is so many times smaller."""
    shares = [share(row, SMALLEST) for row in rows]
    if 1 / times < min(shares):
        raise ValueError(f"No stop is {times:g} times smaller; the best is {1 / min(shares):.1f} times.")
    return float(np.interp(-1 / times, [-s for s in shares], [row["sparsity"] for row in rows]))


def only_row(rows: Sequence[Data], form: str, at: float | None = None) -> Data:
    """Return the one row of this form, at this sparsity or ratio; none, or several, are a ValueError."""
    found = [r for r in rows if r["form"] == form and (at is None or r.get("sparsity", r.get("ratio")) == at)]
    if len(found) != 1:
        raise ValueError(f"{len(found)} rows have form {form!r} at {at}; expected one.")
    return found[0]


def speed_points(rows: Sequence[Data], form: str) -> list[tuple[float, float, float, float]]:
    """Return (sparsity, times as fast, low, high) of one form."""
    ends = ("value", "low", "high")
    return [(r["sparsity"], *(r["times_as_fast"][e] for e in ends)) for r in rows if r["form"] == form]


def crossing(found: Data) -> str:
    """Say where a form becomes as fast as dense."""
    return found["says"] if found["sparsity"] is None else f"{found['sparsity']:.2f}"


def ten_times_smaller(sizes: Sequence[Data], curve: Data | None) -> tuple[Ruling, str]:
    """Rule on "about 10 times smaller at high accuracy", by rows of the record of sizes, and `sparsity_curve`.

    The sparsity is asked for at which the smallest file is 10 times smaller than the dense one of the same type. At the
    last stop before it, at least 95 % of the unpruned share of pictures must still be recognised (top 5).
    """
    try:
        needed = sparsity_for(10, sizes)
    except ValueError as error:
        return "does not hold", str(error)
    because = f"A file 10 times smaller, of the same number type, needs {percent(needed)} zeros"
    if curve is None:
        return "not measured", f"{because}; the quality there has not been measured."
    rows = {r["asked"]: r for r in curve["rows"] if r["part"] == "unet" and r["scope"] == "global"}
    at = max(s for s in rows if s <= needed)
    whole, left = rows[0.0]["top5"]["value"], rows[at]["top5"]["value"]
    return ("holds" if left >= 0.95 * whole else "does not hold"), (
        f"{because}. Already at {percent(at)}, without fine-tuning, {percent(left)} of the pictures are recognised "
        f"among the best five captions, instead of {percent(whole)} (n = {curve['n']})."
    )


def smaller_and_faster(half: Data, unet: Sequence[Data]) -> tuple[Ruling, str]:
    """Rule on "smaller and faster, because zeros are not computed".

    Smaller: the smallest file at half zeros, `half` in the record of sizes, is at most 60 % of the dense one. Faster:
    the interval of the dense kernel's speed with half zeros, among the rows of the whole UNet, lies above 1.05. Both
    hold, one holds in part.
    """
    zeros, csr = (only_row(unet, form, 0.5)["times_as_fast"] for form in ("zeros", "csr"))
    left = share(half, SMALLEST)
    return all_or_some((left <= 0.6) + (zeros["low"] > 1.05), 2), (
        f"With half of the weights at zero the plain file is as large as before, and {percent(left)} of that when "
        f"written for zeros and zipped. The model runs {spread(zeros, 2)} times as fast in dense kernels, which "
        f"compute the zeros, and {spread(csr, 2)} times as fast in CSR, which does not."
    )


def four_times_smaller(structured: Data | None) -> tuple[Ruling, str]:
    """Rule on "almost 4 times smaller and almost 3 times faster with less than 1 % lost", by `structured_pruning`.

    Wanted is a structured UNet with at least 3.5 times fewer parameters, at least 2.5 times as fast, that keeps 99 % of
    the unpruned share of recognised pictures (top 5) after its fine-tune. All three hold; size and one other hold in
    part.
    """
    said_of = " It was said of classification; this is a small denoiser."
    if structured is None or not all(r["latency_times_as_fast"] for r in structured["rows"]):
        return "not measured", "Sizes, speeds and qualities of structured UNets are not all there." + said_of
    unpruned, found = structured["unpruned"], {}
    for row in structured["rows"]:
        size, speed = unpruned["params"] / row["params"], row["latency_times_as_fast"]["value"]
        kept = row["after"]["top5"]["value"] / unpruned["top5"]["value"]
        met = 1 + (speed >= 2.5) + (kept >= 0.99) if size >= 3.5 else 0
        found[row["name"]] = (met, kept * min(size, 3.5), size, speed, kept, row["finetune"]["steps"])
    name = max(found, key=lambda n: found[n])
    met, _, size, speed, kept, steps = found[name]
    ruling: Ruling = {3: "holds", 2: "holds in part"}.get(met, "does not hold")
    return ruling, (
        f"The nearest is {name}: {size:.1f} times fewer parameters, {speed:.1f} times as fast, and {percent(kept)} of "
        f"the unpruned share of recognised pictures after {steps} steps of fine-tuning." + said_of
    )


# Cutting operators

# The paper's faces: FID 15.03 of the compressed model after its short training, 13.84 of the original.
CLOSE = 15.03 / 13.84


def preserved_beat_scratch(training: Data) -> tuple[Ruling, str]:
    """Rule on "training from scratch is consistently worse than from preserved weights", by `operator_training`.

    Holds if at every level the SSIM from preserved weights is higher beyond chance (95 % interval over pictures), and
    consistently so: in every seed and at every moment that was judged, the Fréchet distance is lower too. The first
    alone holds in part.
    """
    runs = {run["name"]: run for run in training["runs"]}
    if not training["preserved_minus_scratch"]:
        return "not measured", "The runs from random weights have not been made."
    ahead, always, words = [], [], []
    for level, gain in training["preserved_minus_scratch"].items():
        kept, fresh = runs[f"score-{level}"], runs[f"scratch-{level}"]
        lower = [
            a < b
            for old, new in zip(kept["judged"], fresh["judged"], strict=True)
            for a, b in zip(old["frechet"]["by_seed"], new["frechet"]["by_seed"], strict=False)
        ]
        ahead.append(gain["ssim"]["low"] > 0)
        always.append(all(lower))
        words.append(
            f"with {percent(kept['plan']['macs_ratio'])} of the MACs removed by {spread(gain['ssim'])} SSIM, and by "
            f"Fréchet distance in {sum(lower)} of {len(lower)} comparisons"
        )
    ruling = "does not hold" if not all(ahead) else "holds" if all(always) else "holds in part"
    return ruling, f"After the same training, preserved weights are ahead {'; '.join(words)}."


def little_training(training: Data) -> tuple[Ruling, str]:
    """Rule on "a short fine-tune brings the compressed model close to the original", by `operator_training`.

    Close is what it was in the paper: a Fréchet distance at most 15.03 / 13.84 times the original's. It holds if every
    level gets there, in part if one does.
    """
    found = sorted(
        (run["plan"]["macs_ratio"], *(run["judged"][moment]["frechet"]["value"] for moment in (0, -1)))
        for run in training["runs"]
        if run["name"].startswith("score-")
    )
    if not found:
        return "not measured", "No compressed model has been trained."
    whole = training["unpruned"]["frechet"]["value"]
    words = "; ".join(f"with {percent(kept)} of the MACs removed from {a:.1f} to {b:.1f}" for kept, a, b in found)
    return all_or_some(sum(end <= CLOSE * whole for *_, end in found), len(found)), (
        f"In {training['finetune']['steps']} steps the Fréchet distance goes, {words}; the original has {whole:.1f}, "
        f"and close means {CLOSE * whole:.1f} or less."
    )


def chooses_better(removal: Data, controls: Sequence[str]) -> tuple[Ruling, str]:
    """Rule on "operators of low score are the ones to remove", by `operator_removal`.

    The score is compared with each control, a ranking, at equal MACs, at every level, before and after training: ahead
    means a higher SSIM beyond chance. It holds if the score is ahead in all comparisons, in part if in more than half.
    """
    rows = [row for row in removal["rows"] if (row["budget"], row["scope"]) == ("macs_ratio", "all")]
    rows = [row for row in rows if row["asked"] in removal["levels"]]
    before, after = (
        [row["score_minus_this"]["ssim"] for row in found if row["ranking"] in controls]
        for found in (rows, removal["trained"])
    )
    if not before + after:
        return "not measured", "No control has been cut."
    won_before, won_after = (sum(lead["low"] > 0 for lead in leads) for leads in (before, after))
    rate = (won_before + won_after) / len(before + after)
    worst = min(before + after, key=lambda lead: lead["value"])
    return ("holds" if rate == 1 else "holds in part" if rate > 0.5 else "does not hold"), (
        f"At equal MACs the score is ahead of chance and size in {won_before} of {len(before)} comparisons before "
        f"training and in {won_after} of {len(after)} after it; its smallest lead is {spread(worst)} SSIM."
    )


def faster_and_as_good(latency: Data | None, training: Data, cuts: Mapping[float, str]) -> tuple[Ruling, str]:
    """Rule on "34.9 % less inference time, and a better Fréchet distance after fine-tuning".

    Asked of the mildest trained cut that takes at least 30 % from the time of a whole generation on a CPU, or of the
    largest one where none does: its Fréchet distance after training must not be above the unpruned model's. Both hold
    together, one holds in part. `latency` and `training` are `operator_latency` and `operator_training`; `cuts` is
    level of a trained cut -> its name among the latencies.
    """
    runs = {run["name"]: run for run in training["runs"]}
    found = []
    for level in sorted(cuts) if latency is not None else ():
        if f"score-{level}" in runs:
            faster = latency["devices"]["cpu"]["times"]["generation"][cuts[level]]["times_as_fast"]
            found.append((runs[f"score-{level}"], 1 - 1 / faster["value"]))
    if not found:
        return "not measured", "The time of a generation or the trained model is not there yet."
    run, saved = next((pair for pair in found if pair[1] >= 0.3), found[-1])
    end, whole = run["judged"][-1]["frechet"]["value"], training["unpruned"]["frechet"]["value"]
    return all_or_some((saved >= 0.3) + (end <= whole), 2), (
        f"With {percent(run['plan']['macs_ratio'])} of the MACs removed a generation takes {percent(saved)} less time; "
        f"its Fréchet distance after {training['finetune']['steps']} steps is {end:.1f}, the unpruned model's "
        f"{whole:.1f}."
    )


# Schedules at equal MACs

# figure of the record -> (what the page calls it, 1 where higher is better and -1 where lower is)
METRICS = {
    "ssim": ("SSIM to the unpruned picture", 1),
    "frechet_unpruned": ("Fréchet distance to the unpruned pictures", -1),
    "frechet_real": ("Fréchet distance to the real pictures", -1),
    "clip_score": ("CLIP score", 1),
}


class Comparison(NamedTuple):
    """Ours against a rival at one budget, by one of `METRICS`; `by` is ours minus the rival, with its interval."""

    budget: float
    row: str
    metric: str
    by: Mapping[str, float]

    @property
    def ends(self) -> tuple[float, float]:
        """The least and the most by which ours is better."""
        low, high = self.by["low"], self.by["high"]
        return (low, high) if METRICS[self.metric][1] > 0 else (-high, -low)


def _compared(cells: Cells, steps: int, rivals: Sequence[str]) -> list[Comparison]:
    every = [(b, row, metric) for b in cells.budgets for row in rivals for metric in METRICS]
    return [Comparison(*which, cells.at(steps, which[1], which[0])["ours_minus"][which[2]]) for which in every]


def beaten(cells: Cells, steps: int, rivals: Sequence[str]) -> list[Comparison]:
    """Return the comparisons that ours loses: no interval of the difference reaches ours' side of zero."""
    return [found for found in _compared(cells, steps, rivals) if found.ends[1] < 0]


def best_or_tied(cells: Cells, steps: int, rivals: Sequence[str]) -> tuple[Ruling, str]:
    """Rule whether ours is best or tied on every metric at every budget."""
    every, lost = _compared(cells, steps, rivals), beaten(cells, steps, rivals)
    won = sum(found.ends[0] > 0 for found in every)
    text = (
        f"At {steps} steps, of {len(every)} comparisons ({len(cells.data['budgets'])} budgets, {len(rivals)} rivals, "
        f"{len(METRICS)} metrics) ours is clearly better in {won}, clearly worse in {len(lost)}; the rest are ties."
    )
    if lost:
        places = [f"{cells.names[b.row]} at {percent(b.budget)} ({METRICS[b.metric][0]})" for b in lost[:4]]
        text += f" Worse than {'; '.join(places)}{', and others' if len(lost) > 4 else ''}."
    return ("holds" if not lost else "holds in part" if won > len(lost) else "does not hold"), text


def as_fast_as_macs_say(data: Data) -> tuple[Ruling, str]:
    """Rule whether ours denoises as much faster as its MACs promise, or 0.9 of that, at every budget."""
    least = 0.9
    if not data.get("speed"):
        return "not measured", "The times of this record have not been measured yet."
    found = []
    for cell in data["cells"]:
        times = data["speed"]["times"].get(f"{cell['steps']}-{cell['budget']:g}-ours")
        if cell["row"] == "ours" and times:
            fast = times["denoising"]["times_as_fast"]["value"]
            found.append((fast * cell["macs_ratio"], fast, 1 / cell["macs_ratio"]))
    if not found:
        return "not measured", "The times of ours have not been measured yet."
    worst, best, met = min(found), max(found), sum(reached >= least for reached, *_ in found)
    return all_or_some(met, len(found)), (
        f"Denoising alone reaches {percent(worst[0])} to {percent(best[0])} of the promised speed-up; {met} of "
        f"{len(found)} schedules reach {percent(least)}. The one furthest from its promise is {worst[1]:.2f} times as "
        f"fast instead of {worst[2]:.2f}."
    )
