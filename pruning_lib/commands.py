"""The command line: `python -m pruning_lib …` or `pruning-lib …`.

Every command says in one line what went wrong and what to do, with exit code 2; `--traceback` before the command shows
the whole story. Heavy imports wait until a command needs them, as `pl` does by itself, so that `--help` is quick.
"""

from __future__ import annotations

import json
import re
import shutil
import traceback as tracebacks
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from enum import Enum
from inspect import signature
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
            if ctx.params.get("traceback"):
                tracebacks.print_exc()
            else:
                echo(f"Error: {error or type(error).__name__}", err=True)
            raise Exit(2) from error


app = Typer(
    cls=Commands,
    help="Prune diffusion models, and measure what it does.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain lines, for pipes and screen readers
    add_completion=False,
)
schedules = Typer(help="Schedules: which unit is computed at which step.", no_args_is_help=True)
app.add_typer(schedules, name="schedule")


def main() -> None:
    """Run the command line."""
    app(prog_name="pruning-lib")


@app.callback()
def _root(traceback: Annotated[bool, Option("--traceback", help="Show where an error is from.")] = False) -> None:
    pass


def _device(name: str) -> str:
    from .checks import check_device

    return str(check_device(name))


def _words(name: str, *words: str) -> type[Enum]:
    """Return the type of an option that takes one of these words."""
    return Enum(name, {word: word for word in words}, type=str)


Part = _words("Part", "denoiser", "pipeline")
Scope = _words("Scope", "global", "layer", "sensitivity", "random")
Recipe = _words("Recipe", "best", "published")
Method = _words("Method", "uniform", "deepcache", "scores", "search")
Hold = _words("Hold", "value", "prediction")

Model = Annotated[str, Argument(help="Short name, hub id or folder; also a folder that was pruned here.")]
Checkpoint = Annotated[Path, Argument(help=".safetensors, .ckpt, .pt, .bin, or a folder of diffusers.")]
NewScores = Annotated[Path, Argument(help="A new .safetensors file for the scores.")]
NewFolder = Annotated[Path, Argument(help="A new folder for the pruned pipeline.")]
ScheduleFile = Annotated[Path, Argument(help="A schedule, as `schedule make` wrote it.")]
Followed = Annotated[Path | None, Option(help="A schedule to follow, as `schedule make` wrote it.")]
Allow = Annotated[list[str] | None, Option(help="A name in the pickle that is skipped, as in 'mytrainer.Config'.")]
Prompt = Annotated[list[str] | None, Option(help="What to draw, repeatable; numbers for a model of classes.")]
Prompts = Annotated[Path | None, Option(help="A text file with one prompt a line.")]
Steps = Annotated[int | None, Option(min=1, help="Denoising steps. Default: those of the schedule, else 25.")]
Guidance = Annotated[float | None, Option(min=0, help="Default: 3 for emoji-sd, else the pipeline's own.")]
Grain = Annotated[str, Option(help="blocks, layers or modules.")]
Seed = Annotated[int, Option(min=0, max=2**63 - 1, help="Of the noise, and of all else that is random.")]
Device = Annotated[str, Option(callback=_device, help="cpu, cuda, cuda:1 …; checked before any work.")]
Unfinished = Annotated[Path | None, Option(help="Keeps what is finished, to go on. Default: beside the target.")]
Depth = Annotated[int, Option(min=1, help="Levels of blocks to show.")]
AsJson = Annotated[bool, Option("--json", help="Print JSON.")]


def _tell(told: dict, text: str, as_json: bool) -> None:
    echo(json.dumps(told, indent=1) if as_json else text)


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _check_new(target: Path, suffix: str = "") -> None:
    """Refuse a target that cannot be made, before anything is loaded."""
    from .files import check_new_file

    check_new_file(target, suffix)


@contextmanager
def _unfinished(folder: Path | None, target: Path) -> Iterator[Path]:
    """Give the folder that keeps what is finished; the one beside the target goes when the work is done."""
    own = target.with_name(f"{target.stem}-unfinished")
    yield folder or own
    if folder is None:
        shutil.rmtree(own, ignore_errors=True)


def _scale(pipe: Any, guidance: float | None) -> float | None:
    from .loading import default_guidance

    return default_guidance(pipe) if guidance is None else guidance


