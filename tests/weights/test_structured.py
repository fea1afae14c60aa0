"""Smaller UNets, of fewer channels and of fewer blocks: what is kept, that diffusers reloads them, what is refused."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from small_denoisers import build
from small_models import run

import pruning_lib as pl
from pruning_lib.finetuning.denoising import DenoisingTask
from pruning_lib.structured.blocks import remove_blocks
from pruning_lib.structured.channels import ChannelGroup, choose
from pruning_lib.structured.structured import accumulate_gradients, narrow_widths, prune_structured

CONV = "down_blocks.0.resnets.0.conv1"


def tiny(**options) -> UNet2DConditionModel:
    """A UNet with a transformer level and a plain one, random weights."""
    return build(**{"block_out_channels": (16, 32), "attention_head_dim": (2, 4), **options})


def three_levels(**options) -> UNet2DConditionModel:
    """A UNet with two pairs a level, as BK-SDM's recipe needs it."""
    down = ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D")
    up = ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D")
    sizes = {"block_out_channels": (8, 16, 16), "layers_per_block": 2, "attention_head_dim": (1, 2, 2)}
    return build(**{**sizes, "down_block_types": down, "up_block_types": up, **options})


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    b = b.state_dict()
    return all(torch.equal(value, b[name]) for name, value in a.state_dict().items())


WAYS = {
    "random": (tiny, lambda unet: prune_structured(unet, 0.5, importance="random")),
    "tiny": (three_levels, lambda unet: remove_blocks(unet, "tiny")),
}


@pytest.mark.parametrize(("make", "prune"), WAYS.values(), ids=WAYS)
def test_a_smaller_model_is_an_ordinary_one_and_the_given_one_stays(make, prune, tmp_path):
    unet, twin = make(), make()
    small = prune(unet)
    assert same(unet, twin), "the given model was changed"
    shared = {p.data_ptr() for p in unet.parameters()} & {p.data_ptr() for p in small.unet.parameters()}
    assert not shared, "the smaller model shares weights with the given one"
    assert small.params_before == sum(p.numel() for p in unet.parameters())
    assert small.params_after == sum(p.numel() for p in small.unet.parameters()) < small.params_before
    assert small.macs_after == pl.count_macs(small.unet).macs < small.macs_before
    small.unet.save_pretrained(tmp_path)
    again, info = UNet2DConditionModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()) and same(again, small.unet)
    # not bit for bit: where in memory a weight lies decides how the CPU sums
    assert torch.allclose(run(again), run(small.unet), atol=1e-5) and run(again).std() > 0


def test_weights_that_stay_are_those_of_the_whole_model_and_half_precision_stays():
    unet, half = tiny(), prune_structured(tiny().half(), 0.5).unet
    narrow, whole = prune_structured(unet, 0.5), prune_structured(unet, 0.0)
    assert tuple(narrow.unet.config.block_out_channels) == narrow.widths_after == (8, 16)
    rows, columns = narrow.kept[CONV], narrow.kept["conv_in"]
    assert torch.equal(narrow.unet.get_submodule(CONV).weight, unet.get_submodule(CONV).weight[rows][:, columns])
    assert half.dtype == torch.float16
    assert torch.allclose(half.conv_in.weight.float(), narrow.unet.conv_in.weight, atol=1e-3)
    assert whole.kept == {} and whole.params_ratio == whole.macs_ratio == 0 and torch.equal(run(whole.unet), run(unet))


