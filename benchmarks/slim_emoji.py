"""Record of what `slim` does to emoji-sd's own training checkpoint, and what each cast costs in pictures.

    python -m benchmarks slim_emoji --run zoo-run     # the folder of `python -m zoo train all`
The shipped weights are float16 already, so a cast would lose nothing of them. Everything is computed in float32.
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
from pruning_lib.finetuning.folder import read_checkpoint
from pruning_lib.loading import models_folder
from pruning_lib.quality import clip_score, psnr, retrieval_rank, ssim
from pruning_lib.sampling import quietly
from zoo.parts import text_encoder_of

from .common import GUIDANCE, MODEL, TOP, Record, interval, unit

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
                str(target), config=str(models_folder() / MODEL), local_files_only=True, torch_dtype=torch.float32
            )
            pipe.set_progress_bar_config(disable=True)
            pictures[name] = generate(pipe, prompts, steps=steps, guidance=GUIDANCE, seed=seed)
    scores = {name: clip_score(clip, drawn, prompts) for name, drawn in pictures.items()}
    ranks = {name: retrieval_rank(clip, drawn, prompts, captions) for name, drawn in pictures.items()}
    # row -> the setting whose pictures are compared, and with which
    compared = {name: (name, other) for name, (_, other) in SETTINGS.items()}
    compared["live instead of EMA"] = "live float32", "EMA float32"
    rows = {}
    for name, (own, other) in compared.items():
        row = {key: reports[own][key] for key in ("bytes_before", "bytes_after", "causes", "flushed", "params")}
        row |= {"compared_with": other, "clip_score": interval(scores[own])}
        row |= {"top5": interval((ranks[own] <= TOP).float())}
        if name != other:
            row |= compare(pictures[own], pictures[other], scores[own] - scores[other])
        rows[name] = row
    data = {"model": "emoji-sd, its training run", "n": n, "steps": steps, "guidance": GUIDANCE, "before": found}
    return Record({**data, "settings": rows}, seeds=[seed], n=n)


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
        "ssim": interval(ssim(unit(drawn), unit(wanted))),
        "clip_score_difference": interval(score),
        "psnr_db": None,
    }
    if int(differ.sum()) > 1:
        values = psnr(unit(drawn[differ]), unit(wanted[differ]))
        found["psnr_db"] = interval(values) | {"lowest": float(values.min())}
    return found
