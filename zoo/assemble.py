"""From trained parts to an ordinary diffusers folder in half precision, with the judge, captions and real images."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from transformers import CLIPTokenizer

from pruning_lib.finetuning.folder import read_checkpoint, read_log

from .data import EmojiData, contact_sheet
from .parts import build_scheduler, build_unet, merges_of, text_encoder_of
from .train import RECIPES, trained

MAX_BYTES = 25_000_000


def assemble(data: EmojiData, run: Path, folder: Path) -> Path:
    """Write the pipeline of a training run and what belongs to it into `folder`, in one move.

    A denoiser still in training is taken from its checkpoint, with its averaged weights. The configuration and logs of
    the three trainings become `training.json`; an older card stays.

    Raises:
        FileNotFoundError: a part was not trained.
        ValueError: the weights together exceed 25 MB, or `folder` holds something that is no pipeline.
    """
    folder = Path(folder)
    if folder.exists() and not (folder / "model_index.json").is_file():
        if not folder.is_dir() or any(folder.iterdir()) or folder.resolve() == Path.cwd():
            raise ValueError(
                f"{folder} is there and is no pipeline; it would be replaced. Give a new folder, or one that holds a "
                "model."
            )
    tokenizer, clip, vae = (trained(run, part) for part in ("tokenizer", "clip", "vae"))
    unet, training = build_unet(), {"concepts": int(data.concept.sum())}
    for part in RECIPES:
        path = run / part / "checkpoint.pt"
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: train {part!r} first.")
        saved = read_checkpoint(path)
        training[part] = {"config": saved["config"], "steps_done": saved["step"], "log": _thin(read_log(run / part))}
    unet.load_state_dict(saved["model"])  # of the last part
    if saved["ema"]:
        for parameter, average in zip(unet.parameters(), saved["ema"]["shadow_params"], strict=True):
            parameter.data.copy_(average)
    training["recipes"] = {part: {**asdict(config), "batch": batch} for part, (config, batch) in RECIPES.items()}
    pipe = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder_of(clip),
        tokenizer=tokenizer,
        unet=unet.eval(),
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.to(dtype=torch.float16)
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        pipe.save_pretrained(work, safe_serialization=True)
        clip.half().save_pretrained(work / "clip", safe_serialization=True)
        _mend_configs(work)
        _save_tokenizer(tokenizer, work / "tokenizer")
        concepts = data.concepts()
        contact_sheet(concepts.images, columns=22).save(work / "training_images.png", optimize=True)
        text = {"labels": concepts.labels, "tags": concepts.tags}
        (work / "concepts.json").write_text(json.dumps(text, indent=0, ensure_ascii=False) + "\n", "utf-8")
        (work / "training.json").write_text(json.dumps(training, indent=1) + "\n", "utf-8")
        size = weights_bytes(work)
        if size > MAX_BYTES:
            raise ValueError(f"The weights take {size / 1e6:.1f} MB, more than the {MAX_BYTES / 1e6:.0f} MB allowed.")
        for extra in ("README.md", "gate.json", "contact_sheet.png"):  # kept from an earlier assembly
            if (folder / extra).is_file():
                shutil.copy2(folder / extra, work / extra)
        os.chmod(work, 0o755)
        old = work.with_name(work.name + "-old")
        if folder.exists():  # moved aside first, so that the old one is whole until the new one stands
            os.replace(folder, old)
        os.replace(work, folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder


def weights_bytes(folder: Path) -> int:
    """Return the size of all weights of a model."""
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


def _mend_configs(work: Path) -> None:
    for config in work.glob("*/config.json"):
        settings = json.loads(config.read_text("utf-8"))
        settings.pop("_name_or_path", None)  # where the part was trained means nothing to who loads it
        if config.parent.name in ("text_encoder", "clip"):
            # transformers loads in the type the config names; the other parts load as float32, and all must agree
            settings.pop("torch_dtype", None)
            settings["dtype"] = "float32"
        if config.parent.name == "text_encoder":
            settings["default_guidance_scale"] = 3.0  # `pruning_lib`'s commands guide this much; see its `loading`
        config.write_text(json.dumps(settings, indent=2) + "\n", "utf-8")


def _save_tokenizer(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Add the two files that transformers 4 reads; transformers 5 writes only `tokenizer.json`."""
    vocabulary = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["vocab"]
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False) + "\n", "utf-8")
    merges = [" ".join(pair) for pair in merges_of(tokenizer.backend_tokenizer)]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", "utf-8")


def _thin(log: list[dict], points: int = 200) -> list[dict]:
    """Keep at most `points` lines, each the mean loss of the lines it stands for."""
    size = max(1, -(-len(log) // points))
    chunks = [log[i : i + size] for i in range(0, len(log), size)]
    return [{**chunk[-1], "loss": sum(line["loss"] for line in chunk) / len(chunk)} for chunk in chunks]
