"""The command line: `python -m pruning_lib …` or `pruning-lib …`.

Every command says in one line what went wrong and what to do, with exit code 2; `--traceback` before the command shows
the whole story.  Heavy imports wait until a command needs them, so that `--help` is quick.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from typer.core import TyperGroup

from ._checkpoints import app as weights_app
from ._cut import app as cut_app
from ._generate import DeviceOption, Guidance, Seed, Steps
from ._generate import app as generate_app
from ._generate import draw as _draw
from ._prune import app as prune_app
from ._schedule import app as schedule_app
from ._train_pruner import app as train_pruner_app

# What wrong input, a missing file, network or package raises. Anything else is a defect of ours: it shows a traceback.
_TOLD = (ValueError, TypeError, OSError, ImportError, RuntimeError, MemoryError)


class _Commands(TyperGroup):
    """Turns errors that a user can mend into a message and exit code 2."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            typer.echo(f"\n{stop}" if str(stop) else "\nStopped.", err=True)
            raise typer.Exit(130) from stop
        # An exit code, --help and `… | head` are no errors.
        except (typer.Exit, typer.Abort, BrokenPipeError):
            raise
        except _TOLD as error:
            if ctx.params.get("traceback"):
                traceback.print_exc()
            else:
                typer.echo(f"Error: {error or type(error).__name__}", err=True)
            raise typer.Exit(2) from error


app = typer.Typer(
    cls=_Commands,
    help="Prune diffusion models, and measure what it does.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain lines, for pipes and screen readers
    add_completion=False,
)
app.add_typer(weights_app)  # inspect and slim, beside the commands below
app.add_typer(prune_app)
app.add_typer(cut_app)  # score and cut
app.add_typer(train_pruner_app)
app.add_typer(generate_app)
app.add_typer(schedule_app, name="schedule")


class Part(str, Enum):
    """What `bench` times."""

    denoiser = "denoiser"
    pipeline = "pipeline"


@app.callback()
def _root(traceback: Annotated[bool, typer.Option("--traceback", help="Show where an error is from.")] = False) -> None:
    pass


@app.command()
def models() -> None:
    """List the models that have a short name."""
    from .loading import models as known

    for info in known():
        where = f"{info.repo} @ {info.revision[:10]}" if info.repo else "in the package"
        typer.echo(f"{info.name:18s}{info.architecture:26s}{info.memory_gib:>5g} GiB  {info.licence}")
        typer.echo(f"{'':18s}{where}{'; ' + info.note if info.note else ''}")


@app.command()
def macs(
    model: Annotated[str, typer.Argument(help="Name of an architecture, or a folder that diffusers wrote.")],
    sample_size: Annotated[Optional[int], typer.Option(min=1, help="Side of the latent; default: the model's.")] = None,
    depth: Annotated[int, typer.Option(min=1, help="Levels of blocks to show.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Count parameters and MACs of one denoiser call, block by block; no weights are needed."""
    from .loading import denoiser_on_meta
    from .macs import count_macs

    report = count_macs(denoiser_on_meta(model), sample_size=sample_size)
    if as_json:
        typer.echo(json.dumps(report.to_dict(), indent=1))
        return
    typer.echo(report.table(depth))
    shapes = ", ".join(f"{name} {shape}" for name, shape in report.inputs.items() if isinstance(shape, list))
    typer.echo(f"One call, no guidance doubling; MACs with and without attention products. Inputs: {shapes}")


@app.command()
def bench(
    models: Annotated[list[str], typer.Argument(help="Short names, folders or hub ids; the first is the baseline.")],
    part: Annotated[Part, typer.Option(help="One call of the denoiser, or a whole picture.")] = Part.denoiser,
    repeats: Annotated[int, typer.Option(min=1, help="Timed rounds.")] = 20,
    warmup: Annotated[int, typer.Option(min=0, help="Rounds before them.")] = 3,
    batch: Annotated[int, typer.Option(min=1, help="Samples per call.")] = 1,
    prompt: Annotated[str, typer.Option(help="For --part pipeline.")] = "lion",
    steps: Steps = 25,
    guidance: Guidance = None,
    seed: Seed = 0,
    device: DeviceOption = "cpu",
    record: Annotated[Optional[Path], typer.Option(help="Also write a record, a .json file.")] = None,
) -> None:
    """Time models in turn: median, p10 to p90, and how many times faster than the first."""
    from .latency import measure_latency, ratio
    from .loading import load
    from .records import check_writable, passport, save_record

    if len(set(models)) != len(models):
        raise ValueError(f"A model was given twice: {', '.join(models)}.")
    if record:
        check_writable(record)
    make = _denoiser_call if part is Part.denoiser else _picture_call
    options = dict(batch=batch, prompt=prompt, steps=steps, guidance=guidance, seed=seed)
    calls = {name: make(load(name, device=device), name, **options) for name in models}
    timed = measure_latency(calls, repeats=repeats, warmup=warmup, device=device)
    width = max(map(len, models))
    for name, found in timed.items():
        typer.echo(f"{name:{width}s}  {found}")
    faster = {}
    if repeats > 1:
        faster = {name: ratio(timed[models[0]], found) for name, found in timed.items() if name != models[0]}
    for name, found in faster.items():
        typer.echo(f"{name} is {found} times as fast as {models[0]}")
    stamp = passport(seeds=[seed], n=repeats, device=device)
    typer.echo(f"{part.value}, batch {batch}, on {stamp['hardware']}, {stamp['cpu_threads']} CPU threads")
    if record:
        data = {
            "part": part.value,
            **options,
            "latency": {name: found.to_dict() for name, found in timed.items()},
            "times_as_fast": {name: found.to_dict() for name, found in faster.items()},
        }
        typer.echo(f"Recorded in {save_record(record, 'bench', data, stamp)}")


def _denoiser_call(pipe: Any, name: str, *, batch: int, seed: int, **_: Any) -> Callable[[], Any]:
    import torch

    from .denoisers import example_inputs

    denoiser = getattr(pipe, "unet", None) or getattr(pipe, "transformer", None)
    if denoiser is None:
        raise ValueError(f"{name} is a {type(pipe).__name__}, which has neither a unet nor a transformer.")
    inputs = example_inputs(denoiser, batch=batch, device=denoiser.device, dtype=denoiser.dtype, seed=seed)
    return torch.no_grad()(lambda: denoiser(**inputs))


def _picture_call(pipe: Any, name: str, *, batch: int, prompt: str, **options: Any) -> Callable[[], Any]:
    return lambda: _draw(pipe, name, [prompt] * batch, **options)


@app.command()
def passport(device: DeviceOption = "cpu") -> None:
    """Print what a record made here would say about this machine and its software."""
    from .records import passport as describe

    typer.echo(json.dumps(describe(seeds=[], n=1, device=device), indent=1))


def main() -> None:
    """Run the command line."""
    app(prog_name="pruning-lib")


if __name__ == "__main__":
    main()
