"""The command line, `python -m pruning_lib …` or `pruning-lib …`: what its commands share, and those that only look.

Every command says in one line what went wrong and what to do, with exit code 2; `--traceback` before the command shows
the whole story. Heavy imports wait until a command needs them, as `pl` does by itself, so that `--help` is quick.
"""

from __future__ import annotations

import json
import re
import traceback as tracebacks
from collections.abc import Callable
from contextlib import nullcontext
from enum import Enum
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

from typer import Abort, Argument, Exit, Option, Typer, echo
from typer.core import TyperGroup

import pruning_lib as pl

# What wrong input, a missing file, network or package raises. Anything else is a defect of ours: it shows a traceback.
_TOLD = (ValueError, TypeError, OSError, ImportError, RuntimeError, MemoryError)


class Commands(TyperGroup):
    """Turns errors that a user can mend into a message and exit code 2."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            echo(f"\n{stop}" if str(stop) else "\nStopped.", err=True)
            raise Exit(130) from stop
        except (Exit, Abort, BrokenPipeError):  # an exit code, --help and `… | head` are no errors
            raise
        except _TOLD as error:
            from .checks import printable

            told = f"Error: {str(error).strip() or f'{type(error).__name__}; `pruning-lib --traceback …` says where.'}"
            told = tracebacks.format_exc() if ctx.params.get("traceback") else told
            echo("\n".join(printable(line, 5000) for line in told.splitlines()), err=True)
            raise Exit(2) from error


PLAIN = {"no_args_is_help": True, "rich_markup_mode": None}  # plain lines, for pipes and screen readers
_HELP = "Prune diffusion models, and measure what it does."
app = Typer(cls=Commands, help=_HELP, pretty_exceptions_enable=False, add_completion=False, **PLAIN)


@app.callback()
def _root(traceback: Annotated[bool, Option("--traceback", help="Show where an error is from.")] = False) -> None:
    pass


def checked(module: str, name: str, *more: object) -> Callable[[Any], Any]:
    """Return what checks an option that was given by a function whose module is imported only then."""

    def check(value: Any) -> Any:
        return value if value is None else getattr(import_module(f".{module}", __package__), name)(value, *more)

    return check


def words(*allowed: str) -> type[Enum]:
    """Return the type of an option that takes one of these words."""
    return Enum("Words", {word: word for word in allowed}, type=str)


Part = words("denoiser", "pipeline")
Checkpoint = Annotated[Path, Argument(help=".safetensors, .ckpt, .pt, .bin, or a folder of diffusers.")]
Followed = Annotated[Path | None, Option(help="A schedule to follow, as `schedule make` wrote it.")]
Allow = Annotated[list[str] | None, Option(help="A name in the pickle that is skipped, as in 'mytrainer.Config'.")]
Steps = Annotated[int | None, Option(min=1, help="Denoising steps. Default: those of the schedule, else 25.")]
Guidance = Annotated[float | None, Option(min=0, help="Default: 3 for emoji-sd, else the pipeline's own.")]
Seed = Annotated[int, Option(min=0, max=2**63 - 1, help="Of the noise, and of all else that is random.")]
Device = Annotated[
    str, Option(callback=checked("checks", "check_device"), help="cpu, cuda, cuda:1 …; checked before any work.")
]
Depth = Annotated[int, Option(min=1, help="Levels of blocks to show.")]
AsJson = Annotated[bool, Option("--json", help="Print JSON.")]


def tell(told: dict, text: str, as_json: bool) -> None:
    """Print a text, or the same as JSON."""
    echo(json.dumps(told, indent=1) if as_json else text)


def read(kind: Any, file: Path | None, steps: int | None, otherwise: int) -> tuple[Any, int]:
    """Read a schedule or a pruner, if there is one, and return the steps: a number beside it must be its own."""
    made = kind.load(file) if file else None
    if made and steps not in (None, made.grid.steps):
        raise ValueError(f"{file} is for {made.grid.steps} steps, and --steps {steps} was given. Leave --steps out.")
    return made, made.grid.steps if made else steps or otherwise


def scale(pipe: Any, guidance: float | None) -> float | None:
    """Return the guidance scale: what was given, else what the model's folder suggests."""
    from .loading import default_guidance

    return default_guidance(pipe) if guidance is None else guidance


