"""Narrower UNets: what is kept, that diffusers reloads them, and what is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from small_models import dit

import pruning_lib as pl
from pruning_lib.denoisers import example_inputs
from pruning_lib.finetuning.denoising import DenoisingTask
from pruning_lib.structured.channels import ChannelGroup, choose
from pruning_lib.structured.structured import accumulate_gradients, narrow_widths, prune_structured, width_unit


def tiny(**options) -> UNet2DConditionModel:
    """A UNet with a transformer level and a plain one, random weights."""
    config = dict(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        cross_attention_dim=12,
        norm_num_groups=4,
        attention_head_dim=(2, 4),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    torch.manual_seed(0)
    return UNet2DConditionModel(**{**config, **options}).eval()


def run(unet) -> torch.Tensor:
    with torch.no_grad():
        return unet(**example_inputs(unet, device="cpu", tokens=5)).sample


@pytest.fixture(scope="module")
def pipe():
    return pl.load("emoji-sd")


@pytest.fixture(scope="module")
def task():
    def draw(*shape):
        return torch.randn(*shape, generator=torch.Generator().manual_seed(3))

    schedule = DDPMScheduler(prediction_type="v_prediction")
    return DenoisingTask(draw(8, 4, 8, 8), draw(8, 5, 12), draw(1, 5, 12), schedule)


@pytest.mark.parametrize("importance", ["magnitude", "random"])
def test_a_narrow_model_is_an_ordinary_one(tmp_path, importance):
    unet = tiny()
    before, weights = run(unet), copy.deepcopy(unet.state_dict())
    small = prune_structured(unet, 0.5, importance=importance)
    assert tuple(small.unet.config.block_out_channels) == small.widths_after == (8, 16)
    assert small.params_after == sum(p.numel() for p in small.unet.parameters()) < small.params_before
    assert small.macs_after == pl.count_macs(small.unet).macs and 0.5 < small.macs_ratio < 0.9
    small.unet.save_pretrained(tmp_path)
    again, info = UNet2DConditionModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert all(torch.equal(again.state_dict()[k], v) for k, v in small.unet.state_dict().items())
    # not bit for bit: where in memory a weight lies decides how the CPU sums
    assert torch.allclose(run(again), run(small.unet), atol=1e-5) and run(again).std() > 0
    assert torch.equal(run(unet), before), "the given model was changed"
    assert all(torch.equal(a, b) for a, b in zip(unet.state_dict().values(), weights.values(), strict=True))


@pytest.mark.parametrize(
    "options",
    [
        {"use_linear_projection": True},
        {"attention_head_dim": 4, "norm_num_groups": 8},
        {"transformer_layers_per_block": 2, "layers_per_block": 2},
        {"block_out_channels": (32, 32)},
        {"mid_block_type": None},
        {
            "block_out_channels": (16, 32, 32),
            "attention_head_dim": 2,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        },
    ],
)
def test_other_unets(options):
    unet = tiny(**options)
    small = prune_structured(unet, 0.5)
    assert small.widths_after == tuple(c // 2 for c in unet.config.block_out_channels)
    assert run(small.unet).isfinite().all()


def test_ratio_zero_is_the_same_model_bit_for_bit():
    unet = tiny()
    small = prune_structured(unet, 0.0)
    assert small.kept == {} and small.params_ratio == 0
    assert torch.equal(run(small.unet), run(unet))


def test_channels_of_zeros_go_first_and_cost_nothing():
    """A model widened by channels that do nothing must shrink back to itself."""
    unet = tiny()
    for block in (unet.down_blocks[0].resnets[0], unet.up_blocks[1].resnets[0]):
        dead = torch.arange(0, 16, 2)  # one half of every norm group of four: two of four
        for weight in (block.conv1.weight, block.conv1.bias, block.time_emb_proj.weight, block.time_emb_proj.bias):
            weight.data[dead] = 0
        block.conv2.weight.data[:, dead] = 0
    small = prune_structured(unet, widths=(8, 32))
    for path in ("down_blocks.0.resnets.0.conv1", "up_blocks.1.resnets.0.conv1"):
        assert small.kept[path].tolist() == list(range(1, 16, 2))


def test_weights_that_stay_are_those_of_the_whole_model():
    unet = tiny()
    small = prune_structured(unet, 0.5)
    path = "down_blocks.0.resnets.0.conv1"
    rows, columns = small.kept[path], small.kept["conv_in"]
    old, new = unet.get_submodule(path).weight, small.unet.get_submodule(path).weight
    assert torch.equal(new, old[rows][:, columns])


def test_scores_of_attention_keep_their_size():
    """Where the dropped channels of every head are zero, the scores must not change at all."""
    unet = tiny()
    attention = unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1
    width = 16 // attention.heads
    keep = torch.cat([torch.arange(width // 2) + h * width for h in range(attention.heads)])
    dead = torch.tensor([i for i in range(16) if i not in keep.tolist()])
    for layer in (attention.to_q, attention.to_k, attention.to_v):
        layer.weight.data[dead] = 0
    attention.to_out[0].weight.data[:, dead] = 0
    small = prune_structured(unet, widths=(8, 32))
    inner = "down_blocks.0.attentions.0.transformer_blocks.0"
    coming = small.kept[f"{inner}.ff.net.2"]
    cut = small.unet.get_submodule(f"{inner}.attn1")
    x = torch.zeros(1, 6, 16)
    x[..., coming] = torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(1))
    wanted = attention(x)[..., coming]
    assert torch.allclose(cut(x[..., coming]), wanted, atol=1e-6)


def test_whole_heads():
    unet = tiny(attention_head_dim=(2, 4))
    small = prune_structured(unet, 0.5, heads="whole")
    assert list(small.unet.config.attention_head_dim) == [1, 2]
    attention = small.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1
    assert attention.heads == 1 and attention.to_q.out_features == 8, "a head keeps its width of 8"
    kept = next(k for path, k in small.kept.items() if path.startswith("down_blocks.0") and "attn1.to_v" in path)
    assert kept.tolist() in (list(range(8)), list(range(8, 16)))
    narrow = prune_structured(unet, 0.5).unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1
    assert narrow.heads == 2


def test_norm_groups_and_gates_lose_equally():
    scores = torch.tensor([9.0, 8, 7, 6, 0, 1, 2, 3])
    group = ChannelGroup(None, "x", 0, 8, normed=True)
    assert choose(group, scores, 0.5, 2, whole_heads=False).tolist() == [0, 1, 6, 7]
    free = ChannelGroup(None, "x", 0, 8)
    assert choose(free, scores, 0.5, 2, whole_heads=False).tolist() == [0, 1, 2, 3]
    gated = ChannelGroup(None, "x", 0, 8, gated=True)  # pairs (0, 4), (1, 5), ...: 9, 9, 9, 9
    assert choose(gated, scores + torch.tensor([0, 0, 1.0, 1] * 2), 0.5, 2, whole_heads=False).tolist() == [2, 3, 6, 7]
    heads = ChannelGroup(None, "x", 0, 8, heads=4)
    assert choose(heads, scores, 0.5, 2, whole_heads=True).tolist() == [0, 1, 2, 3]
    assert choose(heads, scores, 0.5, 2, whole_heads=False).tolist() == [0, 2, 5, 7]


def test_the_time_embedding_survives_with_fewer_waves(pipe):
    unet = pipe.unet
    small = prune_structured(unet, widths=(16, 64, 96, 96)).unet
    t = torch.arange(0, 1000, 7)
    with torch.no_grad():
        old, new = unet.time_embedding(unet.time_proj(t)), small.time_embedding(small.time_proj(t))
    assert small.time_proj.num_channels == 16 and old.shape == new.shape
    assert (old - new).norm() / old.norm() < 0.1


def test_a_pipeline_with_the_smaller_denoiser_is_saved_and_loaded(tmp_path):
    pipe = pl.load("emoji-sd")
    pipe.unet = prune_structured(pipe.unet, 0.25).unet
    call = dict(num_inference_steps=2, output_type="pt")
    one = pipe("lion", generator=torch.Generator().manual_seed(0), **call).images
    pipe.save_pretrained(tmp_path)
    two = pl.load(tmp_path)("lion", generator=torch.Generator().manual_seed(0), **call).images
    assert torch.allclose(torch.as_tensor(one), torch.as_tensor(two), atol=1e-3)


def test_half_precision_stays():
    unet = tiny().half()
    small = prune_structured(unet, 0.5).unet
    assert small.dtype == torch.float16
    kept = prune_structured(tiny(), 0.5).unet
    assert torch.allclose(small.conv_in.weight.float(), kept.conv_in.weight, atol=1e-3)


def test_widths_follow_groups_heads_and_neighbours(pipe):
    unet = pipe.unet
    assert [width_unit(unet, level) for level in range(4)] == [16, 16, 16, 16]
    assert narrow_widths(unet, 0) == (32, 64, 96, 96)
    assert narrow_widths(unet, 0.25) == (32, 48, 80, 80)
    assert narrow_widths(unet, 0.5) == (16, 32, 48, 48)
    assert narrow_widths(unet, 0.99) == (16, 32, 16, 16), "neighbours of different width stay different"
    for ratio in (0.1 * i for i in range(10)):
        widths = narrow_widths(unet, ratio)
        assert widths[2] == widths[3] and widths[0] != widths[1] != widths[2]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"ratio": 1.0}, r"ratio=1.0.*\[0, 1\)"),
        ({"ratio": -0.1}, r"ratio=-0.1"),
        ({}, "ratio=.*widths="),
        ({"widths": (16,)}, "1 entries; this UNet has 2 levels"),
        ({"widths": (15, 32)}, r"widths\[0\]=15; allowed: 4, 8, 12, 16"),
        ({"widths": (16, 64)}, r"widths\[1\]=64; allowed"),
        ({"widths": (16, 16)}, "must stay different"),
        ({"widths": (12, 32), "heads": "whole"}, "and whole heads stay"),
        ({"ratio": 0.5, "importance": "magnitud"}, "Did you mean 'magnitude'"),
        ({"ratio": 0.5, "heads": "all"}, "heads='all'"),
        ({"ratio": 0.5, "importance": "taylor"}, "DenoisingTask.of"),
    ],
)
def test_bad_arguments(arguments, words):
    with pytest.raises(ValueError, match=words):
        prune_structured(tiny(), **arguments)


def test_equal_levels_stay_equal():
    with pytest.raises(ValueError, match="must stay equal"):
        prune_structured(tiny(block_out_channels=(32, 32)), widths=(16, 32))


def test_other_families_are_refused_by_name(pipe):
    transformer = dit()
    with pytest.raises(TypeError, match="DiTTransformer2DModel.*Torch-Pruning cannot follow"):
        prune_structured(transformer, 0.5)
    with pytest.raises(TypeError, match="pipe.unet"):
        prune_structured(pipe, 0.5)


def test_a_model_that_cannot_be_traced_is_named():
    unet = tiny()
    unet.forward = lambda **inputs: (_ for _ in ()).throw(RuntimeError("no autograd here"))
    with pytest.raises(ValueError, match="cannot trace this UNet2DConditionModel: no autograd here"):
        prune_structured(unet, 0.5)


class TestTaylor:
    def test_only_timesteps_that_matter_are_used(self, task):
        losses = {62: 1.0, 187: 0.05, 312: 0.04, 437: 0.5, 562: 0.06, 687: 0.0, 812: 0.01, 937: 0.2}
        unet, seen = tiny(), []

        class Fake(DenoisingTask):
            def loss_at(self, unet, timestep, generator, batch):
                if torch.is_grad_enabled():
                    seen.append(timestep)
                return unet.conv_in.bias.sum() * 0 + losses[timestep]

        fake = Fake(task.latents, task.states, task.nothing, task.schedule)
        passes = accumulate_gradients(unet, fake, threshold=0.05, count=8, batch=4)
        assert passes.timesteps == tuple(losses)
        assert passes.losses == pytest.approx(tuple(losses.values()))
        assert seen == [62, 187, 437, 562, 937] == [t for t, u in zip(losses, passes.used, strict=True) if u]

    def test_gradients_are_those_of_the_summed_loss(self, task):
        unet = tiny()
        passes = accumulate_gradients(unet, task, threshold=0, count=2, batch=2)
        assert passes.used == (True, True)
        found = unet.conv_in.weight.grad.clone()
        unet.zero_grad()
        sum(task.loss_at(unet, t, torch.Generator().manual_seed(t), 2) for t in (250, 750)).backward()
        assert torch.allclose(found, unet.conv_in.weight.grad, rtol=1e-4, atol=1e-7)

    def test_it_keeps_what_the_loss_depends_on(self, task):
        """Channels that nobody reads, written with large weights: magnitude is fooled, the product is not."""
        unet = tiny()
        block = unet.down_blocks[0].resnets[0]
        useless = torch.tensor([0, 1, 4, 5, 8, 9, 12, 13])  # two of the four channels of each norm group
        block.conv1.weight.data[useless] *= 10
        block.conv2.weight.data[:, useless] = 0
        path = "down_blocks.0.resnets.0.conv1"
        magnitude = prune_structured(unet, widths=(8, 32))
        taylor = prune_structured(unet, widths=(8, 32), importance="taylor", task=task, timesteps=2)
        assert magnitude.kept[path].tolist() == useless.tolist()
        assert taylor.kept[path].tolist() == (useless + 2).tolist()
        assert taylor.passes is not None and magnitude.passes is None

    @pytest.mark.parametrize(("options", "words"), [({"threshold": 1.0}, "threshold"), ({"count": 0}, "count")])
    def test_bad_numbers(self, task, options, words):
        with pytest.raises(ValueError, match=words):
            accumulate_gradients(tiny(), task, **options)

    def test_a_damaged_model_is_named(self, task):
        unet = tiny()
        unet.conv_out.bias.data[0] = float("nan")
        with pytest.raises(ValueError, match="not finite"):
            accumulate_gradients(unet, task, count=2, batch=2)
