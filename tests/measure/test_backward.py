"""What the backward pass keeps: hand numbers, checkpointing, and agreement between meta and real tensors."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch.utils.checkpoint import checkpoint

import pruning_lib as pl
from pruning_book.activation_memory import backward_bytes, kept_for_backward
from pruning_book.stand_in import stand_in
from pruning_lib.denoisers import example_inputs


def test_hand_numbers():
    x = torch.ones(1000, requires_grad=True)
    assert kept_for_backward(lambda: x.exp()) == 4000, "exp keeps its result"
    assert kept_for_backward(lambda: x + 1) == 0
    assert kept_for_backward(lambda: (x.exp() * 2).exp()) == 2 * 4000
    weight = torch.ones(1000)
    assert kept_for_backward(lambda: x * weight, [weight]) == 0, "the weight is there anyway"
    assert kept_for_backward(lambda: x * weight) == 4000
    with torch.no_grad():
        assert kept_for_backward(lambda: x.exp()) == 0
    y = x * 2
    assert kept_for_backward(lambda: (y.view(10, 100).exp(), y[:10].exp())) == 4000 + 40, "each storage once"


def test_a_chain_with_checkpoints_keeps_its_inputs():
    def step(h):
        for _ in range(5):
            h = h.exp().log()
        return h

    def chain(length, wrap):
        h = torch.ones(256, requires_grad=True)
        for _ in range(length):
            h = wrap(h)
        return h

    plain = [kept_for_backward(lambda n=n: chain(n, step)) for n in (2, 4)]
    short = [
        kept_for_backward(lambda n=n: chain(n, lambda h: checkpoint(step, h, use_reentrant=False))) for n in (2, 4)
    ]
    assert plain == [5 * 2 * 1024, 5 * 4 * 1024], "exp keeps its result, which is what log keeps too"
    assert short == [2 * 1024, 4 * 1024]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_meta_agrees_with_real_tensors(checkpointing):
    unet = stand_in("sd-1.5").unet.requires_grad_(False)
    counted = backward_bytes(unet, batch=2, dtype=torch.float32, checkpointing=checkpointing)
    if checkpointing:
        unet.enable_gradient_checkpointing()
        unet.train()
    inputs = example_inputs(unet, batch=2, device="cpu")
    inputs["sample"].requires_grad_()
    real = kept_for_backward(lambda: unet(**inputs), [*unet.parameters(), *unet.buffers()])
    assert counted == pytest.approx(real, rel=0.1), "kernels of attention round and pad differently"


def test_it_grows_with_what_it_should():
    unet = pl.denoiser_on_meta("sd-1.5")
    half = backward_bytes(unet)
    assert backward_bytes(unet, batch=2) == pytest.approx(2 * half, rel=0.01)
    assert backward_bytes(unet, sample_size=32) == pytest.approx(half / 4, rel=0.05)
    assert backward_bytes(unet, dtype=torch.float32) == pytest.approx(2 * half, rel=0.05)
    assert backward_bytes(unet, checkpointing=True) < half / 4
    assert all(p.dtype == torch.float32 for p in unet.parameters()), "the given model is only read"
    assert not unet.is_gradient_checkpointing and not unet.training


def test_all_families_and_the_attention_is_put_back():
    plain = torch.nn.functional.scaled_dot_product_attention
    for name in ("dit-xl-2-256", "pixart-alpha", "ldm-celebahq-256"):
        assert backward_bytes(pl.denoiser_on_meta(name)) > 0
    assert torch.nn.functional.scaled_dot_product_attention is plain


def test_wrong_input():
    with pytest.raises(ValueError, match="batch=0"):
        backward_bytes(pl.denoiser_on_meta("sd-1.5"), batch=0)
    with pytest.raises(TypeError, match="not of a known family"):
        backward_bytes(torch.nn.Linear(2, 2))
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            block_out_channels=(32, 64),
            down_block_types=("CrossAttnDownBlock2D",) * 2,
            up_block_types=("CrossAttnUpBlock2D",) * 2,
            sample_size=8,
        )
    unet._supports_gradient_checkpointing = False
    with pytest.raises(ValueError, match="no gradient checkpointing"):
        backward_bytes(unet, checkpointing=True)
