"""The commands that prune: `pruning-lib prune`, `score`, `cut`, `train-pruner` and `schedule …`."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option, Typer, echo

import pruning_lib as pl

from . import commands as c

app, schedules = c.app, Typer(help="Schedules: which unit is computed at which step.", **c.PLAIN)
app.add_typer(schedules, name="schedule")

Scope = c.words("global", "layer", "sensitivity", "random")
Recipe = c.words("best", "published")
Method = c.words("uniform", "deepcache", "scores", "search")
Hold = c.words("value", "prediction")

_new = partial(c.checked, "files", "check_new_file")
Model = Annotated[str, Argument(help="Short name, hub id or folder; also a folder that was pruned here.")]
NewScores = Annotated[Path, Argument(callback=_new(".safetensors"), help="A new .safetensors file for the scores.")]
NewFolder = Annotated[Path, Argument(callback=_new(), help="A new folder for the pruned pipeline.")]
NewSchedule = Annotated[Path, Argument(callback=_new(".json"), help="A new .json file for the schedule.")]
Schedule = Annotated[Path, Argument(help="A schedule, as `schedule make` wrote it.")]
Prompt = Annotated[list[str] | None, Option(help="What to draw, repeatable; numbers for a model of classes.")]
Prompts = Annotated[Path | None, Option(exists=True, help="A text file with one prompt a line.")]
Grain = Annotated[str, Option(help="blocks, layers or modules.")]
Unfinished = Annotated[Path | None, Option(help="Keeps what is finished, to go on. Default: beside the target.")]


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _worked_out(
    work: Callable, model: str, target: Path, texts: tuple, guidance: float | None, folder: Path | None, **options: Any
) -> Any:
    """Load a model, do work that draws prompts, and save its result; what was unfinished beside it goes."""
    pipe, own = pl.load(model, device=options.pop("device")), target.with_name(f"{target.stem}-unfinished")
    options |= {"guidance_scale": c.scale(pipe, guidance), "folder": folder or own}
    found = work(pipe, c.prompts_of(pipe, *texts), **options)
    found.save(target)
    if folder is None:
        shutil.rmtree(own, ignore_errors=True)
    return found


def _save(pipe: Any, target: Path) -> None:
    from .files import write_whole
    from .sampling import quietly

    with write_whole(target) as part, quietly():
        pipe.save_pretrained(part)


@app.command()
def prune(
    model: Model,
    target: NewFolder,
    sparsity: Annotated[float, Option(help="Share of the weights to set to zero, from 0 to below 1.")] = 0.3,
    scope: Annotated[Scope, Option(help="What counts as smallest: one cut for all, …")] = "global",
    part: Annotated[str, Option(help="unet, transformer, vae, text_encoder; default: the denoiser.")] = "",
    ignore: Annotated[list[str] | None, Option(help="A group or pattern to spare too, as in 'mid_block*'.")] = None,
    seed: c.Seed = 0,
    depth: c.Depth = 1,
    as_json: c.AsJson = False,
) -> None:
    """Set the smallest weights to zero and save the model; its tensors keep their shapes, so it is no faster."""
    from .checks import nearest
    from .denoisers import denoiser_of
    from .weights.select import IGNORE

    pipe = pl.load(model)
    parts = {name: module for name, module in pipe.components.items() if hasattr(module, "parameters")}
    part = part or denoiser_of(pipe)[0]
    if part not in parts:
        raise ValueError(f"{model} has no part {part!r}. {nearest(part, parts)}")
    spared = (*IGNORE, *(ignore or ()))
    pruned = pl.prune_magnitude(parts[part], sparsity, scope=scope.value, ignore=spared, seed=seed)
    _save(pipe, target)
    note = f"{len(pruned.ignored)} tensors were left alone. Saved in {target}"
    c.tell(pruned.to_dict(), f"{pruned.table(depth)}\n{note}", as_json)


@app.command()
def score(
    model: Model,
    target: NewScores,
    prompt: Prompt = None,
    prompts: Prompts = None,
    kind: Annotated[list[str] | None, Option(help="A kind of operator, as in 'resnet'. Default: most.")] = None,
    latents: Annotated[int, Option(min=2, help="Latents per operator; prompts are taken in turn.")] = 16,
    steps: Annotated[int, Option(min=1, help="Denoising steps.")] = 10,
    guidance: c.Guidance = None,
    batch: Annotated[int, Option(min=1, help="Latents at a time.")] = 16,
    seed: c.Seed = 0,
    folder: Unfinished = None,
    count: Annotated[int, Option(min=0, help="Lines of the table to show.")] = 20,
    device: c.Device = "cpu",
) -> None:
    """Score every operator: change it alone, draw the same latents, measure how far they moved (LD-Pruner)."""
    asked = {"kinds": kind, "num_latents": latents, "steps": steps, "batch": batch, "seed": seed, "device": device}
    scores = _worked_out(pl.score_operators, model, target, (prompt, prompts), guidance, folder, **asked)
    echo(scores.table(count=count))
    echo(f"{len(scores)} operators in {scores.seconds / 60:.1f} minutes. Saved in {target}")


@app.command()
def cut(
    model: Model,
    target: NewFolder,
    scores: Annotated[Path | None, Option(help="Scores of this model: a file of `score`.")] = None,
    plan: Annotated[Path | None, Option(help="A plan in place of scores: a .json file.")] = None,
    count: Annotated[int | None, Option(min=1, help="Operators to change.")] = None,
    macs: Annotated[float | None, Option(help="Share of the MACs to remove.")] = None,
    params: Annotated[float | None, Option(help="Share of the parameters to remove.")] = None,
    latency: Annotated[float | None, Option(help="Share of the denoiser's time to remove, measured here.")] = None,
    formula: Annotated[str, Option(help="paper, mean, std or mse.")] = "paper",
    guidance: c.Guidance = None,
    device: c.Device = "cpu",
    as_json: c.AsJson = False,
) -> None:
    """Remove the operators of lowest score, or those of a plan, and save a folder that every other command takes."""
    from .denoisers import denoiser_of
    from .operators.budget import reductions

    budget = _given(count=count, macs_ratio=macs, params_ratio=params, latency_ratio=latency)
    if (scores is None) == (plan is None) or len(budget) != (1 if scores else 0):
        raise ValueError(
            "Give either --scores, with one budget (--count, --macs, --params, --latency), or --plan, with none; "
            f"{len(budget)} of the four were given."
        )
    known = pl.Scores.load(scores) if scores else pl.Plan.load(plan)  # before the model, which takes longer
    pipe = pl.load(model, device=device)
    if latency is not None:  # time counts as the pipeline calls its denoiser: with and without the prompt
        own, scale = signature(type(pipe).__call__).parameters.get("guidance_scale"), c.scale(pipe, guidance)
        budget["batch"] = 2 if own and (own.default if scale is None else scale) > 1 else 1
    chosen = known.lowest(pipe=pipe, formula=formula, **budget) if scores else known
    small = pl.remove_operators(pipe, chosen)  # checks that the plan is for this model
    less_macs, less_params = reductions(denoiser_of(pipe)[1], chosen)
    _save(small, target)
    gone = f"{100 * less_macs:.1f} % of the MACs and {100 * less_params:.1f} % of the parameters are gone."
    told = {"macs_ratio": less_macs, "params_ratio": less_params, "plan": chosen.to_dict()}
    c.tell(told, f"{chosen}\n{gone} Saved in {target}; pl.load and every command here take it.", as_json)


@app.command()
def train_pruner(
    model: Model,
    target: NewScores,
    steps: Annotated[int, Option(min=2, help="Denoising steps.")] = 20,
    prompt: Prompt = None,
    prompts: Prompts = None,
    recipe: Annotated[Recipe, Option(help="Ours, or the paper's.")] = "best",
    keep_macs: Annotated[
        list[float] | None, Option(help="Shares of MACs to train for, the largest first. Default: five of them.")
    ] = None,
    grain: Grain = "layers",
    iterations: Annotated[int | None, Option(min=1, help="Default: the recipe's.")] = None,
    batch: Annotated[int | None, Option(min=1, help="Prompts at a time. Default: the recipe's.")] = None,
    loss: Annotated[str | None, Option(help="ssim, l1, l2, ssim+l1 or latent.")] = None,
    guidance: c.Guidance = None,
    seed: c.Seed = 1000,
    bf16: Annotated[bool, Option("--bf16", help="Run the denoiser under bfloat16 autocast.")] = False,
    checkpointing: Annotated[bool, Option(help="Less memory, one more forward pass.")] = True,
    folder: Unfinished = None,
    device: c.Device = "cpu",
) -> None:
    """Train a pruner; `schedule make --method scores` makes schedules of its scores, for any budget."""
    asked = {"steps": steps, "grain": grain, "recipe": recipe.value, "seed": seed, "device": device}
    asked |= {"bf16": bf16, "checkpointing": checkpointing, "callback": _tell_now}
    asked |= _given(iterations=iterations, batch=batch, loss=loss, keep_macs=keep_macs)
    trained = _worked_out(pl.train_pruner, model, target, (prompt, prompts), guidance, folder, **asked)
    echo(f"{trained!r}. Saved in {target}")


def _tell_now(look: Any) -> None:
    """Say how training goes, at iterations 1, 2, 5, 10, 20, 30 …"""
    figures = look.figures
    if look.iteration in (1, 2, 5) or look.iteration % 10 == 0:
        kept, minutes = figures["macs_ratio"], figures["seconds"] / 60
        echo(f"iteration {look.iteration:4d}  loss {figures['loss']:.4f}  MACs kept {kept:.3f}  {minutes:.1f} minutes")


@schedules.command()
def make(
    model: Model,
    target: NewSchedule,
    keep_macs: Annotated[float, Option(help="Share of the MACs to keep at most, above 0 and up to 1.")],
    method: Annotated[
        Method, Option(help="uniform: whole steps; deepcache: its pattern; scores: of a pruner; search: by drawing.")
    ] = "uniform",
    steps: Annotated[int | None, Option(min=1, help="Denoising steps. Default: those of the scores, else 20.")] = None,
    grain: Grain = "layers",
    branch: Annotated[int, Option(min=0, help="Of DeepCache; 0 is the cheapest.")] = 0,
    scores: Annotated[Path | None, Option(help="Of `train-pruner`: for --method scores, or to search from.")] = None,
    hold: Annotated[Hold | None, Option(help="What a skipped call answers. Default: the method's.")] = None,
    prompt: Prompt = None,
    prompts: Prompts = None,
    images: Annotated[int, Option(min=1, help="For --method search: pictures to compare.")] = 8,
    guidance: c.Guidance = None,
    seed: c.Seed = 0,
    folder: Unfinished = None,
    device: c.Device = "cpu",
) -> None:
    """Make a schedule within a budget of MACs; only --method search draws pictures, and wants prompts."""
    from .steps.budget import deepcache, uniform
    from .steps.training import TrainedPruner

    if method is not Method.search and (scores is not None) != (method is Method.scores):
        raise ValueError("--method scores goes with --scores FILE, --method search may, and the others go without.")
    trained, steps = c.read(TrainedPruner, scores, steps, 20)
    if method is Method.search:
        asked = {"steps": steps, "keep": keep_macs, "grain": grain, "start": trained, "images": images, "seed": seed}
        asked |= {"device": device, "tell": echo, **_given(hold=hold and hold.value)}
        made = _worked_out(pl.search_schedule, model, target, (prompt, prompts), guidance, folder, **asked)
    else:
        pipe = pl.load(model, device=device)
        if trained:
            made = trained.schedule(keep_macs=keep_macs)
        elif method is Method.uniform:
            made = uniform(pl.grid_of(pipe, steps, grain), keep_macs)
        else:
            made = deepcache(pl.grid_of(pipe, steps, grain), branch=branch, keep_macs=keep_macs)
        made = made.holding(hold.value) if hold else made
        with made.applied(pipe):  # refuses scores of another model
            made.save(target)
    echo(f"{_sentence(made)} Saved in {target}")


@schedules.command()
def show(
    file: Schedule,
    plot: Annotated[Path | None, Option(help="Also draw it: a .png or .pdf file.")] = None,
    as_json: c.AsJson = False,
) -> None:
    """Draw a schedule as text: # computed, x dead work, . used again; one line per unit."""
    schedule = pl.Schedule.load(file)
    grid, states = schedule.grid, (schedule.on.int() + schedule.live().int()).T.tolist()
    rows = {name: "".join(".x#"[state] for state in row) for name, row in zip(grid.names, states, strict=True)}
    rows["calls"] = "".join(" |"[called] for called in grid.calls(schedule.on).tolist())
    lines = [f"{name:{max(map(len, rows))}s}  {row}" for name, row in rows.items()] + [_sentence(schedule)]
    if plot:
        _draw(rows, plot)
        lines.append(f"Drawn in {plot}")
    c.tell(_costs(schedule), "\n".join(lines), as_json)


