"""The model card: what emoji-sd is, what it was trained on, how well it does, and where it ends."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image
from torch import Tensor

from .assemble import contact_sheet

__all__ = ["CONTACT_PROMPTS", "write_card"]

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


def write_card(folder: str | Path, figures: dict, stamp: dict, sheet: Tensor) -> None:
    """Write README.md, gate.json, contact_sheet.png and training_curve.png into the model's folder.

    Args:
        folder: of the assembled model; `training.json` is read from it.
        figures: from `run_gate`.
        stamp: the passport of that measurement.
        sheet: generated images of `CONTACT_PROMPTS`, uint8 `[64, 3, 64, 64]`.
    """
    folder = Path(folder)
    training = json.loads((folder / "training.json").read_text("utf-8"))
    (folder / "gate.json").write_text(json.dumps({"figures": figures, "passport": stamp}, indent=1) + "\n", "utf-8")
    contact_sheet(sheet, columns=8, gap=8).save(folder / "contact_sheet.png", optimize=True)
    _curve(training).save(folder / "training_curve.png", optimize=True)
    (folder / "README.md").write_text(_text(figures, stamp, training), "utf-8")


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


def _text(figures: dict, stamp: dict, training: dict) -> str:
    def span(key: str, digits: int) -> str:
        v = figures[key]
        return f"{v['value']:.{digits}f} (95 % interval {v['low']:.{digits}f} to {v['high']:.{digits}f}, n = {v['n']})"

    def run(part: str) -> str:
        entry = training[part]
        config, batch = entry["config"], training["recipes"][part]["batch"]
        minutes = entry["log"][-1]["seconds"] / 60
        kind = "bfloat16 autocast" if config["bf16"] else "float32"
        return (
            f"| {part} | {entry['steps_done']:,} | {batch} | {entry['steps_done'] * batch:,} | {config['lr']:g} "
            f"| {kind} | {minutes:.0f} |"
        )

    state = "passed" if figures["passed"] else "not passed"
    return f"""---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
---
# emoji-sd

A complete Stable Diffusion in miniature: 64×64 pictures of {training["concepts"]} emoji concepts from their names.
Every part (tokenizer, text encoder, autoencoder, denoiser) was trained from nothing by the code in `pruning_lib/zoo`.

```python
import pruning_lib as pl
pipe = pl.load("emoji-sd")      # or StableDiffusionPipeline.from_pretrained(this folder)
pipe("lion", num_inference_steps=25, guidance_scale=3).images[0]
```

![Contact sheet: 64 generated emoji in eight rows, one per prompt](contact_sheet.png)

The prompts of the sheet, row by row: {", ".join(CONTACT_PROMPTS)}.
25 DDIM steps, guidance {figures["guidance"]:g}, one seed each, none picked by hand.

## Data and licences

| what | from, and its npm package | licence |
|---|---|---|
| images for every part | Noto Emoji, © Google, `emoji-datasource-google` | Apache-2.0 |
| for autoencoder and judge only | Twemoji, © Twitter, Inc. and others, `emoji-datasource-twitter` | CC-BY 4.0 |
| names and search words | `emojibase-data`, © Miles Johnson | MIT |
| packaging of the images | emoji-datasource, © Cal Henderson | MIT |

The images were put on white.
`training_images.png` holds the {training["concepts"]} Noto images in the order of `concepts.json`.
The weights are released under Apache-2.0.

## Training

| part | steps | batch | images seen | peak learning rate | precision | minutes |
|---|---|---|---|---|---|---|
{run("vae")}
{run("clip")}
{run("unet")}

AdamW, warm-up, constant rate, decay over the last part; averaged weights (EMA).
Denoiser: v-prediction, captions dropped one time in ten, names alone 85 % of the time, else with search words.
Configuration and thinned logs are in `training.json`.

![Loss against minutes for the three trainings](training_curve.png)

## How good it is

Measured by `python -m zoo gate` ({state}):

- autoencoder: {span("psnr_db", 2)} dB PSNR, worst image {figures["psnr_worst_db"]:.1f} dB;
- real images find their caption among the five nearest of all: {span("top5_real", 3)};
- generated ones, {figures["steps"]} steps, guidance {figures["guidance"]:g}: {span("top5_generated", 3)};
- the ratio of the two: {figures["ratio"]:.3f} (threshold {figures["thresholds"]["ratio"]});
- weights: {figures["weights_bytes"] / 1e6:.1f} MB in half precision.

Passport: {stamp.get("date", "")}, {stamp.get("hardware", "")}, commit {stamp.get("commit", "")}.

## Limits

It draws what it was shown, one style, one thing at a time; it does not combine concepts.
Prompts outside its list give a guess or a blur.
The judge shares its text tower with the pipeline, so its scores compare models of this family only.
There are no people in the data, by choice; faces are the yellow kind.
"""
