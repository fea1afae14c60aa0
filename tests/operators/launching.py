"""Two processes on this machine, started as a launcher would start them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def launch(script: Path, *arguments: object, count: int = 2, timeout: float = 240) -> None:
    """Run a script in `count` processes that can find each other; the test fails if one of them does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(script), *map(str, arguments)]
    started = []
    for rank in range(count):
        more = {"WORLD_SIZE": count, "RANK": rank, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        more |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": 1, "HF_HUB_OFFLINE": 1}
        more["PYTHONPATH"] = os.pathsep.join([str(ROOT), *map(str, sys.path)])
        environment = os.environ | {name: str(value) for name, value in more.items()}
        started.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    errors = [process.communicate(timeout=timeout)[1] for process in started]
    assert not any(process.returncode for process in started), errors
