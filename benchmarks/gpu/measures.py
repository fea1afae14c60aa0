"""How each stage measures; `MEASURES` maps its name to the function.

Published models have their published sizes and random weights, as in `sd15`; emoji-sd is itself.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from functools import partial
from pathlib import Path

import diffusers
import torch

import pruning_book as pb
import pruning_lib as pl
from pruning_book.stand_in import drawn, stand_in
from pruning_lib.finetuning.folder import read_log
from pruning_lib.finetuning.loop import FitConfig
from pruning_lib.loading import denoiser_config
from pruning_lib.steps.schedule import grid_of
from zoo.data import EmojiData
from zoo.train import train_unet, train_vae

from .. import sparse_latency
from ..common import ROOT
from . import sd15
from .ways import timed_ways
from .worker import Incomplete, Run


def _tests(marks: str, seconds: int, run: Run) -> None:
    # Tests that failed are run again, and only then forgotten: a failure is what this stage is there to find.
    if run.parts(run.stage).get("pytest", {}).get("failed"):
        run.forget("pytest")
    failed = run.part("pytest", seconds, partial(_pytest, run, marks)).get("failed")
    if failed:
        raise Incomplete(f"{len(failed)} failed: {', '.join(failed)}"[:300])


def _pytest(run: Run, marks: str) -> dict:
    """Run the tests of this folder in a process of their own; what fails goes to the log."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--durations=5", "tests/gpu"]
    # In a dry run one of them is enough: on the CPU all of them are tests of their own.
    command += run.at(["-m", marks], ["-k", "restore_after_a_move"])
    started, cases = time.time(), []
    with tempfile.TemporaryDirectory() as place:
        report = Path(place) / "report.xml"
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        done = subprocess.run([*command, f"--junitxml={report}"], cwd=ROOT, env=environment)
        if not report.is_file():
            raise RuntimeError(f"pytest ended with {done.returncode} and wrote no report")
        for case in ElementTree.parse(report).iter("testcase"):
            ends = {child.tag: child.get("message") or "" for child in case}
            kind = next((kind for kind in ("failure", "error", "skipped") if kind in ends), "passed")
            cases.append((case.get("name", ""), kind, ends.get(kind, "")))
    kinds = [kind for _, kind, _ in cases]
    return {
        "passed": kinds.count("passed"),
        "skipped": kinds.count("skipped"),
        "seconds": round(time.time() - started, 1),
        "failed": [name for name, kind, _ in cases if kind in ("failure", "error")],
        "skips": {name: why[:200] for name, kind, why in cases if kind == "skipped"},
    }


def _big_models(run: Run) -> None:
    for name, make, steps, pixels, guidance, seconds in BIG:
        facts = {"model": name, "steps": run.at(steps, 4), "pixels": run.at(pixels, 64), "guidance": guidance}
        work = partial(_big_model, run, make, facts)
        run.part(f"{name}, {steps} steps", seconds, work, **facts, dtype="float16")


def _big_model(run: Run, make: Callable, facts: dict) -> dict:
    pipe, options = make(run)
    options["guidance_scale"] = facts["guidance"]

    def draw(steps: int) -> object:
        return pipe(num_inference_steps=steps, generator=torch.Generator().manual_seed(0), **options)

    grid, wanted = grid_of(pipe, facts["steps"], options=options), ("uniform", "searched-like")
    return timed_ways(pipe, grid, draw, (0.4,), repeats=run.at(3, 2), device=run.device, wanted=wanted)


def _half(run: Run, name: str):
    """Return the stand-in of a model in half precision."""
    scale, size = run.at((1, None), (0.1, 8))
    return stand_in(name, scale=scale, sample_size=size, dtype=torch.float16, device=run.device)


def _by_classes(run: Run):
    return _half(run, "dit-xl-2-256"), {"class_labels": [207], "output_type": "np"}


def _by_t5(run: Run):
    pipe, pixels = _half(run, "pixart-alpha"), run.at(1024, 64)
    pipe.vae_scale_factor = pixels // pipe.transformer.config.sample_size
    options = {"height": pixels, "width": pixels, "output_type": "latent", "prompt": sd15.PROMPTS[0]}
    return pipe, {**options, "use_resolution_binning": False, "clean_caption": False}


