"""Smaller UNets, of fewer channels and of fewer blocks: what is kept, that diffusers reloads them, what is refused."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from accelerate import cpu_offload
from diffusers import DDPMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0, IPAdapterAttnProcessor2_0
from peft import LoraConfig
from small_denoisers import build
from small_models import run
from tiny_pipelines import RECIPES
from torch.nn.utils.parametrizations import weight_norm

import pruning_lib as pl
from pruning_lib.capture import captured
from pruning_lib.denoisers import example_inputs
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


class OwnProcessor:
    """Computes what the usual one does."""

    def __call__(self, attention, hidden_states, *args, **kwargs):
        return AttnProcessor2_0()(attention, hidden_states, *args, **kwargs)


def tied(unet: UNet2DConditionModel) -> None:
    unet.down_blocks[1].resnets[0].conv2.weight = unet.mid_block.resnets[0].conv2.weight


def state(unet: torch.nn.Module) -> list:
    """What must not change in a given model: its weights and how they are kept, processors, hooks, settings."""
    plain = (bool, int, float, str, tuple)
    told = [
        (name, type(m), getattr(m, "processor", None), len(m._forward_hooks), vars(m).get("forward"), vars(m).keys())
        + tuple(value for value in vars(m).values() if isinstance(value, plain))
        for name, m in unet.named_modules()
    ]
    weights = [(id(p), p.requires_grad, p.dtype, p.device, p.grad, p._version) for p in unet.parameters()]
    return [told, weights, dict(getattr(unet, "config", {}))]


SET_FOR_A_RUN = {
    "slicing": lambda unet: unet.set_attention_slice("auto"),
    "default processors": lambda unet: unet.set_default_attn_processor(),
    "old processors": lambda unet: unet.set_attn_processor(AttnProcessor()),
    "own processors": lambda unet: unet.set_attn_processor(OwnProcessor()),
    "fused": lambda unet: unet.fuse_qkv_projections(),
    "unfused": lambda unet: (unet.fuse_qkv_projections(), unet.unfuse_qkv_projections()),
    "FreeU": lambda unet: unet.enable_freeu(0.9, 0.2, 1.2, 1.4),
    "checkpointing": lambda unet: (unet.train(), unet.enable_gradient_checkpointing()),
    "frozen": lambda unet: unet.requires_grad_(False),
    "hooked": lambda unet: unet.mid_block.register_forward_hook(lambda *_: 0),
    "compiled": lambda unet: unet.compile(),
    "compiled around": torch.compile,
    "compiled within": lambda unet: setattr(unet, "mid_block", torch.compile(unet.mid_block)),
    "channels last": lambda unet: torch.nn.Module.to(unet, memory_format=torch.channels_last),
}


@pytest.mark.parametrize("change", SET_FOR_A_RUN.values(), ids=SET_FOR_A_RUN)
@pytest.mark.parametrize("prune", [lambda u: prune_structured(u, 0.5), remove_blocks], ids=["channels", "blocks"])
def test_what_is_set_for_a_run_changes_nothing(change, prune):
    make = three_levels if prune is remove_blocks else tiny
    expected, unet = prune(make()), make()
    changed = change(unet)
    given = changed if isinstance(changed, torch.nn.Module) else unet
    before, drawn = state(given), torch.get_rng_state()
    found = prune(given)
    assert state(given) == before and torch.equal(torch.get_rng_state(), drawn)
    assert same(found.unet, expected.unet) and found.params_before == expected.params_before
    assert torch.equal(run(found.unet), run(expected.unet))


SIMPLE = {
    "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "attention_head_dim": 4,
}
MIXED = {
    "down_block_types": ("CrossAttnDownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "SimpleCrossAttnUpBlock2D"),
    "attention_head_dim": 4,
}
CONFIGS = {
    "scale and shift": {"resnet_time_scale_shift": "scale_shift"},
    "skipped activation": {"resnet_skip_time_act": True, "resnet_out_scale_factor": 1.4},
    "resnet samplers": {
        "down_block_types": ("CrossAttnDownBlock2D", "ResnetDownsampleBlock2D"),
        "up_block_types": ("ResnetUpsampleBlock2D", "CrossAttnUpBlock2D"),
    },
    "simple attention": {**SIMPLE, "resnet_time_scale_shift": "scale_shift"},
    "simple attention to the text": {**SIMPLE, "only_cross_attention": True},
    "mixed attention": MIXED,
    "consistency": {"time_cond_proj_dim": 6},
    "Fourier": {"time_embedding_type": "fourier"},
    "class as a time": {"class_embed_type": "timestep"},
    "class projected": {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 6},
    "class beside the time": {
        "class_embed_type": "simple_projection",
        "projection_class_embeddings_input_dim": 6,
        "class_embeddings_concat": True,
    },
    "no size": {"sample_size": None},
}


@pytest.mark.parametrize("options", CONFIGS.values(), ids=CONFIGS)
def test_every_configuration_is_narrowed_and_reloaded(options, tmp_path):
    unet = tiny(**options)
    before = state(unet)
    small = prune_structured(unet, 0.5).unet
    assert state(unet) == before and tuple(small.config.block_out_channels) == (8, 16)
    small.save_pretrained(tmp_path)
    again, info = UNet2DConditionModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()) and same(again, small)
    inputs = example_inputs(small, sample_size=8, device="cpu")
    if small.config.time_cond_proj_dim:
        inputs["timestep_cond"] = torch.ones(1, 6)
    with torch.no_grad():
        found, expected = again(**inputs).sample, small(**inputs).sample
    assert torch.allclose(found, expected, atol=1e-5) and expected.std() > 0
    if small.config.time_embedding_type == "fourier":
        assert torch.equal(small.time_proj.weight, unet.time_proj.weight), "its waves do not follow the width"


def test_the_halves_that_scale_and_shift_lose_the_same_channels_of_each_norm_group():
    unet = tiny(resnet_time_scale_shift="scale_shift")
    small = prune_structured(unet, widths=(8, 32))
    kept = small.kept["down_blocks.0.resnets.0.time_emb_proj"]
    assert torch.equal(kept[8:], kept[:8] + 16) and (kept[:8] // 4).bincount().tolist() == [2] * 4
    new, old = (model.down_blocks[0].resnets[0] for model in (small.unet, unet))
    assert torch.equal(new.time_emb_proj.weight, old.time_emb_proj.weight[kept])
    assert torch.equal(new.conv1.weight, old.conv1.weight[kept[:8]][:, small.kept["conv_in"]])


def test_heads_of_one_width_go_whole_and_dead_ones_cost_nothing():
    unet = tiny(**SIMPLE)
    attention = unet.mid_block.attentions[0]
    dead = (torch.arange(32) // 4 % 2 == 0).nonzero().flatten()
    for layer in (attention.to_q, attention.to_k, attention.to_v, attention.add_k_proj, attention.add_v_proj):
        layer.weight.data[dead] = 0
        layer.bias.data[dead] = 0
    attention.to_out[0].weight.data[:, dead] = 0
    small = prune_structured(unet, 0.5)
    new = small.unet.mid_block.attentions[0]
    alive = torch.tensor([i for i in range(32) if i not in dead])
    assert (attention.heads, new.heads) == (8, 4)
    assert torch.equal(new.add_v_proj.weight, attention.add_v_proj.weight[alive])
    assert torch.equal(new.to_q.bias, attention.to_q.bias[alive]), "a head as wide as before keeps its scale"


def test_guidance_of_a_consistency_model_is_fitted_as_well_as_fewer_waves_can_hold_it():
    unet = tiny(time_cond_proj_dim=6)
    new, old = (model.time_embedding for model in (prune_structured(unet, 0.5).unet, unet))
    wanted = old.linear_1.weight @ old.cond_proj.weight
    found = new.linear_1.weight @ new.cond_proj.weight
    best = torch.linalg.lstsq(new.linear_1.weight.double(), wanted.double()).solution
    assert torch.allclose(found, (new.linear_1.weight.double() @ best).float(), atol=1e-4)
    assert (found - wanted).norm() < wanted.norm()


def adapter(unet: UNet2DConditionModel) -> None:
    unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"]))


def extra_processors(unet: UNet2DConditionModel) -> None:
    made = {
        path: IPAdapterAttnProcessor2_0(unet.get_submodule(path[:-10]).inner_dim, 12) for path in unet.attn_processors
    }
    unet.set_attn_processor(made)


def whole_numbers(unet: UNet2DConditionModel) -> None:
    unet.conv_in.weight = torch.nn.Parameter(unet.conv_in.weight.data.to(torch.int8), requires_grad=False)


def damaged(unet: UNet2DConditionModel) -> None:
    unet.conv_in.weight.data[0] = float("nan")


REFUSED = {
    "adapter": (adapter, {}, r"64 weights are added.*lora_|base_layer.*unload_lora_weights"),
    "image adapter": (extra_processors, {}, r"to_k_ip.*unload_ip_adapter"),
    "configuration": (lambda u: u.register_to_config(encoder_hid_dim_type="x"), {}, "builds no UNet of this config"),
    "replaced": (lambda u: setattr(u.mid_block, "attentions", torch.nn.ModuleList()), {}, "not what its configuration"),
    "reparametrised": (lambda u: weight_norm(u.conv_in), {}, "conv_in.parametrizations"),
    "quantised": (whole_numbers, {}, r"conv_in.weight is a Tensor of torch.int8\. Prune the model first"),
    "small floats": (lambda u: u.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32), {}, "float8_e4m3fn"),
    "meta": (lambda u: u.to("meta"), {}, "conv_in.weight has no values"),
    "offloaded": (lambda u: cpu_offload(u, torch.device("cpu")), {}, "conv_in.weight has no values.*offload"),
    "damaged": (damaged, {}, "conv_in.weight holds NaN"),
    "fuser": (None, {"attention_type": "gated"}, r"fuser.linear takes no part.*captured\(pipe, 1\)"),
    "image as text": (
        None,
        {"addition_embed_type": "image", "encoder_hid_dim_type": "image_proj", "encoder_hid_dim": 8},
        r"addition_embed_type='image'.*call=captured\(pipe, 1\)",
    ),
    "two texts": (None, {"cross_attention_dim": (12, 10)}, r"does not run on.*call=captured\(pipe, 1\)"),
}


@pytest.mark.parametrize(("change", "options", "words"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_narrowed_is_named_and_stays_as_it_was(change, options, words):
    unet = tiny(**options)
    if change is not None:
        change(unet)
    before = state(unet)
    with pytest.raises(ValueError, match=words):
        prune_structured(unet, 0.5)
    assert state(unet) == before


def test_tied_weights_are_narrowed_each_for_itself():
    unet = tiny()
    tied(unet)
    small = prune_structured(unet, 0.5).unet
    assert small.down_blocks[1].resnets[0].conv2.weight is not small.mid_block.resnets[0].conv2.weight
    assert run(small).isfinite().all()


@pytest.mark.parametrize("name", ["gligen_throughout", "kandinsky22"])
def test_a_recorded_call_reaches_what_the_configuration_does_not_tell(name):
    case = RECIPES[name]()
    options = {**case.options, **({case.prompt[0]: case.prompt[1]} if case.prompt else {})}
    small = prune_structured(case.pipe.unet, 0.5, call=captured(case.pipe, case.steps, options))
    assert small.widths_after == (4, 8) and small.macs_after < small.macs_before
    case.pipe.unet = small.unet
    assert case().isfinite().all()


@pytest.mark.parametrize("name", ["dit", "pixart", "sd3", "flux", "unconditional"])
def test_other_denoisers_are_refused_with_what_takes_them(name):
    model = build(name)
    with pytest.raises(TypeError, match=f"got {type(model).__name__}.*a head cannot go alone.*pl.remove_operators"):
        prune_structured(model, 0.5)


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
