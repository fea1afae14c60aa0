"""MACs and parameters against published figures, a count by hand, and PyTorch's own counter on real runs."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pruning_lib.denoisers import example_inputs
from pruning_lib.loading import denoiser_on_meta
from pruning_lib.macs import count_macs

# Parameters: exact for SD-1.5, SD-2.1 and SDXL (their published weights; Podell et al. 2023, Table 1, rounds them to
# 860 M, 865 M and 2.6 B), 0.6 B for PixArt-alpha (Chen et al. 2023), 274 M for LDM-4 on CelebA-HQ
# (Rombach et al. 2022, Table 12).
PUBLISHED_PARAMS = {
    "sd-1.5": (859_520_964, 0),
    "sd-2.1": (865_910_724, 0),
    "sdxl": (2_567_463_684, 0),
    "pixart-alpha": (0.6e9, 0.05e9),
    "ldm-celebahq-256": (274e6, 0.5e6),
}
# GMACs of one call, with and without attention products. Without, SD-1.5 and SD-2.1 are a 50th of the totals in Tables
# 1 and 2 of DiP-GO (Zhu et al. 2024), 16.94 T and 38.04 T; DiT-XL/2 with them is 118.6 "Gflops" in Peebles and Xie
# 2023, and a 250th of DiP-GO's 29.66 T.
PUBLISHED_GMACS = {"sd-1.5": (401.6, 338.6), "sd-2.1": (None, 760.8), "dit-xl-2-256": (118.7, None)}


@pytest.fixture(scope="module")
def published():
    names = {*PUBLISHED_PARAMS, *PUBLISHED_GMACS}
    return {name: count_macs(denoiser_on_meta(name)) for name in names}


@pytest.mark.parametrize("name", PUBLISHED_PARAMS)
def test_published_parameters(published, name):
    expected, tolerance = PUBLISHED_PARAMS[name]
    assert abs(published[name].params - expected) <= tolerance


@pytest.mark.parametrize("name", PUBLISHED_GMACS)
def test_published_macs(published, name):
    report = published[name]
    counted = (report.macs / 1e9, report.macs_without_attention / 1e9)
    for expected, found in zip(PUBLISHED_GMACS[name], counted, strict=True):
        if expected is not None:
            assert found == pytest.approx(expected, abs=0.1 if expected < 500 else 0.5)


def test_dit_has_the_papers_parameters_but_for_one_copy_a_block():
    # Peebles and Xie 2023, Table 4: 675 M. diffusers keeps the embedding of time and class in every block, 28 times.
    model = denoiser_on_meta("dit-xl-2-256")
    copies = [m for m in model.modules() if type(m).__name__ == "CombinedTimestepLabelEmbeddings"]
    assert len(copies) == 28
    extra = 27 * sum(p.numel() for p in copies[0].parameters())
    assert (count_macs(model).params - extra) / 1e6 == pytest.approx(675, abs=0.5)


def counted_by_hooks(model: nn.Module, inputs: dict) -> tuple[int, int]:
    """Run for real and apply the formulas of chapter 2 layer by layer: (weights' MACs, attention products)."""
    sums, hooks = [0, 0], []

    def layer(module, args, out):
        out_positions = out.numel() // (out.shape[1] if isinstance(module, nn.Conv2d) else out.shape[-1])
        sums[0] += module.weight.numel() * out_positions  # k² C_in C_out HW, or C_in C_out L

    def attention(module, args, kwargs, out):
        asking = args[0] if args else kwargs["hidden_states"]
        context = kwargs.get("encoder_hidden_states")
        positions = [
            x.flatten(2).shape[2] if x.ndim == 4 else x.shape[1]
            for x in (asking, asking if context is None else context)
        ]
        sums[1] += 2 * len(asking) * positions[0] * positions[1] * module.to_q.out_features

    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            hooks.append(module.register_forward_hook(layer))
        elif type(module).__name__ == "Attention":
            hooks.append(module.register_forward_hook(attention, with_kwargs=True))
    with torch.no_grad():
        model(**inputs)
    for hook in hooks:
        hook.remove()
    return sums[0], sums[1]


@pytest.mark.parametrize("name", ["unet", "unconditional", "dit", "pixart"])
@pytest.mark.parametrize("batch", [1, 3])
def test_against_the_formulas_on_a_real_run(build, name, batch):
    model = build(name)
    report = count_macs(model, batch=batch)
    weights, products = counted_by_hooks(model, example_inputs(model, batch=batch, device="cpu"))
    assert report.macs_without_attention == weights
    assert report.macs - report.macs_without_attention == products > 0
    assert report.params == sum(p.numel() for p in model.parameters())


@torch.no_grad()
def test_the_total_is_half_of_pytorchs_flops_on_real_tensors(denoiser):
    inputs = example_inputs(denoiser, sample_size=8, device="cpu")
    # Written out as matrix products: PyTorch's counter does not know the fused attention of the CPU, and leaves it out.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        denoiser(**inputs)
    assert count_macs(denoiser, sample_size=8).macs == counter.get_total_flops() // 2


def test_blocks_add_up_and_come_in_the_order_of_the_data(denoiser):
    report = count_macs(denoiser, sample_size=8)
    blocks = report.by_block()
    for field in ("params", "macs", "macs_without_attention"):
        assert sum(getattr(block, field) for block in blocks.values()) == getattr(report, field)
        assert sum(kind[field] for kind in report.by_kind().values()) == getattr(report, field)


def test_names_of_the_blocks(unet, build):
    assert list(count_macs(unet).by_block()) == [
        "time_embedding",
        "conv_in",
        "down_blocks.0",
        "down_blocks.1",
        "mid_block",
        "up_blocks.0",
        "up_blocks.1",
        "conv_norm_out",
        "conv_out",
    ]
    dit = list(count_macs(build("dit")).by_block())
    assert dit.index("transformer_blocks.0") < dit.index("transformer_blocks.1") < dit.index("proj_out_2")
    deeper = list(count_macs(unet).by_block(2))
    assert deeper.index("down_blocks.0") < deeper.index("down_blocks.0.resnets.0") < deeper.index("down_blocks.1")
    with pytest.raises(ValueError, match="depth=0"):
        count_macs(unet).by_block(0)


def test_attention_products_belong_to_attention(unet):
    report = count_macs(unet)
    for path, cost in report.modules.items():
        if cost.own_macs > cost.own_macs_without_attention:
            assert cost.kind == "Attention", path
    # L = 64 positions of 8 channels; Vaswani et al. 2017, Eq. 1: QK^T and AV
    attn1 = report.modules["down_blocks.0.attentions.0.transformer_blocks.0.attn1"]
    assert attn1.macs - attn1.macs_without_attention == 2 * 64 * 64 * 8
    assert attn1.macs_without_attention == 4 * 64 * 8 * 8


def test_written_out_attention_counts_the_same(unet):
    fused = count_macs(unet)
    unet.set_attn_processor(AttnProcessor())
    slow = count_macs(unet)
    assert (slow.macs, slow.macs_without_attention) == (fused.macs, fused.macs_without_attention)


def test_fused_attention_is_attention():
    # Which operator attention becomes on meta depends on the version of PyTorch; so one is called by name.
    class Fused(nn.Module):
        def forward(self, q, k, v):
            return torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, None, False)[0]

    q, k = torch.empty(1, 2, 6, 8), torch.empty(1, 2, 10, 8)
    report = count_macs(Fused(), q=q, k=k, v=k)
    assert report.macs == 2 * 2 * 6 * 10 * 8 and report.macs_without_attention == 0


