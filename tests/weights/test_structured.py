"""Smaller UNets, of fewer channels and of fewer blocks: what is kept, that diffusers reloads them, what is refused."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from small_models import dit

import pruning_lib as pl
from pruning_lib.denoisers import example_inputs
from pruning_lib.finetuning.denoising import DenoisingTask
from pruning_lib.structured.blocks import remove_blocks
from pruning_lib.structured.channels import ChannelGroup, choose
from pruning_lib.structured.structured import accumulate_gradients, narrow_widths, prune_structured

CONV = "down_blocks.0.resnets.0.conv1"


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


def three_levels(**options) -> UNet2DConditionModel:
    """A UNet with two pairs a level, as BK-SDM's recipe needs it."""
    return tiny(
        **{
            "block_out_channels": (8, 16, 16),
            "layers_per_block": 2,
            "attention_head_dim": (1, 2, 2),
            "down_block_types": ("CrossAttnDownBlock2D",) * 2 + ("DownBlock2D",),
            "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 2,
            **options,
        }
    )


@torch.no_grad()
def run(unet) -> torch.Tensor:
    return unet(**example_inputs(unet, device="cpu", tokens=5)).sample


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    b = b.state_dict()
    return all(torch.equal(value, b[name]) for name, value in a.state_dict().items())