def test_other_unets():
    deep = {"transformer_layers_per_block": 2, "mid_block_type": None}
    deep |= {"use_linear_projection": True, "attention_head_dim": 4, "norm_num_groups": 8}
    for options in (deep, {"block_out_channels": (32, 32)}):
        unet = tiny(**options)
        small = prune_structured(unet, 0.5)
        assert small.widths_after == tuple(c // 2 for c in unet.config.block_out_channels)
        assert run(small.unet).isfinite().all()


def test_channels_of_zeros_go_first_and_cost_nothing():
    """Channels that do nothing, and dropped halves of heads that are zero: what is left computes the same."""
    unet = tiny()
    for block in (unet.down_blocks[0].resnets[0], unet.up_blocks[1].resnets[0]):
        dead = torch.arange(0, 16, 2)  # one half of every norm group of four: two of four
        for weight in (block.conv1.weight, block.conv1.bias, block.time_emb_proj.weight, block.time_emb_proj.bias):
            weight.data[dead] = 0
        block.conv2.weight.data[:, dead] = 0
    attention = unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1
    dead = (torch.arange(16) % 8 >= 4).nonzero().flatten()  # the second half of both heads
    for layer in (attention.to_q, attention.to_k, attention.to_v):
        layer.weight.data[dead] = 0
    attention.to_out[0].weight.data[:, dead] = 0
    small = prune_structured(unet, widths=(8, 32))
    for path in (CONV, "up_blocks.1.resnets.0.conv1"):
        assert small.kept[path].tolist() == list(range(1, 16, 2))
    inner = "down_blocks.0.attentions.0.transformer_blocks.0"
    coming = small.kept[f"{inner}.ff.net.2"]
    x = torch.zeros(1, 6, 16)
    x[..., coming] = torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(1))
    found = small.unet.get_submodule(f"{inner}.attn1")(x[..., coming])
    assert torch.allclose(found, attention(x)[..., coming], atol=1e-6), "the scores of attention changed"


def test_norm_groups_heads_and_gates_lose_equally_and_widths_are_rounded_to_what_fits():
    scores = torch.tensor([9.0, 8, 7, 6, 0, 1, 2, 3])
    paired = scores + torch.tensor([0, 0, 1.0, 1] * 2)  # of a gate's pairs (0, 4), (1, 5), ...: 9, 9, 11, 11
    for options, values, kept in (
        ({"normed": True}, scores, [0, 1, 6, 7]),
        ({}, scores, [0, 1, 2, 3]),
        ({"gated": True}, paired, [2, 3, 6, 7]),
        ({"heads": 4}, scores, [0, 2, 5, 7]),
    ):
        assert choose(ChannelGroup(None, "x", 0, 8, **options), values, 0.5, 2).tolist() == kept
    unet = pl.denoiser_on_meta("emoji-sd")
    assert narrow_widths(unet, 0) == (32, 64, 96, 96) and narrow_widths(unet, 0.25) == (32, 48, 80, 80)
    assert narrow_widths(unet, 0.99) == (16, 32, 16, 16), "neighbours of different width stay different"


def test_blocks_of_stable_diffusion_leave_the_published_size():
    """Kim et al. 2023, table 1: 0.33 B parameters in the smallest denoiser, of which all the rules took their share."""
    small = remove_blocks(pl.denoiser_on_meta("sd-1.5"), "tiny")
    assert small.params_after / 1e6 == pytest.approx(323.4, abs=0.05)


def test_the_blocks_that_stay_keep_their_weights_their_skips_and_their_type():
    unet = three_levels().half()
    base, small, low = (remove_blocks(unet, variant) for variant in ("base", "small", "tiny"))
    stay = {path: path for path in ("down_blocks.0.resnets.0", "down_blocks.1.attentions.0", "mid_block")}
    # of three on the way up the third takes the skip from the level above
    stay |= {"up_blocks.1.resnets.1": "up_blocks.1.resnets.2", "up_blocks.2.attentions.1": "up_blocks.2.attentions.2"}
    assert base.unet.dtype == torch.float16
    assert all(same(base.unet.get_submodule(new), unet.get_submodule(old)) for new, old in stay.items())
    gone = [f"{side}_blocks.{i}.resnets.1" for side in ("down", "up") for i in range(3)]
    gone += [f"down_blocks.{i}.attentions.1" for i in (0, 1)] + [f"up_blocks.{i}.attentions.1" for i in (1, 2)]
    assert set(base.removed) == set(gone)
    assert set(small.removed) - set(base.removed) == {"mid_block"} and small.unet.mid_block is None
    assert low.unet.config.block_out_channels == (8, 16) and low.unet.config.attention_head_dim == (1, 2)
    assert "down_blocks.1.downsamplers.0" in low.removed and "up_blocks.0.resnets.2" in low.removed
    assert same(low.unet.up_blocks[0].resnets[1], unet.up_blocks[1].resnets[2])


