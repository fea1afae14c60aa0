"""The SuperNet: at hard gates it is the schedule, its gradient is right, and checkpointing changes memory alone."""

from __future__ import annotations

import gc

import pytest
import torch
from tiny_pipes import pipe_of

from pruning_lib.denoisers import denoiser_of
from pruning_lib.steps.hooks import HOOK
from pruning_lib.steps.schedule import grid_of
from pruning_lib.steps.supernet import SuperNet, explains_out_of_memory, gate_gradients

STEPS = 4
KINDS = {"text": ["lion", "pizza"], "classes": [1, 2], "text, transformer": ["lion", "pizza"], "unconditional": [0, 0]}
SEEDS = [5, 6]


@pytest.fixture(scope="module", params=KINDS)
def net(request):
    """A SuperNet of each kind of pipeline, and its prompts."""
    options = {"use_resolution_binning": False} if "transformer" in request.param else None
    return SuperNet(pipe_of(request.param), STEPS, options=options), KINDS[request.param]


def some_schedule(grid, seed: int = 0) -> torch.Tensor:
    on = torch.rand(grid.shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    on[0] = True
    return on


def test_open_gates_are_the_untouched_pipeline_and_hard_ones_the_schedule(net):
    net, prompts = net
    wanted, on = net.reference(prompts, SEEDS), some_schedule(net.grid)
    with net, torch.no_grad():
        assert torch.equal(net.latents(torch.ones(net.grid.shape), prompts, SEEDS), wanted)
        soft = net.latents(on.float(), prompts, SEEDS)
    with net.grid.schedule(on).applied(net.pipe), torch.no_grad():
        hard = net.unroll.latents(prompts, SEEDS)
    assert torch.allclose(soft, hard, atol=1e-5) and not torch.allclose(soft, wanted, atol=1e-5)
    assert torch.equal(net.reference(prompts, SEEDS), wanted), "left as it was"


def test_the_gradient_is_that_of_finite_differences_with_and_without_checkpointing(net):
    net, prompts = net
    kept = net.unroll.call.get("use_resolution_binning")
    options = {} if kept is None else {"use_resolution_binning": kept}
    on, wanted = some_schedule(net.grid, 1), net.reference(prompts, SEEDS)
    found = [
        gate_gradients(
            net.pipe, net.grid, on, prompts, seeds=SEEDS, leak=0.3, checkpointing=checkpointing, options=options
        )
        for checkpointing in (True, False)
    ]
    assert torch.allclose(*found, rtol=1e-4, atol=1e-9) and not found[0][0].any()
    gates, cell = torch.where(on, 1.0, 0.3), divmod(found[0].abs().argmax().item(), len(net.grid.names))

    def loss(change: float) -> float:
        moved = gates.clone()
        moved[cell] += change
        return (net.latents(moved, prompts, SEEDS) - wanted).double().square().mean().item()

    with net, torch.no_grad():
        slope = (loss(0.02) - loss(-0.02)) / 0.04
    assert found[0][cell].item() == pytest.approx(slope, rel=0.05)


def test_batches_and_order_of_prompts_do_not_matter():
    pipe = pipe_of("text")
    grid = grid_of(pipe, STEPS)
    on, three = some_schedule(grid), ["lion", "pizza", "rocket"]
    whole = gate_gradients(pipe, grid, on, three, batch=3)
    parts = gate_gradients(pipe, grid, on, three[::-1], seeds=[1002, 1001, 1000], batch=2)
    assert torch.allclose(whole, parts, rtol=1e-3, atol=1e-8) and whole.abs().max() > 0


def test_checkpointing_keeps_fewer_activations_for_the_backward_pass():
    pipe, kept = pipe_of("text"), {}
    for checkpointing in (True, False):
        for steps in (2, 6):
            net, sizes = SuperNet(pipe, steps, checkpointing=checkpointing), {}
            weights = {p.untyped_storage()._cdata for p in pipe.unet.parameters()}

            def note(x, sizes=sizes, weights=weights):
                if x.untyped_storage()._cdata not in weights:
                    sizes[x.untyped_storage()._cdata] = x.untyped_storage().nbytes()
                return x

            gates = torch.full(net.grid.shape, 0.9, requires_grad=True)
            with net, torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
                latents = net.latents(gates, ["lion"], [0])
            kept[checkpointing, steps] = sum(sizes.values())
            del latents, net
            gc.collect()
    per_step = {c: (kept[c, 6] - kept[c, 2]) / 4 for c in (True, False)}
    assert 4 * per_step[True] < per_step[False]


def test_weights_get_no_gradient_and_are_as_trainable_as_before():
    pipe = pipe_of("text")
    pipe.vae.requires_grad_(False)
    asked = [p.requires_grad for part in (pipe.unet, pipe.vae) for p in part.parameters()]
    gate_gradients(pipe, grid_of(pipe, 2), grid_of(pipe, 2).full().on, ["lion"])
    assert [p.requires_grad for part in (pipe.unet, pipe.vae) for p in part.parameters()] == asked
    assert all(p.grad is None for p in pipe.unet.parameters())


def test_an_error_inside_leaves_the_pipeline_as_it_was():
    net = SuperNet(pipe_of("text"), 2)
    wanted = net.reference(["lion"], [0])
    with pytest.raises(KeyError), net:
        raise KeyError("stop")
    assert not any(
        getattr(m, "_diffusers_hook", None) and m._diffusers_hook.get_hook(HOOK)
        for m in denoiser_of(net.pipe)[1].modules()
    )
    assert torch.equal(net.reference(["lion"], [0]), wanted)
    with net, pytest.raises(RuntimeError, match="open already"):
        net.__enter__()


def test_wrong_use_is_explained():
    pipe = pipe_of("text")
    net = SuperNet(pipe, 2)
    gates = torch.ones(net.grid.shape)
    with pytest.raises(RuntimeError, match="inside `with net:`"):
        net.latents(gates, ["lion"], [0])
    with net, pytest.raises(ValueError, match="this grid needs"):
        net.latents(gates[:1], ["lion"], [0])
    with net.grid.full().applied(pipe), pytest.raises(RuntimeError, match="already applied"), net:
        pass
    with pytest.raises(ValueError, match="another denoiser"):
        SuperNet(pipe, grid_of(pipe_of("classes"), 2))
    with pytest.raises(ValueError, match="takes no 'guidance'"):
        SuperNet(pipe, 2, options={"guidance": 3})
    with pytest.raises(TypeError, match="pipeline"):
        SuperNet(pipe.unet, 2)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"prompts": "lion"}, "draws from texts"),
        ({"prompts": []}, "draws from texts"),
        ({"prompts": [1]}, "texts"),
        ({"leak": 1}, "leak=1"),
        ({"batch": 0}, "batch=0"),
        ({"seeds": [1]}, "1 seeds for 2"),
        ({"loss": "mse"}, "There is no loss"),
        ({"on": torch.zeros(2, 13)}, "first row"),
    ],
)
def test_bad_input_of_gate_gradients_is_refused(wrong, match):
    pipe = pipe_of("text")
    grid = grid_of(pipe, 2)
    given = {"on": torch.ones(grid.shape), "prompts": ["lion", "pizza"], **wrong}
    with pytest.raises(ValueError, match=match):
        gate_gradients(pipe, grid, given.pop("on"), given.pop("prompts"), **given)


def test_out_of_memory_says_what_to_lower():
    with (
        pytest.raises(MemoryError, match=r"checkpointing=True.*batch=2.*bf16=True"),
        explains_out_of_memory(4, False, False),
    ):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate")
    with pytest.raises(MemoryError) as short, explains_out_of_memory(1, True, True):
        raise torch.OutOfMemoryError("CUDA out of memory")
    assert "smaller batch" not in str(short.value) and "loss='latent'" in str(short.value)
    with pytest.raises(RuntimeError, match="shapes"), explains_out_of_memory(1, True, True):
        raise RuntimeError("shapes differ")
