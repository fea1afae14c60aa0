"""Record of chapter 9: what scoring costs, against the k + 1 generations that it cannot do without.

    python benchmarks/score_cost.py

Three ways to generate for the same operators take turns: one plain call of the pipeline for each, the floor;
`score_operators` without sharing; and `score_operators` as it is. Needs a quiet machine; five minutes on one core.
Writes the record score_cost.json.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from operator_scores import MODEL, SAMPLING, prompts

import pruning_lib as pl
from pruning_lib.latency import measure_latency, ratio
from pruning_lib.operators.find import DEFAULT_KINDS, find_operators
from pruning_lib.operators.first_call import FirstCall
from pruning_lib.operators.plan import plan_for
from pruning_lib.operators.remove import change_operators
from pruning_lib.operators.score import score_operators
from pruning_lib.records import check_writable
from pruning_lib.sampling import LatentSampler

RESULTS = Path(__file__).resolve().parents[1] / "pruning_book" / "records"
EVERY, NUM_LATENTS = 8, 8


def expected_saving(pipe, operators, asked: list[str]) -> float:
    """Return the share of all MACs that need not be done, because the first step is shared up to each operator."""
    costs, whole = pl.count_macs(pipe.unet).modules, pl.count_macs(pipe.unet).macs
    first = FirstCall()
    sampler = LatentSampler(pipe, asked[:2], num_latents=2, **SAMPLING)
    sampler.draw_part(0, first.recording(pipe.unet, operators.paths))
    spared = 0
    for path in operators.paths:
        shared = first.shared([path])
        outermost = [p for p in shared if not any(p.startswith(f"{other}.") for other in shared)]
        spared += sum(costs[p].macs for p in outermost if p in costs)
    return spared / ((len(operators) + 1) * SAMPLING["steps"] * whole)


def main(path: Path, rounds: int) -> None:
    """Time the three in turn and write."""
    check_writable(path)
    pipe, asked = pl.load(MODEL), prompts(NUM_LATENTS)
    pipe.set_progress_bar_config(disable=True)
    operators = find_operators(pipe.unet, DEFAULT_KINDS)[::EVERY]
    plans = [plan_for([op], operators) for op in operators.paths]

    def generate() -> None:
        noise = [torch.Generator().manual_seed(i) for i in range(NUM_LATENTS)]
        options = {"num_inference_steps": SAMPLING["steps"], "guidance_scale": SAMPLING["guidance_scale"]}
        pipe(asked, generator=noise, output_type="latent", **options)

    def plain() -> None:
        generate()
        for plan in plans:
            with change_operators(pipe.unet, plan):
                generate()

    def score(**options) -> None:
        with tempfile.TemporaryDirectory() as folder:
            score_operators(
                pipe,
                asked,
                operators=operators,
                num_latents=NUM_LATENTS,
                folder=folder,
                progress=False,
                **options,
                **SAMPLING,
            )

    calls = {"plain": plain, "score, nothing shared": lambda: score(share_mib=0), "score": score}
    times = measure_latency(calls, repeats=rounds, warmup=1, device="cpu")
    data = {
        "model": MODEL,
        "operators": len(operators),
        "num_latents": NUM_LATENTS,
        **SAMPLING,
        "seconds": {name: found.median_ms / 1000 for name, found in times.items()},
        "latency": {name: found.to_dict() for name, found in times.items()},
        "relative": {name: ratio(times[name], times["plain"]).to_dict() for name in calls if name != "plain"},
        "expected_saving": expected_saving(pipe, operators, asked),
        "rounds": rounds,
    }
    print(pl.save_record(path, "score_cost", data, pl.passport(seeds=[0], n=rounds)))
    print({name: round(found["value"], 3) for name, found in data["relative"].items()}, data["expected_saving"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS / "score_cost.json")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    main(arguments.out, arguments.rounds)
