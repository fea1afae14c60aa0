"""Zeros in files and in layers: every bit comes back, sizes are exact, and CSR computes what the dense layer does."""

from __future__ import annotations

import copy

import pytest
import safetensors.torch
import torch
from small_denoisers import build
from small_models import run
from torch import Tensor, nn

from pruning_book.sparse_file import (
    LAYOUTS,
    break_even,
    encode,
    expected_bytes,
    layouts_of,
    load_sparse,
    save_sparse,
    sparse_bytes,
)
from pruning_book.sparse_speed import as_csr, file_sizes, to_csr


def thinned(n: int, sparsity: float, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return n entries of which about this share is zero."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(1, 100, (n,), generator=generator)
    return torch.where(torch.rand(n, generator=generator) < sparsity, 0, values).to(dtype)


def raw(tensors: dict[str, Tensor]) -> dict[str, tuple]:
    """Type, shape and exact bytes of each tensor."""
    flat = {name: t.contiguous().reshape(-1).view(torch.uint8) for name, t in tensors.items()}
    return {name: (t.dtype, t.shape, flat[name].numpy().tobytes()) for name, t in tensors.items()}


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


def test_the_formula_fits_random_zeros_and_break_even_is_where_the_bytes_cross() -> None:
    n = 400_000
    for sparsity, dtype in ((0.9, torch.float16), (0.999, torch.float32)):
        tensor = thinned(n, sparsity, dtype)
        for stored in layouts_of(tensor):
            expected = expected_bytes(stored.layout, n, int(tensor.count_nonzero()), dtype.itemsize)
            assert stored.nbytes == pytest.approx(expected, rel=0.01)
    assert break_even("bitmap", 4) == 1 / 32 and break_even("gap8", 2) == 1 / 3 and break_even("index32", 4) == 0.5
    for layout in LAYOUTS[1:]:
        point = break_even(layout, 2)
        below, above = (expected_bytes(layout, n, round((1 - s) * n), 2) for s in (point - 0.001, point + 0.001))
        assert above < n * 2 <= below


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.bool], ids=str)
def test_every_bit_comes_back_and_the_size_was_known(dtype: torch.dtype, tmp_path) -> None:
    given = {str(s): thinned(6000, s, dtype).reshape(3, 20, 100) for s in (0, 0.3, 0.8, 0.97, 0.9995, 1)}
    path = save_sparse(given, tmp_path / "w.safetensors")
    assert raw(load_sparse(path)) == raw(given)
    assert path.stat().st_size == sparse_bytes(given)


def test_every_layout_is_used_and_any_reader_opens_the_file(tmp_path) -> None:
    given = {str(s): thinned(100_000, s) for s in (0, 0.5, 0.95, 0.9995)}
    path = save_sparse(given, tmp_path / "x")
    assert raw(load_sparse(path)) == raw(given)
    found = safetensors.torch.load_file(path)
    positions = {name for name in found if not name.endswith("#values")}
    assert positions == {"0", "0.5#bitmap", "0.95#gap8", "0.9995#gap16"}
    assert torch.equal(found["0.5#values"], given["0.5"][given["0.5"] != 0])
    # Of many small tensors with long names the headers weigh most: never larger than dense by more than a note.
    small = {f"down_blocks.{i}.attentions.0.weight": thinned(64 * i, 0.07, torch.float16) for i in range(40)}
    assert sparse_bytes(small) <= len(safetensors.torch.save(small)) + 120
    safetensors.torch.save_file({"w": torch.ones(3)}, path)
    with pytest.raises(ValueError, match="load_file"):
        load_sparse(path)


def test_odd_values_shapes_and_tied_tensors_come_back(tmp_path) -> None:
    odd, other_nan, weight = torch.zeros(4000), torch.zeros(4000), thinned(5000, 0.9)
    odd[[0, 1, 2, 3, 3999]] = torch.tensor([-0.0, float("nan"), float("inf"), -float("inf"), 1e-45])
    other_nan.view(torch.int32)[7] = 0x7FC00123  # a NaN of another payload
    given = {
        "odd": odd,
        "nan": other_nan,
        "zero": torch.zeros(30, 300),
        "scalar": torch.tensor(0.0),
        "none": torch.empty(0, 5),
        "turned": weight.reshape(50, 100).t(),
        "channels last": weight.reshape(2, 25, 10, 10).to(memory_format=torch.channels_last),
        "ünïcode\n": weight,
        "tied": weight,
        "part": weight[:2500],
    }
    for gap in (254, 255, 256, 510, 766, 65534, 65535, 65536, 131070, 196606):  # around every escape
        given[str(gap)] = torch.zeros(gap + 300_000)
        given[str(gap)][[gap, gap + 1, -1]] = torch.tensor([1.0, 2, 3])
    found = load_sparse(save_sparse(given, tmp_path / "x"))
    assert raw(found) == raw(given)
    assert found["tied"].data_ptr() == found["ünïcode\n"].data_ptr() != found["part"].data_ptr()


