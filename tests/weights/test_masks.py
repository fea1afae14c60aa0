"""The handle: restored bit for bit, kept through training, refused twice."""

from __future__ import annotations

import copy
import gc
import json

import pytest
import torch
from small_models import bits, inputs_of, linears, unet

from pruning_lib.weights.magnitude import prune_magnitude
from pruning_lib.weights.masks import PrunedWeights


def test_negative_zeros_and_subnormals_come_back() -> None:
    model = linears((4, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[-0.0, 0.0, 1e-42, -1e-42], [1, -2, 3, -4]]))
    before = bits(model)
    with prune_magnitude(model, 0.5) as pruned:
        row = model[0].weight[0].detach()
        assert torch.equal(row, torch.zeros(4)) and not torch.signbit(row).any()
        assert pruned.zeros == 4
    assert bits(model) == before


def test_it_restores_when_the_block_raises_and_once_only() -> None:
    model = linears((4, 3))
    before = bits(model)
    with pytest.raises(RuntimeError, match="inside"), prune_magnitude(model, 0.5) as pruned:
        raise RuntimeError("inside")
    assert bits(model) == before and not pruned.active
    with torch.no_grad():
        model[0].weight.fill_(7)
    assert pruned.restore() is model and (model[0].weight == 7).all()
    with pytest.raises(ValueError, match="no longer pruned"):
        pruned.reapply()


def test_pruning_twice_is_refused_also_through_a_part() -> None:
    model = unet()
    with prune_magnitude(model, 0.5):
        for part in (model, model.mid_block):
            with pytest.raises(ValueError, match=r"pruned already.*restore\(\)"):
                prune_magnitude(part, 0.7)
    with prune_magnitude(model.mid_block, 0.7), pytest.raises(ValueError, match="mid_block"):
        prune_magnitude(model, 0.5)
    prune_magnitude(model, 0.7).restore()


def test_finish_keeps_the_zeros_and_pruning_again_adds_to_them() -> None:
    model = linears((10, 10))
    first = prune_magnitude(model, 0.5)
    assert first.finish() is model and not first.active
    with prune_magnitude(model, 0.8) as second:
        assert not (second.masks["0.weight"] & ~first.masks["0.weight"]).any()
        assert (model[0].weight == 0).sum() == 80
        first.restore()  # it has nothing to give back, and does not touch the other's
        with pytest.raises(ValueError, match="pruned already"):
            prune_magnitude(model, 0.9)
    assert (model[0].weight == 0).sum() == 50


def test_a_lost_handle_leaves_the_zeros_and_frees_the_module() -> None:
    model = linears((10, 10))
    prune_magnitude(model, 0.5)
    gc.collect()
    assert (model[0].weight == 0).sum() == 50
    with prune_magnitude(model, 0.6):
        assert (model[0].weight == 0).sum() == 60


def test_a_copy_and_a_saved_state_carry_nothing_of_the_handle(tmp_path) -> None:
    model = linears((10, 10))
    with prune_magnitude(model, 0.5):
        prune_magnitude(copy.deepcopy(model), 0.7)
        torch.save(model, tmp_path / "model.pt")
        prune_magnitude(torch.load(tmp_path / "model.pt", weights_only=False), 0.7)
        assert set(model.state_dict()) == {"0.weight", "0.bias"}


def test_zeros_grow_in_training_until_they_are_set_again_and_restoring_keeps_what_was_trained() -> None:
    model = linears((6, 5), (5, 4))
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    pruned = prune_magnitude(model, 0.6)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    for i in range(3):
        model(torch.randn(8, 6, generator=torch.Generator().manual_seed(i))).square().sum().backward()
        optimizer.step()
    assert any(model.get_parameter(n)[~m].any() for n, m in pruned.masks.items()), "the test could not fail"
    pruned.reapply()
    trained = {n: p.detach().clone() for n, p in model.named_parameters()}
    assert not any(trained[n][~m].any() for n, m in pruned.masks.items())
    pruned.restore()
    for name, mask in pruned.masks.items():
        weight = model.get_parameter(name)
        assert torch.equal(weight[~mask], start[name][~mask]) and torch.equal(weight[mask], trained[name][mask])
        assert (weight[mask] != start[name][mask]).any()


def test_a_cast_while_pruned_restores_cast_values() -> None:
    model, twin = linears((20, 20)), linears((20, 20))
    with prune_magnitude(model, 0.5) as pruned:
        model.half()
        pruned.reapply()
        assert (model[0].weight == 0).sum() == 200
    assert bits(model) == bits(twin.half())


def test_rows_table_and_dict_say_what_was_done() -> None:
    model = unet()
    with prune_magnitude(model, 0.5) as pruned:
        assert pruned.n == sum(row.n for row in pruned.layers) and pruned.sparsity == pruned.zeros / pruned.n
        cut = max(row.threshold for row in pruned.layers if row.threshold)
        kept = min(model.get_parameter(n)[m].abs().min().item() for n, m in pruned.masks.items() if m.any())
        assert cut < kept, "one threshold for all"
        lines = pruned.table().splitlines()
        assert lines[-1].split() == ["total", f"{pruned.n:,}", f"{pruned.zeros:,}", f"{pruned.sparsity:.4f}"]
        assert any(line.startswith("mid_block") for line in lines) and len({len(line) for line in lines}) == 1
        assert sum(n for n, _ in pruned.by_block(2).values()) == pruned.n
        found = json.loads(json.dumps(pruned.to_dict()))
        assert found["zeros"] == pruned.zeros and found["ignored"]["conv_in.weight"] == "ends"
        assert "sparsity 0.5" in repr(pruned)
    assert "no longer active" in repr(pruned)
    with pytest.raises(ValueError, match="depth=0"):
        pruned.by_block(0)


def test_a_mask_that_does_not_fit_is_refused() -> None:
    ones, whole = torch.ones(3, 4), torch.ones(3, 4, dtype=torch.bool)
    for name, mask in (("0.wight", whole), ("0.weight", whole.T), ("0.weight", ones)):
        with pytest.raises(ValueError, match="fits no such parameter"):
            PrunedWeights(linears((4, 3)), {name: mask}, "mine", 0.5)


def test_gradients_flow_while_pruned() -> None:
    model = unet()
    with prune_magnitude(model, 0.5):
        model(**inputs_of("unet"))[0].sum().backward()
        assert model.conv_in.weight.grad is not None