def prompts_of(pipe: Any, prompt: list[str] | None, file: Path | None = None) -> list | None:
    """Return prompts as the pipeline takes them: texts, or numbers of classes; None for an unconditional one."""
    from .sampling import Unroll

    lines = map(str.strip, file.read_text("utf-8").splitlines() if file else ())
    texts, argument = [*(prompt or ()), *filter(None, lines)], Unroll(pipe, steps=1).argument
    if not texts and argument != "batch_size":
        raise ValueError("There is no prompt: give --prompt TEXT, repeatable, or --prompts FILE with one a line.")
    return [int(text) if text.isdigit() and argument != "prompt" else text for text in texts] or None


def _drawing(pipe: Any, texts: list[str], *, steps: int, guidance: float | None, seed: int) -> Callable[[], list]:
    """Return what draws one PIL image per prompt, in one call, every one from the noise of `seed`; checked here."""
    from .sampling import Unroll

    unroll = Unroll(pipe, steps=steps, guidance_scale=scale(pipe, guidance))
    prompts, seeds = unroll.check(prompts_of(pipe, texts)), [seed] * len(texts)
    return lambda: pipe(**unroll.asked(prompts, seeds)).images


@app.command()
def models() -> None:
    """List the models that have a short name."""
    for info in pl.models():
        where = f"{info.repo} @ {info.revision[:10]}" if info.repo else "in the package"
        echo(f"{info.name:18s}{info.architecture:26s}{info.memory_gib:>5g} GiB  {info.licence}")
        echo(f"{'':18s}{where}{'; ' + info.note if info.note else ''}")


@app.command()
def macs(
    model: Annotated[str, Argument(help="Name of an architecture, or a folder that diffusers wrote.")],
    sample_size: Annotated[int | None, Option(min=1, help="Side of the latent; default: the model's.")] = None,
    depth: Depth = 1,
    as_json: AsJson = False,
) -> None:
    """Count parameters and MACs of one denoiser call, block by block; no weights are needed."""
    report = pl.count_macs(pl.denoiser_on_meta(model), sample_size=sample_size)
    shapes = ", ".join(f"{name} {shape}" for name, shape in report.inputs.items() if isinstance(shape, list))
    note = f"One call, no guidance doubling; MACs with and without attention products. Inputs: {shapes}"
    tell(report.to_dict(), f"{report.table(depth)}\n{note}", as_json)


@app.command()
def bench(
    models: Annotated[list[str], Argument(help="Short names, folders or hub ids; the first is the baseline.")],
    part: Annotated[Part | None, Option(help="What to time. Default: denoiser; with --schedule pipeline.")] = None,
    repeats: Annotated[int, Option(min=1, help="Timed rounds.")] = 20,
    warmup: Annotated[int, Option(min=0, help="Rounds before them.")] = 3,
    batch: Annotated[int, Option(min=1, help="Samples per call.")] = 1,
    prompt: Annotated[str, Option(help="For --part pipeline; a number for a model of classes.")] = "lion",
    steps: Steps = None,
    schedule: Followed = None,
    guidance: Guidance = None,
    seed: Seed = 0,
    device: Device = "cpu",
    record: Annotated[
        Path | None, Option(callback=checked("records", "check_writable"), help="Also write a record, a .json file.")
    ] = None,
) -> None:
    """Time models in turn, or one model with and without a schedule: median, p10 to p90, and how many times faster."""
    from .latency import ratio

    first = models[0]
    if len(set(models)) != len(models):
        raise ValueError(f"A model was given twice: {', '.join(models)}.")
    if schedule and (len(models) > 1 or part is Part.denoiser):
        raise ValueError("--schedule compares pictures of one model: give one model, and --part pipeline.")
    followed, steps = read(pl.Schedule, schedule, steps, 25)
    what = "pipeline" if followed else (part or Part.denoiser).value
    drawing = {"steps": steps, "guidance": guidance, "seed": seed}
    pipes = {name: pl.load(name, device=device) for name in models}
    if followed:
        pipes[f"{first} with {schedule.name}"] = pipe = pl.load(first, device=device)
    with followed.applied(pipe) if followed else nullcontext():
        calls = {name: _call(pipe, what, batch, prompt, drawing) for name, pipe in pipes.items()}
        timed = pl.measure_latency(calls, repeats=repeats, warmup=warmup, device=device)
    faster = {name: ratio(timed[first], found) for name, found in timed.items() if name != first and repeats > 1}
    for name, found in timed.items():
        echo(f"{name:{max(map(len, timed))}s}  {found}")
    for name, found in faster.items():
        echo(f"{name} is {found} times as fast as {first}")
    stamp = pl.passport(seeds=[seed], n=repeats, device=device)
    echo(f"{what}, batch {batch}, on {stamp['hardware']}, {stamp['cpu_threads']} CPU threads")
    if record:
        data = {"part": what, "batch": batch, "prompt": prompt, **drawing, "schedule": schedule and schedule.name}
        data["latency"] = {name: found.to_dict() for name, found in timed.items()}
        echo(f"Recorded in {pl.save_record(record, 'bench', {**data, 'times_as_fast': faster}, stamp)}")


