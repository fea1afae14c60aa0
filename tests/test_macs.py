"""MACs and parameters against published figures, a count by hand, and PyTorch's own counter on real runs."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from small_denoisers import SMALL, build
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pruning_lib.checks import text_table
from pruning_lib.denoisers import example_inputs
from pruning_lib.loading import denoiser_on_meta
from pruning_lib.macs import count_macs

# Parameters: exact for SD-1.5, SD-2.1 and SDXL (their published weights; Podell et al. 2023, Table 1, rounds them to
# 860 M, 865 M and 2.6 B), 0.6 B for PixArt-alpha (Chen et al. 2023), 274 M for LDM-4 on CelebA-HQ
# (Rombach et al. 2022, Table 12).
# GMACs of one call, with and without attention products. Without, SD-1.5 and SD-2.1 are a 50th of the totals in Tables
# 1 and 2 of DiP-GO (Zhu et al. 2024), 16.94 T and 38.04 T; DiT-XL/2 with them is 118.6 "Gflops" in Peebles and Xie
# 2023, and a 250th of DiP-GO's 29.66 T.
PUBLISHED = {  # name: (parameters, how far off), GMACs with attention products, GMACs without
    "sd-1.5": ((859_520_964, 0), 401.6, 338.6),
    "sd-2.1": ((865_910_724, 0), None, 760.8),
    "sdxl": ((2_567_463_684, 0), None, None),
    "pixart-alpha": ((0.6e9, 0.05e9), None, None),
    "ldm-celebahq-256": ((274e6, 0.5e6), None, None),
    "dit-xl-2-256": (None, 118.7, None),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_figures(name):
    report, (params, *gmacs) = count_macs(denoiser_on_meta(name)), PUBLISHED[name]
    assert params is None or abs(report.params - params[0]) <= params[1]
    for expected, found in zip(gmacs, (report.macs / 1e9, report.macs_without_attention / 1e9), strict=True):
        if expected is not None:
            assert found == pytest.approx(expected, abs=0.1 if expected < 500 else 0.5)


def test_dit_has_the_papers_parameters_but_for_one_copy_a_block():
    # Peebles and Xie 2023, Table 4: 675 M. diffusers keeps the embedding of time and class in every block, 28 times.
    model = denoiser_on_meta("dit-xl-2-256")
    copies = [m for m in model.modules() if type(m).__name__ == "CombinedTimestepLabelEmbeddings"]
    extra = 27 * sum(p.numel() for p in copies[0].parameters())
    assert len(copies) == 28 and (count_macs(model).params - extra) / 1e6 == pytest.approx(675, abs=0.5)


def counted_by_hooks(model: nn.Module, inputs: dict) -> tuple[int, int]:
    """Run for real and apply the formulas of chapter 2 layer by layer: (weights' MACs, attention products)."""
    sums, hooks = [0, 0], []

    def layer(module, args, out):
        out_positions = out.numel() // (out.shape[1] if isinstance(module, nn.Conv2d) else out.shape[-1])
        sums[0] += module.weight.numel() * out_positions  # k² C_in C_out HW, or C_in C_out L

    def attention(module, args, kwargs, out):
        asking = args[0] if args else kwargs["hidden_states"]
        context = kwargs.get("encoder_hidden_states")
        both = (asking, asking if context is None else context)
        positions = [x.flatten(2).shape[2] if x.ndim == 4 else x.shape[1] for x in both]
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
def test_against_the_formulas_on_a_real_run(name, batch):
    model = build(name)
    report = count_macs(model, batch=batch)
    weights, products = counted_by_hooks(model, example_inputs(model, batch=batch, device="cpu"))
    assert report.macs_without_attention == weights
    assert report.macs - report.macs_without_attention == products > 0
    assert report.params == sum(p.numel() for p in model.parameters())


@torch.no_grad()
@pytest.mark.parametrize("name", SMALL)
def test_the_total_is_half_of_pytorchs_flops_and_the_parts_add_up(name):
    model = build(name)
    report = count_macs(model, sample_size=8)
    # Written out as matrix products: PyTorch's counter does not know the fused attention of the CPU, and leaves it out.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(**example_inputs(model, sample_size=8, device="cpu"))
    assert report.macs == counter.get_total_flops() // 2
    for field in ("params", "macs", "macs_without_attention"):
        assert sum(getattr(block, field) for block in report.by_block().values()) == getattr(report, field)
        assert sum(kind[field] for kind in report.by_kind().values()) == getattr(report, field)


def test_blocks_come_in_the_order_in_which_they_run():
    report = count_macs(build())
    ends = ["time_embedding", "conv_in"], ["conv_norm_out", "conv_out"]
    middle = ["down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0", "up_blocks.1"]
    assert list(report.by_block()) == [*ends[0], *middle, *ends[1]]
    deeper = list(report.by_block(2))
    assert deeper.index("down_blocks.0") < deeper.index("down_blocks.0.resnets.0") < deeper.index("down_blocks.1")
    dit = list(count_macs(build("dit")).by_block())
    assert dit.index("transformer_blocks.0") < dit.index("transformer_blocks.1") < dit.index("proj_out_2")


def test_attention_products_belong_to_attention_however_it_is_computed():
    unet = build()
    report = count_macs(unet)
    asks = {cost.kind for cost in report.modules.values() if cost.own[1] > cost.own[2]}
    assert asks == {"Attention"}
    # L = 64 positions of 8 channels; Vaswani et al. 2017, Eq. 1: QK^T and AV
    attn1 = report.modules["down_blocks.0.attentions.0.transformer_blocks.0.attn1"]
    assert attn1.macs - attn1.macs_without_attention == 2 * 64 * 64 * 8
    assert attn1.macs_without_attention == 4 * 64 * 8 * 8
    unet.set_attn_processor(AttnProcessor())  # written out
    slow = count_macs(unet)
    assert (slow.macs, slow.macs_without_attention) == (report.macs, report.macs_without_attention)

    class Fused(nn.Module):  # which operator attention becomes on meta depends on PyTorch; so one is called by name
        def forward(self, q, k, v):
            return torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, None, False)[0]

    q, k = torch.empty(1, 2, 6, 8), torch.empty(1, 2, 10, 8)
    fused = count_macs(Fused(), q=q, k=k, v=k)
    assert fused.macs == 2 * 2 * 6 * 10 * 8 and fused.macs_without_attention == 0