WAYS = {
    "magnitude": (tiny, lambda unet: prune_structured(unet, 0.5)),
    "random": (tiny, lambda unet: prune_structured(unet, 0.5, importance="random")),
    "base": (three_levels, remove_blocks),
    "small": (three_levels, lambda unet: remove_blocks(unet, "small")),
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


@pytest.fixture(scope="module")
def narrow():
    return prune_structured(tiny(), 0.5)


def test_weights_that_stay_are_those_of_the_whole_model(narrow):
    assert tuple(narrow.unet.config.block_out_channels) == narrow.widths_after == (8, 16)
    rows, columns = narrow.kept[CONV], narrow.kept["conv_in"]
    old, new = tiny().get_submodule(CONV).weight, narrow.unet.get_submodule(CONV).weight
    assert torch.equal(new, old[rows][:, columns])


def test_half_precision_stays(narrow):
    small = prune_structured(tiny().half(), 0.5).unet
    assert small.dtype == torch.float16 == remove_blocks(three_levels().half()).unet.dtype
    assert torch.allclose(small.conv_in.weight.float(), narrow.unet.conv_in.weight, atol=1e-3)


@pytest.mark.parametrize(
    "options",
    [
        {"use_linear_projection": True, "attention_head_dim": 4, "norm_num_groups": 8},
        {"transformer_layers_per_block": 2, "layers_per_block": 2, "mid_block_type": None},
        {"block_out_channels": (32, 32)},
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
    assert small.kept == {} and small.params_ratio == small.macs_ratio == 0
    assert torch.equal(run(small.unet), run(unet))


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


def test_whole_heads(narrow):
    unet = tiny()
    small = prune_structured(unet, 0.5, heads="whole")
    assert list(small.unet.config.attention_head_dim) == [1, 2]
    inner = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
    attention = small.unet.get_submodule(inner)
    assert attention.heads == 1 and attention.to_q.out_features == 8, "a head keeps its width of 8"
    kept = next(k for path, k in small.kept.items() if path.startswith("down_blocks.0") and "attn1.to_v" in path)
    assert kept.tolist() in (list(range(8)), list(range(8, 16)))
    assert narrow.unet.get_submodule(inner).heads == 2


def test_norm_groups_heads_and_gates_lose_equally():
    scores = torch.tensor([9.0, 8, 7, 6, 0, 1, 2, 3])
    paired = scores + torch.tensor([0, 0, 1.0, 1] * 2)  # of a gate's pairs (0, 4), (1, 5), ...: 9, 9, 11, 11
    for options, values, whole_heads, kept in (
        ({"normed": True}, scores, False, [0, 1, 6, 7]),
        ({}, scores, False, [0, 1, 2, 3]),
        ({"gated": True}, paired, False, [2, 3, 6, 7]),
        ({"heads": 4}, scores, True, [0, 1, 2, 3]),
        ({"heads": 4}, scores, False, [0, 2, 5, 7]),
    ):
        group = ChannelGroup(None, "x", 0, 8, **options)
        assert choose(group, values, 0.5, 2, whole_heads=whole_heads).tolist() == kept


def test_widths_are_rounded_to_what_fits():
    unet = pl.denoiser_on_meta("emoji-sd")
    assert narrow_widths(unet, 0) == (32, 64, 96, 96) and narrow_widths(unet, 0.25) == (32, 48, 80, 80)
    assert narrow_widths(unet, 0.99) == (16, 32, 16, 16), "neighbours of different width stay different"


def test_blocks_of_stable_diffusion_leave_the_published_sizes():
    """Kim et al. 2023, table 1: 0.58 B, 0.49 B and 0.33 B parameters in the denoiser."""
    unet = pl.denoiser_on_meta("sd-1.5")
    for variant, millions in {"base": 579.4, "small": 482.3, "tiny": 323.4}.items():
        assert remove_blocks(unet, variant).params_after / 1e6 == pytest.approx(millions, abs=0.05)


def test_the_blocks_that_stay_keep_their_weights_and_their_skips():
    unet = three_levels()
    base, small, low = (remove_blocks(unet, variant) for variant in ("base", "small", "tiny"))
    pairs = {
        "down_blocks.0.resnets.0": "down_blocks.0.resnets.0",
        "down_blocks.1.attentions.0": "down_blocks.1.attentions.0",
        "down_blocks.0.downsamplers.0": "down_blocks.0.downsamplers.0",
        "up_blocks.1.resnets.0": "up_blocks.1.resnets.0",
        "up_blocks.1.resnets.1": "up_blocks.1.resnets.2",  # the one that takes the skip from the level above
        "up_blocks.2.attentions.1": "up_blocks.2.attentions.2",
        "mid_block": "mid_block",
    }
    for new, old in pairs.items():
        assert same(base.unet.get_submodule(new), unet.get_submodule(old)), new
    gone = [f"{side}_blocks.{i}.resnets.1" for side in ("down", "up") for i in range(3)]
    gone += [f"down_blocks.{i}.attentions.1" for i in (0, 1)] + [f"up_blocks.{i}.attentions.1" for i in (1, 2)]
    assert set(base.removed) == set(gone)
    assert set(small.removed) - set(base.removed) == {"mid_block"} and small.unet.mid_block is None
    assert len(low.unet.down_blocks) == 2 and low.unet.config.block_out_channels == (8, 16)
    assert low.unet.config.attention_head_dim == (1, 2)
    assert "down_blocks.1.downsamplers.0" in low.removed and "up_blocks.0.resnets.2" in low.removed
    assert same(low.unet.up_blocks[0].resnets[1], unet.up_blocks[1].resnets[2])
    deep = three_levels(layers_per_block=3)
    assert same(remove_blocks(deep).unet.up_blocks[2].resnets[1], deep.up_blocks[2].resnets[3])


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
def test_wrong_arguments_for_channels(arguments, words):
    with pytest.raises(ValueError, match=words):
        prune_structured(tiny(), **arguments)
    with pytest.raises(ValueError, match="must stay equal"):
        prune_structured(tiny(block_out_channels=(32, 32)), widths=(16, 32))


@pytest.mark.parametrize(
    ("options", "variant", "words"),
    [
        ({}, "bse", "Did you mean 'base'"),
        ({"layers_per_block": 1}, "base", "layers_per_block=1: a level with one pair"),
        ({"mid_block_type": None}, "small", "no mid block"),
        ({"block_out_channels": (8, 16, 24)}, "tiny", r"equally wide.*\(8, 16, 24\)"),
    ],
)
def test_wrong_arguments_for_blocks(options, variant, words):
    with pytest.raises(ValueError, match=words):
        remove_blocks(three_levels(**options), variant)


def test_other_denoisers_are_refused_by_name():
    for prune in (lambda model: prune_structured(model, 0.5), remove_blocks):
        with pytest.raises(TypeError, match="DiTTransformer2DModel"):
            prune(dit())
        with pytest.raises(TypeError, match="pipe.unet"):
            prune(SimpleNamespace(components={}))


def test_a_model_that_cannot_be_traced_is_named():
    unet = tiny()
    unet.forward = lambda **inputs: (_ for _ in ()).throw(RuntimeError("no autograd here"))
    with pytest.raises(ValueError, match="cannot trace this UNet2DConditionModel: no autograd here"):
        prune_structured(unet, 0.5)


def test_only_channels_need_torch_pruning_and_say_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(ModuleNotFoundError, match=r'needs torch-pruning.*pip install "pruning-lib\[structured\]"'):
        prune_structured(tiny(), 0.5)
    remove_blocks(three_levels())


class TestTaylor:
    @pytest.fixture(scope="class")
    def task(self):
        def draw(*shape):
            return torch.randn(*shape, generator=torch.Generator().manual_seed(3))

        schedule = DDPMScheduler(prediction_type="v_prediction")
        return DenoisingTask(draw(8, 4, 8, 8), draw(8, 5, 12), draw(1, 5, 12), schedule)

    def test_only_timesteps_that_matter_are_used(self):
        losses = {62: 1.0, 187: 0.05, 312: 0.04, 437: 0.5, 562: 0.06, 687: 0.0, 812: 0.01, 937: 0.2}
        seen = []

        class Fake:
            levels = 1000

            def loss_at(self, unet, timestep, generator, batch):
                seen.append((timestep, torch.is_grad_enabled()))
                return unet.conv_in.bias.sum() * 0 + losses[timestep]

        used = accumulate_gradients(tiny(), Fake(), threshold=0.05, count=8, batch=4)
        assert used == [62, 187, 437, 562, 937]
        assert seen == [(t, False) for t in losses] + [(t, True) for t in used]

    def test_gradients_are_those_of_the_summed_loss(self, task):
        unet = tiny()
        assert accumulate_gradients(unet, task, threshold=0, count=2, batch=2) == [250, 750]
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
        magnitude = prune_structured(unet, widths=(8, 32))
        taylor = prune_structured(unet, widths=(8, 32), importance="taylor", task=task, timesteps=2)
        assert magnitude.kept[CONV].tolist() == useless.tolist()
        assert taylor.kept[CONV].tolist() == (useless + 2).tolist()

    def test_bad_numbers_and_damaged_models_are_named(self, task):
        unet = tiny()
        unet.conv_out.bias.data[0] = float("nan")
        for options, words in (
            ({"threshold": 1.0}, "threshold"),
            ({"count": 0}, "count"),
            ({"count": 2}, "not finite"),
        ):
            with pytest.raises(ValueError, match=words):
                accumulate_gradients(unet, task, **options)
