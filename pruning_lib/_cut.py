"""`python -m pruning_lib score` and `cut`: what each operator is worth, and a pipeline without the cheapest ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

app = typer.Typer()

_SUFFIX = ".safetensors"
Model = Annotated[str, typer.Argument(help="Short name, folder or hub id.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1 …")]


@app.command()
def score(
    model: Model,
    target: Annotated[Path, typer.Argument(help=f"A new {_SUFFIX} file for the scores.")],
    prompt: Annotated[
        Optional[list[str]],
        typer.Option(help="What to draw, repeatable; for a model of classes, their numbers. Taken in turn."),
    ] = None,
    kind: Annotated[
        Optional[list[str]], typer.Option(help="A kind of operator, as in 'resnet'. Default: most.")
    ] = None,
    latents: Annotated[int, typer.Option(min=2, help="Latents per operator.")] = 16,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 10,
    guidance: Annotated[Optional[float], typer.Option(help="Guidance scale. Default: the pipeline's own.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Latents at a time.")] = 16,
    seed: Annotated[int, typer.Option(min=0, help="Of the first latent's noise.")] = 0,
    folder: Annotated[
        Optional[Path],
        typer.Option(help="Keeps what is finished; the same command goes on. Default: beside the target."),
    ] = None,
    count: Annotated[int, typer.Option(min=0, help="Lines of the table to show.")] = 20,
    device: Device = "cpu",
) -> None:
    """Score every operator: change it alone, draw the same latents, measure how far they moved (LD-Pruner)."""
    from .checks import check_device
    from .files import check_new_file
    from .operators.score import score_operators

    check_new_file(target, _SUFFIX)
    check_device(device)
    pipe = _load(model, device)
    own = folder is None
    folder = folder or target.with_name(f"{target.stem}-unfinished")
    scores = score_operators(
        pipe,
        _prompts(pipe, prompt),
        kinds=kind,
        num_latents=latents,
        steps=steps,
        guidance_scale=guidance,
        batch=batch,
        seed=seed,
        folder=folder,
    )
    scores.save(target)
    if own:
        for path in (*folder.glob(f"*{_SUFFIX}"), folder / "settings.json"):
            path.unlink(missing_ok=True)
        folder.rmdir()
    typer.echo(scores.table(count=count))
    typer.echo(f"{len(scores)} operators in {scores.seconds / 60:.1f} minutes. Saved in {target}")


@app.command()
def cut(
    model: Model,
    target: Annotated[Path, typer.Argument(help="A new folder for the pruned pipeline.")],
    scores: Annotated[Optional[Path], typer.Option(help=f"Scores of this model: a {_SUFFIX} file of `score`.")] = None,
    plan: Annotated[Optional[Path], typer.Option(help="A plan in place of scores: a .json file.")] = None,
    count: Annotated[Optional[int], typer.Option(min=1, help="Operators to change.")] = None,
    macs: Annotated[Optional[float], typer.Option(help="Share of the MACs to remove.")] = None,
    params: Annotated[Optional[float], typer.Option(help="Share of the parameters to remove.")] = None,
    latency: Annotated[
        Optional[float], typer.Option(help="Share of the denoiser's time to remove, measured here.")
    ] = None,
    formula: Annotated[str, typer.Option(help="paper, mean, std or mse.")] = "paper",
    device: Device = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Remove the operators of lowest score, or those of a plan, and save what is left; `pl.load_pruned` loads it."""
    from ._prune import _save
    from .checks import check_device
    from .denoisers import denoiser_of
    from .files import check_place
    from .operators.budget import reductions
    from .operators.plan import Plan
    from .operators.remove import remove_operators
    from .operators.scores import Scores

    budget = {"count": count, "macs_ratio": macs, "params_ratio": params, "latency_ratio": latency}
    budget = {name: value for name, value in budget.items() if value is not None}
    if (scores is None) == (plan is None):
        raise ValueError("Give either --scores, with one budget, or --plan.")
    if len(budget) != (1 if scores else 0):
        given = "with one of --count, --macs, --params, --latency" if scores else "without a budget"
        raise ValueError(f"--{'scores' if scores else 'plan'} goes {given}; {len(budget)} were given.")
    if target.exists():
        raise ValueError(f"{target} exists already. Give a new folder, or move that one away.")
    check_place(target)
    check_device(device)
    known = Scores.load(scores) if scores else Plan.load(plan)  # before the model, which takes longer
    pipe = _load(model, device)
    chosen = known.lowest(pipe=pipe, formula=formula, **budget) if scores else known
    denoiser = denoiser_of(pipe)[1]
    small = remove_operators(pipe, chosen)  # checks that the plan is for this model
    macs_ratio, params_ratio = reductions(denoiser, chosen)
    _save(small, target)
    if as_json:
        told = {"macs_ratio": macs_ratio, "params_ratio": params_ratio, "plan": chosen.to_dict()}
        typer.echo(json.dumps(told, indent=1))
        return
    typer.echo(str(chosen))
    typer.echo(
        f"{100 * macs_ratio:.1f} % of the MACs and {100 * params_ratio:.1f} % of the parameters are gone. "
        f"Saved in {target}; load it with pl.load_pruned."
    )


def _load(model: str, device: str) -> Any:
    """Load a pipeline, also one that was pruned before."""
    from .loading import load
    from .operators.remove import CONFIG_KEY, load_pruned

    for name in ("unet", "transformer"):
        path = Path(model) / name / "config.json"
        if path.is_file() and CONFIG_KEY in json.loads(path.read_text("utf-8")):
            pipe = load_pruned(model).to(device)
            pipe.set_progress_bar_config(disable=True)
            return pipe
    return load(model, device=device)


def _prompts(pipe: Any, given: list[str] | None) -> list[str] | list[int] | None:
    """Return prompts as the pipeline takes them: texts, or numbers of classes."""
    import inspect

    takes = inspect.signature(type(pipe).__call__).parameters
    if given and "class_labels" in takes and all(text.isdigit() for text in given):
        return [int(text) for text in given]
    return given or None
