"""One run on several processes or machines: each takes its share of the work, and all get the whole."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

__all__ = ["Share", "is_out_of_memory"]

T = TypeVar("T")


@dataclass(frozen=True)
class Share:
    """The part of a run that falls to this process.

    Attributes:
        rank: number of this process, from 0.
        count: of all processes.
    """

    rank: int = 0
    count: int = 1

    @classmethod
    def here(cls, device: torch.device | str = "cpu") -> Share:
        """Return the share of this process among those that `accelerate launch` or `torchrun` started.

        Args:
            device: on which this process computes; it decides how processes talk with each other.

        Raises:
            RuntimeError: several processes were started, but cannot find each other.
        """
        started = int(os.environ.get("WORLD_SIZE", 1))
        if started <= 1:
            return cls()
        from accelerate import PartialState

        state = PartialState(cpu=torch.device(device).type == "cpu")
        if state.num_processes != started:
            raise RuntimeError(
                f"{started} processes were started, but accelerate sees {state.num_processes}. Make no other "
                "accelerate state before, or set ACCELERATE_USE_CPU=true where there is no accelerator."
            )
        return cls(state.process_index, state.num_processes)

    @property
    def is_main(self) -> bool:
        """Whether this process shows progress."""
        return self.rank == 0

    def of(self, items: Sequence[T]) -> list[T]:
        """Return every `count`-th item: later operators share more of the first step, so neighbours are dealt out."""
        return list(items[self.rank :: self.count])

    def gather(self, value: T) -> list[T]:
        """Return what each process passed, in the order of their numbers; each has to call this."""
        if self.count == 1:
            return [value]
        from accelerate.utils import gather_object

        return gather_object([value])

    def union(self, found: dict) -> dict:
        """Return the entries of all processes; where several have one, that of the lowest number."""
        return {key: value for other in reversed(self.gather(found)) for key, value in other.items()}


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device or the machine has no memory left."""
    words = str(error).lower()
    told = "out of memory" in words or "not enough memory" in words or "can't allocate memory" in words
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and told
    )
