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
            self.now += seconds(self.calls.count(name))
            self.calls.append(name)

        return call


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(latency, "_clock", clock)
    return clock


def test_calls_take_turns_and_turn_round(clock):
    measure_latency({name: clock.takes(name, lambda i: 0.001) for name in "abc"}, repeats=3, warmup=1, device="cpu")
    assert "".join(clock.calls) == "abccbaabccba"


def test_warm_up_is_not_timed_and_quantiles_by_hand(clock):
    slow_start = clock.takes("a", lambda i: 5.0 if i < 2 else (i - 1) / 1000)
    found = measure_latency({"a": slow_start}, repeats=11, warmup=2, device="cpu")["a"]
    assert found.times_ms == pytest.approx(range(1, 12)) and found.warmup == 2
    assert str(found) == "6.00 ms (2.00 to 10.00), n = 11"
    stored = json.loads(json.dumps(Latency(found.times_ms, 2, 5.0, "cuda").to_dict()))
    names = ("n", "median_ms", "p10_ms", "p90_ms", "peak_memory_mib")
    assert [stored[name] for name in names] == pytest.approx([11, 6, 2, 10, 5]) and len(stored["times_ms"]) == 11


def test_a_drift_does_not_touch_the_ratio(clock):
    # The machine gets ten times slower while we measure. The candidate is always twice as fast as the baseline.
    calls = {
        "whole": clock.takes("whole", lambda i: 0.2 * (1 + 9 * i / 40)),
        "half": clock.takes("half", lambda i: 0.1 * (1 + 9 * i / 40)),
    }
    found = measure_latency(calls, repeats=40, warmup=0, device="cpu")
    times_as_fast = ratio(found["whole"], found["half"])
    assert times_as_fast.value == pytest.approx(2) and times_as_fast.low == pytest.approx(2)
    assert found["whole"].p90_ms / found["whole"].p10_ms > 3, "the drift was there"


def test_ratio_has_an_interval_and_needs_pairs(clock):
    noisy = torch.rand(50, generator=torch.Generator().manual_seed(0)).tolist()
    calls = {"a": clock.takes("a", lambda i: 3 + noisy[i]), "b": clock.takes("b", lambda i: 1 + noisy[-i])}
    found = measure_latency(calls, repeats=50, warmup=0)
    result = ratio(found["a"], found["b"])
    assert 1.7 < result.low < result.value < result.high < 3.2 and result.n == 50
    assert ratio(found["b"], found["a"]).value == pytest.approx(1 / result.value, rel=0.02)
    with pytest.raises(ValueError, match="2 rounds and the candidate 3"):
        ratio(Latency((1.0, 1.0), 0), Latency((1.0, 1.0, 1.0), 0))


def test_the_device_is_waited_for_and_no_garbage_is_collected_inside_a_call(monkeypatch):
    seen = []
    monkeypatch.setattr(latency, "synchronise", lambda device: seen.append(f"wait {device}"))
    monkeypatch.setattr(latency, "_clock", lambda: seen.append("clock") or 0.0)
    measure_latency({"a": lambda: seen.append(f"call, gc {gc.isenabled()}")}, repeats=2, warmup=0, device="cpu")
    assert seen == ["wait cpu", "clock", "call, gc False", "wait cpu", "clock"] * 2 and gc.isenabled()
    gc.disable()
    try:
        measure_latency({"a": lambda: None}, repeats=1, warmup=0)
        assert not gc.isenabled(), "the setting comes back"
    finally:
        gc.enable()


def test_a_real_call_is_timed_and_its_error_comes_through():
    found = measure_latency({"sleep": lambda: latency.time.sleep(0.02)}, repeats=3, warmup=0)["sleep"]
    assert 20 <= found.p10_ms and found.median_ms < 500
    assert (found.peak_memory_mib is None) == (not torch.cuda.is_available())
    with pytest.raises(ZeroDivisionError):
        measure_latency({"a": lambda: 1 / 0})
    assert gc.isenabled()


@pytest.mark.parametrize(
    ("calls", "options", "said"),
    [
        ({}, {}, "name: function.*{}"),
        (len, {}, "name: function"),
        ({"a": 3}, {}, "name: function"),
        ({"a": len}, {"repeats": 0}, "repeats=0"),
        ({"a": len}, {"warmup": -1}, "warmup=-1"),
        ({"a": len}, {"device": "meta"}, "nothing can run there"),
        ({"a": len}, {"device": "cuda:99"}, "torch sees no CUDA GPU|numbered from 0"),
    ],
)
def test_bad_input(calls, options, said):
    with pytest.raises((TypeError, ValueError), match=said):
        measure_latency(calls, **options)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_peak_memory_on_a_gpu():
    call = {"a": lambda: torch.ones(2**24, device="cuda")}
    assert 64 <= measure_latency(call, repeats=2, device="cuda")["a"].peak_memory_mib
