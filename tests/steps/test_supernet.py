"""The SuperNet: at hard gates it is the schedule, its gradient is right, and checkpointing changes memory alone."""

from __future__ import annotations

import gc

import pytest
import torch
from diffusers import DDIMScheduler
from tiny import by_chance, laid_out
from tiny_pipes import pipe_of

from pruning_lib.denoisers import denoiser_of
from pruning_lib.steps import supernet
from pruning_lib.steps.budget import every
from pruning_lib.steps.hooks import HOOK
from pruning_lib.steps.replay import HOLDS, hold_of
from pruning_lib.steps.search import cell_importance
from pruning_lib.steps.supernet import HardGates, SuperNet, explains_out_of_memory, gate_gradients, loss_and_gradient

STEPS = 4
KINDS = {"text": ["lion", "pizza"], "classes": [1, 2], "text, transformer": ["lion", "pizza"], "unconditional": [0, 0]}
SEEDS = [5, 6]


@pytest.fixture(scope="module", params=KINDS)
def net(request):
    """A SuperNet of each kind of pipeline, and its prompts."""
    pipe, options = pipe_of(request.param), {}
    if "transformer" in request.param:
        options = {"use_resolution_binning": False}
    return SuperNet(pipe, laid_out(pipe, STEPS), options=options), KINDS[request.param]


@pytest.fixture(scope="module")
def pipe():
    """A pipeline that predicts velocities, for which holds differ."""
    found = pipe_of("text")
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


def test_open_gates_are_the_untouched_pipeline_and_hard_ones_the_schedule(net):
    net, prompts = net
    wanted, on = net.reference(prompts, SEEDS), by_chance(net.grid)
    with net, torch.no_grad():
        assert torch.equal(net.latents(torch.ones(net.grid.shape), prompts, SEEDS), wanted)
        soft = net.latents(on.float(), prompts, SEEDS)
    with net.grid.schedule(on).applied(net.pipe), torch.no_grad():
        hard = net.unroll.latents(prompts, SEEDS)
    assert torch.allclose(soft, hard, atol=1e-5) and not torch.allclose(soft, wanted, atol=1e-5)
    assert torch.equal(net.reference(prompts, SEEDS), wanted), "left as it was"


def test_the_gradient_is_that_of_finite_differences_with_and_without_checkpointing(net):
    net, prompts = net
    options = {k: v for k, v in net.unroll.call.items() if k != "num_inference_steps"}
    on, wanted = by_chance(net.grid, seed=1), net.reference(prompts, SEEDS)
    found = [
        gate_gradients(net.pipe, net.grid, on, prompts, seeds=SEEDS, leak=0.3, options=options, checkpointing=kept)
        for kept in (True, False)
    ]
    assert torch.allclose(*found, rtol=1e-4, atol=1e-9) and not found[0][0].any()
    cell = divmod(found[0].abs().argmax().item(), len(net.grid.names))
    assert found[0][cell].item() == pytest.approx(
        slope(net, torch.where(on, 1.0, 0.3), cell, prompts, wanted), rel=0.05
    )


@pytest.mark.parametrize("hold", HOLDS)
def test_importance_is_the_slope_where_calls_are_skipped(pipe, grid, hold):
    on, prompts = every(grid, 2).on, ["lion", "pizza"]
    on[2, :-3] = False
    how = {"seeds": SEEDS, "guidance_scale": 3, "hold": hold}
    worth = cell_importance(pipe, grid, on, prompts, **how)
    assert worth.isfinite().all() and not worth[[0, 1, 3]].any(), "only cells of calls have scores"
    net = SuperNet(pipe, grid, guidance_scale=3, control=HardGates(grid, on, hold_of(hold, pipe.scheduler)))
    wanted, cell = net.reference(prompts, SEEDS), (2, int(worth[2].abs().argmax()))
    assert -worth[cell].item() == pytest.approx(slope(net, on.float(), cell, prompts, wanted), rel=0.05)
    again = cell_importance(pipe, grid, on, prompts, wanted=wanted, batch=1, **how)
    assert torch.allclose(again, worth, rtol=1e-3, atol=1e-7)
    with grid.schedule(on, hold=hold).applied(pipe), torch.no_grad():
        hard = net.unroll.latents(prompts, SEEDS)
    with net, torch.no_grad():
        assert torch.allclose(net.latents(on.float(), prompts, SEEDS), hard, atol=1e-5)


def test_without_skipped_calls_importance_is_the_plain_gradient(pipe, grid):
    on = by_chance(grid)
    on[:, -1] = True
    plain = -gate_gradients(pipe, grid, on, ["lion"], guidance_scale=3)
    assert torch.allclose(cell_importance(pipe, grid, on, ["lion"], guidance_scale=3), plain, rtol=1e-3, atol=1e-7)


def test_batches_and_order_of_prompts_do_not_matter(pipe, grid):
    on, three = by_chance(grid), ["lion", "pizza", "rocket"]
    whole = gate_gradients(pipe, grid, on, three, batch=3)
    parts = gate_gradients(pipe, grid, on, three[::-1], seeds=[1002, 1001, 1000], batch=2)
    assert torch.allclose(whole, parts, rtol=1e-3, atol=1e-8) and whole.abs().max() > 0


