"""Record of chapter "Zeros are not speed": layers, and emoji-sd's UNet, dense, with zeros, in CSR and narrower.

Single layers have random weights: time depends on shapes and on how many zeros there are. Needs a quiet machine, about
8 minutes on two cores. On a GPU the stage "zeros" of `python -m benchmarks gpu` times them, and PyTorch's 2:4 form.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import nn
from tqdm.auto import tqdm

import pruning_lib as pl
from pruning_book.sparse_speed import to_csr
from pruning_lib.denoisers import example_inputs
from pruning_lib.latency import ratio
from pruning_lib.weights.nm import prune_nm, to_semi_structured

from .common import MODEL, Record, quantiles

SPARSITIES = (0.5, 0.7, 0.8, 0.9, 0.95, 0.99)
UNET_SPARSITIES = (0.5, 0.8, 0.9, 0.95, 0.99)
UNET_RATIOS = (0.25, 0.33, 0.5)  # three different widths; beyond, emoji-sd's norm groups set a floor
WARMUP = 3
FORMS = ("zeros", "csr", "structured")
MORE = 10  # times as many rounds for layers that take a tenth of a millisecond


class Layer(NamedTuple):
    """A layer to time: whose shape it has, its kind and sizes, and the shape of its input."""

    model: str
    name: str
    kind: type[nn.Module]
    sizes: tuple[int, ...]
    inputs: tuple[int, ...]

    def build(self) -> nn.Module:
        """Return the layer with random weights; a convolution keeps the size of its input."""
        if self.kind is nn.Linear:
            return nn.Linear(*self.sizes)
        return nn.Conv2d(*self.sizes, padding=self.sizes[-1] // 2)


EMOJI_LAYERS = (
    Layer(MODEL, "conv 3×3, 32 channels, 16×16", nn.Conv2d, (32, 32, 3), (1, 32, 16, 16)),
    Layer(MODEL, "conv 3×3, 192 to 96, 4×4", nn.Conv2d, (192, 96, 3), (1, 192, 4, 4)),
    Layer(MODEL, "linear 32 to 256, 256 tokens", nn.Linear, (32, 256), (1, 256, 32)),
)
SD15_LAYERS = (
    Layer("SD-1.5", "conv 3×3, 320 channels, 64×64", nn.Conv2d, (320, 320, 3), (1, 320, 64, 64)),
    Layer("SD-1.5", "conv 3×3, 1280 channels, 8×8", nn.Conv2d, (1280, 1280, 3), (1, 1280, 8, 8)),
    Layer("SD-1.5", "conv 1×1, 320 channels, 64×64", nn.Conv2d, (320, 320, 1), (1, 320, 64, 64)),
    Layer("SD-1.5", "linear 1280 to 320, 4096 tokens", nn.Linear, (1280, 320), (1, 4096, 1280)),
    Layer("SD-1.5", "linear 768 to 1280, 77 tokens", nn.Linear, (768, 1280), (1, 77, 768)),
)
LAYERS = EMOJI_LAYERS + SD15_LAYERS
GPU_LAYERS = (
    *SD15_LAYERS,
    Layer("SD-1.5", "linear 1280 to 10240, 2 × 256 tokens", nn.Linear, (1280, 10240), (2, 256, 1280)),
    Layer("any", "linear 8192 to 8192, 8192 tokens", nn.Linear, (8192, 8192), (1, 8192, 8192)),
)
TOY_LAYERS = (
    Layer("toy", "conv 3×3, 16 channels, 8×8", nn.Conv2d, (16, 16, 3), (1, 16, 8, 8)),
    Layer("toy", "linear 64 to 32, 16 tokens", nn.Linear, (64, 32), (1, 16, 64)),
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
    pl.prune_magnitude(layer, sparsity).finish()
    return layer


def timed(
    calls: Mapping[str, Callable], spare: Callable, macs: Mapping[str, float], repeats: int, device: str | torch.device
) -> dict:
    """Time calls in turn; return name -> times, MACs that are done, and how many times as fast as the first.

    The rounds go to and fro, so the first and the last of a round run twice in a row and find their weights in the
    cache. So `spare`, which has weights of its own, stands at both ends, and its times are thrown away.
    """
    found = pl.measure_latency({"": spare, **calls, " ": spare}, repeats=repeats, warmup=WARMUP, device=device)
    base, rows = next(iter(calls)), {}
    for name in calls:
        faster = ratio(found[base], found[name]).to_dict()
        counted = {"macs": round(macs[name]), "times_fewer_macs": macs[base] / macs[name]}
        rows[name] = {**quantiles(found[name], 5), **counted, "times_as_fast": faster}
    return rows


def layer_rows(spec: Layer, repeats: int) -> dict:
    """Time one layer in every form at every sparsity."""
    torch.manual_seed(0)
    layer, x = spec.build().eval(), torch.randn(spec.inputs)
    positions = layer(x).numel() // layer.weight.shape[0]
    whole = layer.weight.numel() * positions
    macs, calls, spare = {"dense 0": whole}, {"dense 0": partial(layer, x)}, copy.deepcopy(layer)
    for s in SPARSITIES:
        zeros, csr, narrow = pruned(layer, s), pruned(layer, s), narrower(layer, s)
        to_csr(csr)
        assert torch.allclose(csr(x), zeros(x), atol=1e-3), spec
        calls |= {f"{form} {s}": partial(m, x) for form, m in zip(FORMS, (zeros, csr, narrow), strict=True)}
        left = int(zeros.weight.count_nonzero())
        each = whole, left * positions, narrow.weight.numel() * positions
        macs |= {f"{form} {s}": count for form, count in zip(FORMS, each, strict=True)}
    rows = rows_of(timed(calls, partial(spare, x), macs, repeats, "cpu"))
    shapes = {"weight_shape": list(layer.weight.shape), "input_shape": list(spec.inputs)}
    about = {"model": spec.model, "name": spec.name, "n": repeats, **shapes}
    return {**about, "rows": rows, "break_even": break_even(rows, "csr")}


def rows_of(found: Mapping[str, dict]) -> list[dict]:
    """Return rows of calls that are named by form and sparsity."""
    names = [name.split() for name in found]
    return [{"form": f, "sparsity": float(s), **row} for (f, s), row in zip(names, found.values(), strict=True)]


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
    unet = pl.load(MODEL, device="cpu").unet.eval()
    inputs = example_inputs(unet, batch=2, device="cpu")  # as guidance needs it
    whole = pl.count_macs(unet)
    macs, about = {"dense": whole.macs}, {"dense": {"form": "dense", "params": whole.params}}
    models, spare = {"dense": unet}, copy.deepcopy(unet)
    for s in UNET_SPARSITIES:
        zeros = copy.deepcopy(unet)
        pl.prune_magnitude(zeros, s).finish()
        csr = copy.deepcopy(zeros)
        swapped = to_csr(csr)
        same = (csr(**inputs).sample - zeros(**inputs).sample).abs().max()
        assert same < 1e-3, same
        nnz = sum(int(p.count_nonzero()) for p in zeros.parameters())
        # every weight of a layer is used equally often
        skipped = sum(whole.modules[row.path].macs * (1 - row.nnz / row.n) for row in swapped.rows)
        models |= {f"zeros {s}": zeros, f"csr {s}": csr}
        macs |= {f"zeros {s}": whole.macs, f"csr {s}": whole.macs - skipped}
        for form in ("zeros", "csr"):
            about[f"{form} {s}"] = {"form": form, "sparsity": s, "params": whole.params, "nnz": nnz}
    for r in UNET_RATIOS:
        small = pl.prune_structured(unet, r).unet.eval()
        report = pl.count_macs(small)
        models[f"structured {r}"], macs[f"structured {r}"] = small, report.macs
        about[f"structured {r}"] = {"form": "structured", "ratio": r, "params": report.params}
    calls = {name: partial(model, **inputs) for name, model in models.items()}
    found = timed(calls, partial(spare, **inputs), macs, repeats, "cpu")
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
    calls = {"dense 0": partial(dense, x)}
    zeros = copy.deepcopy(dense)
    prune_nm(zeros).finish()
    calls["zeros 0.5"], macs["zeros 0.5"] = partial(zeros, x), macs["dense 0"]
    packed = copy.deepcopy(zeros)
    try:
        left = to_semi_structured(packed)
        assert not left and torch.allclose(packed(x), zeros(x), atol=0.05, rtol=0.05), (spec.name, left)
        calls["2:4 0.5"], macs["2:4 0.5"] = partial(packed, x), macs["dense 0"] / 2
    except (ValueError, RuntimeError) as error:
        refused["2:4"] = str(error).partition("\n")[0]
    for s in HALF_SPARSITIES:
        csr, narrow = pruned(dense, s), narrower(dense, s).to(device, dtype)
        try:
            to_csr(csr)
            csr(x)
            calls[f"csr {s}"], macs[f"csr {s}"] = partial(csr, x), int(csr.weight.count_nonzero()) * positions
        except (ValueError, RuntimeError) as error:
            refused["csr"] = str(error).partition("\n")[0]
        calls[f"structured {s}"], macs[f"structured {s}"] = partial(narrow, x), narrow.weight.numel() * positions
    spare = copy.deepcopy(dense)
    rows = rows_of(timed(calls, partial(spare, x), macs, repeats, device))
    return {"model": spec.model, "n": repeats, "rows": rows, "refused": refused}


@torch.no_grad()
def measure(repeats: int = 15, unet_repeats: int = 60) -> Record:
    """Time single layers, then the whole UNet."""
    often = {spec: repeats * (MORE if spec.model == MODEL else 1) for spec in LAYERS}
    layers = [layer_rows(spec, count) for spec, count in tqdm(often.items(), unit="layer")]
    unet = unet_rows(unet_repeats)
    data = {"dtype": "float32", "threads": torch.get_num_threads(), "warmup": WARMUP, "unet_n": unet_repeats}
    data |= {"unet_batch": 2, "layers": layers, "unet": unet, "unet_break_even": break_even(unet, "csr")}
    return Record(data, seeds=[0], n=repeats)
