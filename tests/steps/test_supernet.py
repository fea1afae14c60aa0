"""Pruner, losses and SuperNet: at hard gates it is the schedule, its gradient is right, and so is what it costs."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler
from on_gpu import some
from tiny import laid_out, tiny
from tiny_ways import hooks_left

from pruning_lib.denoisers import denoiser_of
from pruning_lib.steps.budget import every
from pruning_lib.steps.gates import GateTable, PrunerNetwork, keep_probability, straight_through
from pruning_lib.steps.replay import HOLDS
from pruning_lib.steps.search import cell_importance
from pruning_lib.steps.supernet import LOSSES, SuperNet, consistency, gate_gradients, loss_and_gradient

STEPS, SEEDS, PROMPTS = 4, [5, 6], ["lion", "pizza"]


def test_at_first_gates_keep_alike_and_the_network_couples_them_while_the_table_does_not():
    torch.manual_seed(0)
    for net, coupled in ((PrunerNetwork(3, 4, width=16), True), (GateTable(3, 4), False)):
        before = keep_probability(net()).detach()
        assert net().shape == (3, 4, 2)
        assert torch.allclose(before, torch.full((3, 4), math.e / (1 + math.e))), "logits 0 and 1"
        optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
        keep_probability(net())[1, 2].backward()  # shut one gate
        optimizer.step()
        moved = (keep_probability(net()).detach() - before).abs() > 1e-6
        assert moved[1, 2] and bool(moved.all()) == coupled and moved.sum() in (1, 12)
    net = PrunerNetwork(3, 4, width=64)
    torch.nn.init.normal_(net.head[-1].weight)
    (gradient,) = torch.autograd.grad(net()[1, 2].sum(), net.queries)
    reached = gradient.abs().sum(-1) > 0
    assert reached[1].all() and not reached[[0, 2]].any(), "attention reaches the units of a call and no other call"


def test_gates_are_hard_in_value_and_soft_in_gradient_and_temperature_sharpens():
    probability = torch.tensor([[0.1, 0.9], [0.4, 0.6]], requires_grad=True)
    gates = straight_through(probability)
    assert gates.tolist() == [[1, 1], [0, 1]], "the first row is always open"
    gates.backward(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert probability.grad.tolist() == [[1, 2], [3, 4]]
    on = torch.tensor([[True, True], [True, False]])
    assert straight_through(probability, on, leak=0.25)[1].tolist() == pytest.approx([1, 0.25])
    logits = torch.tensor([0.0, 1.0])
    assert keep_probability(logits, 0.1) > 0.99 > keep_probability(logits) > keep_probability(logits, 10) > 0.5


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_zero_where_pictures_are_equal_and_its_gradient_that_of_finite_differences(name):
    def loss(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return consistency(name, SimpleNamespace(pictures=lambda latents: latents), a, b)

    by_hand = {"l1": 0.5, "l2": 0.25, "latent": 0.25, "ssim": 1 - 1e-4 / (0.25 + 1e-4)}  # SSIM of flat pictures: means
    wanted = sum(by_hand[part] for part in name.split("+"))
    assert loss(torch.zeros(1, 3, 12, 12), torch.full((1, 3, 12, 12), 0.5)).item() == pytest.approx(wanted, rel=1e-3)
    a, b = torch.rand(2, 2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    assert loss(a, a).abs().max() < 1e-6 and loss(a, b).shape == (2,)
    x = a.clone().requires_grad_(True)
    loss(x, b).sum().backward()
    way = 0.1 * torch.randn(a.shape, generator=torch.Generator().manual_seed(2))
    ahead, behind = (loss((a + step * way).clamp(0, 1), b).sum() for step in (0.01, -0.01))
    assert ((ahead - behind) / 0.02).item() == pytest.approx((x.grad * way).sum().item(), rel=0.05, abs=1e-3)


@pytest.fixture(scope="module")
def pipe():
    """A pipeline that predicts velocities, for which holds differ."""
    found = tiny()
    found.scheduler = DDIMScheduler.from_config(found.scheduler.config, prediction_type="v_prediction")
    return found


@pytest.fixture(scope="module")
def grid(pipe):
    return laid_out(pipe, STEPS)


def slope(net, gates, cell, prompts, wanted, step: float = 0.02) -> float:
    """Return by how much the latent error changes per change of one gate."""
    losses = []
    with net, torch.no_grad():
        for change in (-step, step):
            moved = gates.clone()
            moved[cell] += change
            losses.append((net.latents(moved, prompts, SEEDS) - wanted).double().square().mean().item())
    return (losses[1] - losses[0]) / (2 * step)


@pytest.mark.parametrize("kind", ["text", "text, transformer", "unconditional"])
def test_open_gates_are_the_pipeline_hard_ones_the_schedule_and_gradients_are_slopes(kind):
    pipe, prompts = tiny(kind), PROMPTS if "text" in kind else [0, 0]
    options = {"use_resolution_binning": False} if "transformer" in kind else {}
    net = SuperNet(pipe, laid_out(pipe, STEPS, options=options), options=options)
    wanted, schedule = net.reference(prompts, SEEDS), some(net.grid)
    with net, torch.no_grad():
        assert torch.equal(net.latents(torch.ones(net.grid.shape), prompts, SEEDS), wanted)
        soft = net.latents(schedule.on.float(), prompts, SEEDS)
    with schedule.applied(pipe), torch.no_grad():
        hard = net.unroll.latents(prompts, SEEDS)
    assert torch.allclose(soft, hard, atol=1e-5) and not torch.allclose(soft, wanted, atol=1e-5)
    how, weights = {"seeds": SEEDS, "leak": 0.3, "options": options}, list(denoiser_of(pipe)[1].parameters())
    weights[0].requires_grad_(False)
    found = [gate_gradients(pipe, net.grid, schedule.on, prompts, checkpointing=k, **how) for k in (True, False)]
    assert torch.allclose(*found, rtol=1e-4, atol=1e-9) and not found[0][0].any(), "with and without checkpointing"
    cell = divmod(found[0].abs().argmax().item(), len(net.grid.names))
    expected = slope(net, torch.where(schedule.on, 1.0, 0.3), cell, prompts, wanted)
    assert found[0][cell].item() == pytest.approx(expected, rel=0.05)
    assert all(w.grad is None and w.requires_grad == (i > 0) for i, w in enumerate(weights)), "left as they were"
    assert torch.equal(net.reference(prompts, SEEDS), wanted) and not hooks_left(denoiser_of(pipe)[1])


@pytest.mark.parametrize("hold", HOLDS)
def test_importance_is_the_slope_where_calls_are_skipped(pipe, grid, hold):
    on = every(grid, 2).on
    on[2, :-3] = False
    how = {"seeds": SEEDS, "guidance_scale": 3, "hold": hold}
    worth = cell_importance(pipe, grid, on, PROMPTS, **how)
    assert worth.isfinite().all() and not worth[[0, 1, 3]].any(), "only cells of calls have scores"
    net = SuperNet(pipe, grid, guidance_scale=3, schedule=grid.schedule(on, hold=hold))
    wanted, cell = net.reference(PROMPTS, SEEDS), (2, int(worth[2].abs().argmax()))
    assert -worth[cell].item() == pytest.approx(slope(net, on.float(), cell, PROMPTS, wanted), rel=0.05)
    again = cell_importance(pipe, grid, on, PROMPTS, wanted=wanted, batch=1, **how)
    assert torch.allclose(again, worth, rtol=1e-3, atol=1e-7)
    with grid.schedule(on, hold=hold).applied(pipe), torch.no_grad():
        hard = net.unroll.latents(PROMPTS, SEEDS)
    with net, torch.no_grad():
        assert torch.allclose(net.latents(on.float(), PROMPTS, SEEDS), hard, atol=1e-5)


def test_checkpointing_keeps_fewer_activations_for_the_backward_pass(pipe):
    weights = {p.untyped_storage()._cdata for p in pipe.unet.parameters()}

    def kept(steps: int, checkpointing: bool) -> int:
        net, sizes = SuperNet(pipe, laid_out(pipe, steps), guidance_scale=1, checkpointing=checkpointing), {}

        def note(x):
            if x.untyped_storage()._cdata not in weights:
                sizes[x.untyped_storage()._cdata] = x.untyped_storage().nbytes()
            return x

        gates = torch.full(net.grid.shape, 0.9, requires_grad=True)
        with net, torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
            alive = net.latents(gates, ["lion"], [0])  # the graph, so that no storage is used twice
        assert alive.requires_grad
        return sum(sizes.values())

    with_it, without = (kept(4, way) - kept(2, way) for way in (True, False))  # of two more calls
    assert 4 * with_it < without


def test_wrong_use_is_explained(pipe, grid, monkeypatch):
    net, gates = SuperNet(pipe, grid, checkpointing=False), torch.ones(grid.shape)
    with pytest.raises(RuntimeError, match="inside `with net:`"):
        net.latents(gates, ["lion"], [0])
    with net, pytest.raises(ValueError, match="this grid needs"):
        net.latents(gates[:1], ["lion"], [0])
    with grid.full().applied(pipe), pytest.raises(RuntimeError, match="already applied"), net:
        pass
    with pytest.raises(ValueError, match="another denoiser"):
        SuperNet(tiny("classes"), grid)
    for wrong, match in (({"leak": 1}, "leak=1"), ({"seeds": [1]}, "1 seeds for 2"), ({"loss": "mse"}, "no loss")):
        with pytest.raises(ValueError, match=match):
            gate_gradients(pipe, grid, gates, PROMPTS, **wrong)

    def full(*args, **kwargs):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate")

    monkeypatch.setattr(pipe.unet, "forward", full)
    with net, pytest.raises(MemoryError, match=r"checkpointing=True.*batch=1.*bf16=True.*loss='latent'"):
        loss_and_gradient(net, gates, PROMPTS, SEEDS, loss="latent")
