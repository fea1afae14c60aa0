"""Record of chapter 15: fewer steps, uniform reuse and a searched schedule on four samplers, at equal MACs.

Held-out prompts, compared with the unpruned pictures of the same sampler; fifteen minutes on one CPU core.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import diffusers

import pruning_book as pb
import pruning_lib as pl
from pruning_book.rivals.fewer_steps import fewer_steps
from pruning_lib.sampling import quietly
from pruning_lib.steps.budget import uniform
from pruning_lib.steps.evaluate import Evaluator
from pruning_lib.steps.schedule import encode_table, grid_of
from pruning_lib.steps.search import local_search

from .common import GUIDANCE, MODEL, Record, held_out, judge, once, pruner_prompts, spread

# name -> (class, options, steps, shares of MACs kept, whether a search is made)
# PLMS extrapolates from earlier outputs. Of a model that predicts velocities, as emoji-sd does, diffusers extrapolates
# the velocities themselves, which takes fifty steps; with twenty it fails. The consistency sampler is meant for models
# distilled to a handful of steps, which emoji-sd was not: what is measured is how reuse gets on with its fresh noise.
SAMPLERS = {
    "DDIM": ("DDIMScheduler", {}, 20, (0.35, 0.2), True),
    "PLMS": ("PNDMScheduler", {"skip_prk_steps": True}, 50, (0.2,), True),
    "PLMS, too few steps": ("PNDMScheduler", {"skip_prk_steps": True}, 20, (0.35,), False),
    "DPM-Solver++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}, 20, (0.35, 0.2), True),
    "LCM": ("LCMScheduler", {}, 8, (0.5, 0.25), True),
}
SEARCH = {"prompts": 8, "images": 640}
N = 64  # held-out prompts


def sampler(name: str, n: int, search: dict) -> dict:
    """Measure one sampler."""
    kind, options, steps, budgets, searched = SAMPLERS[name]
    pipe, clip, captions = pl.load(MODEL), pb.load_clip(MODEL), pb.captions(MODEL)
    with quietly():
        pipe.scheduler = getattr(diffusers, kind).from_config(pipe.scheduler.config, **options)
    asked, seen, grid = spread(held_out(), n), spread(pruner_prompts(), search["prompts"]), grid_of(pipe, steps)

    def look(wanted=None, rival=None):
        with rival.applied(pipe) if rival else nullcontext():
            taken = rival.steps if rival else steps
            return judge(pipe, clip, asked, captions, wanted, steps=taken, guidance=GUIDANCE)

    plain, rows = look(), []
    for keep in budgets:
        rivals = {"fewer steps": fewer_steps(pipe, grid, keep), "uniform": uniform(grid, keep)}
        if searched:
            evaluator = Evaluator(pipe, seen, grid, guidance_scale=GUIDANCE)
            rivals["searched"] = local_search(grid, keep, evaluator, images=search["images"], seed=0)
        for label, rival in rivals.items():
            found, table = look(plain.pictures, rival), getattr(rival, "on", None)
            calls = rival.calls if table is None else int(grid.calls(table).sum())
            row = {"rival": label, "asked": keep, "keep_macs": rival.macs_ratio(), "steps": rival.steps, "calls": calls}
            row |= {**found.intervals(), "ssim_of_each": found.figures["ssim"].tolist()}
            rows.append({**row, "rows": [] if table is None else encode_table(table)})
    about = {"sampler": name, "scheduler": kind, "options": options, "steps": steps, "calls": grid.shape[0]}
    return {**about, "timesteps": list(grid.timesteps), "unpruned": plain.intervals(), "rows": rows}


def measure(work: Path, n: int = N, images: int = SEARCH["images"]) -> Record:
    """Measure all samplers, with n held-out prompts; each search may draw so many images."""
    search = {**SEARCH, "images": images}
    files = {name: work / f"{name.replace(', ', '-').replace(' ', '-')}-{n}.json" for name in SAMPLERS}
    found = [once(file, sampler, name, n, search) for name, file in files.items()]
    data = {"model": MODEL, "guidance": GUIDANCE, "n": n, "search": search, "samplers": found}
    return Record(data, seeds=[0], n=n)