def _texts(prompt: list[str] | None, file: Path | None) -> list[str]:
    lines = file.read_text("utf-8").splitlines() if file else []
    return [*(prompt or ()), *(line.strip() for line in lines if line.strip())]


def _prompts(pipe: Any, texts: list[str]) -> list | None:
    """Return prompts as the pipeline takes them: texts, or numbers of classes; None for an unconditional one."""
    from .sampling import Unroll

    argument = Unroll(pipe, steps=1).argument
    if not texts and argument != "batch_size":
        raise ValueError("There is no prompt: give --prompt TEXT, repeatable, or --prompts FILE with one a line.")
    return [int(text) if text.isdigit() and argument != "prompt" else text for text in texts] or None


def _drawing(pipe: Any, texts: list[str], *, steps: int, guidance: float | None, seed: int) -> Callable[[], list]:
    """Return what draws one PIL image per prompt, in one call, every one from the noise of `seed`; checked here."""
    from .sampling import Unroll

    unroll = Unroll(pipe, steps=steps, guidance_scale=_scale(pipe, guidance))
    prompts, seeds = unroll.check(_prompts(pipe, texts)), [seed] * len(texts)
    return lambda: pipe(**unroll.asked(prompts, seeds)).images


def _read(kind: Any, file: Path | None, steps: int | None, otherwise: int) -> tuple[Any, int]:
    """Read a schedule or a pruner, if there is one, and return the steps: a number beside it must be its own."""
    made = kind.load(file) if file else None
    if made and steps not in (None, made.grid.steps):
        raise ValueError(f"{file} is for {made.grid.steps} steps, and --steps {steps} was given. Leave --steps out.")
    return made, made.grid.steps if made else steps or otherwise


def _save(pipe: Any, target: Path) -> None:
    from .files import write_whole
    from .sampling import quietly

    with write_whole(target) as part, quietly():
        pipe.save_pretrained(part)


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
    _tell(report.to_dict(), f"{report.table(depth)}\n{note}", as_json)


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
    record: Annotated[Path | None, Option(help="Also write a record, a .json file.")] = None,
) -> None:
    """Time models in turn, or one model with and without a schedule: median, p10 to p90, and how many times faster."""
    from .latency import ratio
    from .records import check_writable

    if len(set(models)) != len(models):
        raise ValueError(f"A model was given twice: {', '.join(models)}.")
    if schedule and (len(models) > 1 or part is Part.denoiser):
        raise ValueError("--schedule compares pictures of one model: give one model, and --part pipeline.")
    if record:
        check_writable(record)
    followed, steps = _read(pl.Schedule, schedule, steps, 25)
    what = "pipeline" if followed else (part or Part.denoiser).value
    drawing = {"steps": steps, "guidance": guidance, "seed": seed}
    pipes = {name: pl.load(name, device=device) for name in models}
    first = models[0]
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
        data["times_as_fast"] = {name: found.to_dict() for name, found in faster.items()}
        echo(f"Recorded in {pl.save_record(record, 'bench', data, stamp)}")


def _call(pipe: Any, what: str, batch: int, prompt: str, drawing: dict) -> Any:
    """Return what `bench` times, a function without arguments."""
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
    followed, steps = _read(pl.Schedule, schedule, steps, 25)
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
    _tell(report.to_dict(), report.table(), as_json)


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
    _tell(report.to_dict(), report.table(), as_json)


@app.command()
def prune(
    model: Model,
    target: NewFolder,
    sparsity: Annotated[float, Option(help="Share of the weights to set to zero, from 0 to below 1.")] = 0.3,
    scope: Annotated[Scope, Option(help="What counts as smallest: one cut for all, …")] = "global",
    part: Annotated[str, Option(help="unet, transformer, vae, text_encoder; default: the denoiser.")] = "",
    ignore: Annotated[list[str] | None, Option(help="A group or pattern to spare too, as in 'mid_block*'.")] = None,
    seed: Seed = 0,
    depth: Depth = 1,
    as_json: AsJson = False,
) -> None:
    """Set the smallest weights to zero and save the model; its tensors keep their shapes, so it is no faster."""
    from torch import nn

    from .checks import nearest
    from .denoisers import denoiser_of
    from .weights.select import IGNORE

    _check_new(target)
    pipe = pl.load(model)
    parts = {name: module for name, module in pipe.components.items() if isinstance(module, nn.Module)}
    part = part or denoiser_of(pipe)[0]
    if part not in parts:
        raise ValueError(f"{model} has no part {part!r}. {nearest(part, parts)}")
    spared = (*IGNORE, *(ignore or ()))
    pruned = pl.prune_magnitude(parts[part], sparsity, scope=scope.value, ignore=spared, seed=seed)
    _save(pipe, target)
    note = f"{len(pruned.ignored)} tensors were left alone. Saved in {target}"
    _tell(pruned.to_dict(), f"{pruned.table(depth)}\n{note}", as_json)


