"""`python -m pruning_lib prune`: set the smallest weights of a model to zero and save it as a folder of diffusers."""

from __future__ import annotations

import json
import shutil
import tempfile
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

app = typer.Typer()


class Scope(str, Enum):
    """What counts as smallest, see `weights.magnitude`."""

    everywhere = "global"
    layer = "layer"
    sensitivity = "sensitivity"
    random = "random"


@app.command()
def prune(
    model: Annotated[str, typer.Argument(help="Short name, folder or hub id.")],
    target: Annotated[Path, typer.Argument(help="A new folder for the pruned model.")],
    sparsity: Annotated[float, typer.Option(help="Share of the weights to set to zero, from 0 to below 1.")] = 0.3,
    scope: Annotated[Scope, typer.Option(help="One cut for all, for each layer, …")] = Scope.everywhere,
    part: Annotated[str, typer.Option(help="unet, transformer, vae, text_encoder; default: the denoiser.")] = "",
    ignore: Annotated[
        Optional[list[str]], typer.Option(help="A further group or pattern to spare, as in 'mid_block*'.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="For --scope random.")] = 0,
    depth: Annotated[int, typer.Option(min=1, help="Levels of blocks to show.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Set the smallest weights to zero and save the model; its tensors keep their shapes, so it is no faster."""
    from .files import check_place
    from .loading import load
    from .weights.magnitude import check_sparsity, prune_magnitude
    from .weights.select import IGNORE

    check_sparsity(sparsity)  # before the model is loaded, as is the place
    if target.exists():
        raise ValueError(f"{target} exists already. Give a new folder, or move that one away.")
    check_place(target)
    pipe = load(model)
    module = _part(pipe, part, model)
    spared = (*IGNORE, *(ignore or ()))
    pruned = prune_magnitude(module, sparsity, scope=scope.value, ignore=spared, seed=seed)
    _save(pipe, target)
    if as_json:
        typer.echo(json.dumps(pruned.to_dict(), indent=1))
        return
    typer.echo(pruned.table(depth))
    typer.echo(f"{len(pruned.ignored)} tensors were left alone. Saved in {target}")


def _part(pipe: Any, name: str, model: str) -> Any:
    """Return a part of the pipeline; "" means the denoiser."""
    from torch import nn

    from .checks import nearest

    parts = {key: value for key, value in pipe.components.items() if isinstance(value, nn.Module)}
    if not name:
        name = "unet" if "unet" in parts else "transformer"
    if name not in parts:
        raise ValueError(f"{model} has no part {name!r}. {nearest(name, parts)}")
    return parts[name]


def _save(pipe: Any, target: Path) -> None:
    """Write the folder under another name first, so that a crash leaves nothing that looks finished."""
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-"))
    try:
        pipe.save_pretrained(temporary)
        temporary.chmod(0o755)
        temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
