"""`python -m pruning_lib inspect` and `slim`: look into a checkpoint, and make it smaller."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Optional

import typer

app = typer.Typer()

Allow = Annotated[
    Optional[list[str]],
    typer.Option(help="A name that may stand in the pickle, as in 'mytrainer.Config'; skipped, never run."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(help=".safetensors, .ckpt, .pt, .bin, or a folder of diffusers.")],
    as_json: AsJson = False,
    values: Annotated[bool, typer.Option(help="Read every number, to count zeros, NaN and Inf.")] = True,
    allow: Allow = None,
) -> None:
    """Say what is in a checkpoint: parts, parameters, types, bytes, zeros, broken numbers. Nothing in it is run."""
    from .checkpoint.inspect import inspect_checkpoint

    report = inspect_checkpoint(path, values=values, allow=allow or ())
    typer.echo(json.dumps(report.to_dict(), indent=1) if as_json else report.table())


@app.command()
def slim(
    source: Annotated[Path, typer.Argument(help=".safetensors, .ckpt, .pt, .bin, or a folder of diffusers.")],
    target: Annotated[Path, typer.Argument(help="A new .safetensors file; for a folder, a new folder.")],
    weights: Annotated[str, typer.Option(help="default, live or ema: which copy of the denoiser.")] = "default",
    dtype: Annotated[str, typer.Option(help="keep, fp16, bf16 or fp32.")] = "keep",
    remove: Annotated[Optional[list[str]], typer.Option(help="A part to leave out, as in vae.")] = None,
    vae: Annotated[Optional[Path], typer.Option(help="Another VAE to put in: a file; for a folder, a folder.")] = None,
    aliases: Annotated[
        str, typer.Option(help="Write a tensor with two names under 'each' of them or 'once'.")
    ] = "each",
    allow: Allow = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing target; never the input.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write a checkpoint without EMA copy, optimiser state and leftovers, cast if asked; check what was written."""
    from .checkpoint.slim import slim as make_slim

    report = make_slim(
        source,
        target,
        weights=weights,
        dtype=dtype,
        remove=remove or (),
        vae=vae,
        aliases=aliases,
        allow=allow or (),
        overwrite=overwrite,
    )
    typer.echo(json.dumps(report.to_dict(), indent=1) if as_json else report.table())
