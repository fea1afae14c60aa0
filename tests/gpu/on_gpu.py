"""What the tests of this folder share: drawing, counting, and telling when the host waits for the device."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
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
    """Count the MACs of everything that runs, text encoder and decoder included.

    The counter sees through attention only as plain products.
    """
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        call()
    return counter.get_total_flops() // 2


class _Reads(TorchDispatchMode):
    """Calls `note` whenever the host reads a number: what makes it wait for an accelerator, but not for a CPU."""

    def __init__(self, note: Callable[[], None]):
        super().__init__()
        self.note = note

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default:
            self.note()
        return func(*args, **(kwargs or {}))


@contextmanager
def waits(pipe, refuse_above: int | None = None) -> Iterator[dict]:
    """Count how often the host waits for the device. CUDA tells by itself; on a CPU every read of a number counts.

    Args:
        pipe: called once inside the block.
        refuse_above: raise RuntimeError in a call of the denoiser, from the second on, on CUDA at the first wait, on a
            CPU after so many reads.

    Yields:
        "calls": waits inside each call of the denoiser, skipped ones included; after the block "all", in all of it.
    """
    found, reads, inside = {"calls": []}, 0, False
    mode = torch.cuda.set_sync_debug_mode if pipe.unet.device.type == "cuda" else lambda name: None

    def so_far() -> int:
        return reads + sum("synchronizing CUDA operation" in str(warning.message) for warning in told)

    def before(*_) -> None:
        nonlocal inside
        inside = refuse_above is not None and len(found["calls"]) > 0
        found["calls"].append(-so_far())
        mode("error" if inside else "warn")

    def after(*_) -> None:
        nonlocal inside
        inside = False
        mode("warn")
        found["calls"][-1] += so_far()

    def note() -> None:
        nonlocal reads
        if pipe.unet.device.type != "cuda":
            reads += 1
            if inside and found["calls"][-1] + so_far() > refuse_above:
                raise RuntimeError("A read of a number in a call of the denoiser.")

    # Hooks of PyTorch lie outside those of diffusers, which replace `forward`.
    hooks = [pipe.unet.register_forward_pre_hook(before), pipe.unet.register_forward_hook(after, always_call=True)]
    with warnings.catch_warnings(record=True) as told, _Reads(note):
        warnings.simplefilter("always")
        try:
            mode("warn")
            yield found
        finally:
            mode("default")
            for hook in hooks:
                hook.remove()
        found["all"] = so_far()
