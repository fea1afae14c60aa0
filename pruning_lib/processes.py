"""Several processes at one run: each takes its share of the work, and all get the whole.

Under `accelerate launch` or `torchrun` they are found by themselves; elsewhere this process is alone, at no cost.
Gradients are averaged tensor by tensor after the backward pass, so a model needs no wrapper.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, gather_object, reduce
from torch import Tensor, nn

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """The processes of a run, as one of them sees them; what they do together, each of them has to call.

    Attributes:
        count: of all processes, >= 1.
        rank: number of this one, from 0.
        device: where this one computes; None for a process that is alone, which stays where its model is.
    """

    count: int = 1
    rank: int = 0
    device: torch.device | None = None

    @classmethod
    def of(cls, accelerator: Accelerator | None = None, *, device: torch.device | str | None = None) -> Processes:
        """Return the processes of an `accelerate.Accelerator`, or those that a launcher started.

        `device` is that on which this process computes, where it is settled: it decides how they talk with each other.
        """
        started = int(os.environ.get("WORLD_SIZE", 1))
        if accelerator is None:
            if started <= 1:
                return cls()
            accelerator = Accelerator(cpu=device is not None and torch.device(device).type == "cpu")
            if accelerator.num_processes != started:
                raise RuntimeError(
                    f"{started} processes were started, but accelerate sees {accelerator.num_processes}. Make no other "
                    "accelerate state before, or set ACCELERATE_USE_CPU=true where there is no accelerator."
                )
        elif not isinstance(accelerator, Accelerator):
            raise TypeError(
                f"accelerator is a {type(accelerator).__name__}; expected an accelerate.Accelerator, or None."
            )
        place = accelerator.device
        place = torch.device("cpu") if place.type == "cpu" else place  # "cpu:0" is no place to load a file to
        return cls(accelerator.num_processes, accelerator.process_index, place)

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and shows progress; true for exactly one."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """Return what each process passed, in the order of their numbers; it has to be picklable."""
        return [value] if self.count == 1 else gather_object([value])

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean of a tensor over all processes."""
        return value if self.count == 1 else reduce(value.detach(), "mean")

    def mean_figures(self, figures: dict[str, float]) -> dict[str, float]:
        """Return the mean of each figure over all processes; all have the same names."""
        if self.count == 1:
            return figures
        values = torch.tensor(list(figures.values()), dtype=torch.float32, device=self.device)
        return dict(zip(figures, self.mean(values).tolist(), strict=True))

    def any(self, flag: bool) -> bool:
        """Return whether `flag` is true in any process."""
        return self.mean(torch.tensor(float(bool(flag)), device=self.device)).item() > 0

    @torch.no_grad()
    def share_weights(self, model: nn.Module) -> None:
        """Give the parameters and buffers of the main process to all."""
        for tensor in (*model.parameters(), *model.buffers()) if self.count > 1 else ():
            tensor.copy_(broadcast(tensor.detach().clone(), from_process=0))

    def average_gradients(self, model: nn.Module) -> None:
        """Replace the gradients of `model` by their mean over all processes."""
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad = self.mean(parameter.grad)

    def check_same(self, value: float, what: str) -> None:
        """Raise ValueError unless every process has the same number; in all of them, so that none waits."""
        values = self.gather(value)
        if len(set(values)) > 1:
            raise ValueError(
                f"The processes differ in {what}: {value} in number {self.rank}, {values[0]} in the main one. "
                "Give them the same folder, one that all of them can read."
            )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device or the machine has no memory left."""
    signs = ("out of memory", "not enough memory", "can't allocate memory")  # the CPU has no kind of its own
    said = isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in signs)
    return said or isinstance(error, (MemoryError, torch.OutOfMemoryError))
