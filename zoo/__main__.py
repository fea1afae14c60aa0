"""`python -m zoo …`: data, training, assembly and the gate of the shipped model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

from typer import Argument, Exit, Option, Typer, echo

from pruning_lib.commands import Commands

app = Typer(
    cls=Commands,  # tells mistakes in a line
    help="Prepare data, train emoji-sd, put it together and measure it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,
)

DATA = Path("zoo-data")
RUN = Path("zoo-run")
DataOption = Annotated[Path, Option("--data", help="Folder that `zoo data` wrote.")]
RunOption = Annotated[Path, Option("--run", help="Folder of the training run.")]


@app.command()
def data(
    out: Annotated[Path, Option(help="Where the tensors go.")] = DATA,
    npm_packages: Annotated[Optional[Path], Option(help="A node_modules folder; default: ask npm.")] = None,
) -> None:
    """Fetch the emoji packages with npm and turn them into tensors."""
    from .data import fetch, prepare

    prepared = prepare(npm_packages or fetch(out / "npm"))
    prepared.save(out)
    echo(f"{len(prepared.labels)} images, {int(prepared.concept.sum())} concepts, in {out}")


@app.command()
def train(
    part: Annotated[str, Argument(help="tokenizer, clip, vae, unet, or all.")],
    data: DataOption = DATA,
    run: RunOption = RUN,
    steps: Annotated[Optional[int], Option(min=1, help="Optimiser steps; default: the recipe's.")] = None,
    batch: Annotated[Optional[int], Option(min=1, help="Images a step.")] = None,
    lr: Annotated[Optional[float], Option(help="Peak learning rate.")] = None,
    seed: Annotated[Optional[int], Option(help="Seed of everything random.")] = None,
    device: Annotated[Optional[str], Option(help="cpu, cuda, cuda:1 …")] = None,
    bf16: Annotated[Optional[bool], Option("--bf16/--fp32", help="bfloat16 autocast.")] = None,
    checkpoint_every: Annotated[Optional[int], Option(min=1, help="Steps between checkpoints.")] = None,
    threads: Annotated[Optional[int], Option(min=1, help="CPU threads.")] = None,
) -> None:
    """Train one part or all; the same command resumes after Ctrl-C."""
    import torch

    from .data import EmojiData
    from .train import PARTS, train_part

    if threads:
        torch.set_num_threads(threads)
    prepared = EmojiData.load(data)
    changes = {"steps": steps, "lr": lr, "seed": seed, "device": device, "bf16": bf16}
    for one in PARTS if part == "all" else (part,):
        train_part(one, prepared, run, batch, checkpoint_every=checkpoint_every, **changes)


@app.command()
def assemble(
    out: Annotated[Path, Argument(help="Folder of the finished pipeline.")],
    data: DataOption = DATA,
    run: RunOption = RUN,
) -> None:
    """Put the trained parts together as a diffusers folder in half precision."""
    from .assemble import assemble
    from .data import EmojiData

    echo(assemble(EmojiData.load(data), run, out))


@app.command()
def gate(
    n: Annotated[int, Option(min=2, help="Captions to generate.")] = 256,
    steps: Annotated[int, Option(min=1, help="Denoising steps.")] = 25,
    guidance: Annotated[float, Option(min=0, help="Guidance scale.")] = 3.0,
    seed: Annotated[int, Option(help="Of the captions chosen and the noise.")] = 0,
    device: Annotated[str, Option(help="Where to run.")] = "cpu",
    record: Annotated[Optional[Path], Option(help="Write a results record here.")] = None,
    card: Annotated[bool, Option(help="Rewrite the model card, its curve and contact sheet.")] = False,
) -> None:
    """Measure whether emoji-sd is good enough to teach with; exit code 1 when it is not."""
    from pruning_book.judge import generate, load_clip
    from pruning_lib.loading import load, models_folder
    from pruning_lib.records import check_writable, passport, save_record

    from .acceptance import CONTACT_PROMPTS, run_gate, write_card

    if record:
        check_writable(record)
    folder = models_folder() / "emoji-sd"
    pipe, drawing = load("emoji-sd", device=device), {"steps": steps, "guidance": guidance, "seed": seed}
    figures = run_gate(pipe, load_clip(device=device), folder, n=n, **drawing)
    for key in ("psnr_db", "top5_real", "top5_generated"):
        echo("{:16s}{value:.3f}  [{low:.3f}, {high:.3f}]  n={n}".format(key, **figures[key]))
    echo(f"{'ratio':16s}{figures['ratio']:.3f}")
    echo("passed" if figures["passed"] else "NOT passed")
    stamp = passport(seeds=[seed], n=n, device=device)
    if record:
        save_record(record, "emoji_sd_gate", figures, stamp)
    if card:
        write_card(folder, figures, stamp, generate(pipe, CONTACT_PROMPTS, **drawing))
    raise Exit(0 if figures["passed"] else 1)


if __name__ == "__main__":
    app(prog_name="python -m zoo")
