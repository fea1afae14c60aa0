"""Gradients of gates in half precision: the loss is lifted, so that small ones do not round to 0."""

from __future__ import annotations

import pytest
import torch
from tiny_pipes import pipe_of

from pruning_lib.steps import supernet as gradient
from pruning_lib.steps.schedule import grid_of
from pruning_lib.steps.supernet import gate_gradients

STEPS = 4


@pytest.fixture(scope="module")
def parts():
    """A tiny pipeline with its grid; a schedule with a unit off in every row."""
    pipe = pipe_of("text")
    grid = grid_of(pipe, STEPS)
    on = torch.rand(grid.shape, generator=torch.Generator().manual_seed(0)) < 0.6
    on[0] = True
    return pipe, grid, on


def gradients(parts, dtype: torch.dtype) -> torch.Tensor:
    pipe, grid, on = parts
    for module in (pipe.unet, pipe.vae, pipe.text_encoder):
        torch.nn.Module.to(module, dtype)
    return gate_gradients(pipe, grid, on, ["lion", "pizza"], guidance_scale=3.0, leak=0.25)


def test_small_gradients_survive(parts, monkeypatch):
    single, half = gradients(parts, torch.float32), gradients(parts, torch.float16)
    assert (half - single).abs().max() < 0.05 * single.abs().max()
    monkeypatch.setattr(gradient, "_SCALES", (1.0,))
    plain = gradients(parts, torch.float16)
    assert (plain == 0).sum() > (half == 0).sum(), "without lifting more of them are lost"


def test_a_scale_that_is_too_large_is_not_used(parts, monkeypatch):
    wanted = gradients(parts, torch.float32)
    monkeypatch.setattr(gradient, "_SCALES", (1e30, 1.0))
    found = gradients(parts, torch.float16)
    assert found.isfinite().all() and (found - wanted).abs().max() < 0.05 * wanted.abs().max()
