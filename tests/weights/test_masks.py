"""What may be pruned, and the handle: restored bit for bit, kept through training, refused twice."""

from __future__ import annotations

import copy
import gc
import json
import math
from types import SimpleNamespace

import pytest
import torch
from small_denoisers import build
from small_models import MODELS, bits, linears
from torch import nn

from pruning_lib.weights.magnitude import prune_magnitude
from pruning_lib.weights.masks import PrunedWeights
from pruning_lib.weights.select import IGNORE, prunable_weights


def test_every_bit_comes_back_also_after_an_error_and_once_only() -> None:
    model = linears((4, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[-0.0, 0.0, 1e-42, -1e-42], [1, -2, 3, -4]]))
    before, start = bits(model), copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError, match="inside"), prune_magnitude(model, 0.5) as pruned:
        row = model[0].weight[0].detach()
        assert torch.equal(row, torch.zeros(4)) and not torch.signbit(row).any() and pruned.zeros == 4
        raise RuntimeError("inside")
    assert bits(model) == before and not pruned.active
    with prune_magnitude(model, 0.5) as cast:
        model.half()
        cast.reapply()
        assert (model[0].weight == 0).sum() == 4
    twin = linears((4, 2))
    twin.load_state_dict(start)
    assert bits(model) == bits(twin.half()), "a cast while pruned restores cast values"
    with torch.no_grad():
        model[0].weight.fill_(7)
    assert pruned.restore() is model and (model[0].weight == 7).all()
    with pytest.raises(ValueError, match="no longer pruned"):
        pruned.reapply()


def test_pruning_twice_is_refused_also_through_a_part_and_a_copy_is_free(tmp_path) -> None:
    model = build()
    with prune_magnitude(model, 0.5):
        for part in (model, model.mid_block):
            with pytest.raises(ValueError, match=r"pruned already.*restore\(\)"):
                prune_magnitude(part, 0.7)
        prune_magnitude(copy.deepcopy(model), 0.7)
        torch.save(model, tmp_path / "model.pt")
        prune_magnitude(torch.load(tmp_path / "model.pt", weights_only=False), 0.7)
        assert list(model.state_dict()) == list(build().state_dict())
    with prune_magnitude(model.mid_block, 0.7), pytest.raises(ValueError, match="mid_block"):
        prune_magnitude(model, 0.5)


def test_finish_keeps_the_zeros_and_pruning_again_adds_to_them() -> None:
    model = linears((10, 10))
    first = prune_magnitude(model, 0.5)
    assert first.finish() is model and not first.active
    with prune_magnitude(model, 0.8) as second:
        assert not (second.masks["0.weight"] & ~first.masks["0.weight"]).any()
        first.restore()  # it has nothing to give back, and does not touch the other's
        assert (model[0].weight == 0).sum() == 80
    prune_magnitude(model, 0.6)
    gc.collect()  # a lost handle leaves the zeros and frees the module
    with prune_magnitude(model, 0.7):
        assert (model[0].weight == 0).sum() == 70
    assert (model[0].weight == 0).sum() == 60


def test_zeros_grow_in_training_until_they_are_set_again_and_restoring_keeps_what_was_trained() -> None:
    model = linears((6, 5), (5, 4))
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    pruned = prune_magnitude(model, 0.6)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    model(torch.randn(8, 6, generator=torch.Generator().manual_seed(0))).square().sum().backward()
    optimizer.step()
    assert any(model.get_parameter(n)[~m].any() for n, m in pruned.masks.items()), "the test could not fail"
    pruned.reapply()
    trained = {n: p.detach().clone() for n, p in model.named_parameters()}
    pruned.restore()
    for name, mask in pruned.masks.items():
        weight = model.get_parameter(name)
        assert not trained[name][~mask].any() and torch.equal(weight[~mask], start[name][~mask])
        assert torch.equal(weight[mask], trained[name][mask]) and (weight[mask] != start[name][mask]).any()


