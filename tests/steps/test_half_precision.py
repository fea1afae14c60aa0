"""Gradients of gates in half precision: the loss is lifted, so that small ones do not round to 0."""

from __future__ import annotations

import pytest
import torch
from tiny_pipes import pipe_of

from pruning_lib.steps import supernet
from pruning_lib.steps.schedule import grid_of


@pytest.mark.parametrize("size", [1, 1e-5, 1e4])
def test_gradients_of_any_size_survive(monkeypatch, size):
    """Small ones would round to 0 without lifting; lifted ones would be infinite where they are large already."""
    pipe, loss = pipe_of("text"), supernet.consistency
    grid = grid_of(pipe, 4)
    on = torch.rand(grid.shape, generator=torch.Generator().manual_seed(0)) < 0.6
    on[0] = True

    def gradients(dtype: torch.dtype) -> torch.Tensor:
        for module in (pipe.unet, pipe.vae, pipe.text_encoder):
            torch.nn.Module.to(module, dtype)
        return supernet.gate_gradients(pipe, grid, on, ["lion", "pizza"], guidance_scale=3.0, leak=0.25)

    single = gradients(torch.float32)
    monkeypatch.setattr(supernet, "consistency", lambda *args: size * loss(*args))
    half = gradients(torch.float16) / size
    assert half.isfinite().all() and (half - single).abs().max() < 0.05 * single.abs().max()
