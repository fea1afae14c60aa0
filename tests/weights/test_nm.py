"""N:M masks, and what the 2:4 kernels accept; on a GPU that has them, their result too."""

from __future__ import annotations

import pytest
import torch
from small_models import MODELS, bits, linears
from torch import nn

from pruning_lib.weights.nm import check_hardware, nm_mask, prune_nm, semi_structured_problem, to_semi_structured


def test_by_hand_with_ties() -> None:
    weight = torch.tensor([[0.1, -0.4, 0.3, 0.2, 5.0, -5.0, 5.0, 5.0]])
    # Of the second group's three largest equal ones the first are removed first.
    assert nm_mask(weight).tolist() == [[False, True, True, False, False, False, True, True]]
    assert nm_mask(weight, 1, 4).sum() == 2 and nm_mask(weight, 4, 8).tolist()[0][4:] == [True] * 4


def test_convolutions_group_their_input_channels() -> None:
    weight = torch.randn(6, 8, 3, 3, generator=torch.Generator().manual_seed(0))
    mask = nm_mask(weight)
    assert mask.shape == weight.shape and mask.is_contiguous()
    groups = mask.reshape(6, 2, 4, 3, 3)
    assert (groups.sum(2) == 2).all()
    sizes = weight.abs().reshape(6, 2, 4, 3, 3)
    kept = torch.where(groups, sizes, torch.inf).amin(2)
    lost = torch.where(groups, -torch.inf, sizes).amax(2)
    assert (kept >= lost).all()


@pytest.mark.parametrize("name", list(MODELS))
@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 2), (4, 8)])
def test_models_get_exact_shares_and_come_back(name, n, m) -> None:
    model = MODELS[name]()
    before = bits(model)
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
    with pytest.raises(ValueError, match="multiple of 4"):
        prune_nm(linears((6, 4)))


@pytest.mark.parametrize(("n", "m"), [(0, 4), (4, 4), (5, 4), (2.0, 4), (-1, 4), (True, 4)])
def test_wrong_patterns_are_refused(n, m) -> None:
    with pytest.raises(ValueError, match="no pattern"):
        prune_nm(linears((8, 4)), n, m)
    with pytest.raises(ValueError, match="no pattern"):
        nm_mask(torch.ones(4, 8), n, m)


def test_a_weight_that_does_not_divide_is_refused() -> None:
    for shape in ((4, 6), (8,)):
        with pytest.raises(ValueError, match="no groups of 4"):
            nm_mask(torch.ones(shape))


def test_pruning_on_top_is_refused() -> None:
    model = linears((8, 4))
    with prune_nm(model), pytest.raises(ValueError, match="pruned already"):
        prune_nm(model)


def sparse_linear(rows: int = 32, columns: int = 64, dtype: torch.dtype = torch.float16) -> nn.Sequential:
    model = linears((columns, rows), dtype=dtype)
    prune_nm(model).finish()
    return model


def test_what_the_kernels_do_not_take_is_said() -> None:
    good = sparse_linear()[0].weight
    assert semi_structured_problem(good) == ""
    assert "float32" in semi_structured_problem(good.float())
    assert "multiple of 32" in semi_structured_problem(sparse_linear(16)[0].weight)
    assert "columns of 64" in semi_structured_problem(sparse_linear(32, 32)[0].weight)
    assert "prune_nm first" in semi_structured_problem(linears((64, 32), dtype=torch.float16)[0].weight)
    assert "convolutions have none" in semi_structured_problem(torch.zeros(32, 64, 1, 1).half())


def test_conversion_without_the_hardware_is_refused_and_changes_nothing() -> None:
    model = sparse_linear()
    before = bits(model)
    with pytest.raises(ValueError, match=r"compute capability 8\.0"):
        to_semi_structured(model)
    assert bits(model) == before
    with pytest.raises(ValueError, match="None of the 1 linear layers.*float32"):
        to_semi_structured(model.float())
    with pytest.raises(ValueError, match="None of the 0 linear layers"):
        to_semi_structured(nn.Conv2d(4, 4, 1))


def test_older_gpus_are_refused(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
    with pytest.raises(ValueError, match=r"Tesla T4 has compute capability 7\.5"):
        check_hardware(torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    check_hardware(torch.device("cuda"))


def test_conversion_packs_what_fits_and_names_what_does_not(monkeypatch) -> None:
    """Up to the kernel itself: on a machine without it, only the packing is replaced."""
    monkeypatch.setattr("pruning_lib.weights.nm.check_hardware", lambda _: None)
    packed = []

    def pack(weight: torch.Tensor) -> torch.Tensor:
        packed.append(tuple(weight.shape))
        return weight.clone()

    monkeypatch.setattr(torch.sparse, "to_sparse_semi_structured", pack)
    model = nn.Sequential(sparse_linear()[0], sparse_linear(16)[0])
    stayed = to_semi_structured(model)
    assert packed == [(32, 64)] and list(stayed) == ["1"] and "multiple of 32" in stayed["1"]
    assert not model[0].weight.requires_grad


@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0), reason="no GPU with 2:4 kernels"
)
def test_kernels_multiply_as_the_dense_layer_does() -> None:
    model = sparse_linear(128, 256).cuda()
    x = torch.randn(64, 256, device="cuda", dtype=torch.float16)
    dense = model(x)
    assert to_semi_structured(model) == {}
    torch.testing.assert_close(model(x), dense, rtol=1e-2, atol=1e-2)
