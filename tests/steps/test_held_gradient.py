"""First-order scores of cells at a hard schedule."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler
from tiny import tiny

from pruning_lib.steps.budget import every
from pruning_lib.steps.reuse import Turn
from pruning_lib.steps.schedule import grid_of
from pruning_lib.steps.search import HardGates, cell_importance
from pruning_lib.steps.supernet import SuperNet, gate_gradients, loss_and_gradient


@pytest.fixture(scope="module")
def pipe():
    pipe = tiny()
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, prediction_type="v_prediction")
    return pipe


def partial(grid) -> torch.Tensor:
    on = every(grid, 2).on
    on[2, :-3] = False
    return on


@pytest.mark.parametrize("reuse", ["output", "prediction"])
def test_scores_are_the_slope_of_the_loss(pipe, reuse) -> None:
    grid = grid_of(pipe, 4)
    on = partial(grid)
    worth = cell_importance(pipe, grid, on, ["lion"], seeds=[3], guidance_scale=3, reuse=reuse)
    net = SuperNet(pipe, grid, guidance_scale=3)
    net._gates = HardGates(grid.calls(on).tolist(), Turn.of(pipe.scheduler) if reuse == "prediction" else Turn(None))
    place, step = int(worth[2].abs().argmax()), 0.02
    with net:
        losses = []
        for by in (-step, step):
            gates = on.float()
            gates[2, place] += by
            losses.append(loss_and_gradient(net, gates, ["lion"], [3], loss="latent")[0])
    assert -(losses[1] - losses[0]) / (2 * step) == pytest.approx(worth[2, place].item(), rel=0.05)


def test_only_cells_of_calls_have_scores(pipe) -> None:
    grid = grid_of(pipe, 4)
    worth = cell_importance(pipe, grid, partial(grid), ["lion", "pizza"], guidance_scale=3, reuse="prediction", batch=1)
    assert worth.shape == grid.shape and worth.isfinite().all()
    assert not worth[[0, 1, 3]].any()
    assert worth[2].abs().max() > 0


def test_without_skipped_calls_it_is_the_plain_gradient(pipe) -> None:
    grid = grid_of(pipe, 3)
    on = torch.rand(grid.shape, generator=torch.Generator().manual_seed(0)) < 0.7
    on[0], on[:, -1] = True, True
    plain = -gate_gradients(pipe, grid, on, ["lion"], guidance_scale=3)
    assert torch.allclose(
        cell_importance(pipe, grid, on, ["lion"], guidance_scale=3)[1:], plain[1:], rtol=1e-3, atol=1e-7
    )


def test_the_pipeline_is_left_as_it_was(pipe) -> None:
    grid = grid_of(pipe, 3)
    asked = [p.requires_grad for p in pipe.unet.parameters()]
    cell_importance(pipe, grid, every(grid, 2).on, ["lion"])
    assert [p.requires_grad for p in pipe.unet.parameters()] == asked
    with every(grid, 2).applied(pipe):  # no hooks of the gates are in the way
        pass


def test_bad_input_is_refused(pipe) -> None:
    grid = grid_of(pipe, 3)
    with pytest.raises(ValueError, match="reuse="):
        cell_importance(pipe, grid, every(grid, 2).on, ["lion"], reuse="x")
    with pytest.raises(ValueError, match="2 seeds for 1 prompts"):
        cell_importance(pipe, grid, every(grid, 2).on, ["lion"], seeds=[1, 2])
    with pytest.raises(ValueError, match="first row"):
        cell_importance(pipe, grid, torch.zeros(grid.shape), ["lion"])
