"""The handle: restored bit for bit, kept through training, refused twice."""

from __future__ import annotations

import copy
import gc
import json

import pytest
import torch
from small_models import bits, inputs_of, linears, unet
from torch import nn

from pruning_lib.weights.magnitude import prune_magnitude
from pruning_lib.weights.masks import PrunedWeights


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 3) -> None:
    for i in range(steps):
        x = torch.randn(8, 6, generator=torch.Generator().manual_seed(i))
        model(x).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


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


def test_handle_restores_when_the_block_raises() -> None:
    model = linears((4, 3))
    before = bits(model)
    with pytest.raises(RuntimeError, match="inside"), prune_magnitude(model, 0.5):
        raise RuntimeError("inside")
    assert bits(model) == before


def test_second_restore_does_nothing_and_reapply_after_it_is_refused() -> None:
    model = linears((4, 3))
    pruned = prune_magnitude(model, 0.5)
    assert pruned.restore() is model and not pruned.active
    with torch.no_grad():
        model[0].weight.fill_(7)
    pruned.restore()
    assert (model[0].weight == 7).all()
    for call in (pruned.reapply, lambda: pruned.hold(torch.optim.SGD(model.parameters()))):
        with pytest.raises(ValueError, match="no longer pruned"):
            call()


def test_pruning_twice_is_refused_also_through_a_part() -> None:
    model = unet()
    pruned = prune_magnitude(model, 0.5)
    with pytest.raises(ValueError, match="pruned already"):
        prune_magnitude(model, 0.7)
    with pytest.raises(ValueError, match="restore"):
        prune_magnitude(model.mid_block, 0.7)
    pruned.restore()
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
    pruned = prune_magnitude(model, 0.5)
    twin = copy.deepcopy(model)
    prune_magnitude(twin, 0.7).restore()
    torch.save(model, tmp_path / "model.pt")
    prune_magnitude(torch.load(tmp_path / "model.pt", weights_only=False), 0.7).restore()
    assert set(model.state_dict()) == {"0.weight", "0.bias"}
    pruned.restore()


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_masks_hold_through_training_and_only_when_asked(kind) -> None:
    model = linears((6, 5), (5, 4))
    pruned = prune_magnitude(model, 0.6)
    optimizer = kind(model.parameters(), lr=0.05)
    assert pruned.hold(optimizer) is pruned
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    train(model, optimizer)
    for name, mask in pruned.masks.items():
        weight = model.get_parameter(name)
        assert not weight[~mask].any()
        assert (weight[mask] != before[name][mask]).any(), "training must go on elsewhere"
    pruned.release()
    train(model, optimizer, 1)
    assert any(model.get_parameter(n)[~m].any() for n, m in pruned.masks.items()), "the test could not fail"
    pruned.reapply()
    assert not any(model.get_parameter(n)[~m].any() for n, m in pruned.masks.items())


def test_restore_ends_the_hold_and_keeps_what_was_trained() -> None:
    model = linears((6, 5))
    start = model[0].weight.detach().clone()
    pruned = prune_magnitude(model, 0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruned.hold(optimizer)
    train(model, optimizer)
    trained = model[0].weight.detach().clone()
    mask = pruned.masks["0.weight"]
    pruned.restore()
    assert torch.equal(model[0].weight[~mask], start[~mask])
    assert torch.equal(model[0].weight[mask], trained[mask])
    train(model, optimizer, 1)
    assert (model[0].weight != 0).all()


def test_an_optimizer_of_another_model_is_refused() -> None:
    pruned = prune_magnitude(linears((6, 5)), 0.5)
    with pytest.raises(ValueError, match="trains none"):
        pruned.hold(torch.optim.SGD(linears((6, 5)).parameters(), lr=0.1))
    pruned.restore()


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
        cut = {row.threshold for row in pruned.layers if row.threshold}
        smallest_kept = min(model.get_parameter(n)[m].abs().min().item() for n, m in pruned.masks.items() if m.any())
        assert max(cut) < smallest_kept, "one threshold for all"
        lines = pruned.table().splitlines()
        assert lines[-1].split() == ["total", f"{pruned.n:,}", f"{pruned.zeros:,}", f"{pruned.sparsity:.4f}"]
        assert any(line.startswith("mid_block") for line in lines)
        assert len(pruned.table(depth=None).splitlines()) == len(pruned.layers) + 4
        assert sum(n for n, _ in pruned.by_block(2).values()) == pruned.n
        found = json.loads(json.dumps(pruned.to_dict()))
        assert found["zeros"] == pruned.zeros and found["ignored"]["conv_in.weight"] == "ends"
        assert "sparsity 0.5" in repr(pruned)
    assert "no longer active" in repr(pruned)
    with pytest.raises(ValueError, match="depth=0"):
        pruned.by_block(0)


def test_a_mask_that_does_not_fit_is_refused() -> None:
    model = linears((4, 3))
    for name, mask in {
        "0.wight": torch.ones(3, 4, dtype=torch.bool),
        "0.weight": torch.ones(4, 3, dtype=torch.bool),
    }.items():
        with pytest.raises(ValueError, match="fits no such parameter"):
            PrunedWeights(model, {name: mask}, "mine", 0.5)
    with pytest.raises(ValueError, match="fits no such parameter"):
        PrunedWeights(model, {"0.weight": torch.ones(3, 4)}, "mine", 0.5)


def test_gradients_flow_and_inputs_of_the_unet_run_while_pruned() -> None:
    model = unet()
    with prune_magnitude(model, 0.5):
        model(**inputs_of("unet"))[0].sum().backward()
        assert model.conv_in.weight.grad is not None
