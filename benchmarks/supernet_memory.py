"""Memory and time of one training iteration of the pruner, with and without checkpointing, over numbers of steps.

Every figure comes from a process of its own: its peak less what was resident before the iteration.
"""

from __future__ import annotations

import time

import psutil
import torch

import pruning_lib as pl
from pruning_lib.steps.supernet import SuperNet, loss_and_gradient

from .common import GUIDANCE, MODEL, Record, in_own_process, peak_mib

STEPS, BATCH, REPEATS = (5, 10, 20, 50), 1, 3


def iteration(steps: int, checkpointing: bool, device: str) -> dict[str, float]:
    """Run one iteration and return what it took; call this in a fresh process."""
    pipe, place = pl.load(MODEL, device=device), torch.device(device)
    net = SuperNet(pipe, steps, guidance_scale=GUIDANCE, checkpointing=checkpointing)
    gates = torch.full(net.grid.shape, 0.9)
    wanted = net.reference(["lion"] * BATCH, range(BATCH))  # also loads what is loaded at first use
    if place.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() / 2**20
    else:
        before = psutil.Process().memory_info().rss / 2**20
    started = time.perf_counter()
    with net:
        loss_and_gradient(net, gates, ["lion"] * BATCH, range(BATCH), loss="latent", wanted=wanted)
    return {"seconds": time.perf_counter() - started, "memory_mib": peak_mib(place) - before}


def measure(repeats: int = REPEATS, device: str = "cpu") -> Record:
    """Measure every case in turn, several times."""
    rows = []
    for steps in STEPS:
        for checkpointing in (True, False):
            call = f"iteration({steps}, {checkpointing}, {device!r})"
            found = [in_own_process("supernet_memory", call) for _ in range(repeats)]
            memory = sorted(one["memory_mib"] for one in found)
            row = {"steps": steps, "checkpointing": checkpointing, "memory_mib": memory[len(memory) // 2]}
            rows.append({**row, "memory_mib_all": memory, "seconds": min(one["seconds"] for one in found)})
    return Record({"batch": BATCH, "guidance": GUIDANCE, "rows": rows}, seeds=[0], n=repeats, device=device)
