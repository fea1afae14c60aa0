"""Bytes of the layouts: hand numbers, the closed formula against random zeros, and break-even against a search."""

from __future__ import annotations

import pytest
import torch

from pruning_book.sparse_file import break_even, cheapest, encode, expected_bytes, layouts_of


def test_five_by_five_by_hand() -> None:
    toy = torch.zeros(5, 5)
    toy[0, 1], toy[1, 3], toy[4, 4] = 2.0, -1.0, 3.0
    stored = {s.layout: s.nbytes for s in layouts_of(toy)}
    # dense 25 * 4; bitmap ceil(25 / 8) = 4 bytes and 3 * 4; gaps 1 or 2 bytes for each of 3 values, and 3 * 4
    assert stored == {"dense": 100, "bitmap": 16, "gap8": 15, "gap16": 18}
    where, values = encode(toy, "gap8")
    assert where.tolist() == [1, 6, 15] and values.tolist() == [2.0, -1.0, 3.0]
    where, _ = encode(toy, "bitmap")
    assert [f"{byte:08b}" for byte in where.tolist()] == ["01000000", "10000000", "00000000", "10000000"]


@pytest.mark.parametrize("itemsize, dtype", [(2, torch.float16), (4, torch.float32)])
@pytest.mark.parametrize("sparsity", [0.9, 0.95, 0.99, 0.999])
def test_the_formula_for_gaps_fits_random_zeros(itemsize: int, dtype: torch.dtype, sparsity: float) -> None:
    n = 400_000
    tensor = torch.ones(n, dtype=dtype)
    tensor[torch.randperm(n, generator=torch.Generator().manual_seed(0))[: int(n * sparsity)]] = 0
    nnz = int((tensor != 0).sum())
    for stored in layouts_of(tensor):
        assert stored.nbytes == pytest.approx(expected_bytes(stored.layout, n, nnz, itemsize), rel=0.01)


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("layout", ["bitmap", "gap8", "gap16"])
def test_break_even_is_where_the_bytes_cross(layout: str, itemsize: int) -> None:
    n, point = 800_000, break_even(layout, itemsize)
    for sparsity, smaller in ((point - 0.001, False), (point + 0.001, True)):
        bytes_ = expected_bytes(layout, n, round((1 - sparsity) * n), itemsize)
        assert (bytes_ < n * itemsize) is smaller


def test_break_even_by_hand() -> None:
    assert break_even("bitmap", 4) == 1 / 32 and break_even("bitmap", 2) == 1 / 16
    assert break_even("gap8", 2) == 1 / 3 and break_even("index32", 4) == 0.5
    assert break_even("index64", 4) == pytest.approx(2 / 3)


def test_overhead_tips_the_choice_to_dense() -> None:
    tensor = torch.ones(80)
    tensor[:40] = 0  # dense 320, bitmap 10 + 160
    assert cheapest(tensor).layout == "bitmap"
    assert cheapest(tensor, overhead=149).layout == "bitmap"
    assert cheapest(tensor, overhead=150).layout == "dense"


@pytest.mark.parametrize("arguments", [("zip", 8, 1, 4), ("dense", 8, 9, 4), ("dense", 8, -1, 4), ("gap8", 8, 1, 0)])
def test_wrong_arguments_are_refused(arguments: tuple) -> None:
    with pytest.raises(ValueError, match="allowed|expected"):
        expected_bytes(*arguments)


def test_break_even_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ValueError, match="allowed: 'bitmap'"):
        break_even("dense", 4)
