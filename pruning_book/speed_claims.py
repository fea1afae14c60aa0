"""What the chapter "Zeros are not speed" reads from its records: rows, crossings, and the rulings on three claims.

Each ruling returns (ruling, because) for `claims.verdict`, by a rule that its docstring states and the page repeats.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = [
    "WAYS",
    "crossing",
    "four_times_smaller",
    "only_row",
    "share",
    "smaller_and_faster",
    "sparsity_for",
    "speed_points",
    "ten_times_smaller",
]

Row = Mapping[str, Any]

# What the chapter calls the ways to write a file -> what the record of sizes calls them.
WAYS = {
    "dense": "dense",
    "CSR": "csr",
    "compressed-sparse": "sparse",
    "zip": "zipped",
    "compressed-sparse, zipped": "sparse_zipped",
}
SMALLEST = "compressed-sparse, zipped"


def share(row: Row, way: str) -> float:
    """Return the size of a file as a share of the dense one's, for a row of the record of sizes."""
    return row["bytes"][WAYS[way]] / row["bytes"]["dense"]


def sparsity_for(times: float, rows: Sequence[Row], way: str = SMALLEST) -> float:
    """Return the sparsity, linear between the stops, at which a file is this many times smaller than the dense one.

    Raises:
        ValueError: it never is.
    """
    shares = [share(row, way) for row in rows]
    if 1 / times < min(shares):
        raise ValueError(f"No stop is {times:g} times smaller; the best is {1 / min(shares):.1f} times.")
    return float(np.interp(-1 / times, [-s for s in shares], [row["sparsity"] for row in rows]))


def only_row(rows: Sequence[Row], form: str, at: float | None = None) -> Row:
    """Return the one row of this form, at this sparsity or ratio.

    Raises:
        ValueError: there is none, or more than one.
    """
    found = [r for r in rows if r["form"] == form and (at is None or r.get("sparsity", r.get("ratio")) == at)]
    if len(found) != 1:
        raise ValueError(f"{len(found)} rows have form {form!r} at {at}; expected one.")
    return found[0]


def speed_points(rows: Sequence[Row], form: str) -> list[tuple[float, float, float, float]]:
    """Return (sparsity, times as fast, low, high) of one form."""
    ends = ("value", "low", "high")
    return [(r["sparsity"], *(r["times_as_fast"][e] for e in ends)) for r in rows if r["form"] == form]


def crossing(found: Row) -> str:
    """Say where a form becomes as fast as dense."""
    return found["says"] if found["sparsity"] is None else f"{found['sparsity']:.2f}"


def ten_times_smaller(sizes: Sequence[Row], curve: Row | None) -> tuple[str, str]:
    """Rule on "about 10 times smaller at high accuracy".

    The sparsity is asked for at which the smallest file is 10 times smaller than the dense one of the same type.  At
    the last stop before it, at least 95 % of the unpruned share of pictures must still be recognised (top 5).

    Args:
        sizes: rows of the record of sizes, of one dtype.
        curve: data of the record `sparsity_curve`; None where it has not been made.
    """
    try:
        needed = sparsity_for(10, sizes)
    except ValueError as error:
        return "does not hold", str(error)
    because = f"A file 10 times smaller, of the same number type, needs {100 * needed:.0f} % zeros"
    if curve is None:
        return "not measured", f"{because}; the quality there has not been measured."
    rows = {r["asked"]: r for r in curve["rows"] if r["part"] == "unet" and r["scope"] == "global"}
    at = max(s for s in rows if s <= needed)
    whole, left = rows[0.0]["top5"]["value"], rows[at]["top5"]["value"]
    because += (
        f". Already at {100 * at:.0f} %, without fine-tuning, {100 * left:.0f} % of the pictures are recognised among "
        f"the best five captions, instead of {100 * whole:.0f} % (n = {curve['n']})."
    )
    return ("holds" if left >= 0.95 * whole else "does not hold"), because


def smaller_and_faster(half: Row, unet: Sequence[Row]) -> tuple[str, str]:
    """Rule on "smaller and faster, because zeros are not computed".

    Smaller: the smallest file at half zeros is at most 60 % of the dense one.  Faster: the interval of the dense
    kernel's speed with half zeros lies above 1.05.  Both hold, one holds in part.

    Args:
        half: row of the record of sizes at sparsity 0.5.
        unet: rows of the whole UNet in the record of latencies.
    """
    zeros, csr = (only_row(unet, form, 0.5)["times_as_fast"] for form in ("zeros", "csr"))
    smaller, faster = share(half, SMALLEST) <= 0.6, zeros["low"] > 1.05
    ruling = {2: "holds", 1: "holds in part", 0: "does not hold"}[smaller + faster]
    return ruling, (
        "With half of the weights at zero the plain file is as large as before, and "
        f"{100 * share(half, SMALLEST):.0f} % of that when written for zeros and zipped. The model runs "
        f"{_interval(zeros)} times as fast in dense kernels, which compute the zeros, and {_interval(csr)} times as "
        "fast in CSR, which does not."
    )


def four_times_smaller(structured: Row | None) -> tuple[str, str]:
    """Rule on "almost 4 times smaller and almost 3 times faster with less than 1 % lost".

    Wanted is a structured UNet with at least 3.5 times fewer parameters, at least 2.5 times as fast, that keeps 99 % of
    the unpruned share of recognised pictures (top 5) after its fine-tune.  All three hold; size and one other hold in
    part.

    Args:
        structured: data of the record `structured_pruning`; None where it has not been made.
    """
    said_of = " It was said of classification; this is a small denoiser."
    if structured is None or not all(r["latency_times_as_fast"] for r in structured["rows"]):
        return "not measured", "Sizes, speeds and qualities of structured UNets are not all there." + said_of
    unpruned, found = structured["unpruned"], {}
    for row in structured["rows"]:
        size, speed = unpruned["params"] / row["params"], row["latency_times_as_fast"]["value"]
        kept = row["after"]["top5"]["value"] / unpruned["top5"]["value"]
        met = (size >= 3.5) + ((speed >= 2.5) + (kept >= 0.99) if size >= 3.5 else 0)
        found[row["name"]] = (met, kept * min(size, 3.5), size, speed, kept, row["finetune"]["steps"])
    name = max(found, key=lambda n: found[n])
    met, _, size, speed, kept, steps = found[name]
    ruling = {3: "holds", 2: "holds in part"}.get(met, "does not hold")
    return ruling, (
        f"The nearest is {name}: {size:.1f} times fewer parameters, {speed:.1f} times as fast, and {100 * kept:.0f} % "
        f"of the unpruned share of recognised pictures after {steps} steps of fine-tuning." + said_of
    )


def _interval(found: Row) -> str:
    return f"{found['value']:.2f} ({found['low']:.2f} to {found['high']:.2f})"
