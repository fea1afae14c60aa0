"""Each modification keeps the shapes, and computes what its description says."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from small_denoisers import build
from tiny_denoisers import DENOISERS, make, run
from torch import nn

from pruning_lib.denoisers import example_inputs
from pruning_lib.operators.find import KINDS, find_operators
from pruning_lib.operators.plan import plan_for
from pruning_lib.operators.remove import Replacement
from pruning_lib.operators.replace import Untold, replacement, trial


@pytest.mark.parametrize("name", DENOISERS)
def test_every_modification_of_every_operator_runs_and_changes_the_output(name):
    model = make(name)
    operators, whole = find_operators(model, tuple(KINDS)), run(model, 1)
    params = sum(p.numel() for p in model.parameters())
    for op in operators:
        for how in op.modifications:
            with Replacement(model, plan_for({op.path: how}, operators)):
                out = run(model, 1)
                assert out.shape == whole.shape and torch.isfinite(out).all(), (op.path, how)
                assert not torch.equal(out, whole), (op.path, how)
                assert sum(p.numel() for p in model.parameters()) < params, (op.path, how)
    assert torch.equal(run(model, 1), whole)


def _pixart() -> nn.Module:
    return make("pixart")


def _with_added_keys() -> nn.Module:
    return UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(32, 64),
        cross_attention_dim=32,
        attention_head_dim=8,
        encoder_hid_dim=16,
        addition_embed_type="text",
        addition_embed_type_num_heads=2,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    )


def _rescaled() -> nn.Module:
    return build("unconditional", in_channels=4, out_channels=4, mid_block_scale_factor=2**0.5)


def _joint() -> nn.Module:
    return build("sd3")


@pytest.mark.parametrize(
    ("model", "path", "how"),
    [
        (_pixart, "transformer_blocks.0.attn2", "zero"),  # its feed-forward reads norm2
        (_with_added_keys, "down_blocks.1.attentions.0", "identity"),  # whatever its residual_connection says
        (_rescaled, "mid_block.attentions.0", f"identity / {2**0.5!r}"),
        (_joint, "transformer_blocks.0.attn", "zero (hidden_states, encoder_hidden_states)"),
    ],
)
def test_what_a_trial_finds_is_the_branch_with_its_last_layer_at_zero(model, path, how):
    model = model().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.1 * torch.randn_like(weight)
        inputs = example_inputs(model, device="cpu", tokens=7)
        operators = find_operators(model)
        assert operators[path].modifications == (how,)
        with Replacement(model, plan_for([path], operators)):
            found = model(**inputs).sample
        attention = model.get_submodule(path)
        for last in (attention.to_out[0], getattr(attention, "to_add_out", None)):
            if last is not None:
                last.weight.zero_(), last.bias.zero_()
        wanted = model(**inputs).sample
    assert torch.allclose(found, wanted, atol=1e-5 * wanted.abs().max())


def test_what_does_more_than_add_is_refused_with_the_reason():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.scale = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 4)

        def forward(self, x):
            return (x + self.conv(x)) * (1 + self.scale(x.mean((2, 3))))[..., None, None]

    assert trial(Scaled(), (noise(1, 4, 4, 4),), {}) == "identity"
    with pytest.raises(Untold, match="do more than add"):
        trial(Scaled(), (noise(1, 4, 4, 4),), {}, alone=True)
    with pytest.raises(Untold, match="neither zeros nor what came in"):
        trial(nn.Sequential(nn.LayerNorm(4), nn.Identity()), (noise(1, 4),), {})
    with pytest.raises(Untold, match="zeros of a shape"):
        trial(nn.Sequential(nn.Linear(4, 5)), (noise(1, 4),), {})


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_cheaper_layers_are_exact_where_they_can_be():
    conv = nn.Conv2d(3, 5, 3, padding=1)
    flat = noise(2, 3, 1, 1).expand(2, 3, 6, 6)
    inner = conv(flat)[..., 1:-1, 1:-1]  # at the edge the window also sees zeros
    assert torch.allclose(replacement(conv, "pointwise")(flat)[..., 1:-1, 1:-1], inner, atol=1e-6)
    layer, thin = nn.Linear(16, 16), nn.Conv2d(16, 8, 1, bias=False)
    layer.weight.copy_(noise(16, 4) @ noise(4, 16))
    thin.weight[2:] = 0
    small = replacement(layer, "low rank")
    assert torch.allclose(small(noise(3, 16)), layer(noise(3, 16)), atol=1e-4)
    assert sum(p.numel() for p in small.parameters()) == 16 * 16 // 2 + 16
    assert torch.allclose(replacement(thin, "low rank")(noise(1, 16, 4, 4)), thin(noise(1, 16, 4, 4)), atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"out_channels": 6}, {"down": True}, {"up": True, "out_channels": 6}])
def test_shortcut_is_the_block_with_a_branch_of_zero(options):
    block = ResnetBlock2D(in_channels=4, temb_channels=3, groups=2, output_scale_factor=2.0, **options)
    short = replacement(block, "shortcut")
    with torch.no_grad():
        block.conv2.weight.zero_(), block.conv2.bias.zero_()
    assert torch.equal(short(noise(1, 4, 8, 8), noise(1, 3)), block(noise(1, 4, 8, 8), noise(1, 3)))


def test_samplers_keep_their_sizes_and_their_type_and_unknown_names_are_refused():
    down, up = Downsample2D(4, use_conv=True, name="conv"), Upsample2D(4, use_conv=True)
    for how in ("resample", "pointwise"):
        for size in (8, 7):
            x = noise(1, 4, size, size)
            assert replacement(down, how)(x).shape == down(x).shape and replacement(up, how)(x).shape == up(x).shape
        assert replacement(up, how)(x, (15, 15)).shape == up(x, (15, 15)).shape
    with pytest.raises(ValueError, match="'rezample' is unknown. Did you mean 'resample'"):
        replacement(down, "rezample")
    small = replacement(down.half(), "pointwise")  # it holds its convolution under two names
    assert small.conv is small.Conv2d_0 and (small.conv.kernel_size, down.conv.kernel_size) == ((1, 1), (3, 3))
    assert small.conv.weight.dtype == torch.float16
