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
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

import pruning_book as pb
import pruning_lib as pl
from pruning_book.stand_in import drawn, stand_in
from pruning_lib.finetuning.loop import FitConfig, read_log
from pruning_lib.loading import denoiser_config
from pruning_lib.steps.schedule import grid_of
from zoo.data import EmojiData
from zoo.unet import train_unet
from zoo.vae import train_vae

from .. import sparse_latency
from . import sd15
from .ways import timed_ways
from .worker import Incomplete, Run

ROOT = Path(__file__).resolve().parents[2]


def _tests(marks: str, seconds: int) -> Callable[[Run], None]:
    def measure(run: Run) -> None:
        # Tests that failed are run again, and only then forgotten: a failure is what this stage is there to find.
        if run.parts(run.stage).get("pytest", {}).get("failed"):
            run.forget("pytest")
        found = run.part("pytest", seconds, lambda: _pytest(run, marks))
        if found.get("failed"):
            raise Incomplete(f"{len(found['failed'])} failed: {', '.join(found['failed'])}"[:300])

    return measure


def _pytest(run: Run, marks: str) -> dict:
    """Run the tests of this folder in a process of their own; what fails goes to the log."""
    with tempfile.TemporaryDirectory() as place:
        report = Path(place) / "report.xml"
        # In a dry run one of them is enough: on the CPU all of them are tests of their own.
        chosen = run.at(["-m", marks], ["-k", "restore_after_a_move"])
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "--durations=5",
            f"--junitxml={report}",
            "tests/gpu",
            *chosen,
        ]
        started = time.time()
        done = subprocess.run(command, cwd=ROOT, env={**os.environ, "HF_HUB_OFFLINE": "1"})
        if not report.is_file():
            raise RuntimeError(f"pytest ended with {done.returncode} and wrote no report")
        cases = list(ElementTree.parse(report).iter("testcase"))
    kinds = [
        next((kind for kind in ("failure", "error", "skipped") if case.find(kind) is not None), "") for case in cases
    ]
    names = [case.get("name", "") for case in cases]
    return {
        "passed": kinds.count(""),
        "skipped": kinds.count("skipped"),
        "seconds": round(time.time() - started, 1),
        "failed": [name for name, kind in zip(names, kinds, strict=True) if kind in ("failure", "error")],
        "skips": {n: _why(c) for n, c, kind in zip(names, cases, kinds, strict=True) if kind == "skipped"},
    }


def _why(case: ElementTree.Element) -> str:
    return (case.find("skipped").get("message") or "")[:200]


def _big_models(run: Run) -> None:
    for name, make, steps, pixels, guidance, seconds in BIG:
        facts = {
            "model": name,
            "steps": run.at(steps, 4),
            "pixels": run.at(pixels, 64),
            "dtype": "float16",
            "guidance": guidance,
        }

        def work(make=make, facts=facts) -> dict:
            pipe, draw = make(run, facts["guidance"])
            return timed_ways(
                pipe,
                grid_of(pipe, facts["steps"]),
                draw,
                (0.4,),
                repeats=run.at(3, 2),
                device=run.device,
                wanted=("uniform", "searched-like"),
            )

        run.part(f"{name}, {steps} steps", seconds, work, **facts)


def _by_classes(run: Run, guidance: float):
    pipe = stand_in(
        "dit-xl-2-256", scale=run.at(1, 0.1), sample_size=run.at(None, 8), dtype=torch.float16, device=run.device
    )

    def draw(steps: int) -> object:
        return pipe([207], num_inference_steps=steps, guidance_scale=guidance, generator=_noise(), output_type="np")

    return pipe, draw


def _by_t5(run: Run, guidance: float):
    size = run.at(None, 8)
    pipe = stand_in("pixart-alpha", scale=run.at(1, 0.1), sample_size=size, dtype=torch.float16, device=run.device)
    pixels = run.at(1024, 64)

    def draw(steps: int) -> object:
        return pipe(
            sd15.PROMPTS[0],
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=_noise(),
            height=pixels,
            width=pixels,
            output_type="latent",
            use_resolution_binning=False,
            clean_caption=False,
        )

    pipe.vae_scale_factor = pixels // pipe.transformer.config.sample_size
    return pipe, draw


# The last two are given what their text encoders would say, so that these encoders need not be there.
SMALL_SDXL = {
    "block_out_channels": [32, 64, 64],
    "cross_attention_dim": 32,
    "norm_num_groups": 8,
    "sample_size": 8,
    "attention_head_dim": [2, 4, 4],
    "transformer_layers_per_block": [1, 1, 2],
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 16 + 6 * 8,
}
SMALL_SD3 = {
    "num_layers": 3,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "caption_projection_dim": 32,
    "joint_attention_dim": 32,
    "pooled_projection_dim": 16,
    "pos_embed_max_size": 8,
    "sample_size": 8,
}


