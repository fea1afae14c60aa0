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

FIRST = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
# Parameters: of the published weights (Podell et al. 2023, Table 1, rounds them). GMACs of one
# call: without attention products SD-1.5 and SD-2.1 have a 50th of 16.94 T and 38.04 T in Tables 1 and 2 of DiP-GO (Zhu
# et al. 2024); with them DiT-XL/2 has 118.6 "Gflops" in Peebles and Xie 2023, and a 250th of DiP-GO's 29.66 T. Of
# its parameters, 675 M in their Table 4, diffusers keeps one copy of an embedding in each of 28 blocks.
PUBLISHED = {  # name: parameters, GMACs with attention products, GMACs without
    "sd-1.5": (859_520_964, 401.6, 338.6),
    "sd-2.1": (865_910_724, None, 760.8),
    "sdxl": (2_567_463_684, None, None),
    "dit-xl-2-256": (None, 118.7, None),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_figures(name):
    model = denoiser_on_meta(name)
    params, *gmacs = PUBLISHED[name]
    report = count_macs(model, sample_size=16 if name == "sdxl" else None)  # it has the same weights at any size
    if name == "dit-xl-2-256":
        copies = [m for m in model.modules() if type(m).__name__ == "CombinedTimestepLabelEmbeddings"]
        extra = 27 * sum(p.numel() for p in copies[0].parameters())
        assert len(copies) == 28 and (report.params - extra) / 1e6 == pytest.approx(675, abs=0.5)
    else:
        assert report.params == params
    for expected, found in zip(gmacs, (report.macs / 1e9, report.macs_without_attention / 1e9), strict=True):
        assert expected is None or found == pytest.approx(expected, abs=0.1 if expected < 500 else 0.5)


@torch.no_grad()
@pytest.mark.parametrize("name", SMALL)
def test_the_total_is_half_of_pytorchs_flops_and_the_parts_add_up(name):
    model, layers = build(name), []
    report = count_macs(model, sample_size=8, batch=3)
    for layer in model.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):  # k² C_in C_out HW, or C_in C_out L
            weights = layer.weight.numel() // len(layer.weight)
            layer.register_forward_hook(lambda _, args, out, weights=weights: layers.append(weights * out.numel()))
    # Written out as matrix products: PyTorch's counter does not know the fused attention of the CPU, and leaves it out.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(**example_inputs(model, sample_size=8, batch=3, device="cpu"))
    assert report.macs == counter.get_total_flops() // 2 and report.macs_without_attention == sum(layers)
    assert report.params == sum(p.numel() for p in model.parameters())
    for field in ("params", "macs", "macs_without_attention"):
        assert sum(getattr(block, field) for block in report.by_block().values()) == getattr(report, field)
        assert sum(kind[field] for kind in report.by_kind().values()) == getattr(report, field)


def test_by_hand_attention_products_belong_to_attention_however_it_is_computed():
    unet = build()
    report, larger = count_macs(unet), count_macs(unet, sample_size=16)
    assert {cost.kind for cost in report.modules.values() if cost.own[1] > cost.own[2]} == {"Attention"}
    # L = 64 positions of 8 channels; Vaswani et al. 2017, Eq. 1: QK^T and AV
    found = [r.modules[FIRST].macs - r.modules[FIRST].macs_without_attention for r in (report, larger)]
    assert found == [2 * 64 * 64 * 8, 2 * 256 * 256 * 8]
    assert report.modules[FIRST].macs_without_attention == 4 * 64 * 8 * 8
    assert larger.modules["conv_in"].macs == 4 * report.modules["conv_in"].macs == 4 * 64 * 9 * 4 * 8
    assert count_macs(unet, tokens=10).macs < report.macs  # 77 by default
    unet.set_attn_processor(AttnProcessor())  # written out
    slow = count_macs(unet)
    assert (slow.macs, slow.macs_without_attention) == (report.macs, report.macs_without_attention)

    class Fused(nn.Module):  # which operator attention becomes on meta depends on PyTorch; so one is called by name
        def forward(self, q, k, v):
            return torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, None, False)[0]

    q, k = torch.empty(1, 2, 6, 8), torch.empty(1, 2, 10, 8)
    fused = count_macs(Fused(), q=q, k=k, v=k)
    assert fused.macs == 2 * 2 * 6 * 10 * 8 and fused.macs_without_attention == 0
    tied = nn.Sequential(nn.Conv2d(3, 3, 3, stride=2, bias=False), nn.Conv2d(3, 3, 3, bias=False))
    tied[1].weight = tied[0].weight
    report = count_macs(tied, input=torch.empty(2, 3, 9, 9))  # any module, if its inputs are given
    assert report.params == 81 and report.macs == report.macs_without_attention == 2 * 81 * (4 * 4 + 2 * 2)


def test_blocks_come_in_the_order_in_which_they_run_and_what_was_removed_is_not_counted():
    unet = build()
    report = count_macs(unet)
    middle = "down_blocks.0 down_blocks.1 mid_block up_blocks.0 up_blocks.1".split()
    assert list(report.by_block()) == ["time_embedding", "conv_in", *middle, "conv_norm_out", "conv_out"]
    deeper = list(report.by_block(2))
    assert deeper.index("down_blocks.0") < deeper.index("down_blocks.0.resnets.0") < deeper.index("down_blocks.1")
    lost = report.modules["mid_block.attentions.0"]
    unet.mid_block.attentions[0] = type("Pass", (nn.Module,), {"forward": lambda self, x, *args, **kwargs: (x,)})()
    pruned = count_macs(unet)
    assert pruned.params == report.params - lost.params and pruned.macs == report.macs - lost.macs


@torch.no_grad()
def test_the_model_is_only_read():
    unet, seen = build(), []
    inputs, state = example_inputs(unet, device="cpu"), copy.deepcopy(unet.state_dict())
    before = unet(**inputs).sample
    report = count_macs(unet.half())
    unet.float().train()
    unet.conv_in.register_forward_hook(lambda *_: seen.append("hook"))
    unet.mid_block.forward = lambda *args, **kwargs: pytest.fail("a patched forward ran")
    assert count_macs(unet).macs == report.macs and seen == [] and unet.training
    del unet.mid_block.forward
    unet.eval().load_state_dict(state)
    assert torch.equal(unet(**inputs).sample, before)


def test_tables_json_and_bad_input():
    unet = build()
    report = count_macs(unet)
    lines = report.table().splitlines()
    assert len({len(line) for line in lines[:-1]}) == 1, "columns are aligned"
    assert "MACs without att." in lines[0] and lines[-1].startswith("total") and "100.0" in lines[-1]
    stored = json.loads(json.dumps(report.to_dict()))
    assert stored["macs"] == report.macs and stored["inputs"]["sample"] == [1, 4, 8, 8]
    assert stored["blocks"]["conv_in"]["params"] == 4 * 8 * 9 + 8
    assert text_table(("a", "bb"), [("x", "1")], ("sum", "1")) == "a    bb\n-------\nx     1\n-------\nsum   1"
    sample = torch.empty(1, 3, 8, 8)
    for inputs, said in [({"sample": sample}, "not run on .*3, 8, 8"), ({"x": 1}, "'x'"), ({"batch": 0}, "batch=0")]:
        with pytest.raises(ValueError, match=said):
            count_macs(unet, **inputs)
    with pytest.raises(ValueError, match="depth=0"):
        report.table(0)
