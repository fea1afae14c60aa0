"""Sparse layouts and files: hand numbers, formulas against random zeros, every bit comes back, sizes are exact."""

from __future__ import annotations

import pytest
import safetensors.torch
import torch
from torch import Tensor

from pruning_book.sparse_file import (
    LAYOUTS,
    break_even,
    cheapest,
    encode,
    expected_bytes,
    layouts_of,
    load_sparse,
    save_sparse,
    sparse_bytes,
)


def thinned(n: int, sparsity: float, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return n entries of which about this share is zero."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(1, 100, (n,), generator=generator)
    return torch.where(torch.rand(n, generator=generator) < sparsity, 0, values).to(dtype)


def assert_same(found: dict[str, Tensor], given: dict[str, Tensor]) -> None:
    def bits(tensor: Tensor) -> bytes:
        return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()

    assert list(found) == sorted(given)
    for name, tensor in given.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape, name
        assert bits(found[name]) == bits(tensor), name


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


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("sparsity", [0.9, 0.99, 0.999])
def test_the_formula_for_gaps_fits_random_zeros(dtype: torch.dtype, sparsity: float) -> None:
    tensor = thinned(400_000, sparsity, dtype)
    nnz = int((tensor != 0).sum())
    for stored in layouts_of(tensor):
        expected = expected_bytes(stored.layout, tensor.numel(), nnz, dtype.itemsize)
        assert stored.nbytes == pytest.approx(expected, rel=0.01)


def test_break_even_by_hand_and_where_the_bytes_cross() -> None:
    assert break_even("bitmap", 4) == 1 / 32 and break_even("bitmap", 2) == 1 / 16
    assert break_even("gap8", 2) == 1 / 3 and break_even("index32", 4) == 0.5
    assert break_even("index64", 4) == pytest.approx(2 / 3)
    n = 800_000
    for layout in LAYOUTS[1:]:
        for itemsize in (2, 4):
            point = break_even(layout, itemsize)
            below, above = (
                expected_bytes(layout, n, round((1 - s) * n), itemsize) for s in (point - 0.001, point + 0.001)
            )
            assert above < n * itemsize <= below


def test_overhead_tips_the_choice_to_dense() -> None:
    tensor = torch.ones(80)
    tensor[:40] = 0  # dense 320, bitmap 10 + 160
    assert [cheapest(tensor, overhead=bytes_).layout for bytes_ in (0, 149, 150)] == ["bitmap", "bitmap", "dense"]


FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn)
WHOLE = (torch.int64, torch.int32, torch.uint16, torch.uint8, torch.bool)


@pytest.mark.parametrize("dtype", [*FLOATS, *WHOLE], ids=str)
def test_every_bit_comes_back_and_the_size_was_known(dtype: torch.dtype, tmp_path) -> None:
    given = {str(s): thinned(6000, s, dtype).reshape(3, 20, 100) for s in (0, 0.3, 0.8, 0.97, 0.9995, 1)}
    path = save_sparse(given, tmp_path / "w.safetensors")
    assert_same(load_sparse(path), given)
    assert path.stat().st_size == sparse_bytes(given)


def test_every_layout_is_used_and_any_reader_opens_the_file(tmp_path) -> None:
    given = {str(s): thinned(100_000, s) for s in (0, 0.5, 0.95, 0.9995)}
    path = save_sparse(given, tmp_path / "x")
    assert_same(load_sparse(path), given)
    found = safetensors.torch.load_file(path)
    positions = {name for name in found if not name.endswith("#values")}
    assert positions == {"0", "0.5#bitmap", "0.95#gap8", "0.9995#gap16"}
    assert torch.equal(found["0.5#values"], given["0.5"][given["0.5"] != 0])


def test_odd_values_and_shapes_come_back(tmp_path) -> None:
    odd, other_nan = torch.zeros(4000), torch.zeros(4000)
    odd[[0, 1, 2, 3, 3999]] = torch.tensor([-0.0, float("nan"), float("inf"), -float("inf"), 1e-45])
    other_nan.view(torch.int32)[7] = 0x7FC00123  # a NaN of another payload
    given = {
        "odd": odd,
        "nan": other_nan,
        "zero": torch.zeros(30, 300),
        "scalar": torch.tensor(0.0),
        "none": torch.empty(0, 5),
        "turned": thinned(5000, 0.9).reshape(50, 100).t(),
        "channels last": thinned(5000, 0.9).reshape(2, 25, 10, 10).to(memory_format=torch.channels_last),
        "ünïcode\n": thinned(900, 0.9),
    }
    found = load_sparse(save_sparse(given, tmp_path / "x"))
    assert_same(found, given)
    assert str(found["odd"][0].item()) == "-0.0"


@pytest.mark.parametrize("edge", [255, 65535])
def test_escapes_at_every_edge(edge: int, tmp_path) -> None:
    given = {}
    for gap in (edge - 1, edge, edge + 1, 2 * edge, 3 * edge + 1):
        given[str(gap)] = torch.zeros(gap + 300_000)
        given[str(gap)][[gap, gap + 1, -1]] = torch.tensor([1.0, 2, 3])
    assert_same(load_sparse(save_sparse(given, tmp_path / "x")), given)


@pytest.mark.parametrize("sparsity", [0, 0.02, 0.07, 0.3, 0.9, 1])
def test_never_larger_than_dense_by_more_than_a_note(sparsity: float) -> None:
    # Many small tensors with long names, where headers weigh most.
    given = {f"down_blocks.{i}.attentions.0.weight": thinned(64 * i, sparsity, torch.float16) for i in range(40)}
    assert sparse_bytes(given) <= len(safetensors.torch.save(given)) + 120


def test_a_tied_tensor_is_written_once_and_stays_tied(tmp_path) -> None:
    weight = thinned(50_000, 0.5).reshape(500, 100)
    tied = {"in": weight, "out": weight, "part": weight[:250], "turned": weight.t()}
    found = load_sparse(save_sparse(tied, tmp_path / "x"))
    assert_same(found, tied)
    assert found["in"].data_ptr() == found["out"].data_ptr() != found["part"].data_ptr()
    assert sparse_bytes({"in": weight, "out": weight}) < sparse_bytes({"in": weight}) + 100


def test_another_file_is_refused(tmp_path) -> None:
    safetensors.torch.save_file({"w": torch.ones(3)}, tmp_path / "x")
    with pytest.raises(ValueError, match="load_file"):
        load_sparse(tmp_path / "x")
