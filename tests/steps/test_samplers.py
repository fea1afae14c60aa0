"""Schedules on every sampler of diffusers that a pipeline may bring: repeated, fractional and doubled timesteps."""

from __future__ import annotations

import diffusers
import pytest
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from tiny_pipes import pipe_of

from pruning_lib.steps.schedule import Schedule, grid_of
from pruning_lib.steps.units import units_of

STEPS = 5
# sampler -> (class, options, calls that STEPS steps make)
SAMPLERS = {
    "DDIM": ("DDIMScheduler", {}, 5),
    "DDPM": ("DDPMScheduler", {}, 5),
    "PLMS": ("PNDMScheduler", {"skip_prk_steps": True}, 6),  # the second timestep twice
    "PNDM": ("PNDMScheduler", {"skip_prk_steps": False}, 14),  # Runge-Kutta: four calls for each of the first steps
    "DPM-Solver++": ("DPMSolverMultistepScheduler", {}, 5),
    "DPM-Solver++ SDE": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, 5),
    "DPM-Solver++, single step": ("DPMSolverSinglestepScheduler", {}, 5),
    "UniPC": ("UniPCMultistepScheduler", {}, 5),
    "DEIS": ("DEISMultistepScheduler", {}, 5),
    "Euler": ("EulerDiscreteScheduler", {"timestep_spacing": "linspace"}, 5),  # fractional timesteps
    "Euler, Karras": ("EulerDiscreteScheduler", {"use_karras_sigmas": True}, 5),
    "Euler, ancestral": ("EulerAncestralDiscreteScheduler", {}, 5),
    "Heun": ("HeunDiscreteScheduler", {}, 9),  # two calls a step but the last
    "DPM2": ("KDPM2DiscreteScheduler", {}, 9),
    "LCM": ("LCMScheduler", {}, 5),
    "TCD": ("TCDScheduler", {}, 5),
}


@pytest.fixture(scope="module")
def small():
    """A tiny pipeline with text, its own scheduler, and its units, found once."""
    pipe = pipe_of("text")
    pipe.own, pipe.units = pipe.scheduler, units_of(pipe.unet)
    return pipe


def with_sampler(pipe, name: str):
    kind, options, calls = SAMPLERS[name]
    pipe.scheduler = getattr(diffusers, kind).from_config(pipe.own.config, **options)
    return calls


def latents(pipe, steps: int = STEPS, seed: int = 0):
    noise = torch.Generator().manual_seed(seed)
    return pipe("lion", num_inference_steps=steps, generator=noise, output_type="latent").images