def test_wrong_arguments_and_a_missing_torch_pruning(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_pruning", None)  # only channels need it, and arguments come first
    for model, options, words in (
        (tiny(), {"ratio": 0.5}, r'needs torch-pruning.*pip install "pruning-lib\[structured\]"'),
        (tiny(), {"ratio": 1.0}, r"ratio=1.0.*\[0, 1\)"),
        (tiny(), {}, "ratio=.*widths="),
        (tiny(), {"widths": (16,)}, "1 entries; this UNet has 2 levels"),
        (tiny(), {"widths": (15, 32)}, r"widths\[0\]=15; allowed: 4, 8, 12, 16"),
        (tiny(), {"widths": (16, 16)}, "must stay different"),
        (tiny(), {"ratio": 0.5, "importance": "magnitud"}, "Did you mean 'magnitude'"),
        (tiny(), {"ratio": 0.5, "importance": "taylor"}, "DenoisingTask.of"),
        (build("dit"), {}, "DiTTransformer2DModel"),
        (SimpleNamespace(components={}), {}, "pipe.unet"),
    ):
        with pytest.raises((TypeError, ValueError, ModuleNotFoundError), match=words):
            prune_structured(model, **options)
    for model, variant, words in (
        (build("dit"), "base", "DiTTransformer2DModel"),
        (three_levels(), "bse", "Did you mean 'base'"),
        (tiny(), "base", "layers_per_block=1: a level with one pair"),
        (three_levels(mid_block_type=None), "small", "no mid block"),
        (three_levels(block_out_channels=(8, 16, 24)), "tiny", r"equally wide.*\(8, 16, 24\)"),
    ):
        with pytest.raises((TypeError, ValueError), match=words):
            remove_blocks(model, variant)


@pytest.fixture(scope="module")
def task():
    def draw(*shape):
        return torch.randn(*shape, generator=torch.Generator().manual_seed(3))

    schedule = DDPMScheduler(prediction_type="v_prediction")
    return DenoisingTask(draw(8, 4, 8, 8), draw(8, 5, 12), draw(1, 5, 12), schedule)


def test_taylor_uses_only_timesteps_that_matter():
    losses = {62: 1.0, 187: 0.05, 312: 0.04, 437: 0.5, 562: 0.06, 687: 0.0, 812: 0.01, 937: 0.2}
    seen = []

    def loss_at(unet, timestep, generator, batch):
        seen.append((timestep, torch.is_grad_enabled()))
        return unet.conv_in.bias.sum() * 0 + losses[timestep]

    fake = SimpleNamespace(levels=1000, loss_at=loss_at)
    used = accumulate_gradients(tiny(), fake, threshold=0.05, count=8, batch=4)
    assert used == [62, 187, 437, 562, 937]
    assert seen == [(t, False) for t in losses] + [(t, True) for t in used]


def test_taylor_gradients_are_those_of_the_summed_loss_and_bad_numbers_are_named(task):
    unet = tiny()
    assert accumulate_gradients(unet, task, threshold=0, count=2, batch=2) == [250, 750]
    found = unet.conv_in.weight.grad.clone()
    unet.zero_grad()
    sum(task.loss_at(unet, t, torch.Generator().manual_seed(t), 2) for t in (250, 750)).backward()
    assert torch.allclose(found, unet.conv_in.weight.grad, rtol=1e-4, atol=1e-7)
    unet.conv_out.bias.data[0] = float("nan")
    for options, words in (({"threshold": 1.0}, "threshold"), ({"count": 0}, "count"), ({"count": 2}, "not finite")):
        with pytest.raises(ValueError, match=words):
            accumulate_gradients(unet, task, **options)


def test_taylor_keeps_what_the_loss_depends_on(task):
    """Channels that nobody reads, written with large weights: magnitude is fooled, the product is not."""
    unet = tiny()
    block = unet.down_blocks[0].resnets[0]
    useless = torch.tensor([0, 1, 4, 5, 8, 9, 12, 13])  # two of the four channels of each norm group
    block.conv1.weight.data[useless] *= 10
    block.conv2.weight.data[:, useless] = 0
    magnitude = prune_structured(unet, widths=(8, 32))
    taylor = prune_structured(unet, widths=(8, 32), importance="taylor", task=task, timesteps=2)
    assert magnitude.kept[CONV].tolist() == useless.tolist()
    assert taylor.kept[CONV].tolist() == (useless + 2).tolist()