def test_growth_with_the_picture():
    unet, first = build(), "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
    small, large = (count_macs(unet, sample_size=size) for size in (8, 16))
    products = [r.modules[first].macs - r.modules[first].macs_without_attention for r in (small, large)]
    assert large.modules["conv_in"].macs == 4 * small.modules["conv_in"].macs and products[1] == 16 * products[0]
    assert count_macs(unet, tokens=10).macs < small.macs  # 77 by default


def test_what_was_removed_is_not_counted():
    class Pass(nn.Module):
        def forward(self, x, *args, **kwargs):
            return (x,)

    unet = build()
    whole = count_macs(unet)
    lost = whole.modules["mid_block.attentions.0"]
    unet.mid_block.attentions[0] = Pass()
    pruned = count_macs(unet)
    assert pruned.params == whole.params - lost.params and pruned.macs == whole.macs - lost.macs


def test_the_model_is_only_read():
    unet = build()
    inputs = example_inputs(unet, device="cpu")
    with torch.no_grad():
        before = unet(**inputs).sample
    state = copy.deepcopy(unet.state_dict())
    report, seen = count_macs(unet.half()), []
    unet.float().train()
    unet.conv_in.register_forward_hook(lambda *_: seen.append("hook"))
    unet.mid_block.forward = lambda *args, **kwargs: pytest.fail("a patched forward ran")
    assert count_macs(unet).macs == report.macs and seen == [] and unet.training
    del unet.mid_block.forward
    unet.eval().load_state_dict(state)
    assert all(p.device.type == "cpu" for p in unet.parameters())
    with torch.no_grad():
        assert torch.equal(unet(**inputs).sample, before)


def test_any_module_with_its_inputs_given_and_tied_parameters_once():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    tied = count_macs(model, input=torch.empty(1, 4))
    assert tied.params == 16 and tied.macs == 32
    alone = count_macs(nn.Conv2d(3, 5, 3, stride=2), input=torch.empty(2, 3, 9, 9))
    assert alone.macs == alone.macs_without_attention == 2 * 3 * 5 * 9 * 4 * 4
    assert list(alone.by_block()) == ["(model)"]


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"sample": torch.empty(1, 3, 8, 8)}, "does not run on .*3, 8, 8"),
        ({"unheard_of": 1}, "unheard_of"),
        ({"batch": 0}, "batch=0"),
    ],
)
def test_bad_input(inputs, said):
    with pytest.raises(ValueError, match=said):
        count_macs(build(), **inputs)


def test_tables_and_json():
    report = count_macs(build())
    with pytest.raises(ValueError, match="depth=0"):
        report.table(0)
    lines = report.table().splitlines()
    assert len({len(line) for line in lines[:-1]}) == 1, "columns are aligned"
    assert "MACs without att." in lines[0] and lines[-1].startswith("total") and "100.0" in lines[-1]
    stored = json.loads(json.dumps(report.to_dict(modules=True)))
    assert stored["macs"] == report.macs and stored["inputs"]["sample"] == [1, 4, 8, 8]
    assert stored["modules"]["conv_in"]["params"] == 4 * 8 * 9 + 8 and "modules" not in report.to_dict()
    small = text_table(("a", "bb"), [("x", "1"), ("yyy", "22")])
    assert small == "a    bb\n-------\nx     1\nyyy  22"
    assert text_table(("a", "bb"), [("x", "1")], ("sum", "1")) == "a    bb\n-------\nx     1\n-------\nsum   1"