def test_growth_with_the_picture(unet):
    small, large = count_macs(unet), count_macs(unet, sample_size=16)
    first = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"

    def products(report):
        return report.modules[first].macs - report.modules[first].macs_without_attention

    assert large.modules["conv_in"].macs == 4 * small.modules["conv_in"].macs
    assert products(large) == 16 * products(small)
    assert count_macs(unet, tokens=10).macs < small.macs  # 77 by default


def test_what_was_removed_is_not_counted(unet):
    whole = count_macs(unet)
    lost = whole.modules["mid_block.attentions.0"]
    unet.mid_block.attentions[0] = nn.Identity()
    unet.mid_block.attentions[0].forward = lambda x, *args, **kwargs: (x,)  # a patch, which must be ignored, see below
    with pytest.raises(ValueError, match="UNet2DConditionModel does not run"):
        count_macs(unet)

    class Pass(nn.Module):
        def forward(self, x, *args, **kwargs):
            return (x,)

    unet.mid_block.attentions[0] = Pass()
    pruned = count_macs(unet)
    assert pruned.params == whole.params - lost.params and pruned.macs == whole.macs - lost.macs


def test_the_model_is_only_read(unet):
    inputs = example_inputs(unet, device="cpu")
    with torch.no_grad():
        before = unet(**inputs).sample
    state = copy.deepcopy(unet.state_dict())
    report = count_macs(unet.half())
    unet.float()
    seen = []
    unet.conv_in.register_forward_hook(lambda *_: seen.append("hook"))
    unet.mid_block.forward = lambda *args, **kwargs: pytest.fail("a patched forward ran")
    unet.train()
    assert count_macs(unet).macs == report.macs and seen == [] and unet.training
    del unet.mid_block.forward
    unet.eval().load_state_dict(state)
    assert all(p.device.type == "cpu" for p in unet.parameters())
    with torch.no_grad():
        assert torch.equal(unet(**inputs).sample, before)


def test_tied_parameters_count_once():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    report = count_macs(model, input=torch.empty(1, 4))
    assert report.params == 16 and report.macs == 32


def test_any_module_with_its_inputs_given():
    report = count_macs(nn.Conv2d(3, 5, 3, stride=2), input=torch.empty(2, 3, 9, 9))
    assert report.macs == report.macs_without_attention == 2 * 3 * 5 * 9 * 4 * 4
    assert list(report.by_block()) == ["(model)"]


def test_bad_input(unet):
    with pytest.raises(TypeError, match="not of a known family"):
        count_macs(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="does not run on .*3, 8, 8"):
        count_macs(unet, sample=torch.empty(1, 3, 8, 8))
    with pytest.raises(ValueError, match="unheard_of"):
        count_macs(unet, unheard_of=1)
    with pytest.raises(ValueError, match="batch=0"):
        count_macs(unet, batch=0)


def test_table_and_json(unet):
    report = count_macs(unet)
    lines = report.table().splitlines()
    assert len({len(line) for line in lines[:-1]}) == 1, "columns are aligned"
    assert "MACs without att." in lines[0] and lines[-1].startswith("total") and "100.0" in lines[-1]
    stored = json.loads(json.dumps(report.to_dict(modules=True)))
    assert stored["macs"] == report.macs and stored["inputs"]["sample"] == [1, 4, 8, 8]
    assert stored["modules"]["conv_in"]["params"] == 4 * 8 * 9 + 8
    assert "modules" not in report.to_dict()
