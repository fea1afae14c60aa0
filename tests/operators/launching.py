"""Two processes on this machine that are told of each other as a launcher would tell them."""

from __future__ import annotations

import os
import runpy
import signal
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def launch(script: Path, *arguments: object, count: int = 2, timeout: int = 240) -> None:
    """Run a script in `count` processes that can find each other; the test fails if one of them does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = {"WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
    told |= {"OMP_NUM_THREADS": 1, "HF_HUB_OFFLINE": 1, "PYTHONPATH": os.pathsep.join([str(ROOT), *map(str, sys.path)])}
    environment = os.environ | {name: str(value) for name, value in told.items()}
    command = [sys.executable, __file__, str(timeout), str(script), *map(str, arguments)]
    done = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True)
    assert not done.returncode, done.stderr


if __name__ == "__main__":
    timeout, *sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0])  # what all of them import is imported once, then they part
    children = []
    for rank in range(int(os.environ["WORLD_SIZE"])):
        if not (child := os.fork()):
            signal.alarm(int(timeout))
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            runpy.run_path(sys.argv[0], run_name="__main__")
            sys.exit()
        children.append(child)
    sys.exit(any([os.waitpid(child, 0)[1] for child in children]))