@app.command()
def score(
    model: Model,
    target: NewScores,
    prompt: Prompt = None,
    prompts: Prompts = None,
    kind: Annotated[list[str] | None, Option(help="A kind of operator, as in 'resnet'. Default: most.")] = None,
    latents: Annotated[int, Option(min=2, help="Latents per operator; prompts are taken in turn.")] = 16,
    steps: Annotated[int, Option(min=1, help="Denoising steps.")] = 10,
    guidance: Guidance = None,
    batch: Annotated[int, Option(min=1, help="Latents at a time.")] = 16,
    seed: Seed = 0,
    folder: Unfinished = None,
    count: Annotated[int, Option(min=0, help="Lines of the table to show.")] = 20,
    device: Device = "cpu",
) -> None:
    """Score every operator: change it alone, draw the same latents, measure how far they moved (LD-Pruner)."""
    _check_new(target, ".safetensors")
    texts = _texts(prompt, prompts)
    pipe = pl.load(model, device=device)
    drawing = {"num_latents": latents, "steps": steps, "guidance_scale": _scale(pipe, guidance), "batch": batch}
    with _unfinished(folder, target) as place:
        scores = pl.score_operators(pipe, _prompts(pipe, texts), kinds=kind, seed=seed, folder=place, **drawing)
        scores.save(target)
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
    guidance: Guidance = None,
    device: Device = "cpu",
    as_json: AsJson = False,
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
    _check_new(target)
    known = pl.Scores.load(scores) if scores else pl.Plan.load(plan)  # before the model, which takes longer
    pipe = pl.load(model, device=device)
    if latency is not None and _is_guided(pipe, guidance):
        budget["batch"] = 2  # with and without the prompt
    chosen = known.lowest(pipe=pipe, formula=formula, **budget) if scores else known
    small = pl.remove_operators(pipe, chosen)  # checks that the plan is for this model
    less_macs, less_params = reductions(denoiser_of(pipe)[1], chosen)
    _save(small, target)
    gone = f"{100 * less_macs:.1f} % of the MACs and {100 * less_params:.1f} % of the parameters are gone."
    told = {"macs_ratio": less_macs, "params_ratio": less_params, "plan": chosen.to_dict()}
    _tell(told, f"{chosen}\n{gone} Saved in {target}; pl.load and every command here take it.", as_json)