def _by_embeddings(name: str, small: dict, kind: str, scheduler: str, encoders: Sequence[str], tokens: int) -> Callable:
    def make(run: Run, guidance: float):
        import diffusers

        config = {**denoiser_config(name)[0], **run.at({}, small)}
        denoiser = drawn(config, device=run.device, dtype=torch.float16)
        part = "unet" if "UNet" in config["_class_name"] else "transformer"
        parts = dict.fromkeys([f"{what}{end}" for end in encoders for what in ("text_encoder", "tokenizer")])
        sampler = getattr(diffusers, scheduler)()
        pipe = getattr(diffusers, kind)(**{part: denoiser}, vae=None, scheduler=sampler, **parts)
        pipe.set_progress_bar_config(disable=True)
        width = config.get("joint_attention_dim") or config["cross_attention_dim"]
        pooled = config.get("pooled_projection_dim") or (
            config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
        )
        generator = torch.Generator().manual_seed(0)
        words, whole = (
            torch.randn(1, *shape, generator=generator).to(run.device, torch.float16)
            for shape in ((tokens, width), (pooled,))
        )
        pixels = run.at(1024, 64)

        def draw(steps: int) -> object:
            return pipe(
                prompt_embeds=words,
                pooled_prompt_embeds=whole,
                negative_prompt_embeds=-words,
                negative_pooled_prompt_embeds=-whole,
                num_inference_steps=steps,
                guidance_scale=guidance,
                height=pixels,
                width=pixels,
                generator=_noise(),
                output_type="latent",
            )

        return pipe, draw

    return make


def _noise() -> torch.Generator:
    return torch.Generator().manual_seed(0)


BIG = (
    ("DiT-XL/2", _by_classes, 250, 256, 4.0, 40),
    ("PixArt-alpha", _by_t5, 20, 1024, 4.5, 25),
    (
        "SDXL",
        _by_embeddings("sdxl", SMALL_SDXL, "StableDiffusionXLPipeline", "EulerDiscreteScheduler", ("", "_2"), 77),
        30,
        1024,
        5.0,
        35,
    ),
    (
        "SD3-medium",
        _by_embeddings(
            "sd-3-medium",
            SMALL_SD3,
            "StableDiffusion3Pipeline",
            "FlowMatchEulerDiscreteScheduler",
            ("", "_2", "_3"),
            333,
        ),
        28,
        1024,
        7.0,
        35,
    ),
)


def _zeros(run: Run) -> None:
    for spec in run.at(sparse_latency.GPU_LAYERS, sparse_latency.TOY_LAYERS):
        dtype = run.at(torch.float16, torch.float32)  # a CPU multiplies no CSR in half precision

        def work(spec=spec, dtype=dtype) -> dict:
            return sparse_latency.rows_on(run.device, spec, run.at(50, 2), dtype)

        run.part(spec.name, 4, work, layer=spec.name, dtype=str(dtype).removeprefix("torch."))
    run.part("UNet with fewer channels", 20, lambda: sd15.fewer_channels(run))


def _throughput(run: Run) -> None:
    for part, bf16 in (("unet", False), ("vae", True)):
        dtype = "bfloat16" if bf16 else "float32"
        run.part(part, 20, lambda part=part, bf16=bf16: _training_speed(run, part, bf16), dtype=dtype)


def _training_speed(run: Run, part: str, bf16: bool) -> dict:
    """Train a part of emoji-sd from nothing for a while, as the shipped model was trained, and read the log."""
    batch, warm, steps = run.at({"unet": 32, "vae": 24}[part], 2), run.at(20, 1), run.at(220, 3)
    count = run.at(None, 8)
    images, labels = pb.training_images()[:count], pb.captions()[:count]
    every = torch.ones(len(labels), dtype=torch.bool)
    data = EmojiData(images, labels, [[] for _ in labels], torch.zeros(len(labels), dtype=torch.int64), every)
    config = FitConfig(steps=steps, lr=1e-3, bf16=bf16, log_every=warm, checkpoint_every=10**6, device=str(run.device))
    with tempfile.TemporaryDirectory() as place:
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
    "tests": _tests("gpu and not slow", 90),
    "sd15_speed": sd15.speed,
    "sd15_training": sd15.training,
    "sd15_compiled": sd15.compiled,
    "sd15_operators": sd15.operators,
    "big_models": _big_models,
    "zeros": _zeros,
    "throughput": _throughput,
    "tests_compiled": _tests("gpu and slow", 150),
}
