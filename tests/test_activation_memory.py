"""What the backward pass keeps: hand numbers, checkpointing, and agreement between meta and real tensors."""

from __future__ import annotations

import pytest
import torch
from small_denoisers import build
from torch.utils.checkpoint import checkpoint

from pruning_book.activation_memory import backward_bytes, kept_for_backward
from pruning_lib.denoisers import example_inputs


def test_hand_numbers():
    x, weight = torch.ones(1000, requires_grad=True), torch.ones(1000)
    y = x * 2

    def step(h):
        return h.exp().log().exp().log()  # exp keeps its result, which is what log keeps too

    for call, kept in [
        (lambda: x.exp(), 4000),  # it keeps its result
        (lambda: x + 1, 0),
        (lambda: (x.exp() * 2).exp(), 2 * 4000),
        (lambda: x * weight, 4000),
        (lambda: (y.view(10, 100).exp(), y[:10].exp()), 4000 + 40),  # each storage once
        (torch.no_grad()(lambda: x.exp()), 0),
        (lambda: step(step(x + 1)), 4 * 4000),
        (lambda: checkpoint(step, checkpoint(step, x + 1, use_reentrant=False), use_reentrant=False), 2 * 4000),
    ]:
        assert kept_for_backward(call) == kept
    assert kept_for_backward(lambda: x * weight, [weight]) == 0, "the weight is there anyway"


@pytest.mark.parametrize("checkpointing", [False, True])
def test_meta_agrees_with_real_tensors(checkpointing):
    unet = build(sample_size=32).requires_grad_(False)
    counted = backward_bytes(unet, batch=2, dtype=torch.float32, checkpointing=checkpointing)
    if checkpointing:
        unet.enable_gradient_checkpointing()
        unet.train()
    inputs = example_inputs(unet, batch=2, device="cpu")
    inputs["sample"].requires_grad_()
    real = kept_for_backward(lambda: unet(**inputs), [*unet.parameters(), *unet.buffers()])
    assert counted == pytest.approx(real, rel=0.1), "kernels of attention round and pad differently"


def test_it_grows_with_what_it_should_and_changes_nothing():
    plain, unet = torch.nn.functional.scaled_dot_product_attention, build(sample_size=32)
    half = backward_bytes(unet)
    assert backward_bytes(unet, sample_size=16, dtype=torch.float32) == pytest.approx(half / 2, rel=0.05)
    assert backward_bytes(unet, checkpointing=True) < half / 2
    assert all(p.dtype == torch.float32 for p in unet.parameters()), "the given model is only read"
    assert not unet.is_gradient_checkpointing and not unet.training
    assert torch.nn.functional.scaled_dot_product_attention is plain
    for name in ("dit", "pixart", "unconditional"):
        one, two = (backward_bytes(build(name), batch=batch) for batch in (1, 2))
        assert 0 < one and two == pytest.approx(2 * one, rel=0.01)
    unet._supports_gradient_checkpointing = False
    with pytest.raises(ValueError, match="no gradient checkpointing"):
        backward_bytes(unet, checkpointing=True)