def _is_guided(pipe: Any, guidance: float | None) -> bool:
    own, scale = signature(type(pipe).__call__).parameters.get("guidance_scale"), _scale(pipe, guidance)
    return own is not None and (own.default if scale is None else scale) > 1


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
    guidance: Guidance = None,
    seed: Seed = 1000,
    bf16: Annotated[bool, Option("--bf16", help="Run the denoiser under bfloat16 autocast.")] = False,
    checkpointing: Annotated[bool, Option(help="Less memory, one more forward pass.")] = True,
    folder: Unfinished = None,
    device: Device = "cpu",
) -> None:
    """Train a pruner; `schedule make --method scores` makes schedules of its scores, for any budget."""
    _check_new(target, ".safetensors")
    texts = _texts(prompt, prompts)
    asked = _given(iterations=iterations, batch=batch, loss=loss, keep_macs=keep_macs and tuple(keep_macs))
    asked |= _given(bf16=bf16 or None, checkpointing=None if checkpointing else False)
    pipe = pl.load(model, device=device)
    asked |= {"steps": steps, "grain": grain, "recipe": recipe.value, "guidance_scale": _scale(pipe, guidance)}
    with _unfinished(folder, target) as place:
        trained = pl.train_pruner(pipe, _prompts(pipe, texts), seed=seed, folder=place, callback=_tell_now, **asked)
        trained.save(target)
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
    target: Annotated[Path, Argument(help="A new .json file for the schedule.")],
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
    guidance: Guidance = None,
    seed: Seed = 0,
    folder: Unfinished = None,
    device: Device = "cpu",
) -> None:
    """Make a schedule within a budget of MACs; only --method search draws pictures, and wants prompts."""
    from .steps.budget import deepcache, uniform
    from .steps.training import TrainedPruner

    if method is not Method.search and (scores is not None) != (method is Method.scores):
        raise ValueError("--method scores goes with --scores FILE, --method search may, and the others go without.")
    _check_new(target, ".json")
    texts = _texts(prompt, prompts)
    trained, steps = _read(TrainedPruner, scores, steps, 20)
    pipe = pl.load(model, device=device)
    if method is Method.search:
        options = {"steps": steps, "keep": keep_macs, "grain": grain, "start": trained, "images": images, "seed": seed}
        options |= {"guidance_scale": _scale(pipe, guidance), "tell": echo, **_given(hold=hold and hold.value)}
        with _unfinished(folder, target) as place:
            made = pl.search_schedule(pipe, _prompts(pipe, texts), folder=place, **options)
    elif trained:
        made = trained.schedule(keep_macs=keep_macs)
    elif method is Method.uniform:
        made = uniform(pl.grid_of(pipe, steps, grain), keep_macs)
    else:
        made = deepcache(pl.grid_of(pipe, steps, grain), branch=branch, keep_macs=keep_macs)
    made = made.holding(hold.value) if hold else made
    with made.applied(pipe):  # refuses scores of another model
        pass
    made.save(target)
    echo(f"{_sentence(made)} Saved in {target}")


@schedules.command()
def show(
    file: ScheduleFile,
    plot: Annotated[Path | None, Option(help="Also draw it: a .png or .pdf file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Draw a schedule as text: # computed, x dead work, . used again; one line per unit."""
    from .files import check_place

    schedule = pl.Schedule.load(file)
    rows = _rows(schedule)
    lines = [f"{name:{max(map(len, rows))}s}  {row}" for name, row in rows.items()] + [_sentence(schedule)]
    if plot:
        if plot.suffix not in (".png", ".pdf"):
            raise ValueError(f"{plot} ends in {plot.suffix!r}; allowed: .png, .pdf.")
        check_place(plot)
        _picture(rows).save(plot)
        lines.append(f"Drawn in {plot}")
    _tell(_costs(schedule), "\n".join(lines), as_json)


@schedules.command()
def check(file: ScheduleFile, model: Model) -> None:
    """Say whether a pipeline can follow a schedule: the same units, scheduler and timesteps."""
    schedule = pl.Schedule.load(file)  # before the model, which takes longer
    pipe = pl.load(model)
    with schedule.applied(pipe):  # refuses another denoiser or scheduler, and says which
        pass
    difference = schedule.grid.difference(pl.grid_of(pipe, schedule.steps, schedule.grid.grain))
    if difference:
        raise ValueError(f"{model} cannot follow {file}: {difference}.")
    echo(f"{model} can follow {file}. {_sentence(schedule)}")


def _rows(schedule: pl.Schedule) -> dict[str, str]:
    """Return unit -> one character per call of the denoiser, and at the end which calls there are."""
    grid, states = schedule.grid, (schedule.on.int() + schedule.live().int()).T.tolist()
    rows = {name: "".join(".x#"[state] for state in row) for name, row in zip(grid.names, states, strict=True)}
    return rows | {"calls": "".join(" |"[called] for called in grid.calls(schedule.on).tolist())}


def _picture(rows: dict[str, str]) -> Any:
    """Draw the rows of a schedule: dark where computed, grey where dead, light where used again."""
    from PIL import Image, ImageDraw

    colours = {"#": "#0072b2", "x": "#b9b4a7", ".": "#e8e6df", "|": "#333333", " ": "white"}
    side, left = 14, 7 * max(map(len, rows))
    image = Image.new("RGB", (left + side * (len(rows["calls"]) + 1), side * (len(rows) + 1)), "white")
    pen = ImageDraw.Draw(image)
    for y, (name, row) in enumerate(rows.items()):
        pen.text((4, side * y + 6), name, fill="black")
        for x, mark in enumerate(row):
            corner = left + side * x, side * y + 7
            pen.rectangle((*corner, corner[0] + side - 2, corner[1] + side - 2), fill=colours[mark])
    return image


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
