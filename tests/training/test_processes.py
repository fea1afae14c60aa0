"""Two processes on this machine take the steps that one takes with the double batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from launching import launch
from shared_run import run

from pruning_lib.processes import Processes


def test_two_processes_equal_one_with_the_double_batch(tmp_path):
    seen = []
    wanted, lines = run(tmp_path / "one", 4, 4, validate=lambda step: seen.append(step) or {"looked": float(step)})
    (tmp_path / "two").mkdir()
    launch(Path(__file__).with_name("shared_run.py"), tmp_path / "two", 2, 4)  # they stop half way and go on
    main, other = (torch.load(tmp_path / "two" / f"{rank}.pt", weights_only=True) for rank in range(2))
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
    assert alone.mean(x) is x and alone.any(True) and not alone.any(False)
    assert alone.from_main(7) == 7 and alone.gather(7) == [7]
    alone.check_same(1, "x")
