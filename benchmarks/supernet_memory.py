"""Memory and time of one training iteration of the pruner, with and without checkpointing, over numbers of steps.

    python benchmarks/supernet_memory.py

Every figure comes from a process of its own: the highest resident memory, less what was resident before the iteration;
on a GPU, PyTorch's own peak.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch
from pruner_training import GUIDANCE, MODEL, RESULTS

import pruning_lib as pl
from pruning_lib.records import check_writable
from pruning_lib.steps.supernet import SuperNet, loss_and_gradient

STEPS, BATCH, REPEATS = (5, 10, 20, 50), 1, 3


def once(steps: int, checkpointing: bool, device: str) -> dict[str, float]:
    """Run one iteration and return what it took; call this in a fresh process."""
    pipe = pl.load(MODEL, device=device)
    net = SuperNet(pipe, steps, guidance_scale=GUIDANCE, checkpointing=checkpointing)
    gates = torch.full(net.grid.shape, 0.9)
    wanted = net.reference(["lion"] * BATCH, range(BATCH))  # also loads what is loaded at first use
    cuda = device != "cpu"
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if cuda else _resident_kib() * 1024
    started = time.perf_counter()
    with net:
        loss_and_gradient(net, gates, ["lion"] * BATCH, range(BATCH), loss="latent", wanted=wanted)
    seconds = time.perf_counter() - started
    peak = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"memory_mib": (peak - before) / 2**20, "seconds": seconds}


def _resident_kib() -> int:
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def run(path: Path, device: str, repeats: int) -> None:
    """Measure every case in turn, several times, and write the record."""
    check_writable(path)
    rows = []
    for steps in STEPS:
        for checkpointing in (True, False):
            found = []
            for _ in range(repeats):
                command = [sys.executable, __file__, "--once", f"{steps},{int(checkpointing)}", "--device", device]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                found.append(json.loads(done.stdout.splitlines()[-1]))
            memory = sorted(one["memory_mib"] for one in found)
            rows.append(
                {
                    "steps": steps,
                    "checkpointing": checkpointing,
                    "memory_mib": memory[len(memory) // 2],
                    "memory_mib_all": memory,
                    "seconds": min(one["seconds"] for one in found),
                }
            )
            print(rows[-1], flush=True)
    data = {"batch": BATCH, "guidance": GUIDANCE, "rows": rows}
    print(pl.save_record(path, "supernet_memory", data, pl.passport(seeds=[0], n=repeats, device=device)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--once", help="measure one case here: steps,checkpointing")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=REPEATS, help="processes per case")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the record")
    arguments = parser.parse_args()
    if arguments.once:
        steps, checkpointing = map(int, arguments.once.split(","))
        print(json.dumps(once(steps, bool(checkpointing), arguments.device)))
    else:
        run(arguments.out / "supernet_memory.json", arguments.device, arguments.repeats)
