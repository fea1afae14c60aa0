"""Train pruners for emoji-sd in full, as published and by our recipe, and record how it went.

    python benchmarks/pruner_training.py --stage train [--run best-20]
    python benchmarks/pruner_training.py --stage record

Training is resumable: the same command goes on. The trained scores lie beside the record, one file per run.
"""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from pathlib import Path

import torch
from judged import once

import pruning_book as pb
import pruning_lib as pl
from pruning_lib.interval import bootstrap_interval
from pruning_lib.quality import ssim
from pruning_lib.records import check_writable
from pruning_lib.steps.budget import evenly
from pruning_lib.steps.schedule import decode_table, grid_of
from pruning_lib.steps.supernet import SuperNet
from pruning_lib.steps.training import TrainedPruner
from zoo.assemble import contact_sheet

RESULTS = Path(__file__).resolve().parents[1] / "pruning_book" / "records"
MODEL, GUIDANCE = "emoji-sd", 3.0
# The denoiser costs the same in every run, so iterations are what a run may spend; the paper's has 500.
RUNS = {
    "best-20": {"steps": 20, "recipe": "best", "iterations": 40},
    "best-50": {"steps": 50, "recipe": "best", "iterations": 20},
    "published-20": {"steps": 20, "recipe": "published", "iterations": 60, "on_collapse": "go on"},
    "published-50": {"steps": 50, "recipe": "published", "iterations": 14, "on_collapse": "go on"},
}
BUDGETS = (0.5, 0.35, 0.25, 0.2, 0.15)
JUDGED, SHOWN = {10: 24, 20: 24, 50: 12}, 6  # held-out prompts for a figure, by steps, and how many are shown
STRIP, STRIP_STEPS = 6, 20  # moments at which pictures are drawn, of the runs with so many steps


def pruner_prompts() -> list[str]:
    """Return the captions that pruners are trained on: every fourth one, from the first."""
    return pb.captions(MODEL)[::4]


def held_out(count: int) -> list[str]:
    """Return captions that no pruner was trained on, spread over all."""
    others = [text for i, text in enumerate(pb.captions(MODEL)) if i % 4]
    return [others[i * len(others) // count] for i in range(count)]


def train(only: str, work: Path) -> None:
    """Do the runs that are missing."""
    pipe = pl.load(MODEL)
    for name, what in RUNS.items():
        target = work / f"pruner_scores_{name}.safetensors"
        if only not in ("", name) or target.is_file():
            continue
        found = pl.train_pruner(
            pipe, pruner_prompts(), guidance_scale=GUIDANCE, folder=work / name, callback=_tell, **what
        )
        found.save(target)


def _tell(look) -> None:
    figures = {key: value for key, value in look.figures.items() if key != "rows"}
    print(figures, flush=True)


class Judge:
    """Draws held-out prompts with a schedule and compares with the unpruned pictures."""

    def __init__(self, pipe, steps: int):
        self.net = SuperNet(pipe, grid_of(pipe, steps), guidance_scale=GUIDANCE)
        self.prompts = held_out(JUDGED[steps])
        self.latents, self.wanted = self.draw()

    @torch.no_grad()
    def draw(self, schedule=None, count: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return latents and pictures of the first `count` prompts; prompt i starts from noise of seed i."""
        prompts = self.prompts[:count]
        with schedule.applied(self.net.pipe) if schedule else nullcontext():
            latents = self.net.unroll.latents(prompts, range(len(prompts)))
        return latents, self.net.pictures(latents)

    def __call__(self, schedule) -> dict:
        """Return figures with intervals."""
        latents, pictures = self.draw(schedule)
        error = (latents - self.latents).square().flatten(1).mean(1)
        return {
            "macs_ratio": schedule.macs_ratio(),
            "ssim": bootstrap_interval(ssim(pictures, self.wanted)).to_dict(),
            "latent_mse": bootstrap_interval(error).to_dict(),
        }


def _tiles(pictures: torch.Tensor) -> torch.Tensor:
    return (pictures[:SHOWN] * 255).round().to(torch.uint8)


def record(path: Path, work: Path) -> None:
    """Write what the runs that are done have given, and draw with their schedules."""
    check_writable(path)
    pipe, data = (pl.load(MODEL), {"guidance": GUIDANCE, "prompts": len(pruner_prompts()), "runs": {}, "evenly": {}})
    data |= {"judged": JUDGED, "budgets": BUDGETS, "shown": held_out(JUDGED[20])[:SHOWN]}
    sheet, judges = [], {}
    for name, what in RUNS.items():
        file = work / f"pruner_scores_{name}.safetensors"
        if not file.is_file():
            continue
        trained, steps = TrainedPruner.load(file), what["steps"]
        grid = trained.grid
        if steps not in judges:
            judges[steps] = Judge(pipe, steps)
        judge, moments = judges[steps], []
        even = {b: grid.schedule(evenly(grid, b), method="uniform") for b in BUDGETS}
        data["evenly"][str(steps)] = [_judged(work, f"evenly-{steps}-{b}", judge, s) for b, s in even.items()]
        if steps == STRIP_STEPS:
            if not sheet:
                sheet.append(_tiles(judge.wanted))
            last = len(trained.history) - 1
            for at in sorted({round(i * last / (STRIP - 1)) for i in range(STRIP)}):
                on = decode_table(trained.history[at]["rows"])
                moments.append({"step": at + 1, "row": len(sheet), "macs_ratio": grid.macs_ratio(on)})
                sheet.append(_tiles(judge.draw(grid.schedule(on, method="gates"), SHOWN)[1]))
        by_budget = [_judged(work, f"{name}-{b}", judge, trained.schedule(b)) for b in BUDGETS]
        data["runs"][name] = {
            **what,
            "settings": trained.settings,
            "history": trained.history,
            "moments": moments,
            "by_budget": by_budget,
        }
        print(name, [round(row["ssim"]["value"], 4) for row in by_budget], flush=True)
        if path.parent != work:
            trained.save(path.parent / file.name)
    contact_sheet(torch.cat(sheet), columns=SHOWN).save(path.with_suffix(".webp"), quality=85, method=6)
    stamp = pl.passport(seeds=[0, 1000], n=min(JUDGED.values()), device="cpu")
    print(pl.save_record(path, "pruner_training", {**data, "sheet": path.with_suffix(".webp").name}, stamp))


def _judged(work: Path, key: str, judge: Judge, schedule) -> dict:
    return once(work / f"judged-{key}.json", lambda: judge(schedule))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stage", choices=("train", "record"), required=True)
    parser.add_argument("--run", default="", choices=("", *RUNS), help="only this one (default: all)")
    parser.add_argument("--work", type=Path, default=Path("_build/pruner-training"), help="folder of single runs")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the record")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    if arguments.stage == "train":
        train(arguments.run, arguments.work)
    else:
        record(arguments.out / "pruner_training.json", arguments.work)