def _call(pipe: Any, what: str, batch: int, prompt: str, drawing: dict) -> Callable[[], object]:
    """Return what `bench` times."""
    import torch

    from .denoisers import denoiser_of, example_inputs

    if what == "pipeline":
        return _drawing(pipe, [prompt] * batch, **drawing)
    denoiser = denoiser_of(pipe)[1]
    where = {"device": denoiser.device, "dtype": denoiser.dtype}
    inputs = example_inputs(denoiser, batch=batch, seed=drawing["seed"], **where)
    return torch.no_grad()(lambda: denoiser(**inputs))


@app.command()
def generate(
    prompts: Annotated[list[str], Argument(help="What to draw, each in quotation marks; or numbers of classes.")],
    model: Annotated[str, Option(help="Short name, folder or hub id.")] = "emoji-sd",
    schedule: Followed = None,
    steps: Steps = None,
    guidance: Guidance = None,
    seed: Seed = 0,
    out: Annotated[Path, Option(help="Folder; or, for one prompt, a .png file.")] = Path("."),
    device: Device = "cpu",
) -> None:
    """Draw pictures and save them as PNG; the same command writes the same files again."""
    paths = _picture_paths(out, prompts, seed)  # before the model is loaded: a wrong place should fail at once
    followed, steps = read(pl.Schedule, schedule, steps, 25)
    pipe = pl.load(model, device=device)
    with followed.applied(pipe) if followed else nullcontext():
        for path, prompt in zip(paths, prompts, strict=True):
            _drawing(pipe, [prompt], steps=steps, guidance=guidance, seed=seed)()[0].save(path)
            echo(path)


def _picture_paths(out: Path, prompts: list[str], seed: int) -> list[Path]:
    """Return one PNG path per prompt, in a folder that is made and can be written to."""
    from .files import check_place

    ending = out.suffix.lower()
    if ending in (".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"):
        raise ValueError(f"--out {out}: pictures are saved as PNG. Give a folder or a .png.")
    if ending == ".png" and len(prompts) > 1:
        raise ValueError(f"{len(prompts)} prompts do not fit into one file, {out}. Give a folder.")
    slugs = [re.sub(r"\W+", "-", prompt.lower()).strip("-")[:40] or "prompt" for prompt in prompts]
    paths = [out] if ending == ".png" else [out / f"{i:02d}-{slug}-{seed}.png" for i, slug in enumerate(slugs)]
    for path in paths:
        check_place(path)
    return paths


@app.command()
def passport(device: Device = "cpu") -> None:
    """Print what a record made here would say about this machine and its software."""
    echo(json.dumps(pl.passport(seeds=[], n=1, device=device), indent=1))


@app.command()
def inspect(
    path: Checkpoint,
    as_json: AsJson = False,
    values: Annotated[bool, Option(help="Read every number, to count zeros, NaN and Inf.")] = True,
    allow: Allow = None,
) -> None:
    """Say what is in a checkpoint: parts, parameters, types, bytes, zeros, broken numbers. Nothing in it is run."""
    report = pl.inspect_checkpoint(path, values=values, allow=allow or ())
    tell(report.to_dict(), report.table(), as_json)


@app.command()
def slim(
    source: Checkpoint,
    target: Annotated[Path, Argument(help="A new .safetensors file; for a folder, a new folder.")],
    weights: Annotated[str, Option(help="default, live or ema: which copy of the denoiser.")] = "default",
    dtype: Annotated[str, Option(help="keep, fp16, bf16 or fp32.")] = "keep",
    remove: Annotated[list[str] | None, Option(help="A part to leave out, as in vae.")] = None,
    aliases: Annotated[str, Option(help="A tensor with two names is written under 'each' or 'once'.")] = "each",
    allow: Allow = None,
    overwrite: Annotated[bool, Option("--overwrite", help="Replace an existing target; never the input.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a checkpoint without EMA copy, optimiser state and leftovers, cast if asked; check what was written."""
    what = {"weights": weights, "dtype": dtype, "remove": remove or (), "aliases": aliases}
    report = pl.slim(source, target, **what, allow=allow or (), overwrite=overwrite)
    tell(report.to_dict(), report.table(), as_json)
