"""Timing with a clock of our own: order, warm-up, synchronisation and ratios are known to the millisecond."""

from __future__ import annotations

import gc
import json

import pytest
import torch

from pruning_lib import latency
from pruning_lib.latency import Latency, measure_latency, ratio


class Clock:
    """Stands still until a call moves it."""

    def __init__(self):
        self.now, self.calls = 0.0, []

    def __call__(self) -> float:
        return self.now

    def takes(self, name: str, seconds):
        """Return a function that takes `seconds(i)` at its i-th call."""

        def call():
            self.now += seconds(sum(c == name for c in self.calls))
            self.calls.append(name)

        return call


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(latency, "_clock", clock)
    return clock


def test_calls_take_turns_and_turn_round(clock):
    calls = {name: clock.takes(name, lambda i: 0.001) for name in "abc"}
    measure_latency(calls, repeats=3, warmup=1, device="cpu")
    assert "".join(clock.calls) == "abccbaabccba"


def test_warm_up_is_not_timed(clock):
    slow_start = clock.takes("a", lambda i: 5.0 if i < 2 else 0.002)
    found = measure_latency({"a": slow_start}, repeats=4, warmup=2, device="cpu")["a"]
    assert found.times_ms == pytest.approx([2.0] * 4) and found.warmup == 2 and found.n == 4
    assert measure_latency({"a": clock.takes("b", lambda i: 5.0)}, repeats=1, warmup=0)["a"].median_ms == 5000


def test_quantiles_by_hand(clock):
    found = measure_latency({"a": clock.takes("a", lambda i: (i + 1) / 1000)}, repeats=11, warmup=0)["a"]
    assert (found.median_ms, found.p10_ms, found.p90_ms) == pytest.approx((6, 2, 10))
    assert str(found) == "6.00 ms (2.00 to 10.00), n = 11"


def test_a_drift_does_not_touch_the_ratio(clock):
    # The machine gets ten times slower while we measure. The candidate is always twice as fast as the baseline.
    drift = lambda i: 1 + 9 * i / 40  # noqa: E731
    calls = {
        "whole": clock.takes("whole", lambda i: 0.2 * drift(i)),
        "half": clock.takes("half", lambda i: 0.1 * drift(i)),
    }
    found = measure_latency(calls, repeats=40, warmup=0, device="cpu")
    times_as_fast = ratio(found["whole"], found["half"])
    assert times_as_fast.value == pytest.approx(2) and times_as_fast.low == pytest.approx(2)
    assert found["whole"].p90_ms / found["whole"].p10_ms > 3, "the drift was there"


def test_ratio_has_an_interval(clock):
    noisy = torch.rand(50, generator=torch.Generator().manual_seed(0)).tolist()
    calls = {"a": clock.takes("a", lambda i: 3 + noisy[i]), "b": clock.takes("b", lambda i: 1 + noisy[-i])}
    found = measure_latency(calls, repeats=50, warmup=0)
    result = ratio(found["a"], found["b"])
    assert 1.7 < result.low < result.value < result.high < 3.2 and result.n == 50
    back = ratio(found["b"], found["a"])
    assert back.value == pytest.approx(1 / result.value, rel=0.02)


def test_the_device_is_waited_for_before_and_after_each_call(monkeypatch):
    seen = []
    monkeypatch.setattr(latency, "synchronise", lambda device: seen.append(f"wait {device}"))
    monkeypatch.setattr(latency, "_clock", lambda: seen.append("clock") or 0.0)
    measure_latency({"a": lambda: seen.append("call")}, repeats=2, warmup=0, device="cpu")
    assert seen == ["wait cpu", "clock", "call", "wait cpu", "clock"] * 2


def test_a_real_call_is_timed_for_real():
    found = measure_latency({"sleep": lambda: latency.time.sleep(0.02)}, repeats=3, warmup=0)["sleep"]
    assert 20 <= found.p10_ms and found.median_ms < 500
    assert (found.peak_memory_mib is None) == (not torch.cuda.is_available())


def test_no_garbage_is_collected_inside_a_call_and_the_setting_comes_back():
    seen = []
    measure_latency({"a": lambda: seen.append(gc.isenabled())}, repeats=2, warmup=0)
    assert seen == [False, False] and gc.isenabled()
    gc.disable()
    try:
        measure_latency({"a": lambda: None}, repeats=1, warmup=0)
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_an_error_in_a_call_comes_through():
    def broken():
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        measure_latency({"a": broken})
    assert gc.isenabled()


def test_it_can_be_recorded():
    found = Latency((1.0, 3.0), warmup=1, peak_memory_mib=5.0, device="cuda")
    assert json.loads(json.dumps(found.to_dict())) == {
        "median_ms": 2.0,
        "p10_ms": pytest.approx(1.2),
        "p90_ms": pytest.approx(2.8),
        "n": 2,
        "times_ms": [1.0, 3.0],
        "warmup": 1,
        "peak_memory_mib": 5.0,
        "device": "cuda",
    }
    assert "peak memory 5 MiB" in str(found)


@pytest.mark.parametrize(
    ("calls", "options", "error", "said"),
    [
        ({}, {}, ValueError, "nothing to time"),
        (len, {}, TypeError, "name: function"),
        ({"a": 3}, {}, TypeError, "name: function"),
        ({"a": len}, {"repeats": 0}, ValueError, "repeats=0"),
        ({"a": len}, {"warmup": -1}, ValueError, "warmup=-1"),
        ({"a": len}, {"device": "gpu"}, ValueError, "Unknown device 'gpu'"),
        ({"a": len}, {"device": "meta"}, ValueError, "nothing can run there"),
    ],
)
def test_bad_input(calls, options, error, said):
    with pytest.raises(error, match=said):
        measure_latency(calls, **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there():
    with pytest.raises(ValueError, match="torch sees no CUDA GPU"):
        measure_latency({"a": len}, device="cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_peak_memory_on_a_gpu():
    size = 2**20
    found = measure_latency({"a": lambda: torch.ones(64 * size // 4, device="cuda")}, repeats=2, device="cuda")["a"]
    assert 64 <= found.peak_memory_mib
    with pytest.raises(ValueError, match="numbered from 0"):
        measure_latency({"a": len}, device="cuda:99")


def test_unequal_rounds_cannot_be_paired():
    with pytest.raises(ValueError, match="2 rounds and the candidate 3"):
        ratio(Latency((1.0, 1.0), 0), Latency((1.0, 1.0, 1.0), 0))
