"""What the benchmarks of chapter 8 share: rankings, plans, and training runs whose results are kept one by one."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from torch import Tensor

import pruning_book as pb
import pruning_lib as pl
from pruning_book.rivals.rankings import contributions, params_ranking, random_ranking
from pruning_lib.operators.budget import choose, reductions
from pruning_lib.operators.find import Operators, find_operators

from .common import MODEL, asked_for, interval, judge, once, save_row

N = 160
SAMPLER = {"steps": 6, "guidance": 3.0}
FINETUNE = {"steps": 200, "batch": 16, "lr": 1e-3}
SEEDS = (0, 1, 2)
EVERY = 50  # steps between looks at the pictures, where a curve is wanted
RATIOS = (0.05, 0.1, 0.2, 0.3, 0.35, 0.4, 0.5)  # shares of MACs of the sweep
LEVELS = (0.35, 0.5)  # shares of MACs at which is trained
BK_LEVEL = 0.35  # the share that BK-SDM's choice removes, nearly
BK_SDM = "base"
AVERAGED = "over pictures, each averaged over the seeds of training"
# ranking -> how the page calls it
RANKINGS = {
    "score": "LD-Pruner's score",
    "score-per-mac": "score per MAC",
    "output": "size of the output",
    "params": "fewest parameters",
    **{f"random-{seed}": f"chance {seed + 1}" for seed in SEEDS},
    "bk-sdm": "BK-SDM's choice",
    "none": "nothing removed",
}
SHOWN = ("lion", "pizza", "red heart", "rocket", "sunflower", "house", "guitar", "smiling face with sunglasses")


@dataclass(frozen=True)
class Bench:
    """The unpruned model, its judge, its whole world, and what all candidates are compared with.

    `wanted` are the unpruned model's pictures of the captions `asked`, uint8 `[n, 3, 64, 64]`.
    """

    pipe: DiffusionPipeline
    clip: object
    images: Tensor
    captions: list[str]
    asked: list[str]
    wanted: Tensor
    operators: Operators

    @classmethod
    @cache
    def load(cls) -> Bench:
        """Load everything, and draw what is wanted."""
        pipe, clip, captions, asked = pl.load(MODEL), pb.load_clip(MODEL), pb.captions(MODEL), asked_for(N, SHOWN)
        wanted = judge(pipe, clip, asked, captions, None, **SAMPLER).pictures
        return cls(pipe, clip, pb.training_images(MODEL), captions, asked, wanted, find_operators(pipe.unet))

    def look(self, pipe: DiffusionPipeline, sheet: Path | None = None) -> dict:
        """Judge a pipeline: one number per picture for each figure, and the Fréchet distance; save what is shown."""
        pipe.set_progress_bar_config(disable=True)
        found = judge(pipe, self.clip, self.asked, self.captions, self.wanted, real=self.images, **SAMPLER)
        if sheet:
            save_row(found.pictures, sheet, self.asked, SHOWN)
        return {"figures": {k: v.tolist() for k, v in found.figures.items()}, "frechet": found.frechet}


def rankings(bench: Bench, scores: Path, work: Path) -> dict[str, list[str]]:
    """Return every ranking by name; the one by size of the output sees the latents that the score saw."""
    operators, known = bench.operators, pl.Scores.load(scores)
    values, found = known.values(), {"score": [path for path in known.ranked() if path in operators]}
    found["score-per-mac"] = sorted(found["score"], key=lambda path: values[path] / operators[path].macs)

    def by_output() -> dict[str, list[str]]:
        added = contributions(bench.pipe, operators=operators, **known.sampling)
        return {"ranking": sorted(added, key=added.__getitem__)}

    found["output"] = once(work / "output-ranking.json", by_output)["ranking"]
    found["params"] = params_ranking(operators)
    return found | {f"random-{seed}": random_ranking(operators, seed) for seed in SEEDS}


def of_plan(bench: Bench, plan: pl.Plan, free: Sequence[str]) -> dict:
    """Say what a plan removes, and how much of it lies in the blocks that are free to remove."""
    unet = bench.pipe.unet
    inside = tuple(pair for pair in plan.changes if pair[0].startswith(tuple(f"{block}." for block in free)))
    macs, params = reductions(unet, plan)
    free_macs, free_params = reductions(unet, pl.Plan(inside, plan.base)) if inside else (0.0, 0.0)
    kinds = [bench.operators[path].kind for path in plan.paths]
    return {
        **{"count": len(plan), "macs_ratio": macs, "params_ratio": params},
        "kinds": {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)},
        "changes": [list(change) for change in plan.changes],
        "free": {"count": len(inside), "macs_ratio": free_macs, "params_ratio": free_params},
    }


def pruned(bench: Bench, ranking: str, orders: dict[str, list[str]], level: float):
    """Return the pipeline pruned to a share of MACs, and what was removed; BK-SDM's choice has its own size.

    "none" is a copy of the unpruned pipeline: what the fine-tune alone does to pictures.
    """
    if ranking == "none":
        return with_unet(bench.pipe, copy.deepcopy(bench.pipe.unet)), {}
    if ranking == "bk-sdm":
        cut = pl.remove_blocks(bench.pipe.unet, BK_SDM)
        sizes = {"count": len(cut.removed), "macs_ratio": cut.macs_ratio, "params_ratio": cut.params_ratio}
        return with_unet(bench.pipe, cut.unet), {**sizes, "removed": list(cut.removed)}
    plan = choose(orders[ranking], bench.operators, bench.pipe.unet, macs_ratio=level)
    return pl.remove_operators(bench.pipe, plan), plan


def with_unet(pipe: DiffusionPipeline, unet: UNet2DConditionModel) -> DiffusionPipeline:
    """Return a pipeline that shares everything with `pipe` but the denoiser."""
    return type(pipe)(**{**pipe.components, "unet": unet}, requires_safety_checker=False)


def train(bench: Bench, pipe: DiffusionPipeline, name: str, seed: int, work: Path, *, curve: bool) -> dict:
    """Train a pipeline on the model's own pictures, judge it, and keep the result: once for each name and seed.

    `curve` judges every `EVERY` steps, not only at the end. An interrupted run goes on from its checkpoint in `work`.
    """
    run, last = work / f"{name}-{seed}", FINETUNE["steps"]

    def validate(step: int) -> dict[str, object]:
        if step == 0 and not curve:
            return {}
        return {"look": bench.look(pipe, work / f"{run.name}.png" if step == last else None)}

    def work_it() -> dict:
        pipe.unet.to(memory_format=torch.channels_last)
        often = {"checkpoint_every": EVERY, "validate_every": EVERY if curve else last}
        told = {"seed": seed, "folder": run, "validate": validate, **often, **FINETUNE}
        log = pl.finetune(pipe, bench.images, bench.captions, **told)
        steps, looks = log.curve("look")
        shutil.rmtree(run)  # its checkpoint is large, and the result is kept
        return {"steps": steps, "looks": looks, "loss": log.curve(), "seconds": log.curve("seconds")[1][-1]}

    return once(work / f"{run.name}.json", work_it)


def summary(looks: list[dict]) -> dict:
    """Average each picture over the seeds, take the interval over pictures, and keep each seed's mean."""
    figures = {key: torch.tensor([look["figures"][key] for look in looks]) for key in looks[0]["figures"]}
    found = {k: {**interval(values.mean(0)), "by_seed": values.mean(1).tolist()} for k, values in figures.items()}
    by_seed = [look["frechet"]["value"] for look in looks]
    distance = {"value": sum(by_seed) / len(looks), "by_seed": by_seed, "first": looks[0]["frechet"]}
    return found | {"frechet": distance}


def against(looks: list[dict], reference: list[dict]) -> dict:
    """Return reference minus these, picture by picture, with an interval; above 0 the reference is better."""
    found = {}
    for key in ("ssim", "psnr_db", "clip_score"):
        ours, theirs = (torch.tensor([look["figures"][key] for look in part]).mean(0) for part in (reference, looks))
        found[key] = interval(ours - theirs)
    return found


def trained(ranking: str) -> list[int]:
    """Return the seeds of training of a ranking; each order drawn by chance is trained once."""
    return [int(ranking[-1])] if ranking.startswith("random") else list(SEEDS)
