"""`python -m pruning_lib train-pruner`: learn which units are worth computing at which step (DiP-GO)."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

__all__ = ["app"]

app = typer.Typer()

_SUFFIX = ".safetensors"


class Recipe(str, Enum):
    """How to train."""

    best = "best"
    published = "published"


@app.command("train-pruner")
def train_pruner(
    model: Annotated[str, typer.Argument(help="Short name, folder or hub id.")],
    target: Annotated[Path, typer.Argument(help=f"A new {_SUFFIX} file for the scores.")],
    steps: Annotated[int, typer.Option(min=2, help="Denoising steps.")] = 20,
    prompt: Annotated[
        Optional[list[str]], typer.Option(help="What to draw, repeatable; for a model of classes, their numbers.")
    ] = None,
    prompts: Annotated[Optional[Path], typer.Option(help="A text file with one prompt a line.")] = None,
    recipe: Annotated[Recipe, typer.Option(help="Ours, or the paper's.")] = Recipe.best,
    keep_macs: Annotated[
        Optional[list[float]],
        typer.Option(help="Share of MACs to train for, repeatable, the largest first. Default: five of them."),
    ] = None,
    grain: Annotated[str, typer.Option(help="blocks, layers or modules.")] = "layers",
    iterations: Annotated[Optional[int], typer.Option(min=1, help="Default: the recipe's.")] = None,
    batch: Annotated[Optional[int], typer.Option(min=1, help="Prompts at a time. Default: the recipe's.")] = None,
    loss: Annotated[Optional[str], typer.Option(help="ssim, l1, l2, ssim+l1 or latent.")] = None,
    guidance: Annotated[
        Optional[float], typer.Option(help="Guidance scale. Default: 3 for emoji-sd, else the pipeline's own.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of noise, order and network.")] = 1000,
    bf16: Annotated[bool, typer.Option("--bf16", help="Run the denoiser under bfloat16 autocast.")] = False,
    checkpointing: Annotated[bool, typer.Option(help="Less memory, one more forward pass.")] = True,
    folder: Annotated[
        Optional[Path],
        typer.Option(help="Keeps every iteration; the same command goes on. Default: beside the target."),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 …")] = "cpu",
) -> None:
    """Train a pruner; `schedule make --method scores` makes schedules of its scores, for any budget."""
    from .checks import check_device
    from .files import check_new_file
    from .loading import load
    from .steps.config import RECIPES
    from .steps.training import train_pruner as train

    check_new_file(target, _SUFFIX)
    check_device(device)
    asked = {
        "iterations": iterations,
        "batch": batch,
        "loss": loss,
        "keep_macs": tuple(keep_macs or ()) or None,
        "bf16": bf16 or None,
        "checkpointing": None if checkpointing else False,
    }
    asked = {name: value for name, value in asked.items() if value is not None}
    texts = _texts(prompt, prompts)
    if guidance is None and model == "emoji-sd":
        guidance = 3.0  # diffusers' default suits Stable Diffusion
    pipe = load(model, device=device)
    own = folder is None
    folder = folder or target.with_name(f"{target.stem}-unfinished")
    total = asked.get("iterations") or RECIPES[recipe.value].get("iterations", 500)

    def tell(look: Any) -> None:
        figures = look.figures
        if look.iteration % max(1, total // 20) == 0 or look.iteration in (1, total):
            typer.echo(
                f"iteration {look.iteration:4d}  loss {figures['loss']:.4f}  MACs kept {figures['macs_ratio']:.3f}  "
                f"{figures['seconds'] / 60:.1f} minutes"
            )

    trained = train(
        pipe,
        _of_kind(pipe, texts),
        steps=steps,
        grain=grain,
        recipe=recipe.value,
        guidance_scale=guidance,
        seed=seed,
        folder=folder,
        callback=tell,
        **asked,
    )
    trained.save(target)
    if own:
        for name in ("checkpoint.pt", "log.jsonl", "pruner.json"):
            (folder / name).unlink(missing_ok=True)
        folder.rmdir()
    typer.echo(f"{trained!r}. Saved in {target}")


def _texts(given: list[str] | None, path: Path | None) -> list[str]:
    """Return the prompts, from options and from a file."""
    lines = [] if path is None else path.read_text("utf-8").splitlines()
    found = [*(given or ()), *(line.strip() for line in lines if line.strip())]
    if not found:
        raise ValueError("There is no prompt: give --prompt TEXT, repeatable, or --prompts FILE with one a line.")
    return found


def _of_kind(pipe: Any, texts: list[str]) -> list[str] | list[int]:
    """Return prompts as the pipeline takes them: texts, or numbers of classes."""
    import inspect

    takes = inspect.signature(type(pipe).__call__).parameters
    return [int(text) for text in texts] if "class_labels" in takes else texts
