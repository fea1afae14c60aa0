"""Is the model good enough to teach with: reconstructions, captions found again, bytes; and the card that says so.

The judge is the mini CLIP, whose text tower also steers the model; so the rate at which real images find their own
caption, not 1, is the yardstick for the generated ones.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from torch import Tensor

from pruning_book.judge import MiniCLIP, captions, generate, training_images
from pruning_lib.finetuning.denoising import to_model_range
from pruning_lib.interval import bootstrap_interval
from pruning_lib.quality import psnr, retrieval_rank

from .assemble import MAX_BYTES, weights_bytes
from .data import contact_sheet

PSNR_MIN, RATE_MIN, TOP = 27.0, 0.8, 5
# Sixty-four things in eight rows: faces, animals, birds and sea, plants and fruit, food, travel, objects, signs.
CONTACT_PROMPTS = """grinning face|face with tears of joy|smiling face with heart-eyes|smiling face with sunglasses|
crying face|enraged face|thinking face|clown face|
lion|tiger face|panda|fox|elephant|monkey face|unicorn|frog|
penguin|owl|parrot|flamingo|octopus|tropical fish|crab|butterfly|
rose|sunflower|cactus|palm tree|red apple|banana|strawberry|watermelon|
hamburger|pizza|doughnut|ice cream|birthday cake|taco|egg|hot beverage|
rocket|airplane|automobile|bus|fire engine|bicycle|sailboat|helicopter|
guitar|trumpet|camera|light bulb|laptop|crown|graduation cap|wrapped gift|
red heart|blue heart|star|fire|rainbow|sun with face|snowman|soccer ball""".replace("\n", "").split("|")


@torch.no_grad()
def reconstruct(pipe: StableDiffusionPipeline, images: Tensor) -> Tensor:
    """Return uint8 `[n, 3, 64, 64]` after encoding to the mean latent and decoding."""
    parts = []
    for part in images.split(64):
        latent = pipe.vae.encode(to_model_range(part).to(pipe.vae.device, pipe.vae.dtype)).latent_dist.mean
        parts.append(pipe.vae.decode(latent).sample.float().cpu())
    return ((torch.cat(parts).clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def run_gate(
    pipe: StableDiffusionPipeline,
    clip: MiniCLIP,
    folder: Path,
    *,
    n: int = 256,
    steps: int = 25,
    guidance: float = 3.0,
    seed: int = 0,
) -> dict:
    """Measure emoji-sd with `n` of its captions, chosen by `seed`; return the figures, with `passed`.

    `folder` is the model's own, whose weights are weighed.
    """
    texts, images = captions(), training_images()
    if not 2 <= n <= len(texts):
        raise ValueError(f"n={n} captions were asked for; give 2 to {len(texts)}, which is all the model knows.")
    own = torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed))[:n].sort().values
    asked = [texts[i] for i in own]
    drawn = generate(pipe, asked, steps=steps, guidance=guidance, seed=seed)
    quality = psnr(reconstruct(pipe, images).float() / 255, images.float() / 255)
    real, fake = ((retrieval_rank(clip, found, asked, texts) <= TOP).float() for found in (images[own], drawn))
    figures = {
        **{"psnr_db": bootstrap_interval(quality).to_dict(), "psnr_worst_db": quality.min().item()},
        **{"top5_real": bootstrap_interval(real).to_dict(), "top5_generated": bootstrap_interval(fake).to_dict()},
        "ratio": fake.mean().item() / max(real.mean().item(), 1e-9),
        "weights_bytes": weights_bytes(folder),
        **{"steps": steps, "guidance": guidance, "seed": seed, "n": n, "captions": asked},
        "thresholds": {"psnr_db": PSNR_MIN, "ratio": RATE_MIN, "bytes": MAX_BYTES},
    }
    good = figures["psnr_db"]["value"] >= PSNR_MIN and figures["ratio"] >= RATE_MIN
    return figures | {"passed": good and figures["weights_bytes"] <= MAX_BYTES}


def write_card(folder: Path, figures: dict, stamp: dict, sheet: Tensor) -> None:
    """Write README.md, gate.json, contact_sheet.png and training_curve.png into the model's folder.

    Args:
        folder: of the assembled model; `training.json` is read from it.
        figures: from `run_gate`.
        stamp: the passport of that measurement.
        sheet: generated images of `CONTACT_PROMPTS`, uint8 `[64, 3, 64, 64]`.
    """
    training = json.loads((folder / "training.json").read_text("utf-8"))
    (folder / "gate.json").write_text(json.dumps({"figures": figures, "passport": stamp}, indent=1) + "\n", "utf-8")
    contact_sheet(sheet, columns=8, gap=8).save(folder / "contact_sheet.png", optimize=True)
    _curve(training).save(folder / "training_curve.png", optimize=True)

    template = Path(__file__).with_name("card.md").read_text("utf-8")
    card = template.format(
        figures=figures,
        stamp=stamp,
        training=training,
        prompts=", ".join(CONTACT_PROMPTS),
        rows="\n".join(_row(part, training) for part in ("vae", "clip", "unet")),
        state="passed" if figures["passed"] else "not passed",
        megabytes=figures["weights_bytes"] / 1e6,
    )
    (folder / "README.md").write_text(card, "utf-8")


def _row(part: str, training: dict) -> str:
    done, config = training[part]["steps_done"], training[part]["config"]
    batch, minutes = training["recipes"][part]["batch"], training[part]["log"][-1]["seconds"] / 60
    kind = "bfloat16 autocast" if config["bf16"] else "float32"
    return f"| {part} | {done:,} | {batch} | {done * batch:,} | {config['lr']:g} | {kind} | {minutes:.0f} |"


def _curve(training: dict) -> Image.Image:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.8), dpi=100, layout="constrained")
    for axis, part in zip(figure.subplots(1, 3), ("vae", "clip", "unet"), strict=True):
        log = training[part]["log"]
        axis.plot([line["seconds"] / 60 for line in log], [line["loss"] for line in log], lw=1.2)
        axis.set(title=part, xlabel="minutes", ylabel="loss", yscale="log")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.frombytes("RGBA", canvas.get_width_height(), canvas.buffer_rgba()).convert("RGB")