@schedules.command()
def check(file: Schedule, model: Model) -> None:
    """Say whether a pipeline can follow a schedule: the same units, scheduler and timesteps."""
    schedule = pl.Schedule.load(file)  # before the model, which takes longer
    pipe = pl.load(model)
    with schedule.applied(pipe):  # refuses another denoiser or scheduler, and says which
        pass
    difference = schedule.grid.difference(pl.grid_of(pipe, schedule.steps, schedule.grid.grain))
    if difference:
        raise ValueError(f"{model} cannot follow {file}: {difference}.")
    echo(f"{model} can follow {file}. {_sentence(schedule)}")


def _draw(rows: dict[str, str], path: Path) -> None:
    """Draw the rows of a schedule: dark where computed, grey where dead, light where used again."""
    from PIL import Image, ImageDraw

    if path.suffix not in (".png", ".pdf"):
        raise ValueError(f"{path} ends in {path.suffix!r}; allowed: .png, .pdf.")
    path.parent.mkdir(parents=True, exist_ok=True)
    colours = {"#": "#0072b2", "x": "#b9b4a7", ".": "#e8e6df", "|": "#333333", " ": "white"}
    side, left = 14, 7 * max(map(len, rows))
    image = Image.new("RGB", (left + side * (len(rows["calls"]) + 1), side * (len(rows) + 1)), "white")
    pen = ImageDraw.Draw(image)
    for y, (name, row) in enumerate(rows.items()):
        pen.text((4, side * y + 6), name, fill="black")
        for x, mark in enumerate(row):
            corner = left + side * x, side * y + 7
            pen.rectangle((*corner, corner[0] + side - 2, corner[1] + side - 2), fill=colours[mark])
    image.save(path)


