"""Record how good pictures stay as weights become zero, for chapter 4.

    python -m benchmarks sparsity_curve
    python -m benchmarks sparsity_curve --pictures 160      # goes on from what is there

For every mask the same captions are drawn from the same noise and compared
with the pictures of the unpruned model. Quality does not depend on how fast the machine is. Pictures are kept in
--work as they are made, so an interrupted run goes on where it stopped, and more pictures can be added later; about
ten minutes for 64 on two idle CPU cores.
"""

from __future__ import annotations

import contextlib
import json
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

import pruning_book as pb
import pruning_lib as pl
from pruning_book.frechet import frechet
from pruning_book.sensitivity import measure_sensitivity
from pruning_book.widgets import sparsity as setting
from pruning_lib.interval import bootstrap_interval
from pruning_lib.quality import clip_score, psnr, retrieval_rank, ssim
from pruning_lib.weights.magnitude import Sensitivity, allocate, prune_magnitude
from pruning_lib.weights.masks import PrunedWeights
from pruning_lib.weights.nm import prune_nm
from pruning_lib.weights.select import IGNORE, prunable_weights

from .common import Record

CHUNK = 32  # pictures kept together
PATTERNS = ((3, 4), (2, 4), (4, 8), (1, 4))
# The calls on which each layer's sensitivity is measured: these steps, for captions of their own.
SENSITIVITY_STEPS, SENSITIVITY_PROMPTS = (1, 5, 8), 2
SENSITIVITY_STOPS = (0.3, 0.5, 0.7, 0.9, 0.99)
IDLE = 1e-5  # relative squared error of the output
FEWER = (0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # stops of the rows that stand beside the main ones


@dataclass(frozen=True)
class Setting:
    """One row of the record: what is pruned, how, and how far."""

    part: str
    scope: str
    asked: float

    @property
    def name(self) -> str:
        return f"{self.part}-{self.scope.replace(':', 'of')}-{self.asked:g}"


def settings() -> list[Setting]:
    """Return every row, the most wanted first."""
    stops = [stop for stop in setting.STOPS if stop]
    rows = [Setting("unet", "global", 0.0)]
    rows += [Setting("unet", scope, stop) for scope in ("global", "layer", "sensitivity") for stop in stops]
    rows += [Setting("unet", f"{n}:{m}", 1 - n / m) for n, m in PATTERNS]
    rows += [Setting("unet", "inert", 1.0)]
    rows += [Setting("vae", "global", stop) for stop in stops]
    rows += [Setting("unet", "random", stop) for stop in stops]
    rows += [Setting("unet", "global, inert left alone", stop) for stop in FEWER]
    rows += [Setting("text_encoder", "global", stop) for stop in FEWER]
    rows += [Setting("unet", "random, shares by sensitivity", stop) for stop in (0.5, 0.7, 0.8)]
    rows += [Setting("unet", "global, idle layers left alone", stop) for stop in FEWER]
    return rows


def pruned(pipe: Any, row: Setting, sensitivity: Sensitivity) -> Any:
    """Return the handle of a row's masks, which are in place from then on."""
    module = getattr(pipe, row.part)
    if row.asked == 0:
        return contextlib.nullcontext()
    if row.scope == "inert":
        # All of their weights at zero: the one mask without any magnitude in it.
        weights = {k: w for k, w in prunable_weights(module).weights.items() if k.startswith(setting.INERT)}
        return PrunedWeights(
            module, {k: torch.zeros_like(w, dtype=torch.bool) for k, w in weights.items()}, "inert", 1.0
        )
    if row.scope == "global, inert left alone":
        return prune_magnitude(module, row.asked, ignore=(*IGNORE, *setting.INERT))
    if row.scope == "global, idle layers left alone":
        return prune_magnitude(module, row.asked, ignore=(*IGNORE, *idle_layers(sensitivity)))
    if row.scope == "random, shares by sensitivity":
        return prune_at_random(module, row.asked, sensitivity)
    if ":" in row.scope:
        return prune_nm(module, *map(int, row.scope.split(":")))
    extra = {"sensitivity": sensitivity} if row.scope == "sensitivity" else {}
    return prune_magnitude(module, row.asked, scope=row.scope, **extra)


def idle_layers(sensitivity: Sensitivity) -> list[str]:
    """Return the layers whose error at the last stop is below `IDLE`: the model hardly uses them."""
    return [name for name, errors in zip(sensitivity.layers, sensitivity.errors, strict=True) if errors[-1] < IDLE]


def prune_at_random(module: torch.nn.Module, sparsity: float, sensitivity: Sensitivity) -> PrunedWeights:
    """Give each layer as many zeros as its sensitivity says, but at random places: where, without which."""
    weights = prunable_weights(module).weights
    generator, masks = torch.Generator().manual_seed(0), {}
    for name, count in allocate(sensitivity, sparsity, weights).items():
        mask = torch.ones(weights[name].numel(), dtype=torch.bool)
        mask[torch.randperm(len(mask), generator=generator)[:count]] = False
        masks[name] = mask.view(weights[name].shape).to(weights[name].device)
    return PrunedWeights(module, masks, "random, shares by sensitivity", sparsity)


def sensitivity_of(pipe: Any, work: Path) -> Sensitivity:
    """Measure the UNet's sensitivity on calls of real pictures, or read it where it was measured before."""
    file = work / "sensitivity.json"
    if not file.is_file():
        found = measure_sensitivity(
            pipe.unet,
            sensitivity_inputs(pipe),
            sparsities=SENSITIVITY_STOPS,
            progress=lambda layers: tqdm(layers, desc="sensitivity", unit="layer"),
        )
        file.write_text(json.dumps(asdict(found)))
    return Sensitivity.from_dict(json.loads(file.read_text()))


def sensitivity_inputs(pipe: Any) -> list[dict[str, Tensor]]:
    """Return the arguments of a few calls that the pipeline makes while it draws."""
    captions = pb.captions(setting.MODEL)
    order = torch.randperm(len(captions), generator=torch.Generator().manual_seed(1)).tolist()
    prompts = [captions[i] for i in order[:SENSITIVITY_PROMPTS]]
    calls: list[dict[str, Tensor]] = []

    def keep(_: Any, args: tuple, kwargs: dict) -> None:
        tensors = {key: value for key, value in kwargs.items() if torch.is_tensor(value)}
        calls.append({"sample": args[0], "timestep": args[1], **tensors})

    hook = pipe.unet.register_forward_pre_hook(keep, with_kwargs=True)
    noise = [torch.Generator().manual_seed(100 + i) for i in range(len(prompts))]
    pipe(
        prompts,
        num_inference_steps=setting.STEPS,
        guidance_scale=setting.GUIDANCE,
        generator=noise,
        output_type="latent",
    )
    hook.remove()
    return [calls[i] for i in SENSITIVITY_STEPS]


def pictures_of(row: Setting, chunk: int, pipe: Any, prompts: list[str], sensitivity: Sensitivity, work: Path) -> Path:
    """Draw one chunk of one row unless it is there, and return its file: uint8 pictures, and latents if unpruned."""
    file = work / f"{row.name}-{chunk}.pt"
    if not file.is_file():
        with pruned(pipe, row, sensitivity):
            if row.part == "vae":  # the UNet draws the same latents, so only decode them anew
                latents = torch.load(work / f"{Setting('unet', 'global', 0.0).name}-{chunk}.pt")["latents"]
                images = setting.decode(pipe, latents)
            else:
                images, latents = setting.draw(pipe, prompts, first=chunk * CHUNK)
        found = {"images": (255 * images).round().to(torch.uint8)}
        if not row.asked:
            found["latents"] = latents
        temporary = file.with_suffix(".part")
        torch.save(found, temporary)
        temporary.replace(file)
    return file


class Remembering:
    """A judge that embeds each text, and each set of pictures, once."""

    def __init__(self, clip: Any) -> None:
        self.clip, self.features_name = clip, clip.features_name
        self._texts: dict[str, Tensor] = {}
        self._pictures: dict[int, Tensor] = {}

    def embed_texts(self, texts: list[str]) -> Tensor:
        if missing := [text for text in dict.fromkeys(texts) if text not in self._texts]:
            self._texts.update(zip(missing, self.clip.embed_texts(missing), strict=True))
        return torch.stack([self._texts[text] for text in texts])

    @torch.no_grad()
    def embed_images(self, images: Tensor) -> Tensor:
        return torch.nn.functional.normalize(self.clip.model.visual_projection(self.features(images)), dim=-1)

    def features(self, images: Tensor) -> Tensor:
        key = hash(images.numpy().tobytes())
        if key not in self._pictures:
            self._pictures[key] = self.clip.features(images)
        return self._pictures[key]


def judge(images: Tensor, whole: Tensor, prompts: list[str], clip: Any, captions: list[str]) -> dict:
    """Return the figures of one row: means with intervals, and SSIM and CLIP score of each picture."""
    floats, reference = images / 255, whole / 255
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # too few for the rank: the record says so, and all rows have the same n
        distance = frechet(whole, images, features=clip, n_boot=100).to_dict()
    likeness, scores = ssim(reference, floats), clip_score(clip, images, prompts)
    top5 = (retrieval_rank(clip, images, prompts, captions) <= 5).double()
    noise = psnr(reference, floats)
    equal = noise.isinf()
    return {
        "ssim": bootstrap_interval(likeness).to_dict(),
        "psnr_db": None if equal.any() else bootstrap_interval(noise).to_dict(),
        "equal_pictures": int(equal.sum()),
        "clip_score": bootstrap_interval(scores).to_dict(),
        "top5": bootstrap_interval(top5).to_dict(),
        "frechet": {**distance, "rank_deficient": distance["n_a"] <= distance["dim"]},
        "per_picture": {
            "ssim": [round(x, 4) for x in likeness.tolist()],
            "clip_score": [round(x, 2) for x in scores.tolist()],
        },
    }


def measure(work: Path, pictures: int = 64, device: str = "cpu") -> Record:
    """Draw what is missing and judge everything; so many pictures a mask, a multiple of 32."""
    if pictures < CHUNK or pictures % CHUNK:
        raise SystemExit(f"--pictures {pictures}: give a multiple of {CHUNK}")
    work.mkdir(parents=True, exist_ok=True)
    pipe = pl.load(setting.MODEL, device=device)
    pipe.set_progress_bar_config(disable=True)
    captions = pb.captions(setting.MODEL)
    prompts = setting.spread_captions(captions, pictures)
    sensitivity = sensitivity_of(pipe, work)
    chunks = [prompts[i : i + CHUNK] for i in range(0, pictures, CHUNK)]
    files: dict[Setting, list[Path]] = {}
    for row in tqdm(settings(), desc="masks", unit="mask"):
        files[row] = [pictures_of(row, i, pipe, part, sensitivity, work) for i, part in enumerate(chunks)]
    clip = Remembering(pb.load_clip(setting.MODEL))
    images = {row: torch.cat([torch.load(file)["images"] for file in parts]) for row, parts in files.items()}
    whole = images[settings()[0]]
    rows = []
    for row in tqdm(settings(), desc="judging", unit="mask"):
        with pruned(pipe, row, sensitivity) as handle:
            counts = {"n": handle.n, "zeros": handle.zeros} if handle else _unpruned_counts(pipe)
        found = judge(images[row], whole, prompts, clip, captions)
        rows.append({"part": row.part, "scope": row.scope, "asked": row.asked, **counts, **found})
    data = {
        "model": setting.MODEL,
        "sampler": "DDIM, trailing",
        "steps": setting.STEPS,
        "guidance": setting.GUIDANCE,
        "n": pictures,
        "prompts": prompts,
        "first_seed": setting.FIRST_SEED,
        "inert": list(setting.INERT),
        "idle_below": IDLE,
        "idle_layers": idle_layers(sensitivity),
        "ignored": list(IGNORE),
        "rows": rows,
        "sensitivity": {**asdict(sensitivity), "steps": list(SENSITIVITY_STEPS), "prompts": SENSITIVITY_PROMPTS},
    }
    seeds = [setting.FIRST_SEED + i for i in range(pictures)]
    return Record(data, seeds=seeds, n=pictures, device=device)


def _unpruned_counts(pipe: Any) -> dict[str, int]:
    return {"n": prunable_weights(pipe.unet).n, "zeros": 0}
