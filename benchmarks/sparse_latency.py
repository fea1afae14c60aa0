"""Record how fast layers with zeros run in each form they can have, for the chapter "Zeros are not speed".

    python -m benchmarks sparse_latency

Needs a quiet machine, about 8 minutes on two cores. Forms of a layer:

- dense: as it is; zeros: the same kernel, small weights set to zero;
- csr: the zeros left out (`pruning_book.sparse_speed`);
- structured: a dense layer with fewer outputs, so that as many weights are left.

Single layers have the shapes of emoji-sd and of Stable Diffusion 1.5 with random weights: time depends on shapes and on
how many zeros there are, not on what the weights are. The whole UNet is emoji-sd's own. Float32 on the CPU. On a GPU
the same layers are timed in half precision, with PyTorch's 2:4 form besides, by the stage "zeros" of
`python -m benchmarks gpu`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import nn
from tqdm.auto import tqdm

import pruning_lib as pl
from pruning_book.sparse_speed import to_csr
from pruning_lib.denoisers import example_inputs
from pruning_lib.latency import Latency, ratio
from pruning_lib.structured.structured import prune_structured
from pruning_lib.weights.magnitude import prune_magnitude
from pruning_lib.weights.nm import prune_nm, to_semi_structured

from .common import Record

SPARSITIES = (0.5, 0.7, 0.8, 0.9, 0.95, 0.99)
UNET_SPARSITIES = (0.5, 0.8, 0.9, 0.95, 0.99)
UNET_RATIOS = (0.25, 0.33, 0.5)  # three different widths; beyond, emoji-sd's norm groups set a floor
WARMUP = 3
MORE = 10  # times as many rounds for layers that take a tenth of a millisecond


class Layer(NamedTuple):
    """A layer to time: whose shape it has, how to make it, and the shape of its input."""

    model: str
    name: str
    build: Callable[[], nn.Module]
    inputs: tuple[int, ...]


LAYERS = (
    Layer("emoji-sd", "conv 3×3, 32 channels, 16×16", lambda: nn.Conv2d(32, 32, 3, padding=1), (1, 32, 16, 16)),
    Layer("emoji-sd", "conv 3×3, 192 to 96, 4×4", lambda: nn.Conv2d(192, 96, 3, padding=1), (1, 192, 4, 4)),
    Layer("emoji-sd", "linear 32 to 256, 256 tokens", lambda: nn.Linear(32, 256), (1, 256, 32)),
    Layer("SD-1.5", "conv 3×3, 320 channels, 64×64", lambda: nn.Conv2d(320, 320, 3, padding=1), (1, 320, 64, 64)),
    Layer("SD-1.5", "conv 3×3, 1280 channels, 8×8", lambda: nn.Conv2d(1280, 1280, 3, padding=1), (1, 1280, 8, 8)),
    Layer("SD-1.5", "conv 1×1, 320 channels, 64×64", lambda: nn.Conv2d(320, 320, 1), (1, 320, 64, 64)),
    Layer("SD-1.5", "linear 1280 to 320, 4096 tokens", lambda: nn.Linear(1280, 320), (1, 4096, 1280)),
    Layer("SD-1.5", "linear 768 to 1280, 77 tokens", lambda: nn.Linear(768, 1280), (1, 77, 768)),
)

GPU_LAYERS = (
    *(layer for layer in LAYERS if layer.model == "SD-1.5"),
    Layer("SD-1.5", "linear 1280 to 10240, 2 × 256 tokens", lambda: nn.Linear(1280, 10240), (2, 256, 1280)),
    Layer("any", "linear 8192 to 8192, 8192 tokens", lambda: nn.Linear(8192, 8192), (1, 8192, 8192)),
)
TOY_LAYERS = (
    Layer("toy", "conv 3×3, 16 channels, 8×8", lambda: nn.Conv2d(16, 16, 3, padding=1), (1, 16, 8, 8)),
    Layer("toy", "linear 64 to 32, 16 tokens", lambda: nn.Linear(64, 32), (1, 16, 64)),
)
HALF_SPARSITIES = (0.5, 0.9, 0.99)


def narrower(layer: nn.Module, share: float) -> nn.Module:
    """Return a layer of the same kind with this share of the outputs removed, at random weights."""
    if isinstance(layer, nn.Linear):
        return nn.Linear(layer.in_features, max(1, round((1 - share) * layer.out_features)))
    outputs = max(1, round((1 - share) * layer.out_channels))
    return nn.Conv2d(layer.in_channels, outputs, layer.kernel_size, padding=layer.padding)


def pruned(layer: nn.Module, sparsity: float) -> nn.Module:
    """Return a copy of a layer without its smallest weights, for good."""
    layer = copy.deepcopy(layer)
    prune_magnitude(layer, sparsity).finish()
    return layer


def timed(
    calls: Mapping[str, Callable],
    spare: Callable,
    macs: Mapping[str, float],
    repeats: int,
    device: str | torch.device,
    base: str = "dense",
) -> dict:
    """Time calls in turn; return name -> times, MACs that are done, and how many times as fast as the one named `base`.

    The rounds go to and fro, so the first and the last of a round run twice in a row and find their weights in the
    cache. So `spare`, which has weights of its own, stands at both ends, and its times are thrown away.
    """
    found = pl.measure_latency({"": spare, **calls, " ": spare}, repeats=repeats, warmup=WARMUP, device=device)
    return {name: _row(found[base], found[name], macs[base], macs[name]) for name in calls}


def _row(base: Latency, latency: Latency, base_macs: float, macs: float) -> dict:
    return {
        **{key: round(getattr(latency, key), 5) for key in ("median_ms", "p10_ms", "p90_ms")},
        "macs": round(macs),
        "times_fewer_macs": base_macs / macs,
        "times_as_fast": ratio(base, latency).to_dict(),
    }


def layer_rows(spec: Layer, repeats: int) -> dict:
    """Time one layer in every form at every sparsity."""
    torch.manual_seed(0)
    layer, x = spec.build().eval(), torch.randn(spec.inputs)
    positions = layer(x).numel() // layer.weight.shape[0]
    macs = {"dense": layer.weight.numel() * positions}
    calls, spare = {"dense": lambda: layer(x)}, copy.deepcopy(layer)
    for s in SPARSITIES:
        zeros, csr, narrow = pruned(layer, s), pruned(layer, s), narrower(layer, s)
        to_csr(csr)
        assert torch.allclose(csr(x), zeros(x), atol=1e-3), spec
        calls |= {f"zeros {s}": lambda m=zeros: m(x), f"csr {s}": lambda m=csr: m(x)}
        calls |= {f"structured {s}": lambda m=narrow: m(x)}
        macs |= {f"zeros {s}": macs["dense"], f"csr {s}": int(zeros.weight.count_nonzero()) * positions}
        macs |= {f"structured {s}": narrow.weight.numel() * positions}
    found = timed(calls, lambda: spare(x), macs, repeats, "cpu")
    rows = [
        {"form": name.split()[0], "sparsity": float((name.split() + ["0"])[1]), **row} for name, row in found.items()
    ]
    return {
        "model": spec.model,
        "name": spec.name,
        "n": repeats,
        "weight_shape": list(layer.weight.shape),
        "input_shape": list(spec.inputs),
        "rows": rows,
        "break_even": break_even(rows, "csr"),
    }


def break_even(rows: list[dict], form: str) -> dict:
    """Return the sparsity at which a form becomes as fast as dense, between which stops it lies, and whether it does.

    Interpolated in log(1 - sparsity) against log(speed), in which both are nearly straight.
    """
    points = [(r["sparsity"], r["times_as_fast"]["value"]) for r in rows if r["form"] == form]
    if points[0][1] >= 1:
        return {"sparsity": None, "says": "faster at every sparsity", "below": points[0][0], "above": None}
    for (s0, v0), (s1, v1) in pairwise(points):
        if v0 < 1 <= v1:
            part = -math.log(v0) / (math.log(v1) - math.log(v0))
            density = (1 - s0) ** (1 - part) * (1 - s1) ** part
            return {"sparsity": 1 - density, "says": "", "below": s1, "above": s0}
    return {"sparsity": None, "says": "slower at every sparsity", "below": None, "above": points[-1][0]}


def unet_rows(repeats: int) -> list[dict]:
    """Time emoji-sd's whole UNet: dense, with zeros, in CSR, and structured."""
    unet = pl.load("emoji-sd", device="cpu").unet.eval()
    inputs = example_inputs(unet, batch=2, device="cpu")  # as guidance needs it
    whole = pl.count_macs(unet)
    macs, about = {"dense": whole.macs}, {"dense": {"form": "dense", "params": whole.params}}
    models, spare = {"dense": unet}, copy.deepcopy(unet)
    for s in UNET_SPARSITIES:
        zeros = copy.deepcopy(unet)
        prune_magnitude(zeros, s).finish()
        csr = copy.deepcopy(zeros)
        swapped = to_csr(csr)
        same = (csr(**inputs).sample - zeros(**inputs).sample).abs().max()
        assert same < 1e-3, same
        nnz = sum(int(p.count_nonzero()) for p in zeros.parameters())
        skipped = sum(
            whole.modules[row.path].macs * row.sparsity for row in swapped.rows
        )  # every weight of a layer is used equally often
        models |= {f"zeros {s}": zeros, f"csr {s}": csr}
        macs |= {f"zeros {s}": whole.macs, f"csr {s}": whole.macs - skipped}
        for form in ("zeros", "csr"):
            about[f"{form} {s}"] = {"form": form, "sparsity": s, "params": whole.params, "nnz": nnz}
    for r in UNET_RATIOS:
        small = prune_structured(unet, r).unet.eval()
        report = pl.count_macs(small)
        models[f"structured {r}"], macs[f"structured {r}"] = small, report.macs
        about[f"structured {r}"] = {"form": "structured", "ratio": r, "params": report.params}
    calls = {name: lambda m=model: m(**inputs) for name, model in models.items()}
    found = timed(calls, lambda: spare(**inputs), macs, repeats, "cpu")
    return [{**about[name], **row} for name, row in found.items()]


