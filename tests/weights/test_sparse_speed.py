"""Layers in CSR: the result of the dense layer with zeros, reversible, clear about what they cannot do; file sizes."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import safetensors.torch
import torch
from small_models import run, unet
from torch import nn

from pruning_book.sparse_file import sparse_bytes
from pruning_book.sparse_speed import as_csr, file_sizes, to_csr


@pytest.fixture(autouse=True)
def _inference():
    with torch.no_grad():
        yield


@torch.no_grad()
def thin(module: nn.Module, sparsity: float = 0.8) -> nn.Module:
    """Set a share of every matrix and kernel to zero, at random."""
    generator = torch.Generator().manual_seed(0)
    for weight in module.parameters():
        if weight.ndim > 1:
            weight *= torch.rand(weight.shape, generator=generator) >= sparsity
    return module


LAYERS = {
    "linear": (lambda: nn.Linear(20, 30), (7, 20)),
    "linear, one row": (lambda: nn.Linear(20, 30), (20,)),
    "linear, more axes": (lambda: nn.Linear(20, 30, bias=False), (2, 3, 5, 20)),
    "linear, strided": (lambda: nn.Linear(20, 30), (2, 5, 20)),
    "conv 3x3": (lambda: nn.Conv2d(6, 8, 3, padding=1), (2, 6, 9, 7)),
    "conv 1x1": (lambda: nn.Conv2d(6, 8, 1, bias=False), (3, 6, 5, 5)),
    "conv without batch": (lambda: nn.Conv2d(6, 8, 3), (6, 9, 7)),
    "conv, odd": (lambda: nn.Conv2d(6, 8, (3, 2), stride=(2, 3), padding=(1, 0), dilation=(2, 1)), (2, 6, 11, 12)),
    "conv 1x1 with a stride": (lambda: nn.Conv2d(6, 8, 1, stride=2), (1, 6, 9, 9)),
    "channels last": (lambda: nn.Conv2d(6, 8, 3).to(memory_format=torch.channels_last), (2, 6, 9, 7)),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_same_result_as_the_dense_layer_with_zeros(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    build, shape = LAYERS[name]
    layer, x = thin(build()).to(dtype), torch.randn(shape, dtype=dtype)
    if name == "channels last":
        x = x.to(memory_format=torch.channels_last)
    if name == "linear, strided":
        x = x.transpose(0, 1)
    dense = layer(x)
    with to_csr(layer) as form:
        sparse = layer(x)
        assert form.rows[0].n == layer.weight.numel() and form.rows[0].nnz == int(layer.weight.count_nonzero())
    assert sparse.shape == dense.shape and sparse.dtype == dtype
    torch.testing.assert_close(sparse, dense, atol=1e-5 if dtype == torch.float32 else 1e-12, rtol=0)


def test_only_what_is_left_is_multiplied_and_hooks_still_run() -> None:
    layer, x, seen = thin(nn.Linear(20, 30), 0.5), torch.ones(20), []
    layer.weight[:, 3] = 0
    assert as_csr(layer.weight).values().numel() == int(layer.weight.count_nonzero())
    x[3] = float("nan")  # meets zeros only: a kernel that multiplies them gives NaN, one that skips them does not
    assert layer(x).isnan().all()
    layer.register_forward_hook(lambda *_: seen.append(1))
    with to_csr(layer):
        assert layer(x).isfinite().all() and seen == [1]


def test_a_whole_unet_there_and_back() -> None:
    model = unet()
    thin(model.down_blocks), thin(model.up_blocks)
    state, dense = copy.deepcopy(model.state_dict()), run("unet", model)
    form = to_csr(model)
    sparse = run("unet", model)
    assert not torch.equal(sparse, dense), "the layers did not change hands"
    torch.testing.assert_close(sparse, dense, atol=1e-4, rtol=0)
    layers = sum(isinstance(m, (nn.Linear, nn.Conv2d)) for m in model.modules())
    assert len(form.rows) + len(form.left_dense) == layers and len(form.rows) > 20
    assert "0.0 % zeros" in form.left_dense["conv_in"] and f"{len(form.rows)} layers" in repr(form)
    form.remove(), form.remove()
    assert torch.equal(run("unet", model), dense) and "removed" in repr(form)
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())


def test_what_it_does_not_take_stays_dense() -> None:
    model = nn.ModuleDict(
        {
            "grouped": nn.Conv2d(4, 4, 3, groups=2),
            "circular": nn.Conv2d(4, 4, 3, padding_mode="circular"),
            "same": nn.Conv2d(4, 4, 3, padding="same"),
            "attention": nn.MultiheadAttention(8, 2),
            "full": nn.Linear(50, 50),
            "fine": nn.Linear(8, 8),
        }
    )
    thin(model, 0.5), thin(model["fine"], 0.9)
    form = to_csr(model, min_sparsity=0.8)
    assert [row.path for row in form.rows] == ["fine"] and "above 80 %" in form.left_dense["full"]
    assert "groups=2" in form.left_dense["grouped"] and "circular" in form.left_dense["circular"]
    assert "'same'" in form.left_dense["same"] and "another way" in form.left_dense["attention.out_proj"]


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (nn.Linear(4, 4), "the layer has 0.0 % zeros"),
        (nn.GroupNorm(2, 4), "no layer"),
        (thin(nn.Linear(40, 40)).half(), r"float16 on 'cpu'"),
    ],
)
def test_refusals(module: nn.Module, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        to_csr(module)
    assert "forward" not in vars(module)


def test_twice_is_refused_and_leaves_the_first_in_place() -> None:
    model = nn.Sequential(thin(nn.Linear(5, 5)), thin(nn.Linear(5, 5)))
    form = to_csr(model[1])
    with pytest.raises(ValueError, match="1 does not run its own forward"):
        to_csr(model)
    assert "forward" not in vars(model[0]) and "forward" in vars(model[1])
    form.remove()
    to_csr(model).remove()


def test_calls_that_would_be_wrong_are_refused() -> None:
    layer = thin(nn.Linear(5, 5))
    form = to_csr(layer)
    with torch.enable_grad(), pytest.raises(ValueError, match="no_grad"):
        layer(torch.ones(5))
    layer.weight[0] = 1.0
    with pytest.raises(ValueError, match="changed after to_csr"):
        layer(torch.ones(5))
    form.remove()
    to_csr(layer)
    layer.weight = nn.Parameter(torch.zeros(5, 5))
    with pytest.raises(ValueError, match="changed after to_csr"):
        layer(torch.ones(5))


def test_nothing_on_stderr() -> None:
    # PyTorch warns once per process, so this needs a process of its own.
    code = (
        "import torch; from torch import nn; from pruning_book.sparse_speed import to_csr\n"
        "torch.set_grad_enabled(False); layer = nn.Linear(4, 4); layer.weight[0] = 0\n"
        "to_csr(layer); layer(torch.ones(4)); print('ran')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "ran" and done.stderr == ""


def test_sizes_are_those_of_the_files_and_in_the_order_of_theory() -> None:
    torch.manual_seed(0)
    full = {"w": torch.randn(200, 300), "b": torch.ones(200)}
    thinned = {"w": torch.where(torch.rand(200, 300) < 0.9, 0, full["w"]), "b": full["b"]}
    none, many = file_sizes(full), file_sizes(thinned)
    assert none.dense == many.dense == len(safetensors.torch.save(full)) and many.sparse == sparse_bytes(thinned)
    # CSR by hand: 4 bytes for each value, column and row start; then what torch.save adds.
    by_hand = 8 * int(thinned["w"].count_nonzero()) + 4 * (200 + 1) + 4 * 200
    assert by_hand < many.csr < by_hand + 5000 and 1.9 * none.dense < none.csr < 2.1 * none.dense
    assert many.sparse < many.zipped < many.dense and many.sparse_zipped < many.sparse
    assert none.sparse <= none.dense + 120
