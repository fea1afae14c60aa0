"""Bootstrap intervals hold the truth as often as they say."""

from __future__ import annotations

import pytest
import torch

from pruning_lib.interval import Interval, bootstrap_interval


def test_coverage_of_the_mean():
    generator = torch.Generator().manual_seed(0)
    held = 0
    for i in range(300):
        found = bootstrap_interval(torch.randn(40, generator=generator) + 3, n_boot=400, seed=i)
        held += found.low <= 3 <= found.high
    # 95 % asked for; the percentile method gives about 93 % at n = 40; 4 standard errors are 6 %.
    assert 0.87 <= held / 300 <= 0.99


def test_width_is_that_of_the_normal_theory():
    values = torch.randn(2000, generator=torch.Generator().manual_seed(1))
    found = bootstrap_interval(values, n_boot=4000)
    expected = 2 * 1.96 * values.std().item() / 2000**0.5
    assert found.high - found.low == pytest.approx(expected, rel=0.06)
    assert found.value == pytest.approx(values.mean().item(), abs=1e-6)
    narrow = bootstrap_interval(values, n_boot=4000, level=0.5)
    assert narrow.high - narrow.low == pytest.approx(expected * 0.6745 / 1.96, rel=0.06)


def test_a_statistic_of_ones_own():
    found = bootstrap_interval(torch.arange(101).double(), lambda x: x.median().item(), n_boot=300)
    assert found.value == 50 and 30 < found.low < 50 < found.high < 70
    table = torch.randn(50, 2, generator=torch.Generator().manual_seed(2))
    whole = bootstrap_interval(table, lambda x: torch.corrcoef(x.T)[0, 1].item(), n_boot=100)
    assert whole.n == 50 and whole.low < whole.value < whole.high


@pytest.mark.parametrize(
    ("values", "options", "said"),
    [
        ([1.0], {}, "at least 2 samples; got 1"),
        ([], {}, "at least 2 samples; got 0"),
        ([1.0, float("inf")], {}, "PSNR is infinite for equal images"),
        ([1.0, float("nan")], {}, "not a number"),
        ([[1.0], [2.0]], {}, r"\[2, 1\]"),
        ([1.0, 2.0], {"level": 95}, "level=95"),
        ([1.0, 2.0], {"n_boot": 10}, "n_boot=10"),
    ],
)
def test_bad_input(values, options, said):
    with pytest.raises(ValueError, match=said):
        bootstrap_interval(values, **options)


def test_the_seed_decides_and_it_prints_and_stores():
    spread = torch.randn(30, generator=torch.Generator().manual_seed(0))
    assert bootstrap_interval(spread, seed=3) == bootstrap_interval(spread, seed=3)
    assert bootstrap_interval(spread, seed=3) != bootstrap_interval(spread, seed=4)
    assert bootstrap_interval(torch.ones(9)) == Interval(1.0, 1.0, 1.0, 9)
    found = Interval(1.5, 1.0, 2.0, 12)
    assert str(found) == "1.5 (1 to 2, 95 % interval, n = 12)"
    assert found.to_dict() == {"value": 1.5, "low": 1.0, "high": 2.0, "n": 12, "level": 0.95}