# What is not as published in a dry run.
SMALL = {
    "sdxl": {
        **{"block_out_channels": [32, 64, 64], "cross_attention_dim": 32, "norm_num_groups": 8, "sample_size": 8},
        **{"attention_head_dim": [2, 4, 4], "transformer_layers_per_block": [1, 1, 2]},
        **{"addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 16 + 6 * 8},
    },
    "sd-3-medium": {
        **{"num_layers": 3, "num_attention_heads": 2, "attention_head_dim": 16, "caption_projection_dim": 32},
        **{"joint_attention_dim": 32, "pooled_projection_dim": 16, "pos_embed_max_size": 8, "sample_size": 8},
    },
}


def _by_embeddings(name: str, kind: type, scheduler: type, encoders: int, tokens: int, run: Run):
    """Return a pipeline that is given what its text encoders would say, so that these need not be there."""
    config = {**denoiser_config(name)[0], **run.at({}, SMALL[name])}
    part = "unet" if "UNet" in config["_class_name"] else "transformer"
    parts = {part: drawn(config, device=run.device, dtype=torch.float16), "vae": None, "scheduler": scheduler()}
    for end in ("", "_2", "_3")[:encoders]:
        parts[f"text_encoder{end}"] = parts[f"tokenizer{end}"] = None
    pipe = kind(**parts)
    pipe.set_progress_bar_config(disable=True)
    width = config.get("joint_attention_dim") or config["cross_attention_dim"]
    pooled = config.get("pooled_projection_dim") or (
        config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
    )
    generator, pixels = torch.Generator().manual_seed(0), run.at(1024, 64)
    options = {"height": pixels, "width": pixels, "output_type": "latent"}
    for what, shape in {"prompt_embeds": (tokens, width), "pooled_prompt_embeds": (pooled,)}.items():
        said = torch.randn(1, *shape, generator=generator).to(run.device, torch.float16)
        options[what], options[f"negative_{what}"] = said, -said
    return pipe, options


_sdxl = partial(_by_embeddings, "sdxl", diffusers.StableDiffusionXLPipeline, diffusers.EulerDiscreteScheduler, 2, 77)
_sd3 = partial(
    _by_embeddings, "sd-3-medium", diffusers.StableDiffusion3Pipeline, diffusers.FlowMatchEulerDiscreteScheduler, 3, 333
)
BIG = (  # name, pipeline and options of its call, steps, pixels, guidance, seconds
    ("DiT-XL/2", _by_classes, 250, 256, 4.0, 40),
    ("PixArt-alpha", _by_t5, 20, 1024, 4.5, 25),
    ("SDXL", _sdxl, 30, 1024, 5.0, 35),
    ("SD3-medium", _sd3, 28, 1024, 7.0, 35),
)


def _zeros(run: Run) -> None:
    dtype = run.at(torch.float16, torch.float32)  # a CPU multiplies no CSR in half precision
    for spec in run.at(sparse_latency.GPU_LAYERS, sparse_latency.TOY_LAYERS):
        work = partial(sparse_latency.rows_on, run.device, spec, run.at(50, 2), dtype)
        run.part(spec.name, 4, work, layer=spec.name, dtype=str(dtype).removeprefix("torch."))
    run.part("UNet with fewer channels", 20, partial(sd15.fewer_channels, run))


def _throughput(run: Run) -> None:
    for part, bf16 in (("unet", False), ("vae", True)):
        run.part(part, 20, partial(_training_speed, run, part, bf16), dtype="bfloat16" if bf16 else "float32")


def _training_speed(run: Run, part: str, bf16: bool) -> dict:
    """Train a part of emoji-sd from nothing for a while, as the shipped model was trained, and read the log."""
    batch, warm, steps, count = run.at(({"unet": 32, "vae": 24}[part], 20, 220, None), (2, 1, 3, 8))
    images, labels = pb.training_images()[:count], pb.captions()[:count]
    every = torch.ones(len(labels), dtype=torch.bool)
    data = EmojiData(images, labels, [[] for _ in labels], torch.zeros(len(labels), dtype=torch.int64), every)
    config = FitConfig(steps=steps, lr=1e-3, bf16=bf16, log_every=warm, checkpoint_every=10**6, device=str(run.device))
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        if part == "vae":
            train_vae(data, config, place, batch)
        else:
            pipe = pl.load("emoji-sd", device=run.device, dtype=torch.float32)  # on a GPU the default is half
            train_unet(data, pipe.vae, pipe.text_encoder, pipe.tokenizer, config, place, batch)
        seconds = {line["step"]: line["seconds"] for line in read_log(place)}
    took = max(seconds[steps] - seconds[warm], 0.1)  # the log counts tenths
    timed = steps - warm
    return {"batch": batch, "steps": timed, "seconds": took, "images_per_second": batch * timed / took}


MEASURES: dict[str, Callable[[Run], None]] = {
    "tests": partial(_tests, "gpu and not slow", 90),
    "sd15_speed": sd15.speed,
    "sd15_training": sd15.training,
    "sd15_compiled": sd15.compiled,
    "sd15_operators": sd15.operators,
    "big_models": _big_models,
    "zeros": _zeros,
    "throughput": _throughput,
    "tests_compiled": partial(_tests, "gpu and slow", 150),
}
