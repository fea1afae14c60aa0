"""Schedules on a GPU where there is one: bits, MACs, waiting, offloading and compilation."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel
from on_gpu import STEPS, draw, macs_of_run, relative, some, waits
from torch._dynamo.utils import counters

import pruning_lib as pl
from pruning_lib.steps.replay import HOLDS, Replay, hold_of
from pruning_lib.steps.schedule import grid_of


@pytest.mark.parametrize(("precision", "batch"), [("single", 2), ("half", 3)])
def test_applied(precision, batch, shared, half, grid_for):
    pipe, grid = shared(half if precision == "half" else torch.float32), grid_for(STEPS)
    plain = draw(pipe, batch)
    assert torch.equal(draw(pipe, batch), plain), "the pipeline itself repeats"
    with grid.full().applied(pipe) as control:
        assert torch.equal(draw(pipe, batch), plain), "all on: bit for bit"
        assert control.computed == grid.full().on.sum()
    schedule = some(grid)
    with schedule.applied(pipe) as control:
        pruned = draw(pipe, batch)
        assert control.computed == schedule.live().sum() and control.called < STEPS
        assert torch.equal(draw(pipe, batch), pruned), "nothing is left over from the run before"
        alone = draw(pipe, 1)
    # Another batch size may choose other kernels, which add up in another order. Convolutions multiply 11 bits with
    # TF32 and in float16, bfloat16 has 8; five steps on, latents differ by about six roundings.
    assert relative(alone, pruned[:1]) < (1e-2 if precision == "single" else 5e-2)
    assert pruned.isfinite().all() and relative(pruned, plain) > 1e-2
    assert torch.equal(draw(pipe, batch), plain), "outside, the pipeline is as it was"


def test_the_macs_that_are_claimed_are_the_macs_that_run(shared, grid_for):
    pipe, grid, batch = shared(), grid_for(STEPS), 2
    schedule, samples = some(grid), 2 * batch  # guidance doubles the batch
    whole = macs_of_run(lambda: draw(pipe, batch))
    with grid.full().applied(pipe):
        assert macs_of_run(lambda: draw(pipe, batch)) == whole
    with schedule.applied(pipe):
        left = macs_of_run(lambda: draw(pipe, batch))
    assert whole - left == samples * (grid.full().macs() - schedule.macs()) > 0


# What a call may read on a CPU, where reading makes nobody wait: its timestep, to tell the row.
CPU_READS = 1


@pytest.mark.parametrize("hold", HOLDS)
def test_nobody_waits_inside_the_loop(hold, shared, grid_for):
    pipe, schedule = shared(), some(grid_for(STEPS)).holding(hold)
    plain = draw(pipe)  # the first run makes handles and plans
    with waits(pipe) as unpruned:
        draw(pipe)
    assert unpruned["calls"] == [0] * STEPS, "the denoiser alone does not wait"
    with schedule.grid.full().applied(pipe), waits(pipe, refuse_above=1):
        assert torch.equal(draw(pipe), plain)
    with schedule.applied(pipe) as control:
        with waits(pipe, refuse_above=CPU_READS):
            draw(pipe)
        assert control.called < STEPS, "some call was skipped"
        with waits(pipe) as pruned:
            draw(pipe)
    on_cuda = pipe.unet.device.type == "cuda"
    assert len(pruned["calls"]) == STEPS and pruned["calls"][0] == 1, "one read, to learn where the run begins"
    assert max(pruned["calls"][1:]) <= (0 if on_cuda else CPU_READS)
    # The scheduler waits at every step, with or without us. Ours: the timesteps as a list, before the loop; that read.
    more = pruned["all"] - unpruned["all"]
    assert more <= 2 if on_cuda else more == sum(pruned["calls"])


def test_waiting_would_be_noticed(shared):
    pipe = shared()
    hook = pipe.unet.mid_block.register_forward_hook(lambda module, args, out: float(out.flatten()[0]) and None)
    try:
        with waits(pipe) as found:
            draw(pipe, steps=2)
        assert found["calls"] == [1, 1] and found["all"] >= 2
        with pytest.raises(RuntimeError, match="synchronizing CUDA|read of a number"), waits(pipe, refuse_above=0):
            draw(pipe, steps=2)
    finally:
        hook.remove()


@pytest.mark.parametrize("hold", HOLDS)
def test_only_the_first_timestep_of_an_accelerator_is_read(hold, shared, grid_for):
    """The branch that a GPU takes, on any machine: a meta tensor has no value that could be read."""
    schedule = some(grid_for(STEPS))
    calls, hold = schedule.grid.calls(schedule.on), hold_of(hold, shared().scheduler)
    control = Replay(schedule.live(), calls, schedule.grid.timesteps, hold)
    sample = torch.zeros(1, 4, 16, 16)
    for row, t in enumerate(schedule.grid.timesteps):
        timestep = torch.empty((), device="meta") if row else torch.tensor(t)
        control.denoiser(lambda: (sample,), (sample, timestep), {}, None)
    assert control.called == calls.sum()
    with pytest.raises(RuntimeError, match="meta"):
        float(timestep)


def test_offloaded(device, grid_for):
    pytest.importorskip("accelerate")
    pipe, schedule = pl.load("emoji-sd", device=device, dtype=torch.float32), some(grid_for(STEPS))
    plain = draw(pipe)
    with schedule.applied(pipe):
        pruned = draw(pipe)
    pipe.enable_model_cpu_offload(device=device)  # on a CPU weights have nowhere to go, but the hooks are the same
    assert torch.equal(draw(pipe), plain), "offloading alone changes nothing"
    assert next(pipe.unet.parameters()).device.type == "cpu"
    assert grid_of(pipe, STEPS) == schedule.grid
    with schedule.grid.full().applied(pipe):
        assert torch.equal(draw(pipe), plain)
    with schedule.applied(pipe):
        assert torch.equal(draw(pipe), pruned) and torch.equal(draw(pipe), pruned), "again and again"
    assert torch.equal(draw(pipe), plain)


@pytest.mark.slow
@pytest.mark.parametrize("graphs", [False, True], ids=["without CUDA graphs", "with CUDA graphs"])
def test_compiled(graphs, device):
    on_cuda = device.type == "cuda"
    if graphs and not on_cuda:
        pytest.skip("a CPU has no CUDA graphs; the same lines have run without them")
    # Nothing else differs on a CPU but the backend, which needs no compiler of C++.
    how = {"mode": "reduce-overhead"} if graphs else {} if on_cuda else {"backend": "eager"}
    torch._dynamo.reset()
    counters.clear()
    pipe = pl.load("emoji-sd", device=device, dtype=torch.float32)
    torch.manual_seed(0)
    pipe.unet = UNet2DConditionModel(  # of few kinds of layers: compiling takes long
        sample_size=16,
        block_out_channels=(32,),
        layers_per_block=1,
        cross_attention_dim=128,
        attention_head_dim=8,
        norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        mid_block_type=None,
    )
    pipe.unet.eval().to(device)
    grid = grid_of(pipe, STEPS)
    schedule, wanted = some(grid), draw(pipe)
    with schedule.applied(pipe):
        pruned = draw(pipe)
    try:
        pipe.unet = torch.compile(pipe.unet, **how)
        # Compiled layers are fused, so they round elsewhere; with TF32 in convolutions 0.0005 of a number, each time.
        assert relative(draw(pipe), wanted) < 1e-2
        whole = counters["stats"]["unique_graphs"]
        with grid.full().applied(pipe):
            assert relative(draw(pipe), wanted) < 1e-2
        assert whole > 0 and counters["stats"]["unique_graphs"] >= whole + len(grid.names), "compiled, unit by unit"
        with schedule.applied(pipe) as control:
            assert relative(draw(pipe), pruned) < 1e-2
            first = draw(pipe)  # with everything compiled
            assert control.computed == schedule.live().sum()
            assert relative(first, pruned) < 1e-2
            assert torch.equal(draw(pipe), first), "a compiled run repeats as well"
        assert relative(draw(pipe), wanted) < 1e-2  # compiled once more, in other pieces
    except RuntimeError as error:
        if graphs and "cudagraph" in str(error).lower().replace(" ", ""):
            pytest.xfail(f"CUDA graphs: {str(error).strip().splitlines()[0]}")
        raise
    finally:
        torch._dynamo.reset()