@torch.no_grad()
def rows_on(device: torch.device, spec: Layer, repeats: int, dtype: torch.dtype = torch.float16) -> dict:
    """Time one layer in every form that `device` can run in this type; forms it refuses are named with the reason.

    The pattern of 2:4 has a sparsity of one half; CSR and fewer outputs are timed at several.
    """
    torch.manual_seed(0)
    dense = spec.build().eval().to(device, dtype)
    x = torch.randn(spec.inputs).to(device, dtype)
    positions = dense(x).numel() // dense.weight.shape[0]
    macs, refused = {"dense 0": dense.weight.numel() * positions}, {}
    calls = {"dense 0": lambda: dense(x)}
    zeros = copy.deepcopy(dense)
    prune_nm(zeros).finish()
    calls["zeros 0.5"], macs["zeros 0.5"] = lambda: zeros(x), macs["dense 0"]
    packed = copy.deepcopy(zeros)
    try:
        left = to_semi_structured(packed)
        assert not left and torch.allclose(packed(x), zeros(x), atol=0.05, rtol=0.05), (spec.name, left)
        calls["2:4 0.5"], macs["2:4 0.5"] = lambda: packed(x), macs["dense 0"] / 2
    except (ValueError, RuntimeError) as error:
        refused["2:4"] = str(error).partition("\n")[0]
    for s in HALF_SPARSITIES:
        csr, narrow = pruned(dense, s), narrower(dense, s).to(device, dtype)
        try:
            to_csr(csr)
            csr(x)
            calls[f"csr {s}"], macs[f"csr {s}"] = lambda m=csr: m(x), int(csr.weight.count_nonzero()) * positions
        except (ValueError, RuntimeError) as error:
            refused["csr"] = str(error).partition("\n")[0]
        calls[f"structured {s}"], macs[f"structured {s}"] = lambda m=narrow: m(x), narrow.weight.numel() * positions
    spare = copy.deepcopy(dense)
    found = timed(calls, lambda: spare(x), macs, repeats, device, base="dense 0")
    rows = [{"form": name.split()[0], "sparsity": float(name.split()[1]), **row} for name, row in found.items()]
    return {"model": spec.model, "n": repeats, "rows": rows, "refused": refused}


@torch.no_grad()
def measure(repeats: int = 15, unet_repeats: int = 60) -> Record:
    """Time single layers, then the whole UNet."""
    more = {"emoji-sd": MORE}
    data = {
        "dtype": "float32",
        "threads": torch.get_num_threads(),
        "warmup": WARMUP,
        "unet_n": unet_repeats,
        "unet_batch": 2,
        "layers": [layer_rows(spec, repeats * more.get(spec.model, 1)) for spec in tqdm(LAYERS, unit="layer")],
        "unet": unet_rows(unet_repeats),
    }
    data["unet_break_even"] = break_even(data["unet"], "csr")
    return Record(data, seeds=[0], n=repeats)
