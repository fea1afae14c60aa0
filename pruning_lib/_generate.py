"""`python -m pruning_lib generate`: pictures of any pipeline, with or without a schedule of steps."""

from __future__ import annotations

import inspect
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

__all__ = ["DeviceOption", "Guidance", "Seed", "Steps", "app", "draw"]

app = typer.Typer()

LAST_SEED = 2**63 - 1  # PyTorch keeps seeds in 64 bits
STEPS = 25  # unless the command line or a schedule says otherwise


def _device(name: str) -> str:
    from .checks import check_device

    try:
        return str(check_device(name))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


DeviceOption = Annotated[str, typer.Option(callback=_device, help="cpu, cuda, cuda:1 …; checked before any work.")]
Steps = Annotated[int, typer.Option(min=1, help="Denoising steps.")]
Seed = Annotated[int, typer.Option(min=0, max=LAST_SEED, help="Of the noise, the same for every prompt.")]
Guidance = Annotated[
    Optional[float], typer.Option(min=0, help="Guidance scale. Default: 3 for emoji-sd, else the pipeline's own.")
]


@app.command()
def generate(
    prompts: Annotated[list[str], typer.Argument(help="What to draw; each in quotation marks.")],
    model: Annotated[str, typer.Option(help="Short name, folder or hub id.")] = "emoji-sd",
    schedule: Annotated[
        Optional[Path], typer.Option(help="A schedule of steps and units, as Schedule.save wrote it.")
    ] = None,
    steps: Annotated[
        Optional[int], typer.Option(min=1, help=f"Denoising steps. Default: those of the schedule, else {STEPS}.")
    ] = None,
    guidance: Guidance = None,
    seed: Seed = 0,
    out: Annotated[Path, typer.Option(help="Folder; or, for one prompt, a .png file.")] = Path("."),
    device: DeviceOption = "cpu",
) -> None:
    """Draw pictures and save them as PNG; the same command writes the same files again."""
    from ._pictures import picture_paths
    from .loading import load

    paths = picture_paths(out, prompts, seed)  # before the model is loaded: a wrong place should fail at once
    plan = _plan(schedule, steps) if schedule else None
    pipe = load(model, device=device)
    with plan.applied(pipe) if plan else nullcontext():
        for path, prompt in zip(paths, prompts, strict=True):
            images = draw(
                pipe, model, [prompt], steps=plan.steps if plan else steps or STEPS, guidance=guidance, seed=seed
            )
            images[0].save(path)
            typer.echo(path)


def _plan(file: Path, steps: int | None) -> Any:
    """Read a schedule; a number of steps beside it must be its own."""
    from .steps.schedule import Schedule

    plan = Schedule.load(file)
    if steps is not None and steps != plan.steps:
        raise ValueError(
            f"{file} is a schedule for {plan.steps} steps, and --steps {steps} was given. Leave --steps out, "
            "or make a schedule for that number."
        )
    return plan


def draw(pipe: Any, name: str, prompts: list[str], *, steps: int, guidance: float | None, seed: int) -> list:
    """Return one PIL image per prompt, every one from the noise of `seed`.

    Args:
        pipe: a pipeline.
        name: how it was asked for; emoji-sd has a guidance scale of its own.
        prompts: what to draw, in one call.
        steps: denoising steps, >= 1.
        guidance: guidance scale; None for the pipeline's own.
        seed: of the noise.

    Raises:
        ValueError: a pipeline that takes no prompt.
    """
    import torch

    if "prompt" not in inspect.signature(pipe.__call__).parameters:
        raise ValueError(f"{name} is a {type(pipe).__name__}, which takes no prompt. Call it from Python instead.")
    if guidance is None and name == "emoji-sd":
        guidance = 3.0  # diffusers' default suits Stable Diffusion
    scale = {} if guidance is None else {"guidance_scale": guidance}
    noise = [torch.Generator().manual_seed(seed) for _ in prompts]
    return pipe(prompts, num_inference_steps=steps, generator=noise, **scale).images