def test_checkpointing_keeps_fewer_activations_for_the_backward_pass():
    pipe, kept = pipe_of("text"), {}
    weights = {p.untyped_storage()._cdata for p in pipe.unet.parameters()}
    for checkpointing in (True, False):
        for steps in (2, 4):
            grid, sizes = laid_out(pipe, steps), {}
            net = SuperNet(pipe, grid, guidance_scale=1, checkpointing=checkpointing)

            def note(x, sizes=sizes):
                if x.untyped_storage()._cdata not in weights:
                    sizes[x.untyped_storage()._cdata] = x.untyped_storage().nbytes()
                return x

            gates = torch.full(net.grid.shape, 0.9, requires_grad=True)
            with net, torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
                latents = net.latents(gates, ["lion"], [0])
            kept[checkpointing, steps] = sum(sizes.values())
            del latents, net
            gc.collect()
    per_step = {c: kept[c, 4] - kept[c, 2] for c in (True, False)}
    assert 4 * per_step[True] < per_step[False]


def test_weights_get_no_gradient_and_the_pipeline_is_left_as_it_was():
    pipe = pipe_of("text")
    pipe.vae.requires_grad_(False)
    net = SuperNet(pipe, laid_out(pipe, 2))
    weights = [*pipe.unet.parameters(), *pipe.vae.parameters()]
    wanted, asked = net.reference(["lion"], [0]), [p.requires_grad for p in weights]
    gate_gradients(pipe, net.grid, net.grid.full().on, ["lion"])
    with pytest.raises(KeyError), net:
        raise KeyError("stop")
    assert [p.requires_grad for p in weights] == asked and all(p.grad is None for p in weights)
    hooked = (getattr(module, "_diffusers_hook", None) for module in denoiser_of(pipe)[1].modules())
    assert not any(hook and hook.get_hook(HOOK) for hook in hooked)
    assert torch.equal(net.reference(["lion"], [0]), wanted)


def test_wrong_use_is_explained(pipe, grid):
    net = SuperNet(pipe, grid)
    gates = torch.ones(net.grid.shape)
    with pytest.raises(RuntimeError, match="inside `with net:`"):
        net.latents(gates, ["lion"], [0])
    with net, pytest.raises(ValueError, match="this grid needs"):
        net.latents(gates[:1], ["lion"], [0])
    with net, pytest.raises(RuntimeError, match="open already"):
        net.__enter__()
    with net.grid.full().applied(pipe), pytest.raises(RuntimeError, match="already applied"), net:
        pass
    with pytest.raises(ValueError, match="another denoiser"):
        SuperNet(pipe_of("classes"), grid)
    with pytest.raises(ValueError, match="takes no 'guidance'"):
        SuperNet(pipe, grid, options={"guidance": 3})
    with pytest.raises(TypeError, match="pipeline"):
        SuperNet(pipe.unet, 2)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"prompts": [1]}, "texts"),
        ({"leak": 1}, "leak=1"),
        ({"batch": 0}, "batch=0"),
        ({"seeds": [1]}, "1 seeds for 2"),
        ({"loss": "mse"}, "There is no loss"),
        ({"hold": "x"}, "hold='x'"),
        ({"on": torch.zeros(STEPS, 13)}, "first row"),
    ],
)
def test_bad_input_of_gate_gradients_is_refused(pipe, grid, wrong, match):
    given = {"on": torch.ones(grid.shape), "prompts": ["lion", "pizza"], **wrong}
    with pytest.raises(ValueError, match=match):
        gate_gradients(pipe, grid, given.pop("on"), given.pop("prompts"), **given)


@pytest.mark.parametrize("size", [1, 1e-5, 1e4])
def test_gradients_of_any_size_survive_half_precision(grid, monkeypatch, size):
    """Small ones would round to 0 without lifting; lifted ones would be infinite where they are large already."""
    pipe, loss, on = pipe_of("text"), supernet.consistency, by_chance(grid, 0.6)

    def gradients(dtype: torch.dtype) -> torch.Tensor:
        for module in (pipe.unet, pipe.vae, pipe.text_encoder):
            torch.nn.Module.to(module, dtype)
        return gate_gradients(pipe, laid_out(pipe, STEPS), on, ["lion"], guidance_scale=3.0, leak=0.25)

    single = gradients(torch.float32)
    monkeypatch.setattr(supernet, "consistency", lambda *args: size * loss(*args))
    half = gradients(torch.float16) / size
    assert half.isfinite().all() and (half - single).abs().max() < 0.05 * single.abs().max()


def test_out_of_memory_says_what_to_lower(pipe, grid, monkeypatch):
    with pytest.raises(MemoryError) as short, explains_out_of_memory(1, True, True):
        raise torch.OutOfMemoryError("CUDA out of memory")
    assert "smaller batch" not in str(short.value) and "loss='latent'" in str(short.value)
    with pytest.raises(RuntimeError, match="shapes"), explains_out_of_memory(1, True, True):
        raise RuntimeError("shapes differ")

    def full(*args, **kwargs):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate")

    monkeypatch.setattr(pipe.unet, "forward", full)
    with (
        SuperNet(pipe, grid, checkpointing=False) as net,
        pytest.raises(MemoryError, match=r"checkpointing=True.*batch=1.*bf16=True"),
    ):
        loss_and_gradient(net, torch.ones(grid.shape), ["lion", "pizza"], SEEDS, loss="latent")
