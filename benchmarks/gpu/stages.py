"""What is measured on a GPU, in order of worth, and what the processes end with; reading this costs nothing.

Compiled runs stand behind: compiling takes long, and how long nobody knows before.
"""

from __future__ import annotations

from typing import NamedTuple

DONE, NO_GPU, OUT_OF_TIME, BROKEN = 0, 2, 3, 4


class Stage(NamedTuple):
    """One stage: the record's name without "gpu_", a few words, seconds on a data-centre GPU, rounds or samples."""

    name: str
    what: str
    seconds: int
    n: int


STAGES = (
    Stage("tests", "emoji-sd on the GPU: does the library keep its promises", 90, 1),
    Stage("sd15_speed", "Stable Diffusion 1.5: ways to be faster, measured beside promised", 170, 3),
    Stage("sd15_training", "Stable Diffusion 1.5: training a pruner, time and memory", 90, 2),
    Stage("sd15_operators", "Stable Diffusion 1.5: scoring and cutting operators", 70, 8),
    Stage("sd15_compiled", "Stable Diffusion 1.5: ways to be faster under torch.compile", 250, 3),
    Stage("big_models", "DiT, PixArt, SDXL and an MMDiT with flow matching: schedules", 140, 3),
    Stage("zeros", "zeros in half precision: 2:4, CSR, dense, fewer channels", 60, 50),
    Stage("throughput", "emoji-sd's own training: images per second", 40, 200),
    Stage("tests_compiled", "emoji-sd, compiled, with CUDA graphs and without", 150, 1),
)
