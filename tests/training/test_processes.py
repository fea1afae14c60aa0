"""Two processes on this machine take the steps that one takes with the double batch, and score what one scores."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from launching import launch
from shared_run import score, tune

from pruning_lib.processes import Processes, is_out_of_memory


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    launch(Path(__file__).with_name("shared_run.py"), folder)
    return folder


def test_two_processes_equal_one_with_the_double_batch(out, tmp_path):
    wanted, lines = tune(tmp_path, 4, 2, validate=lambda step: {"looked": float(step)})
    main, other = (torch.load(out / f"{rank}.pt", weights_only=True) for rank in range(2))  # stopped half way, went on
    for name, value in wanted.items():
        assert torch.allclose(value, main["weights"][name], atol=2e-5), name
        assert torch.equal(main["weights"][name], other["weights"][name]), name
    assert main["validated"] == [0, 1, 2] and other["validated"] == []
    assert main["lines"] == other["lines"] and len(main["lines"]) == len(lines)
    for a, b in zip(lines, main["lines"], strict=True):
        assert a["step"] == b["step"] and set(a) == set(b)
        assert all(a[name] == pytest.approx(b[name], rel=1e-3) for name in a if name.endswith("loss"))
    assert len((out / "run" / "log.jsonl").read_text().splitlines()) == len(lines), "only the main process writes"


def test_two_processes_score_what_one_scores_and_lose_nothing_without_memory(out):
    both = [json.loads((out / f"{rank}.json").read_text()) for rank in (0, 1)]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in each of the two: the last digits of sums depend on it
    alone = score()["values"]
    torch.set_num_threads(threads)
    half = (len(alone) + 1) // 2
    finished = half + 2
    assert [found["full"]["drawn"] for found in both] == [1 + half, 4], "each generated its share, no more"
    for found in both:
        assert "no room" in found["full"]["error"] and "Try batch=8" in found["full"]["error"]
        assert f"{finished} finished scores are kept" in found["full"]["error"]
        assert found["goes on"]["values"] == alone
    assert both[0]["full"]["files"] == finished, "the main process keeps those of the other, too"
    assert sum(found["goes on"]["drawn"] for found in both) == 2 + len(alone) - finished


def test_alone_nothing_is_shared_and_errors_of_memory_are_told_from_others():
    alone, x = Processes.of(), torch.ones(2)
    assert (alone.count, alone.rank, alone.is_main, alone.device) == (1, 0, True, None)
    assert alone.mean(x) is x and alone.any(True) and not alone.any(False) and alone.gather(7) == [7]
    said = "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"
    memory = [MemoryError(), torch.OutOfMemoryError(), RuntimeError(said), RuntimeError("MPS backend out of memory")]
    assert all(map(is_out_of_memory, memory))
    assert not any(map(is_out_of_memory, [RuntimeError("shapes differ"), ValueError("out of memory")]))
