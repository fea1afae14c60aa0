"""Record of chapter 15: uniform reuse and a searched schedule on four samplers, at equal MACs.

    python -m benchmarks samplers

emoji-sd draws held-out prompts with PNDM (its PLMS form, as Stable Diffusion 1.x ships it), DDIM, DPM-Solver++ and the
sampler of latent consistency models. Beside the unpruned pictures of the same sampler stand, at equal MACs: fewer steps
of that sampler, uniform reuse of whole calls, and the schedule that local search found on the prompts for searching.

PLMS extrapolates from earlier outputs. Of a model that predicts velocities, as emoji-sd does, diffusers extrapolates
the velocities themselves, and that needs more steps than the other samplers take: fifty here, and once twenty, where it
fails.

The consistency sampler is a case of its own. It is meant for models that were distilled so that a handful of steps is
enough; emoji-sd was not, so what is measured is how reuse gets on with its fresh noise in every step, not its pictures.

Fifteen minutes on one CPU core. Every sampler is kept beside the record until all are done, so that an interrupted run
goes on.
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
from pruning_lib.steps.schedule import grid_of
from pruning_lib.steps.search import local_search

from .common import Record, judge, once, spread
from .pruner_training import GUIDANCE, pruner_prompts

# name -> (class, options, steps, shares of MACs kept, whether a search is made)
SAMPLERS = {
    "DDIM": ("DDIMScheduler", {}, 20, (0.35, 0.2), True),
    "PLMS": ("PNDMScheduler", {"skip_prk_steps": True}, 50, (0.2,), True),
    "PLMS, too few steps": ("PNDMScheduler", {"skip_prk_steps": True}, 20, (0.35,), False),
    "DPM-Solver++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}, 20, (0.35, 0.2), True),
    "LCM": ("LCMScheduler", {}, 8, (0.5, 0.25), True),
}
SEARCH = {"prompts": 8, "images": 640}
N = 64  # held-out prompts


def draw(pipe, clip, held_out: list[str], captions: list[str], wanted, rival, steps: int):
    """Judge the pictures of a rival, or of the unpruned pipeline."""
    with rival.applied(pipe) if rival else nullcontext():
        return judge(pipe, clip, held_out, captions, wanted, steps=steps, guidance=GUIDANCE)


def sampler(name: str, n: int, search: dict) -> dict:
    """Measure one sampler."""
    kind, options, steps, budgets, searched = SAMPLERS[name]
    pipe, clip, captions = pl.load("emoji-sd"), pb.load_clip("emoji-sd"), pb.captions("emoji-sd")
    with quietly():
        pipe.scheduler = getattr(diffusers, kind).from_config(pipe.scheduler.config, **options)
    own = pruner_prompts()
    rest = [caption for caption in captions if caption not in own]
    held_out = [rest[i] for i in spread(n, len(rest))]
    trained = [own[i] for i in spread(search["prompts"], len(own))]
    grid = grid_of(pipe, steps)
    asked = (pipe, clip, held_out, captions)
    plain = draw(*asked, None, None, steps)
    rows = []
    for keep in budgets:
        rivals = {"fewer steps": fewer_steps(pipe, grid, keep), "uniform": uniform(grid, keep)}
        if searched:
            evaluator = Evaluator(pipe, trained, grid, guidance_scale=GUIDANCE)
            rivals["searched"] = local_search(grid, keep, evaluator, images=search["images"], seed=0)
        for label, rival in rivals.items():
            found = draw(*asked, plain.pictures, rival, rival.steps)
            table = getattr(rival, "on", None)
            rows.append(
                {
                    "rival": label,
                    "asked": keep,
                    "keep_macs": rival.macs_ratio(),
                    "steps": rival.steps,
                    "calls": int(grid.calls(table).sum()) if table is not None else rival.calls,
                    **found.intervals(),
                    "ssim_of_each": found.figures["ssim"].tolist(),
                    "rows": [] if table is None else ["".join("01"[on] for on in row) for row in table.tolist()],
                }
            )
            print(f"{name}, keep {keep}, {label}: SSIM {found.means()['ssim']:.3f}", flush=True)
    return {
        "sampler": name,
        "scheduler": kind,
        "options": options,
        "steps": steps,
        "calls": grid.shape[0],
        "timesteps": list(grid.timesteps),
        "unpruned": plain.intervals(),
        "rows": rows,
    }


def measure(work: Path, n: int = N, images: int = SEARCH["images"]) -> Record:
    """Measure all samplers, with n held-out prompts; each search may draw so many images."""
    search = {**SEARCH, "images": images}
    found = [
        once(work / f"{name.replace(', ', '-').replace(' ', '-')}-{n}.json", lambda s=name: sampler(s, n, search))
        for name in SAMPLERS
    ]
    data = {"model": "emoji-sd", "guidance": GUIDANCE, "n": n, "search": search, "samplers": found}
    return Record(data, seeds=[0], n=n)
