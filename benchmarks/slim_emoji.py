"""Record what `slim` does to emoji-sd's own training checkpoint, and what each cast costs in pictures.

    python -m benchmarks slim_emoji --run zoo-run

needs the folder in which `python -m zoo train all` trained the model, because the shipped weights are
float16 already: a cast to float16 would lose nothing of them. The training state of all parts is put into one file in
the layout of sharing sites, with the EMA copy and the optimiser state that the run left. `slim` makes one file of each
setting, diffusers loads it, and the pictures are compared with those of the same weights in float32. Everything is
computed in float32; only the stored weights are rounded.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from tqdm.auto import tqdm
from transformers import CLIPModel

import pruning_book as pb
import pruning_lib as pl
from pruning_book.judge import generate
from pruning_book.ldm_layout import ldm_ema, to_ldm
from pruning_lib.finetuning.loop import read_checkpoint
from pruning_lib.interval import bootstrap_interval
from pruning_lib.loading import models_folder
from pruning_lib.quality import clip_score, psnr, retrieval_rank, ssim
from pruning_lib.sampling import quietly
from zoo.parts import text_encoder_of

from .common import Record, unit

GUIDANCE = 3.0
SETTINGS = {  # name: (options of slim, the setting its pictures are compared with)
    "live float32": ({"weights": "live"}, "live float32"),
    "EMA float32": ({"weights": "ema"}, "EMA float32"),
    "EMA float16": ({"weights": "ema", "dtype": "float16"}, "EMA float32"),
    "EMA bfloat16": ({"weights": "ema", "dtype": "bfloat16"}, "EMA float32"),
    "live float16": ({"weights": "live", "dtype": "float16"}, "live float32"),
}


def training_file(run: Path, path: Path) -> Path:
    """Write what the run left as one training checkpoint in LDM's layout."""
    saved = read_checkpoint(run / "unet" / "checkpoint.pt")
    unet = UNet2DConditionModel.from_pretrained(run / "unet" / "final")
    unet.load_state_dict(saved["model"])
    averaged = dict(zip(dict(unet.named_parameters()), saved["ema"]["shadow_params"], strict=True))
    vae = AutoencoderKL.from_pretrained(run / "vae" / "final")
    text = text_encoder_of(CLIPModel.from_pretrained(run / "clip" / "final", dtype=torch.float32))
    live = to_ldm(unet.state_dict(), vae.state_dict(), text.state_dict())
    state = {name: tensor.contiguous() for name, tensor in {**live, **ldm_ema(averaged)}.items()}
    torch.save({"state_dict": state, "optimizer_states": [saved["optimizer"]], "global_step": saved["step"]}, path)
    return path


def measure(run: Path, n: int = 128, steps: int = 25, seed: int = 0) -> Record:
    """Slim, load, draw and compare; the seed chooses the prompts, and picture i starts from seed + i."""
    captions, clip = pb.captions(), pb.load_clip()
    chosen = torch.randperm(len(captions), generator=torch.Generator().manual_seed(seed))[:n]
    prompts = [captions[i] for i in chosen]
    reports, pictures = {}, {}
    with tempfile.TemporaryDirectory() as place, quietly():
        source = training_file(run, Path(place) / "training.ckpt")
        found = pl.inspect_checkpoint(source).to_dict() | {"path": source.name}  # the folder means nothing elsewhere
        for name, (options, _) in tqdm(SETTINGS.items(), unit="setting"):
            target = Path(place) / "slim.safetensors"
            reports[name] = pl.slim(source, target, overwrite=True, **options).to_dict()
            pipe = StableDiffusionPipeline.from_single_file(
                str(target), config=str(models_folder() / "emoji-sd"), local_files_only=True, torch_dtype=torch.float32
            )
            pipe.set_progress_bar_config(disable=True)
            pictures[name] = generate(pipe, prompts, steps=steps, guidance=GUIDANCE, seed=seed)
    scores = {name: clip_score(clip, drawn, prompts) for name, drawn in pictures.items()}
    ranks = {name: retrieval_rank(clip, drawn, prompts, captions) for name, drawn in pictures.items()}
    data = {"model": "emoji-sd, its training run", "n": n, "steps": steps, "guidance": GUIDANCE, "before": found}
    data["settings"] = {}
    for name, (_, other) in [*SETTINGS.items(), ("live instead of EMA", ({}, "EMA float32"))]:
        drawn = pictures.get(name, pictures["live float32"])
        source_name = name if name in pictures else "live float32"
        row = {key: reports[source_name][key] for key in ("bytes_before", "bytes_after", "causes", "flushed", "params")}
        row |= {
            "compared_with": other,
            "clip_score": bootstrap_interval(scores[source_name]).to_dict(),
            "top5": bootstrap_interval((ranks[source_name] <= 5).float()).to_dict(),
        }
        if name != other:
            row |= compare(drawn, pictures[other], scores[source_name] - scores[other])
        data["settings"][name] = row
    return Record(data, seeds=[seed], n=n)


def compare(drawn: torch.Tensor, wanted: torch.Tensor, score: torch.Tensor) -> dict[str, object]:
    """Return how far 8-bit pictures are from others, with intervals over the prompts.

    PSNR is infinite where two pictures are equal, so it is of those that differ, and the share of equal ones stands
    beside it.
    """
    levels = (drawn.int() - wanted.int()).abs().flatten(1)
    differ = levels.amax(1) > 0
    found: dict[str, object] = {
        "equal_pictures": float(1 - differ.float().mean()),
        "largest_level_difference": int(levels.max()),
        "changed_values": float((levels > 0).float().mean()),
        "ssim": bootstrap_interval(ssim(unit(drawn), unit(wanted))).to_dict(),
        "clip_score_difference": bootstrap_interval(score).to_dict(),
        "psnr_db": None,
    }
    if int(differ.sum()) > 1:
        values = psnr(unit(drawn[differ]), unit(wanted[differ]))
        found["psnr_db"] = bootstrap_interval(values).to_dict() | {"lowest": float(values.min())}
    return found