def _costs(schedule: pl.Schedule) -> dict[str, Any]:
    grid, live = schedule.grid, schedule.live()
    return {
        "method": schedule.label,
        "hold": schedule.hold,
        "steps": schedule.steps,
        "calls": int(grid.calls(schedule.on).sum()),
        "rows": grid.shape[0],
        "units": grid.shape[1],
        "computed": int(live.sum()),
        "dead": int((schedule.on & ~live).sum()),
        "macs": schedule.macs(),
        "macs_without_attention": schedule.macs(attention=False),
        "keep_macs": schedule.macs_ratio(),
        "keep_macs_without_attention": schedule.macs_ratio(attention=False),
        "scheduler": grid.scheduler,
        "denoiser": grid.class_name,
        "grain": grid.grain,
    }


def _sentence(schedule: pl.Schedule) -> str:
    costs = _costs(schedule)
    cells = costs["rows"] * costs["units"]
    return (
        f"{costs['method']}: {100 * costs['keep_macs']:.1f} % of the MACs kept "
        f"({100 * costs['keep_macs_without_attention']:.1f} % without attention products), {costs['calls']} of "
        f"{costs['rows']} calls, {costs['computed']} of {cells} cells computed, {costs['dead']} dead, "
        f"hold {costs['hold']}."
    )
