"""Record the explorer of chapter 1: one picture for every prompt, step count and guidance weight, with its time.

    python benchmarks/first_explorer.py

writes book/results/first_explorer.json and, beside it, one sheet of all pictures, first_explorer.png.  Every picture
starts from the noise of the same seed.  Times are of the whole call, from prompt to picture, batch 1; all settings
are timed in turn, so that a disturbance from outside hits them alike.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from PIL import Image
from pruning_lib.measure.quality import clip_score
from tqdm.auto import tqdm

import pruning_lib as pl

RESULTS = Path(__file__).resolve().parents[1] / "book" / "results"
PROMPTS = ("lion", "pizza", "red heart", "rocket", "sunflower", "smiling face with sunglasses")
STEPS = (1, 2, 4, 8, 16, 25, 50)
GUIDANCE = (1.0, 3.0, 6.0)
SEED = 7
TILE = 64


def draw(pipe: StableDiffusionPipeline, prompt: str, steps: int, guidance: float, seed: int = SEED) -> Image.Image:
    """Return the picture of one stop."""
    noise = torch.Generator().manual_seed(seed)
    return pipe(prompt, num_inference_steps=steps, guidance_scale=guidance, generator=noise).images[0]


def sheet(images: list[Image.Image], columns: int) -> Image.Image:
    """Return all pictures in rows of `columns`, in order."""
    out = Image.new("RGB", (columns * TILE, -(-len(images) // columns) * TILE), "white")
    for index, image in enumerate(images):
        out.paste(image, (index % columns * TILE, index // columns * TILE))
    return out


def record(repeats: int, out: Path) -> None:
    """Draw, judge, time and write."""
    pipe = pl.load("emoji-sd")
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    clip = pl.load_clip("emoji-sd")
    unet_macs = pl.count_macs(pipe.unet).macs
    settings = [(steps, guidance) for guidance in GUIDANCE for steps in STEPS]

    calls = {f"{s},{g}": lambda s=s, g=g: draw(pipe, PROMPTS[0], s, g) for s, g in settings}
    timed = pl.measure_latency(calls, repeats=repeats, warmup=1)
    stops, images = [], []
    for prompt in tqdm(PROMPTS, desc="prompts"):
        for steps, guidance in settings:
            image = draw(pipe, prompt, steps, guidance)
            time = timed[f"{steps},{guidance}"]
            stops.append({
                "prompt": prompt, "steps": steps, "guidance": guidance, "seed": SEED, "tile": len(images),
                "clip_score": round(clip_score(clip, [image], [prompt]).item(), 2),
                "unet_macs": steps * unet_macs * (2 if guidance > 1 else 1),
                "latency_ms": {"median": time.median_ms, "p10": time.p10_ms, "p90": time.p90_ms, "n": time.n},
            })  # fmt: skip
            images.append(image)
    out.mkdir(parents=True, exist_ok=True)
    columns = len(STEPS)
    sheet(images, columns).save(out / "first_explorer.png", optimize=True)
    data = {
        "model": "emoji-sd", "sampler": "DDIM, trailing", "timed_prompt": PROMPTS[0],
        "axes": {"prompt": list(PROMPTS), "steps": list(STEPS), "guidance": list(GUIDANCE)},
        "sheet": {"file": "first_explorer.png", "tile": TILE, "columns": columns}, "stops": stops,
    }  # fmt: skip
    pl.save_record(out / "first_explorer.json", "first_explorer", data, pl.passport(seeds=[SEED], n=repeats))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=10, help="timed calls per setting (default 10)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the record and the sheet")
    arguments = parser.parse_args()
    record(arguments.repeats, arguments.out)