@torch.no_grad()
def thin(module: nn.Module, sparsity: float = 0.8) -> nn.Module:
    """Set a share of every matrix and kernel to zero, at random."""
    generator = torch.Generator().manual_seed(0)
    for weight in module.parameters():
        if weight.ndim > 1:
            weight *= torch.rand(weight.shape, generator=generator) >= sparsity
    return module


LAST = {"memory_format": torch.channels_last}
ODD = {"stride": (2, 3), "padding": (1, 0), "dilation": (2, 1)}
LAYERS = {
    "linear, more axes": (nn.Linear(20, 30, bias=False), torch.randn(2, 3, 5, 20)),
    "linear, strided": (nn.Linear(20, 30), torch.randn(2, 5, 20).transpose(0, 1)),
    "conv without batch": (nn.Conv2d(6, 8, 3, padding=1), torch.randn(6, 9, 7)),
    "conv, odd": (nn.Conv2d(6, 8, (3, 2), **ODD), torch.randn(2, 6, 11, 12)),
    "conv 1x1 with a stride": (nn.Conv2d(6, 8, 1, stride=2), torch.randn(1, 6, 9, 9)),
    "channels last": (nn.Conv2d(6, 8, 3).to(**LAST), torch.randn(2, 6, 9, 7).to(**LAST)),
}


@torch.no_grad()
@pytest.mark.parametrize("name", LAYERS)
def test_same_result_as_the_dense_layer_with_zeros(name: str) -> None:
    layer, x = LAYERS[name]
    layer, x = thin(layer).double(), x.double()
    dense = layer(x)
    with to_csr(layer) as form:
        torch.testing.assert_close(layer(x), dense, atol=1e-12, rtol=0)
        assert form.rows[0].n == layer.weight.numel() and form.rows[0].nnz == int(layer.weight.count_nonzero())


@torch.no_grad()
def test_only_what_is_left_is_multiplied_and_hooks_still_run() -> None:
    layer, x, seen = thin(nn.Linear(20, 30), 0.5), torch.ones(20), []
    layer.weight[:, 3] = 0
    assert as_csr(layer.weight).values().numel() == int(layer.weight.count_nonzero())
    x[3] = float("nan")  # meets zeros only: a kernel that multiplies them gives NaN, one that skips them does not
    assert layer(x).isnan().all()
    layer.register_forward_hook(lambda *_: seen.append(1))
    with to_csr(layer):
        assert layer(x).isfinite().all() and seen == [1]


@torch.no_grad()
def test_a_whole_unet_there_and_back() -> None:
    model = build()
    thin(model.down_blocks), thin(model.up_blocks)
    state, dense = copy.deepcopy(model.state_dict()), run(model)
    form = to_csr(model)
    sparse = run(model)
    assert not torch.equal(sparse, dense), "the layers did not change hands"
    torch.testing.assert_close(sparse, dense, atol=1e-4, rtol=0)
    layers = sum(isinstance(m, (nn.Linear, nn.Conv2d)) for m in model.modules())
    assert len(form.rows) + len(form.left_dense) == layers and len(form.rows) > 20
    assert "0.0 % zeros" in form.left_dense["conv_in"] and f"{len(form.rows)} layers" in repr(form)
    form.remove(), form.remove()
    assert torch.equal(run(model), dense) and "removed" in repr(form)
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())


@torch.no_grad()
def test_what_would_be_wrong_is_refused_and_changes_nothing() -> None:
    for module, words in (
        (nn.Linear(4, 4), "the layer has 0.0 % zeros"),
        (nn.GroupNorm(2, 4), "no layer"),
        (thin(nn.Linear(40, 40)).half(), r"float16 on 'cpu'"),
    ):
        with pytest.raises(ValueError, match=words):
            to_csr(module)
        assert "forward" not in vars(module)
    model = nn.Sequential(thin(nn.Linear(5, 5)), thin(nn.Linear(5, 5)))
    to_csr(model[1])
    with pytest.raises(ValueError, match="1 does not run its own forward"):
        to_csr(model)
    assert "forward" not in vars(model[0]) and "forward" in vars(model[1])
    with torch.enable_grad(), pytest.raises(ValueError, match="no_grad"):
        model(torch.ones(5))
    model[1].weight[0] = 1.0
    with pytest.raises(ValueError, match="changed after to_csr"):
        model(torch.ones(5))


def test_sizes_are_those_of_the_files_and_in_the_order_of_theory() -> None:
    full = {"w": torch.randn(200, 300, generator=torch.Generator().manual_seed(0)), "b": torch.ones(200)}
    few = {"w": torch.where(thinned(60_000, 0.9).view(200, 300) == 0, 0, full["w"]), "b": full["b"]}
    none, many = file_sizes(full), file_sizes(few)
    assert none.dense == many.dense == len(safetensors.torch.save(full)) and many.sparse == sparse_bytes(few)
    # CSR by hand: 4 bytes for each value, column and row start; then what torch.save adds.
    by_hand = 8 * int(few["w"].count_nonzero()) + 4 * (200 + 1) + 4 * 200
    assert by_hand < many.csr < by_hand + 5000 and 1.9 * none.dense < none.csr < 2.1 * none.dense
    assert many.sparse < many.zipped < many.dense and many.sparse_zipped < many.sparse
