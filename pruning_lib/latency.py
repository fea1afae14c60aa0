"""How long a call takes: warmed up, synchronised, and in turn with what it is compared to.

Clocks drift: a machine warms up, a neighbour starts working.  So every round calls all candidates, each second round
backwards, and the ratio of two is taken round by round.  An absolute time means little without the hardware beside it.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import torch

from .checks import best_device, check_device, check_whole, synchronise
from .interval import Interval, bootstrap_interval


@dataclass(frozen=True)
class Latency:
    """Times of repeated calls.

    Attributes:
        times_ms: every timed call in order, in milliseconds.
        warmup: calls before them that were not timed.
        peak_memory_mib: the most that PyTorch held on the GPU during a timed call, weights included, in MiB; None
            elsewhere, where PyTorch does not know.
        device: where it was synchronised, as in "cuda".
    """

    times_ms: tuple[float, ...]
    warmup: int
    peak_memory_mib: float | None = None
    device: str = "cpu"

    @property
    def n(self) -> int:
        """Number of timed calls."""
        return len(self.times_ms)

    @property
    def median_ms(self) -> float:
        """Median in milliseconds."""
        return self._quantile(0.5)

    @property
    def p10_ms(self) -> float:
        """What one call in ten stays below, in milliseconds."""
        return self._quantile(0.1)

    @property
    def p90_ms(self) -> float:
        """What nine calls in ten stay below, in milliseconds."""
        return self._quantile(0.9)

    def _quantile(self, q: float) -> float:
        return torch.quantile(torch.tensor(self.times_ms, dtype=torch.float64), q).item()

    def to_dict(self) -> dict[str, object]:
        """Return all fields and the three quantiles as plain JSON types."""
        quantiles = {name: getattr(self, name) for name in ("median_ms", "p10_ms", "p90_ms", "n")}
        return {**quantiles, **asdict(self), "times_ms": list(self.times_ms)}

    def __str__(self) -> str:
        memory = "" if self.peak_memory_mib is None else f", peak memory {self.peak_memory_mib:.0f} MiB"
        return f"{self.median_ms:.2f} ms ({self.p10_ms:.2f} to {self.p90_ms:.2f}), n = {self.n}{memory}"


def measure_latency(
    calls: Mapping[str, Callable[[], object]],
    *,
    repeats: int = 20,
    warmup: int = 3,
    device: str | torch.device | None = None,
) -> dict[str, Latency]:
    """Time several calls in turn; return name -> `Latency` in the order given.

    Args:
        calls: name -> function without arguments, whose result is thrown away. Gradients are not switched off.
        repeats: timed rounds, >= 1; each round calls every function once.
        warmup: rounds before them that are not timed, >= 0. First calls allocate, compile and choose algorithms.
        device: to wait for before the clock is read. Default: the GPU if there is one, else the CPU.

    Example:
        >>> times = measure_latency({"whole": lambda: unet(**x), "pruned": lambda: small(**x)})
        >>> print(ratio(times["whole"], times["pruned"]))
    """
    if not isinstance(calls, Mapping) or not calls or not all(callable(call) for call in calls.values()):
        raise TypeError(f"Expected {{name: function without arguments}}, got {type(calls).__name__}: {calls!r}.")
    check_whole("repeats", repeats, 1)
    check_whole("warmup", warmup, 0)
    device = best_device() if device is None else check_device(device)
    timed: dict[str, list[tuple[float, int]]] = {name: [] for name in calls}
    for turn in range(warmup + repeats):
        for name in calls if turn % 2 == 0 else reversed(calls):
            timed[name].append(_time_one(calls[name], device))
    found = {}
    for name, rows in timed.items():
        seconds, peaks = zip(*rows[warmup:], strict=True)
        mib = max(peaks) / 2**20 if device.type == "cuda" else None
        found[name] = Latency(tuple(1000 * s for s in seconds), warmup, mib, str(device))
    return found


def ratio(baseline: Latency, candidate: Latency, *, level: float = 0.95, seed: int = 0) -> Interval:
    """Return how many times faster `candidate` is: the median over rounds of baseline / candidate.

    Both come from one call of `measure_latency`, of two rounds or more, so that round i of both happened side by side;
    `level` and `seed` are of the bootstrap interval.
    """
    if baseline.n != candidate.n:
        raise ValueError(
            f"The baseline has {baseline.n} rounds and the candidate {candidate.n}. "
            "Time both in one call of measure_latency, so that they can be paired."
        )
    pairs = torch.tensor(baseline.times_ms, dtype=torch.float64) / torch.tensor(candidate.times_ms, dtype=torch.float64)
    return bootstrap_interval(pairs, lambda x: torch.quantile(x, 0.5).item(), level=level, seed=seed)


def _time_one(call: Callable[[], object], device: torch.device) -> tuple[float, int]:
    """Return seconds and peak bytes of one call."""
    on_gpu, collects = device.type == "cuda", gc.isenabled()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    synchronise(device)
    gc.disable()  # as timeit does: a collection is the whole process's work, and would land on whoever runs then
    try:
        start = time.perf_counter()
        call()
        synchronise(device)
        seconds = time.perf_counter() - start
    finally:
        if collects:
            gc.enable()
    return seconds, torch.cuda.max_memory_allocated(device) if on_gpu else 0
