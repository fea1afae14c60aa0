"""Train emoji-sd from nothing, part by part; every part resumes where it stopped."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

from diffusers import AutoencoderKL
from transformers import CLIPModel, CLIPTokenizer

from pruning_lib.finetuning.loop import FitConfig, read_checkpoint, read_log

from .assemble import assemble, check_replaceable, text_encoder_of
from .clip import train_clip
from .data import EmojiData
from .tokenizer import train_tokenizer
from .unet import build_unet, train_unet
from .vae import train_vae

__all__ = ["PARTS", "RECIPES", "assemble_run", "train_part"]

PARTS = ("tokenizer", "clip", "vae", "unet")

# What the shipped model was trained with. `batch` is images a step.
RECIPES: dict[str, tuple[FitConfig, int]] = {
    "clip": (FitConfig(steps=1000, weight_decay=0.05, ema=0.998, bf16=True, checkpoint_every=100, log_every=10), 192),
    "vae": (FitConfig(steps=3200, lr=2e-3, bf16=True), 24),
    "unet": (FitConfig(steps=8000, lr=1.2e-3, ema=0.999, checkpoint_every=250), 32),
}


def train_part(part: str, data: EmojiData, run: str | Path, **changes) -> None:
    """Train one part, or go on with it, and write the result to `run/<part>/final`.

    Args:
        part: one of `PARTS`; later parts need the earlier ones.
        data: from `prepare`.
        run: folder of the whole training.
        changes: fields of `FitConfig` that differ from the recipe, and `batch`.

    Raises:
        ValueError: an unknown part, settings out of range, or a damaged checkpoint.
        FileNotFoundError: a part this one needs has not been trained.
    """
    run = Path(run)
    if part not in PARTS:
        raise ValueError(f"Unknown part {part!r}. Allowed: {', '.join(PARTS)}.")
    final = run / part / "final"
    if part == "tokenizer":
        train_tokenizer([*data.labels, *(tag for tags in data.tags for tag in tags)]).save_pretrained(final)
        return
    config, batch = RECIPES[part]
    asked = changes.pop("batch", None)
    batch = batch if asked is None else asked
    if batch < 1:
        raise ValueError(f"batch={batch} must be at least 1.")
    config = replace(config, **{k: v for k, v in changes.items() if v is not None})
    if part == "vae":
        model = train_vae(data, config, run / part, batch)
    elif part == "clip":
        model = train_clip(data, _tokenizer(run), config, run / part, batch)
    else:
        vae = AutoencoderKL.from_pretrained(_needed(run, "vae")).to(config.device)
        text_encoder = text_encoder_of(CLIPModel.from_pretrained(_needed(run, "clip"))).to(config.device)
        model = train_unet(data, vae, text_encoder, _tokenizer(run), config, run / part, batch)
    model.cpu().save_pretrained(final)


def assemble_run(data: EmojiData, run: str | Path, folder: str | Path) -> Path:
    """Put the parts of `run` together into `folder`.

    A denoiser still in training is taken from its checkpoint, with its averaged weights.
    """
    run = Path(run)
    check_replaceable(folder)
    clip = CLIPModel.from_pretrained(_needed(run, "clip"))
    vae = AutoencoderKL.from_pretrained(_needed(run, "vae"))
    unet, training = build_unet(), {}
    for part in ("clip", "vae", "unet"):
        path = run / part / "checkpoint.pt"
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: train {part!r} first.")
        saved = read_checkpoint(path)
        training[part] = {"config": saved["config"], "steps_done": saved["step"], "log": _thin(read_log(run / part))}
        if part == "unet":
            unet.load_state_dict(saved["model"])
            if saved["ema"]:
                for parameter, average in zip(unet.parameters(), saved["ema"]["shadow_params"], strict=True):
                    parameter.data.copy_(average)
    training["recipes"] = {part: {**asdict(config), "batch": batch} for part, (config, batch) in RECIPES.items()}
    return assemble(
        folder, unet=unet.eval(), vae=vae, clip=clip, tokenizer=_tokenizer(run), data=data, training=training
    )


def _needed(run: Path, part: str) -> Path:
    path = run / part / "final"
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is missing. Run `python -m zoo train {part}` first.")
    return path


def _tokenizer(run: Path) -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(_needed(run, "tokenizer"))


def _thin(log: list[dict], points: int = 200) -> list[dict]:
    """Keep at most `points` lines, each the mean loss of the lines it stands for."""
    size = max(1, -(-len(log) // points))
    chunks = [log[i : i + size] for i in range(0, len(log), size)]
    return [{**chunk[-1], "loss": sum(line["loss"] for line in chunk) / len(chunk)} for chunk in chunks]
