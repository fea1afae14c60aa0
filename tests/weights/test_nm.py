"""N:M masks, and what the 2:4 kernels accept; on a GPU that has them, tests/gpu checks their result too."""

from __future__ import annotations

import pytest
import torch
from small_models import MODELS, bits, linears
from torch import nn

from pruning_lib.weights.nm import nm_mask, prune_nm, to_semi_structured


def test_by_hand_with_ties() -> None:
    weight = torch.tensor([[0.1, -0.4, 0.3, 0.2, 5.0, -5.0, 5.0, 5.0]])
    # Of the second group's four equal ones the first are removed first.
    assert nm_mask(weight).tolist() == [[False, True, True, False, False, False, True, True]]
    assert nm_mask(weight, 1, 4).sum() == 2 and nm_mask(weight, 4, 8).tolist()[0][4:] == [True] * 4


def test_convolutions_group_their_input_channels() -> None:
    weight = torch.randn(6, 8, 3, 3, generator=torch.Generator().manual_seed(0))
    mask = nm_mask(weight)
    assert mask.shape == weight.shape and mask.is_contiguous()
    groups, sizes = mask.reshape(6, 2, 4, 3, 3), weight.abs().reshape(6, 2, 4, 3, 3)
    assert (groups.sum(2) == 2).all()
    kept = torch.where(groups, sizes, torch.inf).amin(2)
    lost = torch.where(groups, -torch.inf, sizes).amax(2)
    assert (kept >= lost).all()


@pytest.mark.parametrize("name", MODELS)
def test_models_get_exact_shares_and_come_back(name) -> None:
    model = MODELS[name]()
    before = bits(model)
    for n, m in ((2, 4), (1, 2), (4, 8)):
        with prune_nm(model, n, m) as pruned:
            assert all(row.zeros * m == row.n * (m - n) for row in pruned.layers)
            assert pruned.asked == 1 - n / m and pruned.scope == f"{n}:{m}"
            assert bits(model) != before
        assert bits(model) == before


def test_layers_that_do_not_divide_are_left_alone_and_named() -> None:
    model = linears((6, 4), (4, 8))
    with prune_nm(model) as pruned:
        assert list(pruned.masks) == ["1.weight"]
        assert pruned.ignored["0.weight"] == "input is no multiple of 4"
        with pytest.raises(ValueError, match="pruned already"):
            prune_nm(model)


def test_wrong_patterns_and_inputs_that_do_not_divide_are_refused() -> None:
    for n, m in [(0, 4), (4, 4), (5, 4), (2.0, 4), (-1, 4), (True, 4)]:
        with pytest.raises(ValueError, match="no pattern"):
            prune_nm(linears((8, 4)), n, m)
        with pytest.raises(ValueError, match="no pattern"):
            nm_mask(torch.ones(4, 8), n, m)
    with pytest.raises(ValueError, match="multiple of 4"):
        prune_nm(linears((6, 4)))
    for shape in ((4, 6), (8,)):
        with pytest.raises(ValueError, match="no groups of 4"):
            nm_mask(torch.ones(shape))


def sparse_linear(rows: int = 32, columns: int = 64, dtype: torch.dtype = torch.float16) -> nn.Sequential:
    model = linears((columns, rows), dtype=dtype)
    prune_nm(model).finish()
    return model


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (sparse_linear(), r"on 'cpu'.*compute capability 8\.0"),
        (sparse_linear().float(), "None of the 1 linear layers.*float32"),
        (sparse_linear(16), "multiple of 32"),
        (sparse_linear(32, 32), "columns of 64"),
        (linears((64, 32), dtype=torch.float16), "prune_nm first"),
        (nn.Conv2d(4, 4, 1), "None of the 0 linear layers"),
    ],
)
def test_what_cannot_be_packed_is_refused_and_left_as_it_was(model, words) -> None:
    before = bits(model)
    with pytest.raises(ValueError, match=words):
        to_semi_structured(model)
    assert bits(model) == before


def test_packing_takes_what_fits_on_a_gpu_that_is_new_enough(monkeypatch) -> None:
    """Up to the kernel itself: on a machine without it, the device and the packing are replaced."""
    packed = []

    class OnGpu(nn.Parameter):
        device = torch.device("cuda")

    def pack(weight: torch.Tensor) -> torch.Tensor:
        packed.append(tuple(weight.shape))
        return weight.clone()

    monkeypatch.setattr(torch.sparse, "to_sparse_semi_structured", pack)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
    model = nn.Sequential(sparse_linear()[0], sparse_linear(16)[0])
    model[0].weight = OnGpu(model[0].weight.detach())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    with pytest.raises(ValueError, match=r"Tesla T4 has compute capability 7\.5"):
        to_semi_structured(model)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    stayed = to_semi_structured(model)
    assert packed == [(32, 64)] and list(stayed) == ["1"] and "multiple of 32" in stayed["1"]
    assert not model[0].weight.requires_grad
