"""Tests of a GPU: they run on CUDA where there is one, and on the CPU at the same shapes everywhere else."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

import pruning_lib as pl
from pruning_lib.steps.schedule import grid_of

# cuBLAS repeats its sums in the same order only with this; it reads it once, when it is first used.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The GPU, or the CPU where there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="session")
def half(device: torch.device) -> torch.dtype:
    """Half precision as it is used there: a CPU computes float16 too, but ten times as slowly as bfloat16."""
    return torch.float16 if device.type == "cuda" else torch.bfloat16


@pytest.fixture(scope="session")
def shared(device: torch.device) -> Callable:
    """Return emoji-sd in a type of weights, loaded once: a test leaves it as it was, or loads its own."""
    load = functools.cache(lambda dtype: pl.load("emoji-sd", device=device, dtype=dtype))
    return lambda dtype=torch.float32: load(dtype)


@pytest.fixture(scope="session")
def grid_for(shared: Callable) -> Callable:
    """Return emoji-sd's grid of so many steps, laid out once: tracing takes a second."""
    return functools.cache(lambda steps: grid_of(shared(), steps))


@pytest.fixture(autouse=True)
def same_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a seed mean the same noise at every precision: PyTorch 2.11 draws others in float16 than in float32."""
    draw = torch.randn

    def drawn(*shape, dtype: torch.dtype | None = None, **how) -> torch.Tensor:
        found = draw(*shape, dtype=torch.float32, **how)
        return found.to(dtype or torch.get_default_dtype())

    monkeypatch.setattr(torch, "randn", drawn)


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let backward passes repeat bit for bit: CUDA's fastest ones add up in any order."""
    before = (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled())
    torch.use_deterministic_algorithms(True, warn_only=True)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    with sdpa_kernel(SDPBackend.MATH):
        yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])
