"""What every benchmark stands on: its command line, its record, pictures judged with intervals, kept results.

A benchmark is a module with a function `measure`, whose options are its keyword arguments and which returns a `Record`.
`python -m benchmarks NAME --help` shows them, with three that all have: --out, --work and --threads.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import json
import resource
import subprocess
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import pruning_book as pb
from pruning_book.frechet import frechet
from pruning_book.judge import generate
from pruning_book.widgets.axes import Metric
from pruning_lib import files
from pruning_lib.interval import bootstrap_interval
from pruning_lib.latency import Latency, measure_latency, ratio
from pruning_lib.quality import clip_score, psnr, retrieval_rank, ssim
from pruning_lib.records import check_writable, passport, save_record
from zoo.data import contact_sheet

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "pruning_book" / "records"
MODEL, GUIDANCE = "emoji-sd", 3.0
MACS_CONVENTION = "with attention products, batch 1, one call"
TOP = 5
PSNR_CAP = 60.0  # equal pictures have no finite PSNR; only the unpruned model is compared with itself


@dataclass(frozen=True)
class Record:
    """What a benchmark found.

    Attributes:
        seeds, n, device: as in its passport.
        name: of the record, where it is not that of the benchmark.
        explorer: whose pictures are saved with it, as one sheet; `data` is what its `save` is given.
    """

    data: dict
    seeds: Sequence[int]
    n: int
    device: str = "cpu"
    name: str = ""
    explorer: object = None


def run(module: ModuleType, words: Sequence[str]) -> None:
    """Run a benchmark from the words of a command line, and write its record, pruning_book/records/<name>.json.

    `measure` may ask for `out`, the record's path, and for `work`, a folder where single results are kept, so that an
    interrupted run goes on; its default may be shared by benchmarks.
    """
    name = module.__name__.rpartition(".")[2]
    parser = argparse.ArgumentParser(  # an option without a default is required
        prog=f"python -m benchmarks {name}", description=module.__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    hints = typing.get_type_hints(module.measure)
    options = inspect.signature(module.measure).parameters
    for option in options.values():
        if option.name not in ("out", "work"):
            _add(parser, option.name, hints.get(option.name, type(option.default)), option.default)
    parser.add_argument("--out", type=Path, default=RESULTS / f"{name}.json", help="the record (default: %(default)s)")
    work = Path("_build") / name
    if "work" in options and options["work"].default is not inspect.Parameter.empty:
        work = options["work"].default
    parser.add_argument("--work", type=Path, default=work, help="kept results (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU (default: %(default)s)")
    given = parser.parse_args(words)
    check_writable(given.out)
    torch.set_num_threads(given.threads)
    found = module.measure(**{option: getattr(given, option) for option in options})
    stamp = passport(seeds=found.seeds, n=found.n, device=found.device)
    out, name = given.out.with_name(f"{found.name}.json") if found.name else given.out, found.name or name
    if found.explorer:
        print(found.explorer.save(out, name, stamp, **found.data))
    else:
        print(save_record(out, name, found.data, stamp))


def _add(parser: argparse.ArgumentParser, name: str, kind: object, default: object) -> None:
    """Add one option: one of several words, several values, or one."""
    flag, about = f"--{name.replace('_', '-')}", {"default": default, "help": "default: %(default)s"}
    if default is inspect.Parameter.empty:
        about = {"required": True}
    if typing.get_origin(kind) is typing.Literal:
        parser.add_argument(flag, choices=typing.get_args(kind), **about)
    elif typing.get_origin(kind) is tuple:
        parser.add_argument(flag, nargs="+", type=typing.get_args(kind)[0], **about)
    else:
        parser.add_argument(flag, type=kind, **about)


@dataclass(frozen=True)
class Judged:
    """Pictures, uint8 `[n, 3, 64, 64]`; name -> figure of each; and the Fréchet distance, where it was asked for."""

    pictures: Tensor
    figures: dict[str, Tensor]
    frechet: dict | None = None

    def intervals(self) -> dict[str, dict]:
        """Return each figure's mean with its bootstrap interval."""
        found = {name: interval(values) for name, values in self.figures.items()}
        return found | ({"frechet": self.frechet} if self.frechet else {})


