"""Scoring split over two real processes gives what one process gives, and an error in one reaches both."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from launching import launch
from score_in_processes import score

from pruning_lib.processes import is_out_of_memory


def test_two_processes_get_what_one_gets_and_lose_nothing_without_memory(tmp_path) -> None:
    launch(Path(__file__).with_name("score_in_processes.py"), tmp_path)
    both = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in (0, 1)]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in each of the two: the last digits of sums depend on it
    alone = score()
    torch.set_num_threads(threads)
    k = len(alone["values"])

    first, second = (found["whole"] for found in both)
    assert first["values"] == second["values"] == alone["values"]
    assert first["mse"] == alone["mse"]
    assert [first["drawn"], second["drawn"]] == [1 + (k + 1) // 2, 1 + k // 2], "each generated its share, no more"

    first, second = (found["full"] for found in both)
    finished = (k + 1) // 2 + 2
    for found in (first, second):
        assert "no room" in found["error"] and "Try batch=8" in found["error"]
        assert f"{finished} finished scores are kept" in found["error"]
    assert first["files"] == finished, "the main process keeps those of the other, too"

    first, second = (found["goes on"] for found in both)
    assert first["values"] == second["values"] == alone["values"]
    assert first["drawn"] + second["drawn"] == 2 + k - finished


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError(), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("MPS backend out of memory"), True),
        (RuntimeError("shapes differ"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_errors_of_memory_are_told_from_others(error, told) -> None:
    assert is_out_of_memory(error) == told
