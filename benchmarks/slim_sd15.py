"""Record of `slim` on a checkpoint of Stable Diffusion 1.5's shapes: 7.7 GB, float32, with EMA copy, random numbers.

Written as safetensors and as .ckpt below --work (30 GB). Each run is the command line in a process of its own, which
tells its peak of memory; every tensor written is compared once more. `--scale small` is a trial of a few seconds.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tqdm.auto import tqdm
from transformers import CLIPTextConfig, CLIPTextModel

import pruning_lib as pl
from pruning_book.ldm_layout import ldm_ema, to_ldm
from pruning_lib.checkpoint.parts import ema_name
from pruning_lib.checkpoint.write import NewTensor, write_safetensors

from .big_schedules import AUTOENCODER
from .common import Record

PIECE = 2**22
REPORTED = ("bytes_before", "bytes_after", "causes", "kept", "params", "times_smaller", "flushed")
RUNS = (  # input, options of the command line
    ("safetensors", ()),
    ("safetensors", ("--dtype", "fp16")),
    ("safetensors", ("--weights", "ema", "--dtype", "fp16")),
    ("ckpt", ()),
    ("ckpt", ("--dtype", "fp16")),
)


def shapes(scale: str) -> dict[str, tuple[int, ...]]:
    """Return name -> shape of the whole checkpoint in LDM's layout, EMA copy included."""
    with torch.device("meta"):
        unet = pl.denoiser_on_meta("sd-1.5")
        vae = AutoencoderKL.from_config(AUTOENCODER)
        width = {"hidden_size": 768, "intermediate_size": 3072, "projection_dim": 768}
        depth = {"num_hidden_layers": 12, "num_attention_heads": 12, "max_position_embeddings": 77}
        text = CLIPTextModel(CLIPTextConfig(vocab_size=49408, **width, **depth))
        if scale == "small":
            blocks = {
                "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
                "block_out_channels": (320, 640),
                "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            }
            unet = UNet2DConditionModel.from_config({**unet.config, **blocks})
    state = unet.state_dict()
    whole = {**to_ldm(state, vae.state_dict(), text.state_dict()), **ldm_ema(state)}
    return {name: tuple(tensor.shape) for name, tensor in whole.items()}


def numbers(shape: tuple[int, ...], seed: int) -> Iterator[torch.Tensor]:
    """Yield normal numbers of width 0.02, flat, in pieces."""
    generator = torch.Generator().manual_seed(seed)
    count = torch.Size(shape).numel()
    for first in range(0, count, PIECE):
        yield 0.02 * torch.randn(min(PIECE, count - first), generator=generator)


def make(folder: Path, wanted: dict[str, tuple[int, ...]]) -> dict[str, Path]:
    """Write the checkpoint as safetensors, and again as torch.save does, without holding it in memory."""
    paths = {"safetensors": folder / "sd15.safetensors", "ckpt": folder / "sd15.ckpt"}
    plan = [NewTensor(n, torch.float32, s, partial(numbers, s, i)) for i, (n, s) in enumerate(wanted.items())]
    write_safetensors(paths["safetensors"], plan, {"format": "pt"})
    state = load_file(paths["safetensors"])  # mapped, not read: torch.save fetches one tensor after the other
    torch.save({"state_dict": state, "global_step": 840_000, "epoch": 0}, paths["ckpt"])
    return paths


CHILD = """
import sys
from pruning_lib.commands import app
app(sys.argv[1:], standalone_mode=False)
with open("/proc/self/status") as status:  # unlike ru_maxrss, not inherited from the process that started this one
    print(next(line for line in status if line.startswith("VmHWM")), file=sys.stderr)
"""


def measured(arguments: list[str]) -> tuple[dict, float, float]:
    """Run the command line in a process of its own; return its JSON, seconds, and the peak of its memory in MiB."""
    started = time.perf_counter()
    command = [sys.executable, "-c", CHILD, *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise RuntimeError(f"{arguments} failed: {done.stderr}")
    return json.loads(done.stdout), seconds, int(done.stderr.rpartition("VmHWM:")[2].split()[0]) / 1024


def check(source: Path, target: Path, ema: bool) -> int:
    """Compare every tensor of `target` with `source`, read by the safetensors library; return how many."""
    with safe_open(source, "pt") as old, safe_open(target, "pt") as new:
        for name in tqdm(list(new.keys()), desc="compare", unit="tensor"):
            written = new.get_tensor(name)
            own = ema_name(name) if ema and name.startswith("model.diffusion_model.") else name
            if not torch.equal(written, old.get_tensor(own).to(written.dtype)):
                raise RuntimeError(f"{name} differs")
        return len(list(new.keys()))


def measure(work: Path, scale: Literal["full", "small"] = "full") -> Record:
    """Make, slim, measure, compare and clean up; the files, about 22 GB, go below --work."""
    work.mkdir(parents=True, exist_ok=True)
    wanted = shapes(scale)
    counts = [torch.Size(shape).numel() for shape in wanted.values()]
    shaped = "Stable Diffusion 1.5, float32, EMA copy, random numbers" if scale == "full" else "trial"
    data: dict[str, object] = {"shapes": shaped, "tensors": len(wanted), "params": sum(counts)}
    data |= {"largest_tensor_mib": max(counts) * 4 / 2**20, "runs": []}
    with tempfile.TemporaryDirectory(dir=work) as place:
        tiny, target = Path(place) / "tiny.safetensors", Path(place) / "slim.safetensors"
        save_file({"model.diffusion_model.out.2.bias": torch.ones(4)}, tiny)
        _, _, base = measured(["slim", str(tiny), str(target)])
        files = make(Path(place), wanted)
        data["base_memory_mib"] = round(base, 1)
        data["input_bytes"] = {kind: file.stat().st_size for kind, file in files.items()}
        for kind, options in tqdm(RUNS, desc="slim", unit="run"):
            target.unlink()
            report, seconds, peak = measured(["slim", str(files[kind]), str(target), *options])
            same = check(files["safetensors"], target, "ema" in options)
            took = {"seconds": round(seconds, 1), "peak_memory_mib": round(peak, 1), "compared": same}
            told = {key: report[key] for key in REPORTED}
            data["runs"].append({"input": kind, "options": " ".join(options), **took, **told})
        report, seconds, peak = measured(["inspect", str(files["ckpt"])])
    told = ("what", "tensors", "params", "nbytes", "dtypes")
    parts = {name: {key: part[key] for key in told} for name, part in report["parts"].items()}
    took = {"input": "ckpt", "seconds": round(seconds, 1), "peak_memory_mib": round(peak, 1)}
    data["inspect"] = {**took, "parts": parts, "container": report["container"], "nbytes": report["nbytes"]}
    return Record(data, seeds=[0], n=1)
