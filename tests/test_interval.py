"""Bootstrap intervals are as wide as theory says."""

from __future__ import annotations

import pytest
import torch

from pruning_lib.interval import Interval, bootstrap_interval


def test_width_is_that_of_the_normal_theory():
    values = torch.randn(2000, generator=torch.Generator().manual_seed(1))
    for level, deviations in ((0.95, 1.96), (0.5, 0.6745)):
        found = bootstrap_interval(values, n_boot=2000, level=level)
        expected = 2 * deviations * values.std().item() / 2000**0.5
        assert found.high - found.low == pytest.approx(expected, rel=0.06)
        assert found.value == pytest.approx(values.mean().item(), abs=1e-6)
    table = values.view(1000, 2)  # a statistic of one's own
    found = bootstrap_interval(table, lambda x: torch.corrcoef(x.T)[0, 1].item(), n_boot=400)
    assert found.n == 1000 and found.high - found.low == pytest.approx(2 * 1.96 / 1000**0.5, rel=0.15)


@pytest.mark.parametrize(
    ("values", "options", "said"),
    [
        ([1.0], {}, "at least 2 samples; got 1"),
        ([1.0, float("inf")], {}, "PSNR is infinite for equal images"),
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
