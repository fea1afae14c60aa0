"""Timing with a clock of our own: order, warm-up, synchronisation and ratios are known to the millisecond."""

from __future__ import annotations

import gc
import json
import time
from functools import partial

import pytest
import torch

from pruning_lib import latency
from pruning_lib.latency import Latency, measure_latency, ratio


@pytest.fixture
def takes(monkeypatch):
    """A function that makes a call which takes `seconds(i)` the i-th time; the clock stands still otherwise."""
    now, calls = [0.0], []
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def call(name, seconds):
        now[0] += seconds(calls.count(name))
        calls.append(name)

    return lambda name, seconds: partial(call, name, seconds), calls


def test_calls_take_turns_warm_up_is_not_timed_and_quantiles_are_those_by_hand(takes):
    takes, calls = takes
    slow_start = takes("a", lambda i: 5.0 if i < 2 else (i - 1) / 1000)
    timed = {"a": slow_start, "b": takes("b", lambda i: 1), "c": takes("c", lambda i: 1)}
    found = measure_latency(timed, repeats=11, warmup=2, device="cpu")["a"]
    assert "".join(calls[:12]) == "abccbaabccba"
    assert found.times_ms == pytest.approx(range(1, 12)) and found.warmup == 2
    assert str(found) == "6.00 ms (2.00 to 10.00), n = 11"
    stored = json.loads(json.dumps(Latency(found.times_ms, 2, 5.0, "cuda").to_dict()))
    names = ("n", "median_ms", "p10_ms", "p90_ms", "peak_memory_mib")
    assert [stored[name] for name in names] == pytest.approx([11, 6, 2, 10, 5]) and len(stored["times_ms"]) == 11


def test_a_drift_does_not_touch_the_ratio_noise_gives_it_an_interval_and_it_needs_pairs(takes):
    # The machine gets ten times slower while we measure. The candidate is always twice as fast as the baseline.
    speed = {"whole": lambda i: 0.2 * (1 + 9 * i / 40), "half": lambda i: 0.1 * (1 + 9 * i / 40)}
    calls = {name: takes[0](name, seconds) for name, seconds in speed.items()}
    found = measure_latency(calls, repeats=40, warmup=0, device="cpu")
    times_as_fast = ratio(found["whole"], found["half"])
    assert times_as_fast.value == pytest.approx(2) and times_as_fast.low == pytest.approx(2)
    assert found["whole"].p90_ms / found["whole"].p10_ms > 3, "the drift was there"
    noise = torch.rand(2, 50, generator=torch.Generator().manual_seed(0)).tolist()
    slow, fast = (Latency(tuple(least + x for x in row), 0) for least, row in zip((3, 1), noise, strict=True))
    result = ratio(slow, fast)
    assert 1.7 < result.low < result.value < result.high < 3.2 and result.n == 50
    with pytest.raises(ValueError, match="2 rounds and the candidate 3"):
        ratio(Latency((1.0, 1.0), 0), Latency((1.0, 1.0, 1.0), 0))


def test_the_device_is_waited_for_and_no_garbage_is_collected_inside_a_call(monkeypatch):
    seen = []
    monkeypatch.setattr(latency, "synchronise", lambda device: seen.append(f"wait {device}"))
    monkeypatch.setattr(time, "perf_counter", lambda: seen.append("clock") or 0.0)
    measure_latency({"a": lambda: seen.append(f"call, gc {gc.isenabled()}")}, repeats=2, warmup=0, device="cpu")
    assert seen == ["wait cpu", "clock", "call, gc False", "wait cpu", "clock"] * 2
    with pytest.raises(ZeroDivisionError):
        measure_latency({"a": lambda: 1 / 0})
    assert gc.isenabled()


def test_bad_input():
    for calls, options, said in [
        ({}, {}, "name: function.*{}"),
        ({"a": 3}, {}, "name: function"),
        ({"a": len}, {"repeats": 0}, "repeats=0"),
        ({"a": len}, {"warmup": -1}, "warmup=-1"),
        ({"a": len}, {"device": "cuda:99"}, "torch sees no CUDA GPU|numbered from 0"),
    ]:
        with pytest.raises((TypeError, ValueError), match=said):
            measure_latency(calls, **options)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_peak_memory_on_a_gpu():
    call = {"a": lambda: torch.ones(2**24, device="cuda")}
    assert 64 <= measure_latency(call, repeats=2, device="cuda")["a"].peak_memory_mib
