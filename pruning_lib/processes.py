"""Training in several processes at once: each works on its own share of a batch, all take the same step.

Under `accelerate launch` the processes are found by themselves; elsewhere this process is alone and nothing here costs
anything.  Gradients are averaged one tensor after the other, after the backward pass, so a model needs no wrapper:
hooks, gradient checkpointing and layers that a batch does not use keep working.

One run on several processes or machines: each takes its share of the work, and all get the whole.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["Processes", "Share", "is_out_of_memory"]


@dataclass(frozen=True)
class Processes:
    """The processes of a run, as one of them sees them.

    Attributes:
        accelerator: of `accelerate`; None for a process that is alone.
    """

    accelerator: Accelerator | None = None

    @classmethod
    def of(cls, accelerator: Accelerator | None = None) -> Processes:
        """Return the processes of `accelerator`, or those that `accelerate launch` or `torchrun` started.

        Raises:
            TypeError: something else than an `Accelerator`.
        """
        if accelerator is None and int(os.environ.get("WORLD_SIZE", 1)) > 1:
            from accelerate import Accelerator

            accelerator = Accelerator()
        needed = ("num_processes", "process_index", "is_main_process", "reduce", "device")
        if accelerator is not None and not all(hasattr(accelerator, name) for name in needed):
            raise TypeError(
                f"accelerator is a {type(accelerator).__name__}; expected an accelerate.Accelerator, or None."
            )
        return cls(accelerator)

    @property
    def count(self) -> int:
        """Number of processes, >= 1."""
        return self.accelerator.num_processes if self.accelerator else 1

    @property
    def rank(self) -> int:
        """Number of this process, from 0."""
        return self.accelerator.process_index if self.accelerator else 0

    @property
    def device(self) -> torch.device | None:
        """Where this process computes; None for a process that is alone, which stays where its model is."""
        if self.accelerator is None:
            return None
        device = self.accelerator.device
        return torch.device("cpu") if device.type == "cpu" else device  # "cpu:0" is no place to load a file to

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and shows progress; true for exactly one."""
        return self.accelerator.is_main_process if self.accelerator else True

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean of a tensor over all processes; each has to call this."""
        return value if self.count == 1 else self.accelerator.reduce(value.detach(), "mean")

    def mean_figures(self, figures: dict[str, float]) -> dict[str, float]:
        """Return the mean of each figure over all processes; each has to call this, with the same names."""
        if self.count == 1:
            return figures
        device = self.accelerator.device
        values = torch.tensor(list(figures.values()), dtype=torch.float32, device=device)
        return dict(zip(figures, self.mean(values).tolist(), strict=True))

    def any(self, flag: bool) -> bool:
        """Return whether `flag` is true in any process; each has to call this."""
        if self.count == 1:
            return bool(flag)
        found = torch.tensor(float(bool(flag)), device=self.accelerator.device)
        return self.accelerator.reduce(found, "sum").item() > 0

    def from_main(self, value: Any) -> Any:
        """Return what the main process passed; each has to call this.  The value has to be picklable."""
        if self.count == 1:
            return value
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value])[0]

    def share_weights(self, model: nn.Module) -> None:
        """Give the parameters and buffers of the main process to all; each has to call this."""
        if self.count == 1:
            return
        from accelerate.utils import broadcast

        with torch.no_grad():
            for tensor in (*model.parameters(), *model.buffers()):
                tensor.copy_(broadcast(tensor.detach().clone(), from_process=0))

    def average_gradients(self, model: nn.Module) -> None:
        """Replace the gradients of `model` by their mean over all processes; each has to call this."""
        if self.count == 1:
            return
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad = self.accelerator.reduce(parameter.grad, "mean")

    def check_same(self, value: float, what: str) -> None:
        """Check that every process has the same number; each has to call this.

        Raises:
            ValueError: they differ; in every process, so that none waits for another.
        """
        main = self.from_main(value)
        if self.any(main != value):
            raise ValueError(
                f"The processes differ in {what}: {value} in number {self.rank}, {main} in the main one. "
                "Give them the same folder, one that all of them can read."
            )


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
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (isinstance(error, RuntimeError) and told)