def unit(images: Tensor) -> Tensor:
    """Return uint8 pictures as floats in [0, 1]."""
    return images.float() / 255


def compare(clip, pictures: Tensor, wanted: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
    """Return "ssim" and "psnr_db" to the wanted pictures, and "clip_score", one number per picture."""
    return {
        "ssim": ssim(unit(pictures), unit(wanted)),
        "psnr_db": psnr(unit(pictures), unit(wanted)).clamp(max=PSNR_CAP),
        "clip_score": clip_score(clip, pictures, prompts),
    }


def judge(
    pipe, clip, prompts: Sequence[str], candidates: Sequence[str], wanted: Tensor | None, *, real=None, **sampler
) -> Judged:
    """Draw one picture per prompt and judge them: "ssim", "psnr_db", "clip_score", "top5" (0 or 1).

    Args:
        prompts: picture i starts from noise of seed `seed` + i.
        sampler: steps, guidance and seed.
        candidates: all captions, for the retrieval.
        wanted: pictures to compare with, uint8, one per prompt; None: the drawn ones themselves.
        real: real pictures for the Fréchet distance on mini-CLIP features.
    """
    pictures = generate(pipe, list(prompts), **sampler)
    figures = compare(clip, pictures, pictures if wanted is None else wanted, prompts)
    figures["top5"] = (retrieval_rank(clip, pictures, prompts, candidates) <= TOP).float()
    distance = None if real is None else frechet(pictures, real, features=clip, n_boot=100).to_dict()
    return Judged(pictures, figures, distance)


def interval(values: Tensor | Sequence[float]) -> dict:
    """Return the mean of one figure per picture, with its bootstrap interval."""
    return bootstrap_interval(torch.as_tensor(values)).to_dict()


def likeness(values: Tensor, shown: int) -> tuple[list[float], dict]:
    """Return what an explorer keeps of one SSIM per picture, in six places: of the first ones, and the mean of all."""
    ends = interval(values)
    return rounded(values[:shown]), {key: round(ends[key], 6) for key in ("value", "low", "high")}


def rounded(values: Tensor, places: int = 6) -> list[float]:
    """Return numbers with so many places after the point."""
    return [round(value, places) for value in values.tolist()]


def spread(items: Sequence, count: int) -> list:
    """Return `count` of the items spread evenly over all, the first and the last among them."""
    return [items[i] for i in torch.linspace(0, len(items) - 1, count).round().long().tolist()]


def every_nth(items: Sequence, count: int) -> list:
    """Return `count` of the items at equal distances, from the first."""
    return [items[i * len(items) // count] for i in range(count)]


def asked_for(count: int, shown: Sequence[str]) -> list[str]:
    """Return captions spread over all, the shown ones among them."""
    chosen = spread(pb.captions(MODEL), count)
    rest = [name for name in shown if name not in chosen]
    return chosen[: count - len(rest)] + rest


def pruner_prompts() -> list[str]:
    """Return the captions that pruners are trained on and searches may see: every fourth one, from the first."""
    return pb.captions(MODEL)[::4]


def held_out() -> list[str]:
    """Return the captions that no pruner and no search sees: all others."""
    return [caption for i, caption in enumerate(pb.captions(MODEL)) if i % 4]


def noise(count: int, first: int = 0) -> list[torch.Generator]:
    """Return one source of noise for each picture, of seed `first` + i."""
    return [torch.Generator().manual_seed(first + i) for i in range(count)]


def latents(pipe, prompts: Sequence[str], steps: int) -> Tensor:
    """Draw latents, always from the same noise."""
    options = {"num_inference_steps": steps, "guidance_scale": GUIDANCE, "output_type": "latent"}
    return pipe(list(prompts), generator=noise(len(prompts)), **options).images


def once(path: Path, work: Callable[..., dict], *given) -> dict:
    """Return what `path` holds, or do the work and keep its result there: an interrupted benchmark goes on."""
    if not path.is_file():
        print(path.stem, flush=True)
        write_whole(path, json.dumps(work(*given)))
    return read(path)


def once_drawn(path: Path, draw: Callable[..., object], *given):
    """Like `once`, for tensors."""
    if not path.is_file():
        found = draw(*given)
        with files.write_whole(path) as part:
            torch.save(found, part)
    return torch.load(path, weights_only=True)


def pictures_once(work: Path, told: str, draw: Callable[[], Tensor]) -> Tensor:
    """Return pictures in [0, 1] as uint8, drawn once; `told` says what they are of."""
    file = work / f"{hashlib.sha256(told.encode()).hexdigest()[:24]}.pt"
    return once_drawn(file, lambda: (draw() * 255).round().to(torch.uint8))


def read(path: Path) -> dict:
    """Return a kept result."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    with files.write_whole(path) as part:
        part.write_text(text, encoding="utf-8")


def in_own_process(module: str, call: str) -> dict:
    """Return what a call of a benchmark's function gives in a process of its own, whose peak of memory is its own."""
    code = f"import json, torch; from benchmarks.{module} import *; print(json.dumps({call}))"
    told = subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT)
    return json.loads(told.splitlines()[-1])


def save_row(pictures: Tensor, to: Path, asked: Sequence[str] = (), shown: Sequence[str] = ()) -> None:
    """Save pictures as a sheet of one row: all, or those of the captions that are shown."""
    pictures = pictures[[asked.index(name) for name in shown]] if shown else pictures
    to.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(pictures, columns=len(pictures)).save(to)


def tiles_of(sheet: Path) -> Tensor:
    """Return the pictures of a sheet of one row, uint8 `[n, 3, 64, 64]`."""
    pixels = torch.from_numpy(np.array(Image.open(sheet).convert("RGB")))
    return pixels.view(64, -1, 64, 3).permute(1, 3, 0, 2)


def save_sheet(rows: Sequence[Tensor], to: Path, quality: int = 90) -> None:
    """Save rows of pictures as one sheet."""
    contact_sheet(torch.cat(list(rows)), columns=len(rows[0])).save(to, quality=quality, method=6)


def mean_metric(name: str, found: Sequence[Mapping | None], label: str, *, n: object, digits: int) -> Metric:
    """Return means with their intervals for an explorer; None where there are none."""
    ends = {end: [f and f[end] for f in found] for end in ("value", "low", "high")}
    more = {"low": ends["low"], "high": ends["high"], "interval": "95 % interval"}
    return Metric(name, ends["value"], label=label, n=n, digits=digits, **more)


def time_metric(times: Sequence[Latency], label: str, *, n: int, places: int, digits: int) -> Metric:
    """Return latencies with their quantiles for an explorer."""
    found = [quantiles(latency, places) for latency in times]
    median, low, high = ([row[key] for row in found] for key in QUANTILES)
    more = {"low": low, "high": high, "interval": "median, p10 to p90"}
    return Metric("latency_ms", median, label=label, unit="ms", n=n, digits=digits, **more)


# --- time and memory -------------------------------------------------------------------------------------------------

QUANTILES = ("median_ms", "p10_ms", "p90_ms")


def quantiles(latency: Latency, places: int) -> dict[str, float]:
    """Return the median and the outer deciles, in so many places."""
    return {key: round(getattr(latency, key), places) for key in QUANTILES}


def peak_mib(device: torch.device) -> float:
    """Return the most memory used so far: of the GPU's tensors, or of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status")  # ru_maxrss is inherited from the process that started this one
    if status.is_file():
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def compared(base: Latency, latency: Latency, macs_ratio: float) -> dict:
    """Return measured beside promised speed, of at least two rounds."""
    faster = ratio(base, latency)
    found = {"latency": latency.to_dict(), "times_as_fast": faster.to_dict()}
    return {**found, "promised": 1 / macs_ratio, "reached": faster.value * macs_ratio}


def in_turn(calls: Mapping[str, Callable], how: Callable[[Latency], dict], **options) -> dict[str, dict]:
    """Time calls in turn; return what `how` keeps of each one's times, and how many times as fast as the first."""
    times = measure_latency(calls, **options)
    base = times[next(iter(calls))]
    return {name: {**how(found), "times_as_fast": ratio(base, found).to_dict()} for name, found in times.items()}


@torch.no_grad()
def initialised(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Give every layer the weights it would begin with, in place: the same architecture, nothing learned."""
    torch.manual_seed(seed)
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return model