def test_rows_table_and_dict_say_what_was_done_and_masks_must_fit() -> None:
    model = build()
    with prune_magnitude(model, 0.5) as pruned:
        assert pruned.n == sum(row.n for row in pruned.layers) and pruned.sparsity == pruned.zeros / pruned.n
        cut = max(row.threshold for row in pruned.layers if row.threshold)
        kept = min(model.get_parameter(n)[m].abs().min().item() for n, m in pruned.masks.items() if m.any())
        assert cut < kept, "one threshold for all"
        last = pruned.table().splitlines()[-1].split()
        assert last == ["total", f"{pruned.n:,}", f"{pruned.zeros:,}", f"{pruned.sparsity:.4f}"]
        assert sum(n for n, _ in pruned.by_block(2).values()) == pruned.n
        found = json.loads(json.dumps(pruned.to_dict()))
        assert found["zeros"] == pruned.zeros and found["ignored"]["conv_in.weight"] == "ends"
    assert "no longer active" in repr(pruned)
    whole = torch.ones(3, 4, dtype=torch.bool)
    for name, mask in (("0.wight", whole), ("0.weight", whole.T), ("0.weight", whole.float())):
        with pytest.raises(ValueError, match="fits no such parameter"):
            PrunedWeights(linears((4, 3)), {name: mask}, "mine", 0.5)


ENDS = {
    "unet": "conv_in conv_out",
    "dit": "pos_embed.proj proj_out_1 proj_out_2",
    "vae": "quant_conv post_quant_conv encoder.conv_in encoder.conv_out decoder.conv_in decoder.conv_out",
    "clip_text": "",
}


@pytest.mark.parametrize("name", MODELS)
def test_what_each_model_leaves_alone(name) -> None:
    model = MODELS[name]()
    selection = prunable_weights(model)
    by_group = {group: {n for n, why in selection.ignored.items() if why == group} for group in IGNORE}
    assert by_group["ends"] == {f"{path}.weight" for path in ENDS[name].split()}
    assert (by_group["norms"] or name == "dit") and all("norm" in n for n in by_group["norms"])  # DiT's have no weights
    if name == "clip_text":
        assert {n.split(".")[-2] for n in by_group["embeddings"]} == {"token_embedding", "position_embedding"}
    assert sorted([*selection.weights, *selection.ignored]) == sorted(n for n, _ in model.named_parameters())
    owners = [model.get_submodule(chosen.removesuffix(".weight")) for chosen in selection.weights]
    assert all(isinstance(owner, (nn.Linear, nn.Conv2d)) for owner in owners)


def test_patterns_spare_paths_names_and_all_below() -> None:
    model = build()
    names = [n for n, _ in model.named_parameters()]
    assert list(prunable_weights(model, []).weights) == names
    for pattern, spared in (
        ("mid_block", [n for n in names if n.startswith("mid_block.")]),
        ("*.attn2.*", [n for n in names if ".attn2." in n]),
        ("mid_block.resnets.0.conv1.weight", ["mid_block.resnets.0.conv1.weight"]),
    ):
        assert list(prunable_weights(model, [pattern]).ignored) == spared != []


def test_tied_weights_count_once_and_packed_projections_are_weights() -> None:
    model = linears((4, 4), (4, 4))
    model[1].weight = model[0].weight
    assert list(prunable_weights(model).weights) == ["0.weight"]
    assert "in_proj_weight" in prunable_weights(nn.MultiheadAttention(8, 2)).weights


def test_what_cannot_be_pruned_is_refused() -> None:
    damaged, whole_numbers = linears((4, 3), (3, 2)), nn.Linear(2, 2)
    damaged[1].weight.data[0, 0] = math.nan
    whole_numbers.weight = nn.Parameter(torch.ones(2, 2, dtype=torch.int8), requires_grad=False)
    for module, ignore, words in (
        (SimpleNamespace(components={}), IGNORE, r"pipe\.unet"),
        (build(), "ends", "give a list"),
        (build(), ["mid_blok"], "Did you mean 'mid_block"),
        (build(), ["*"], "no weights to prune"),
        (damaged, IGNORE, r"1\.weight holds NaN or infinity"),
        (nn.Linear(4, 3, device="meta"), IGNORE, "meta device"),
        (whole_numbers, IGNORE, "int8"),
    ):
        with pytest.raises((TypeError, ValueError), match=words):
            prunable_weights(module, ignore)
