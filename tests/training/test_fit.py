"""The training loop: resuming is exact, interruption is cheap, bad settings are refused."""

from __future__ import annotations

import json
import os
import signal

import pytest
import torch
from torch import nn

from pruning_lib.finetuning.loop import FitConfig, fit, lr_factor, read_log


def task(seed: int = 0, at: int = 0, happens=None):
    """Return a model and its loss; at the `at`-th step something happens."""
    torch.manual_seed(seed)
    model, calls = nn.Linear(4, 1), []

    def loss(generator):
        calls.append(1)
        if len(calls) == at:
            happens()
        x = torch.randn(16, 4, generator=generator)
        return ((model(x) - x.sum(1, keepdim=True)) ** 2).mean(), {"extra": 1.0}

    return model, loss


def interrupt():
    os.kill(os.getpid(), signal.SIGTERM)


def crash():
    raise RuntimeError("power cut")


def test_training_learns(tmp_path):
    model, loss = task()
    fit(model, loss, FitConfig(steps=300, lr=0.05, warmup=5, ema=0.9), tmp_path)
    assert torch.allclose(model.weight, torch.ones(1, 4), atol=0.05) and not model.training
    log = read_log(tmp_path)
    assert log[-1]["step"] == 300 and log[-1]["loss"] < log[0]["loss"] / 10
    assert {"seconds", "extra"} <= log[0].keys()


def test_a_resumed_run_equals_an_uninterrupted_one_and_a_crash_loses_at_most_one_interval(tmp_path):
    config, handlers = FitConfig(steps=40, checkpoint_every=10), signal.getsignal(signal.SIGTERM)
    whole, loss = task()
    fit(whole, loss, config, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt, match="step 13"):
        fit(*task(at=13, happens=interrupt), config, tmp_path / "part")
    with pytest.raises(RuntimeError, match="power cut"):
        fit(*task(at=14, happens=crash), config, tmp_path / "part")
    assert signal.getsignal(signal.SIGTERM) == handlers
    assert torch.load(tmp_path / "part" / "checkpoint.pt", weights_only=True)["step"] == 20
    assert {path.name for path in (tmp_path / "part").iterdir()} == {"checkpoint.pt", "log.jsonl"}
    again, loss = task(seed=9)  # other initial weights: the checkpoint must replace them
    fit(again, loss, config, tmp_path / "part")
    assert torch.equal(whole.weight, again.weight) and torch.equal(whole.bias, again.bias)


def test_other_settings_are_refused(tmp_path):
    model, loss = task()
    fit(model, loss, FitConfig(steps=5), tmp_path)
    with pytest.raises(ValueError, match="lr"):
        fit(model, loss, FitConfig(steps=10, lr=0.5), tmp_path)
    fit(model, loss, FitConfig(steps=10), tmp_path)  # more steps are allowed
    assert read_log(tmp_path)[-1]["step"] == 10


@pytest.mark.parametrize("keep", [0, 10, 1000])
def test_a_damaged_checkpoint_is_named_and_kept(tmp_path, keep):
    model, loss = task()
    fit(model, loss, FitConfig(steps=5), tmp_path)
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(damaged := path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"checkpoint\.pt is damaged or cut short"):
        fit(model, loss, FitConfig(steps=10), tmp_path)
    assert path.read_bytes() == damaged


def test_of_repeated_lines_the_later_count_and_one_that_a_crash_cut_short_is_left_out(tmp_path):
    lines = [{"step": 1, "loss": 5.0}, {"step": 2, "loss": 4.0}, {"step": 2, "loss": 3.0}]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 3, "lo')
    assert [line["loss"] for line in read_log(tmp_path)] == [5.0, 3.0]
    fit(*task(), FitConfig(steps=4, log_every=1), tmp_path)
    assert [line["step"] for line in read_log(tmp_path)] == [1, 2, 3, 4]


def test_nan_is_reported_with_its_step(tmp_path):
    model, _ = task()
    with pytest.raises(ValueError, match="nan at step 0"):
        fit(model, lambda _: (model(torch.ones(1, 4)).sum() * float("nan"), {}), FitConfig(steps=5), tmp_path)


def test_learning_rate_warms_up_holds_and_decays():
    config = FitConfig(steps=100, warmup=10, decay=0.2)
    rates = [lr_factor(s, config) for s in range(100)]
    assert rates[0] == 0.1 and rates[9] == 1.0
    assert all(r == 1.0 for r in rates[10:81])
    assert rates[90] == 0.5 and 0 < rates[99] < 0.06


@pytest.mark.parametrize("bad", [{"steps": 0}, {"decay": 1.5}, {"log_every": 0}, {"lr": 0}, {"device": "cdua"}])
def test_bad_settings(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        FitConfig(**{"steps": 5, **bad})
