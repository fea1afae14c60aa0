"""What the tests of this folder share: drawing, comparing and counting."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

STEPS = 5
PROMPTS = ["lion", "pizza", "red heart"]


def draw(pipe, batch: int = 1, *, steps: int = STEPS, output_type: str = "latent") -> Tensor:
    """Draw latents, or pictures in [0, 1] with output_type="pt", always from the same noise."""
    noise = [torch.Generator().manual_seed(i) for i in range(batch)]  # on the CPU: the same numbers on any device
    how = {"num_inference_steps": steps, "guidance_scale": 3.0, "output_type": output_type}
    return pipe(PROMPTS[:batch], generator=noise, **how).images


def some(grid, seed: int = 0):
    """Return a schedule by chance, with a row that is reused whole."""
    on = torch.rand(grid.shape, generator=torch.Generator().manual_seed(seed)) < 0.6
    on[0], on[3] = True, False
    return grid.schedule(on, method="by chance")


def relative(found: Tensor, wanted: Tensor) -> float:
    """Return the norm of the difference over that of what was wanted."""
    found, wanted = found.double().cpu(), wanted.double().cpu()
    return ((found - wanted).norm() / wanted.norm()).item()


def state(module: nn.Module) -> dict[str, Tensor]:
    """Return copies of all weights on the CPU."""
    return {name: value.detach().to("cpu", copy=True) for name, value in module.state_dict().items()}


def same(module: nn.Module, before: dict[str, Tensor]) -> bool:
    """Say whether all weights are, bit for bit, those that `state` gave."""
    return all(torch.equal(before[name], value.cpu()) for name, value in module.state_dict().items())


def macs_of_run(call: Callable[[], object]) -> int:
    """Count the MACs of everything that runs; the counter sees through attention only as plain products."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        call()
    return counter.get_total_flops() // 2
