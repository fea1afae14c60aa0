"""Record of chapter 1: one picture for every prompt, step count and guidance weight, and the time of the whole call.

Settings are timed in turn, for one prompt: text is padded to a fixed length. About three minutes on two CPU cores.
"""

from __future__ import annotations

from tqdm.auto import tqdm

import pruning_book as pb
import pruning_lib as pl
from pruning_book.widgets.axes import Axis, Metric
from pruning_book.widgets.guidance import MODEL, SEED, redraw, total_macs
from pruning_book.widgets.sweep import SweepExplorer
from pruning_lib.quality import clip_score

from .common import Record, time_metric

PROMPTS = ("lion", "pizza", "red heart", "rocket", "sunflower", "smiling face with sunglasses")
STEPS = (1, 2, 4, 8, 16, 25, 50)
GUIDANCE = (1.0, 3.0, 6.0)


def measure(repeats: int = 10, device: str = "cpu") -> Record:
    """Draw, judge and time."""
    pipe = pl.load(MODEL, device=device)
    clip = pb.load_clip(MODEL)
    macs = pl.count_macs(pipe.unet).macs
    settings = [(steps, guidance) for steps in STEPS for guidance in GUIDANCE]
    bar = tqdm(total=(len(PROMPTS) + repeats + 1) * len(settings), desc="pictures", unit="picture")

    def draw(prompt: str, steps: int, guidance: float):
        image = redraw(pipe, prompt, steps, guidance)
        bar.update()
        return image

    images = [draw(prompt, *setting) for prompt in PROMPTS for setting in settings]
    calls = {f"{s} {g}": lambda s=s, g=g: draw(PROMPTS[0], s, g) for s, g in settings}
    timed = list(pl.measure_latency(calls, repeats=repeats, warmup=1, device=device).values()) * len(PROMPTS)
    bar.close()

    words = [prompt for prompt in PROMPTS for _ in settings]
    gmacs = [total_macs(macs, *setting) / 1e9 for setting in settings] * len(PROMPTS)
    scores = [round(score, 2) for score in clip_score(clip, images, words).tolist()]
    metrics = [
        time_metric(timed, "time for the picture", n=repeats, places=2, digits=0),
        Metric("clip_score", scores, label="CLIP score (mini CLIP)", n=1, digits=1),
        Metric("unet_gmacs", gmacs, label="MACs in the UNet, with attention", unit="G", digits=2),
    ]
    stops = {"prompt": ("Prompt", PROMPTS), "steps": ("Steps", STEPS), "guidance": ("Guidance weight", GUIDANCE)}
    axes = [Axis(name, each, label=label) for name, (label, each) in stops.items()]
    explorer = SweepExplorer("first-explorer", axes, images, metrics, title="as recorded")
    more = {"model": MODEL, "sampler": "DDIM, trailing", "seed": SEED, "timed_prompt": PROMPTS[0], "warmup": 1}
    return Record(more, seeds=[SEED], n=repeats, device=device, explorer=explorer)
