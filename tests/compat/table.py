"""One table of what holds for all tiny pipelines, kept as the record that the book's page on pipelines shows.

    python tests/compat/table.py [--record] [NAME ...]

The exit status is 1 where something is wrong.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
import warnings
from collections.abc import Callable

import torch
from options import OFF_BESIDE, WAYS, check_ways
from sweep import check_operators, check_steps, check_training
from tiny_pipelines import RECIPES

from pruning_lib.denoisers import denoiser_of
from pruning_lib.records import passport, results_folder, save_record

COSTS = ("MACs", "share")
# The ways, in words.
TOLD = {
    "batch": "two prompts at once",
    "other_guidance": "guidance on where it is off, off where it is on",
    "two_each": "two pictures for each prompt",
    "lora": "LoRA",
    "vae_slicing": "a sliced autoencoder",
    "fused_qkv": "fused projections of attention",
    "freeu": "FreeU",
    "forward_chunking": "feed-forwards in chunks",
    "callback": "a callback that changes the latents",
}


def summary(found: dict[str, str]) -> str:
    """Return what several checks said as one: what is wrong, else what is refused, else yes."""
    for word in ("wrong", "refused"):
        if some := {said.partition(": ")[2] or name for name, said in found.items() if said.startswith(word)}:
            return f"{word}: {'; '.join(sorted(some))}"
    return "yes"


def row(name: str) -> dict[str, object]:
    """Return all that is tried with one tiny pipeline."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    started, case = time.perf_counter(), RECIPES[name]()
    parts = {"pipeline": case.pipe, "denoiser": denoiser_of(case.pipe)[1]}
    scheduler = type(case.pipe.scheduler).__name__
    if scheduler.lower().startswith(name.partition("_")[2] or "none"):  # a recipe that differs by it alone
        words = f"{name.partition('_')[0]}, {scheduler.removesuffix('Scheduler')}"
    else:
        words = name.replace("_", " ")
    told = {"name": words, **{what: type(part).__name__ for what, part in parts.items()}}
    steps = {
        f"{grain}, {check}": said
        for grain in ("blocks", "layers")
        for check, said in guarded(check_steps, name, grain).items()
    }
    costs = {check: said for check, said in steps.items() if check.endswith(COSTS)}
    drawn = {check: said for check, said in steps.items() if check not in costs}
    refused = {check: said for check, said in drawn.items() if said.startswith("refused")}
    operators = guarded(check_operators, name)
    saved = {check: operators.pop(check) for check in ("saved",) if check in operators}
    absent = {"found": operators.get("found", "")} if operators.get("found", "").startswith("refused") else {}
    found = {
        "schedule": drawn,
        "MACs": refused or costs,
        "training": refused or guarded(check_training, name),
        "operators": operators,
        "saved": saved or absent,
    }
    found = {column: summary(checks) for column, checks in found.items()}
    off = OFF_BESIDE.get(name, ())
    ways = {} if refused else {way: check_ways(RECIPES[name], [way], "blocks", off) for way in WAYS}
    return {**told, "found": found, "ways": ways, "seconds": round(time.perf_counter() - started, 1)}


def guarded(check: Callable[..., dict[str, str]], name: str, *more: str) -> dict[str, str]:
    """Run a check on a pipeline of its own; what it does not catch is wrong."""
    try:
        return check(RECIPES[name](), *more)
    except Exception as error:
        return {check.__name__: f"wrong: {type(error).__name__}: {str(error)[:200]}"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which pipelines; all {len(RECIPES)} by default")
    parser.add_argument("--record", action="store_true", help="write the record that the book shows")
    given = parser.parse_args()
    started, rows, faults = time.perf_counter(), {}, 0
    names = given.names or list(RECIPES)
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        for done, (name, found) in enumerate(pool.imap_unordered(_named, names), 1):
            rows[name] = found
            ways = [f"{way}: {said}" for way, said in found["ways"].items() if said.startswith(("wrong", "refused"))]
            said = [f"{column}: {said}" for column, said in found["found"].items() if said != "yes"]
            faults += sum(text.startswith("wrong") for text in (*found["ways"].values(), *found["found"].values()))
            head = f"[{done}/{len(names)}] {name}, {found['seconds']} s"
            print(head, *(said or ["yes"]), *ways, sep="\n    ", flush=True)
    print(f"{faults} wrong, in {(time.perf_counter() - started) / 60:.1f} minutes")
    if given.record:
        ordered = [{k: v for k, v in rows[name].items() if k != "seconds"} for name in RECIPES if name in rows]
        data = {"rows": ordered, "ways": {way: TOLD.get(way, way.replace("_", " ")) for way in WAYS}}
        path = results_folder() / "support_matrix.json"
        save_record(path, "support_matrix", data, passport(seeds=[0, 1], n=len(rows), device="cpu"))
        print(f"written: {path}")
    return int(faults > 0)


def _named(name: str) -> tuple[str, dict]:
    return name, row(name)


if __name__ == "__main__":
    sys.exit(main())