def half(grid, seed: int = 0) -> Schedule:
    """Return a schedule of half the cells, with at least one call that is skipped."""
    on = torch.rand(grid.shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    on[0], on[2], on[3] = True, True, False
    return grid.schedule(on, method="by chance")


def with_timesteps(pipe) -> tuple[torch.Tensor, list[float]]:
    """Return the latents of a run, and the timesteps at which the denoiser was called."""
    found = []
    hook = pipe.unet.register_forward_pre_hook(
        lambda unet, args, kwargs: found.append(float(args[1] if len(args) > 1 else kwargs["timestep"])),
        with_kwargs=True,
    )
    made = latents(pipe)
    hook.remove()
    return made, found


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler(small, name):
    calls = with_sampler(small, name)
    grid = grid_of(small, STEPS, small.units)
    assert grid.shape == (calls, len(small.units)) and grid.steps == STEPS
    plain, seen = with_timesteps(small)
    assert list(grid.timesteps) == pytest.approx(seen), "a row for every call, in order"
    with grid.full().applied(small) as run:
        assert torch.equal(latents(small), plain), "all on: bit for bit"
        assert (run.called, run.computed) == (calls, len(small.units) * calls)
    schedule = half(grid)
    with schedule.applied(small) as run:
        first = latents(small)
        assert run.called == int(grid.calls(schedule.on).sum()) < calls
        assert run.computed == int(schedule.live().sum())
        assert torch.equal(latents(small), first), "nothing is left over from the run before"
        assert first.isfinite().all() and not torch.equal(first, plain)
    assert torch.equal(latents(small), plain), "outside, the pipeline is as it was"


def test_a_row_reuses_what_the_sampler_asked_for_before(small):
    """PLMS asks twice at its second timestep: the rows are two, and the second may reuse the first."""
    with_sampler(small, "PLMS")
    grid = grid_of(small, STEPS, small.units)
    assert grid.timesteps[1] == grid.timesteps[2]
    on = torch.ones(grid.shape, dtype=torch.bool)
    on[2] = False
    outputs = []
    hook = small.unet.register_forward_hook(lambda unet, args, output: outputs.append(output[0].clone()))
    with grid.schedule(on).applied(small) as run:
        latents(small)
        assert run.called == grid.shape[0] - 1
    hook.remove()
    assert len(outputs) == grid.shape[0] and torch.equal(outputs[2], outputs[1])
    assert not torch.equal(outputs[3], outputs[2])


@pytest.mark.parametrize("name", ["PLMS", "Heun", "Euler"])
def test_saved_and_loaded(small, tmp_path, name):
    with_sampler(small, name)
    schedule = half(grid_of(small, STEPS, small.units))
    again = Schedule.load(schedule.save(tmp_path / "a.json"))
    assert again == schedule and again.grid == schedule.grid
    with schedule.applied(small):
        wanted = latents(small)
    with again.applied(small):
        assert torch.equal(latents(small), wanted)


def test_another_sampler_or_spacing_is_refused_before_any_work(small):
    calls = []
    hook = small.unet.register_forward_pre_hook(lambda *a: calls.append(1))
    with_sampler(small, "PLMS")
    schedule = half(grid_of(small, STEPS, small.units))
    with schedule.applied(small), pytest.raises(ValueError, match=r"5 steps of PNDMScheduler \(6 calls"):
        latents(small, STEPS + 1)
    with_sampler(small, "PNDM")
    with schedule.applied(small), pytest.raises(ValueError, match="14 calls"):
        latents(small)
    with_sampler(small, "DDIM")
    with pytest.raises(ValueError, match="made for PNDMScheduler, while the pipeline samples with DDIMSched"):
        schedule.applied(small).__enter__()
    schedule = half(grid_of(small, STEPS, small.units))
    small.scheduler = type(small.scheduler).from_config(small.own.config, timestep_spacing="trailing")
    with schedule.applied(small), pytest.raises(ValueError, match="asks for 5"):
        latents(small)
    hook.remove()
    assert not calls


def flow_pipe(**options) -> StableDiffusion3Pipeline:
    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=16,
        pooled_projection_dim=8,
        out_channels=4,
        pos_embed_max_size=8,
    ).eval()
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4, shift_factor=0.0)
    parts = dict.fromkeys(
        ("text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2", "tokenizer_3")
    )
    pipe = StableDiffusion3Pipeline(
        transformer=transformer, vae=vae.eval(), scheduler=FlowMatchEulerDiscreteScheduler(**options), **parts
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def flow_latents(pipe, steps: int = STEPS):
    make = torch.Generator().manual_seed(0)
    text, pooled = torch.randn(1, 5, 16, generator=make), torch.randn(1, 8, generator=make)
    return pipe(
        prompt_embeds=text,
        pooled_prompt_embeds=pooled,
        negative_prompt_embeds=-text,
        negative_pooled_prompt_embeds=-pooled,
        num_inference_steps=steps,
        output_type="latent",
        height=8,
        width=8,
        generator=torch.Generator().manual_seed(0),
    ).images


@pytest.mark.parametrize("options", [{}, {"shift": 3.0}, {"use_karras_sigmas": True}])
def test_flow_matching(options):
    pipe = flow_pipe(**options)
    grid = grid_of(pipe, STEPS)
    assert grid.wiring.output_reads_input, "the timestep reaches the last norm: every call is made"
    plain = flow_latents(pipe)
    with grid.full().applied(pipe):
        assert torch.equal(flow_latents(pipe), plain)
    on = torch.ones(grid.shape, dtype=torch.bool)
    on[1::2] = False
    schedule = grid.schedule(on)
    with schedule.applied(pipe) as run:
        first = flow_latents(pipe)
        assert (run.called, run.computed) == (STEPS, int(schedule.live().sum()))
        assert torch.equal(flow_latents(pipe), first) and not torch.equal(first, plain)
        with pytest.raises(ValueError, match="4 calls"):
            flow_latents(pipe, 4)
    assert torch.equal(flow_latents(pipe), plain)


def test_flow_matching_whose_timesteps_depend_on_the_picture():
    pipe = flow_pipe(use_dynamic_shifting=True)
    with pytest.raises(ValueError, match="does not tell its timesteps for 5 steps alone"):
        grid_of(pipe, STEPS)
    pipe.scheduler.set_timesteps(STEPS, mu=0.7)
    asked = pipe.scheduler.timesteps.tolist()
    grid = grid_of(pipe, STEPS, timesteps=asked)
    assert list(grid.timesteps) == asked and grid.shape[0] == STEPS
