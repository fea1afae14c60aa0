"""Zeros among the weights: the same masks on any device, exact restoring, and 2:4 kernels."""

from __future__ import annotations

import copy

import pytest
import torch
from on_gpu import draw, relative, same, state
from torch import nn

import pruning_lib as pl
from pruning_lib.denoisers import example_inputs
from pruning_lib.weights.magnitude import SCOPES
from pruning_lib.weights.nm import prune_nm, to_semi_structured


@pytest.mark.parametrize("scope", SCOPES)
def test_magnitude_pruning_and_exact_restore(scope, shared, half):
    pipe = shared(half if scope == "global" else torch.float32)
    before, plain = state(pipe.unet), draw(pipe, steps=2)
    on_cpu = pl.prune_magnitude(copy.deepcopy(pipe.unet).cpu(), 0.6, scope=scope)
    with pl.prune_magnitude(pipe.unet, 0.6, scope=scope) as pruned:
        assert pruned.zeros == on_cpu.zeros
        weights = dict(pipe.unet.named_parameters())
        for name, mask in pruned.masks.items():
            assert torch.equal(mask.cpu(), on_cpu.masks[name]), f"another mask than on the CPU: {name}"
            assert not weights[name][~mask].any()
        assert not torch.equal(draw(pipe, steps=2), plain)
    assert same(pipe.unet, before) and torch.equal(draw(pipe, steps=2), plain)


def test_restore_after_a_move(device):
    unet = pl.load("emoji-sd").unet
    before = state(unet)
    pruned = pl.prune_magnitude(unet, 0.5)
    unet.to(device)
    pruned.reapply()
    assert not same(unet, before)
    pruned.restore()
    assert same(unet, before)


@torch.no_grad()
def test_two_of_four(device, half):
    dense = pl.load("emoji-sd", device=device, dtype=half).unet
    prune_nm(dense).finish()
    sparse = copy.deepcopy(dense)
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):
        with pytest.raises(ValueError, match=r"capability 8\.0|need 8\.0"):
            to_semi_structured(sparse)
        assert same(sparse, state(dense)), "nothing is changed then"
        return
    stayed = to_semi_structured(sparse)
    layers = {path: layer for path, layer in dense.named_modules() if isinstance(layer, nn.Linear)}
    assert len(layers) - len(stayed) > 100 and all("multiple of" in why for why in stayed.values())
    for path in layers.keys() - stayed.keys():
        x = torch.randn(256, layers[path].in_features, generator=torch.Generator().manual_seed(0)).to(device, half)
        # Both add up in float32 and round once to float16, by 0.0005 of a number at most.
        assert relative(sparse.get_submodule(path)(x), layers[path](x)) < 2e-3, path
    inputs = example_inputs(dense, batch=2, device=device, dtype=half)
    # A hundred such roundings, one after the other.
    assert relative(sparse(**inputs).sample, dense(**inputs).sample) < 2e-2
