"""Scoring split over two real processes gives what one process gives, and an error in one reaches both."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_pipes import PROMPTS, pipe_of

from pruning_lib.operators.score import score_operators
from pruning_lib.processes import Share, is_out_of_memory

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> list[dict]:
    """What each of two processes got, started as a launcher would."""
    out = tmp_path_factory.mktemp("processes")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in (0, 1):
        more = {
            "WORLD_SIZE": 2,
            "RANK": rank,
            "LOCAL_RANK": rank,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "OMP_NUM_THREADS": 1,
            "HF_HUB_OFFLINE": 1,
            "PYTHONPATH": f"{HERE.parents[1]}:{HERE}:{os.environ.get('PYTHONPATH', '')}",
        }
        command = [sys.executable, str(HERE / "score_in_processes.py"), str(out)]
        environment = os.environ | {name: str(value) for name, value in more.items()}
        started.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    errors = [process.communicate(timeout=240)[1] for process in started]
    assert not any(process.returncode for process in started), errors
    return [json.loads((out / f"rank-{rank}.json").read_text()) for rank in (0, 1)]


@pytest.fixture(scope="module")
def alone():
    """What one process gets, with as many threads as each of the two: the last digits of sums depend on it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        options = {"kinds": ["resnet"], "num_latents": 2, "steps": 2, "guidance_scale": 2.0, "progress": False}
        return score_operators(pipe_of("text"), PROMPTS["text"], **options)
    finally:
        torch.set_num_threads(before)


def test_two_processes_get_what_one_gets(both, alone) -> None:
    first, second = (found["whole"] for found in both)
    assert first["values"] == second["values"] == alone.values()
    assert first["mse"] == alone.values("mse")
    k = len(alone)
    assert [first["drawn"], second["drawn"]] == [1 + (k + 1) // 2, 1 + k // 2], "each generated its share, no more"


def test_no_memory_in_one_process_is_told_by_both_and_nothing_is_lost(both, alone) -> None:
    first, second = (found["full"] for found in both)
    finished = (len(alone) + 1) // 2 + 2
    for found in (first, second):
        assert "no room" in found["error"] and "Try batch=8" in found["error"]
        assert f"{finished} finished scores are kept" in found["error"]
    assert first["files"] == finished, "the main process keeps those of the other, too"
    first, second = (found["goes on"] for found in both)
    assert first["values"] == second["values"] == alone.values()
    assert first["drawn"] + second["drawn"] == 2 + len(alone) - finished


def test_shares_are_dealt_out_and_complete() -> None:
    items = list(range(11))
    for count in (1, 2, 3, 12):
        dealt = [Share(rank, count).of(items) for rank in range(count)]
        assert sorted(sum(dealt, [])) == items
        assert max(map(len, dealt)) - min(map(len, dealt)) <= 1
    assert Share.here() == Share(0, 1) and Share().union({1: 2}) == {1: 2}


def test_errors_of_memory_are_told_from_others() -> None:
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"))
    assert is_out_of_memory(RuntimeError("MPS backend out of memory"))
    assert not is_out_of_memory(RuntimeError("shapes differ")) and not is_out_of_memory(ValueError("out of memory"))
