"""`python -m pruning_lib schedule`: make, show and check schedules of steps and units."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

__all__ = ["app", "drawn"]

app = typer.Typer(help="Schedules: which unit is computed at which step.", no_args_is_help=True)

_SUFFIXES = (".png", ".svg", ".pdf")
File = Annotated[Path, typer.Argument(help="A schedule, as `schedule make` or Schedule.save wrote it.")]


class Method(str, Enum):
    """Where a schedule comes from."""

    uniform = "uniform"
    deepcache = "deepcache"
    scores = "scores"


@app.command()
def make(
    model: Annotated[str, typer.Argument(help="Short name, folder or hub id.")],
    target: Annotated[Path, typer.Argument(help="A new .json file for the schedule.")],
    keep_macs: Annotated[float, typer.Option(help="Share of the MACs to keep at most, above 0 and up to 1.")],
    method: Annotated[
        Method, typer.Option(help="uniform: whole steps; deepcache: its pattern; scores: of a trained pruner.")
    ] = Method.uniform,
    steps: Annotated[
        Optional[int], typer.Option(min=1, help="Denoising steps. Default: those of the scores, else 20.")
    ] = None,
    grain: Annotated[str, typer.Option(help="blocks, layers or modules.")] = "layers",
    branch: Annotated[int, typer.Option(min=0, help="Of DeepCache; 0 is the cheapest.")] = 0,
    scores: Annotated[Optional[Path], typer.Option(help="For --method scores: a file of TrainedPruner.save.")] = None,
) -> None:
    """Make a schedule within a budget of MACs, without drawing a picture."""
    from .files import check_new_file
    from .steps.schedule import grid_of

    if (method is Method.scores) != (scores is not None):
        raise ValueError("--method scores goes with --scores FILE, the other methods without.")
    check_new_file(target, ".json")
    trained = _trained(scores, steps) if scores else None
    pipe = _load(model)
    if trained is not None:
        made = trained.schedule(keep_macs=keep_macs)
        with made.applied(pipe):  # refuses scores of another model
            pass
    else:
        grid = grid_of(pipe, steps or 20, grain)
        made = _baseline(grid, method, keep_macs, branch)
    made.save(target)
    typer.echo(f"{_sentence(made)} Saved in {target}")


@app.command()
def show(
    file: File,
    plot: Annotated[Optional[Path], typer.Option(help="Also draw it: a .png, .svg or .pdf file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what it costs as JSON.")] = False,
) -> None:
    """Draw a schedule as text: # computed, x dead work, . used again; one line per unit."""
    from .files import check_place
    from .steps.schedule import Schedule

    schedule = Schedule.load(file)
    if plot:
        if plot.suffix not in _SUFFIXES:
            raise ValueError(f"{plot} ends in {plot.suffix!r}; allowed: {', '.join(_SUFFIXES)}.")
        check_place(plot)
        schedule.plot().savefig(plot, dpi=150)
    if as_json:
        typer.echo(json.dumps(_costs(schedule), indent=1))
        return
    typer.echo(drawn(schedule))
    typer.echo(_sentence(schedule))
    if plot:
        typer.echo(f"Drawn in {plot}")


@app.command()
def check(file: File, model: Annotated[str, typer.Argument(help="Short name, folder or hub id.")]) -> None:
    """Say whether a pipeline can follow a schedule: the same units, scheduler and timesteps."""
    from .steps.schedule import Schedule, grid_of

    schedule = Schedule.load(file)  # before the model, which takes longer
    pipe = _load(model)
    with schedule.applied(pipe):  # refuses another denoiser or scheduler, and says which
        pass
    difference = schedule.grid.difference(grid_of(pipe, schedule.steps, schedule.grid.grain))
    if difference:
        raise ValueError(f"{model} cannot follow {file}: {difference}.")
    typer.echo(f"{model} can follow {file}. {_sentence(schedule)}")


def drawn(schedule: Any) -> str:
    """Return a schedule as text, one line per unit and one character per call."""
    marks = {(True, True): "#", (True, False): "x", (False, False): "."}
    on, live = schedule.on.T.tolist(), schedule.live().T.tolist()
    width = max(map(len, schedule.grid.names))
    lines = [
        f"{name:{width}s}  {''.join(marks[cell] for cell in zip(*row, strict=True))}"
        for name, row in zip(schedule.grid.names, zip(on, live, strict=True), strict=True)
    ]
    calls = "".join("|" if called else " " for called in schedule.grid.calls(schedule.on).tolist())
    return "\n".join([*lines, f"{'calls':{width}s}  {calls}"])


def _costs(schedule: Any) -> dict[str, Any]:
    grid, live = schedule.grid, schedule.live()
    return {
        "method": schedule.label,
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


def _sentence(schedule: Any) -> str:
    costs = _costs(schedule)
    return (
        f"{costs['method']}: {100 * costs['keep_macs']:.1f} % of the MACs kept "
        f"({100 * costs['keep_macs_without_attention']:.1f} % without attention products), {costs['calls']} of "
        f"{costs['rows']} calls, {costs['computed']} of {costs['rows'] * costs['units']} cells computed, "
        f"{costs['dead']} dead."
    )


def _baseline(grid: Any, method: Method, keep_macs: float, branch: int) -> Any:
    from .steps.budget import deepcache, uniform

    if method is Method.uniform:
        return uniform(grid, keep_macs)
    return deepcache(grid, branch=branch, keep_macs=keep_macs)


def _trained(file: Path, steps: int | None) -> Any:
    from .steps.training import TrainedPruner

    trained = TrainedPruner.load(file)
    if steps is not None and steps != trained.grid.steps:
        raise ValueError(f"{file} holds scores for {trained.grid.steps} steps, and --steps {steps} was given.")
    return trained


def _load(model: str) -> Any:
    from .loading import load

    return load(model)
