"""Rulings of the chapter on cutting operators, from its records.

Each returns (ruling, because) for `claims.verdict`, by a rule that its docstring states and the page repeats.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["CLOSE", "chooses_better", "faster_and_as_good", "little_training", "preserved_beat_scratch"]

Data = Mapping[str, Any]
# The paper's faces: FID 15.03 of the compressed model after its short training, 13.84 of the original.
CLOSE = 15.03 / 13.84


def preserved_beat_scratch(training: Data) -> tuple[str, str]:
    """Rule on "training from scratch is consistently worse than from preserved weights".

    Holds if at every level the SSIM from preserved weights is higher beyond chance (95 % interval over pictures), and
    consistently so: in every seed and at every moment that was judged, the Fréchet distance is lower too.  The first
    alone holds in part.

    Args:
        training: data of the record `operator_training`.
    """
    runs = {run["name"]: run for run in training["runs"]}
    gains = training["preserved_minus_scratch"]
    if not gains:
        return "not measured", "The runs from random weights have not been made."
    ahead, always, words = [], [], []
    for level, gain in gains.items():
        kept, fresh = runs[f"score-{level}"], runs[f"scratch-{level}"]
        both = min(len(kept["seeds"]), len(fresh["seeds"]))
        pairs = [
            (a["frechet"]["by_seed"][i], b["frechet"]["by_seed"][i])
            for a, b in zip(kept["judged"], fresh["judged"], strict=True)
            for i in range(both)
        ]
        ahead.append(gain["ssim"]["low"] > 0)
        always.append(all(a < b for a, b in pairs))
        words.append(
            f"with {_percent(kept['plan']['macs_ratio'])} of the MACs removed by {_spread(gain['ssim'])} SSIM, and by "
            f"Fréchet distance in {sum(a < b for a, b in pairs)} of {len(pairs)} comparisons"
        )
    ruling = "does not hold" if not all(ahead) else "holds" if all(always) else "holds in part"
    return ruling, f"After the same training, preserved weights are ahead {'; '.join(words)}."


def little_training(training: Data) -> tuple[str, str]:
    """Rule on "a short fine-tune brings the compressed model close to the original".

    Close is what it was in the paper: a Fréchet distance at most 15.03 / 13.84 times the original's.  It holds if every
    level gets there, in part if one does.

    Args:
        training: data of the record `operator_training`.
    """
    whole, found = training["unpruned"]["frechet"]["value"], []
    for run in training["runs"]:
        if run["name"].startswith("score-"):
            end = run["judged"][-1]["frechet"]["value"]
            found.append((run["plan"]["macs_ratio"], run["judged"][0]["frechet"]["value"], end, end <= CLOSE * whole))
    if not found:
        return "not measured", "No compressed model has been trained."
    near = sum(close for *_, close in found)
    words = "; ".join(
        f"with {_percent(ratio)} of the MACs removed from {before:.1f} to {end:.1f}"
        for ratio, before, end, _ in sorted(found)
    )
    ruling = "holds" if near == len(found) else "holds in part" if near else "does not hold"
    return ruling, (
        f"In {training['finetune']['steps']} steps the Fréchet distance goes, {words}; the original has {whole:.1f}, "
        f"and close means {CLOSE * whole:.1f} or less."
    )


def chooses_better(removal: Data, controls: Sequence[str]) -> tuple[str, str]:
    """Rule on "operators of low score are the ones to remove".

    The score is compared with each control at equal MACs, at every level, before and after training: ahead means a
    higher SSIM beyond chance.  It holds if the score is ahead in all comparisons, in part if in more than half.

    Args:
        removal: data of the record `operator_removal`.
        controls: names of the rankings that count.
    """
    leads = {"before": [], "after": []}
    for row in removal["rows"]:
        same = row["budget"] == "macs_ratio" and row["scope"] == "all" and row["asked"] in removal["levels"]
        if same and row["ranking"] in controls:
            leads["before"].append(row["score_minus_this"]["ssim"])
    leads["after"] = [r["score_minus_this"]["ssim"] for r in removal["trained"] if r["ranking"] in controls]
    won = {when: sum(lead["low"] > 0 for lead in found) for when, found in leads.items()}
    total = sum(map(len, leads.values()))
    if not total:
        return "not measured", "No control has been cut."
    share = sum(won.values()) / total
    ruling = "holds" if share == 1 else "holds in part" if share > 0.5 else "does not hold"
    worst = min((lead for found in leads.values() for lead in found), key=lambda lead: lead["value"])
    return ruling, (
        f"At equal MACs the score is ahead of chance and size in {won['before']} of {len(leads['before'])} comparisons "
        f"before training and in {won['after']} of {len(leads['after'])} after it; its smallest lead is "
        f"{_spread(worst)} SSIM."
    )


def faster_and_as_good(
    latency: Data | None, training: Data, cuts: Mapping[float, str], device: str = "cpu"
) -> tuple[str, str]:
    """Rule on "34.9 % less inference time, and a better Fréchet distance after fine-tuning".

    Asked of the mildest trained cut that takes at least 30 % from the time of a whole generation, or of the largest one
    where none does: its Fréchet distance after training must not be above the unpruned model's.  Time and distance hold
    together, one of them holds in part.

    Args:
        latency: data of the record `operator_latency`; None where it has not been made.
        training: data of the record `operator_training`.
        cuts: level of a trained cut -> its name in the record of latencies.
        device: on which it was timed.
    """
    runs = {run["name"]: run for run in training["runs"]}
    found = []
    for level in sorted(cuts):
        if latency is not None and f"score-{level}" in runs:
            faster = latency["devices"][device]["times"]["generation"][cuts[level]]["times_as_fast"]
            found.append((runs[f"score-{level}"], 1 - 1 / faster["value"]))
    if not found:
        return "not measured", "The time of a generation or the trained model is not there yet."
    run, saved = next((pair for pair in found if pair[1] >= 0.3), found[-1])
    end, whole = run["judged"][-1]["frechet"]["value"], training["unpruned"]["frechet"]["value"]
    met = (saved >= 0.3) + (end <= whole)
    return ("does not hold", "holds in part", "holds")[met], (
        f"With {_percent(run['plan']['macs_ratio'])} of the MACs removed a generation takes {_percent(saved)} less "
        f"time; its Fréchet distance after {training['finetune']['steps']} steps is {end:.1f}, the unpruned model's "
        f"{whole:.1f}."
    )


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _spread(found: Data) -> str:
    return f"{found['value']:.3f} ({found['low']:.3f} to {found['high']:.3f})"
