"""Two processes on this machine take the steps that one takes with the double batch."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from shared_run import run

from pruning_lib.processes import Processes

HERE = Path(__file__).parent


def launch(folder: Path, batch: int, steps: int, count: int = 2) -> list[dict]:
    """Run shared_run.py in `count` processes, as a launcher would, and return what each has saved."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(count):
        more = {
            "WORLD_SIZE": count,
            "RANK": rank,
            "LOCAL_RANK": rank,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "ACCELERATE_USE_CPU": "true",
            "OMP_NUM_THREADS": 1,
            "HF_HUB_OFFLINE": 1,
            "PYTHONPATH": f"{HERE.parents[1]}:{HERE}:{os.environ.get('PYTHONPATH', '')}",
        }
        command = [sys.executable, str(HERE / "shared_run.py"), str(folder), str(batch), str(steps)]
        environment = os.environ | {name: str(value) for name, value in more.items()}
        started.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    errors = [process.communicate(timeout=120)[1] for process in started]
    assert not any(process.returncode for process in started), errors
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(count)]


def test_two_processes_equal_one_with_the_double_batch(tmp_path):
    seen = []
    wanted, lines = run(tmp_path / "one", 4, 4, validate=lambda step: seen.append(step) or {"looked": float(step)})
    (tmp_path / "two").mkdir()
    main, other = launch(tmp_path / "two", 2, 4)  # they stop half way and go on
    for name, value in wanted.items():
        assert torch.allclose(value, main["weights"][name], atol=2e-5), name
        assert torch.equal(main["weights"][name], other["weights"][name]), name
    assert seen == main["validated"] == [0, 2, 4] and other["validated"] == []
    assert main["lines"] == other["lines"] and len(main["lines"]) == len(lines)
    for a, b in zip(lines, main["lines"], strict=True):
        assert a["step"] == b["step"] and set(a) == set(b)
        names = [name for name in a if name.endswith("loss")]
        assert all(a[name] == pytest.approx(b[name], rel=1e-3) for name in names)
    log = (tmp_path / "two" / "run" / "log.jsonl").read_text().splitlines()
    assert len(log) == len(lines), "only the main process writes"


def test_alone_nothing_is_shared():
    alone = Processes.of()
    assert (alone.count, alone.rank, alone.is_main, alone.device) == (1, 0, True, None)
    x = torch.ones(2)
    assert alone.mean(x) is x and alone.any(True) and not alone.any(False) and alone.from_main(7) == 7
    alone.check_same(1, "x")
