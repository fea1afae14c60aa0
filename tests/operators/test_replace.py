"""Each modification keeps the shapes, and computes what its description says."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from tiny_denoisers import DENOISERS, make, run
from torch import nn

import pruning_lib as pl
from pruning_lib.operators.find import KINDS, find_operators
from pruning_lib.operators.plan import plan_for
from pruning_lib.operators.remove import change_operators
from pruning_lib.operators.replace import replacement


@pytest.mark.parametrize("name", DENOISERS)
def test_every_modification_of_every_operator_runs_and_changes_the_output(name):
    model = make(name)
    operators, whole = find_operators(model, tuple(KINDS)), run(model, 1)
    macs, params = pl.count_macs(model).macs, sum(p.numel() for p in model.parameters())
    for op in operators:
        for how in op.modifications:
            with change_operators(model, plan_for({op.path: how}, operators)):
                out = run(model, 1)
                assert out.shape == whole.shape and torch.isfinite(out).all(), (op.path, how)
                assert not torch.equal(out, whole), (op.path, how)
                assert sum(p.numel() for p in model.parameters()) < params, (op.path, how)
    assert torch.equal(run(model, 1), whole)
    every = plan_for([op.path for op in operators if op.kind not in ("linear", "norm")], operators)
    with change_operators(model, every):
        assert pl.count_macs(model).macs < macs


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_pointwise_equals_the_convolution_where_the_input_is_flat():
    conv = nn.Conv2d(3, 5, 3, padding=1)
    flat = noise(2, 3, 1, 1).expand(2, 3, 6, 6)
    inner = conv(flat)[..., 1:-1, 1:-1]  # at the edge the window also sees zeros
    assert torch.allclose(replacement(conv, "pointwise")(flat)[..., 1:-1, 1:-1], inner, atol=1e-6)


def test_low_rank_is_exact_for_a_layer_of_low_rank_and_halves_the_weights():
    layer = nn.Linear(16, 16)
    with torch.no_grad():
        layer.weight.copy_(noise(16, 4) @ noise(4, 16))
    small = replacement(layer, "low rank")
    assert torch.allclose(small(noise(3, 16)), layer(noise(3, 16)), atol=1e-4)
    assert sum(p.numel() for p in small.parameters()) == 16 * 16 // 2 + 16
    conv = nn.Conv2d(16, 8, 1, bias=False)
    with torch.no_grad():
        conv.weight[2:] = 0
    assert torch.allclose(replacement(conv, "low rank")(noise(1, 16, 4, 4)), conv(noise(1, 16, 4, 4)), atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"out_channels": 6}, {"down": True}, {"up": True, "out_channels": 6}])
def test_shortcut_is_the_block_with_a_branch_of_zero(options):
    block = ResnetBlock2D(in_channels=4, temb_channels=3, groups=2, output_scale_factor=2.0, **options)
    short = replacement(block, "shortcut")
    with torch.no_grad():
        block.conv2.weight.zero_(), block.conv2.bias.zero_()
    assert torch.equal(short(noise(1, 4, 8, 8), noise(1, 3)), block(noise(1, 4, 8, 8), noise(1, 3)))


@pytest.mark.parametrize("size", [8, 7])
@pytest.mark.parametrize("how", ["resample", "pointwise"])
def test_samplers_keep_their_sizes(size, how):
    down = Downsample2D(4, use_conv=True, name="op")
    assert replacement(down, how)(noise(1, 4, size, size)).shape == down(noise(1, 4, size, size)).shape
    up = Upsample2D(4, use_conv=True)
    for extra in ((), ((15, 15),)):
        assert replacement(up, how)(noise(1, 4, size, size), *extra).shape == up(noise(1, 4, size, size), *extra).shape


def test_a_sampler_that_holds_its_convolution_twice_loses_both():
    down = Downsample2D(4, use_conv=True, name="conv")
    small = replacement(down, "pointwise")
    assert small.conv is small.Conv2d_0 and small.conv.kernel_size == (1, 1)
    assert down.conv.kernel_size == (3, 3)


def test_half_precision_and_meta_stay_what_they_are_and_unknown_names_are_refused():
    assert replacement(nn.Linear(8, 8).half(), "low rank")[0].weight.dtype == torch.float16
    assert replacement(nn.Conv2d(4, 4, 3, device="meta"), "pointwise").weight.is_meta
    with pytest.raises(ValueError, match="'lowrank' is unknown. Did you mean 'low rank'"):
        replacement(nn.Linear(4, 4), "lowrank")
