"""Record of chapter "Zeros are not speed": bytes of emoji-sd's UNet on disk at many sparsities, without fine-tuning."""

from __future__ import annotations

from dataclasses import asdict
from itertools import pairwise

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

import pruning_lib as pl
from pruning_book.sparse_file import LAYOUTS, break_even, layouts_of
from pruning_book.sparse_speed import file_sizes

from .common import MODEL, Record

SPARSITIES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
DTYPES = {"float32": torch.float32, "float16": torch.float16}


def one_layout(tensors: dict[str, Tensor], pruned: set[str]) -> dict[str, int]:
    """Return layout -> bytes if every pruned tensor were stored in it and the others dense, without headers."""
    rest = sum(t.numel() * t.element_size() for name, t in tensors.items() if name not in pruned)
    found = dict.fromkeys(LAYOUTS, rest)
    for name in pruned:
        for stored in layouts_of(tensors[name]):
            found[stored.layout] += stored.nbytes
    return found


def rows(unet: nn.Module) -> list[dict[str, object]]:
    """Measure every stop in every dtype."""
    found = []
    for sparsity in tqdm(SPARSITIES, desc="sparsity", unit="stop"):
        with pl.prune_magnitude(unet, sparsity) as pruned:
            state = {name: t.detach().clone() for name, t in unet.state_dict().items()}
            names, n_pruned = set(pruned.masks), pruned.n
        for dtype, kind in DTYPES.items():
            tensors = {name: t.to(kind) for name, t in state.items()}
            nonzero = {name: int(t.count_nonzero()) for name, t in tensors.items()}
            row = {"sparsity": sparsity, "dtype": dtype, "n": sum(t.numel() for t in tensors.values())}
            row |= {"n_pruned": n_pruned, "nnz": sum(nonzero.values()), "nnz_pruned": sum(nonzero[n] for n in names)}
            sizes = {"bytes": asdict(file_sizes(tensors)), "bytes_in_one_layout": one_layout(tensors, names)}
            found.append({**row, **sizes})
    return found


def crossing(x: list[float], y: list[float]) -> float | None:
    """Return where y, linear between the points, first falls below zero; None where it never does."""
    points = list(zip(x, y, strict=True))
    for (x0, y0), (x1, y1) in pairwise(points):
        if y0 >= 0 > y1:
            return x0 + (x1 - x0) * y0 / (y0 - y1)
    return None


def break_evens(found: list[dict]) -> list[dict[str, object]]:
    """Return, for each layout and dtype, the share of zeros above which it is smaller: by formula, and measured."""
    out = []
    for dtype, kind in DTYPES.items():
        mine = [row for row in found if row["dtype"] == dtype]
        zeros = [1 - row["nnz_pruned"] / row["n_pruned"] for row in mine]
        # layout -> its formula's, and where its bytes stand; "csr" is what PyTorch writes
        layouts = {layout: (layout, "bytes_in_one_layout") for layout in LAYOUTS[1:]} | {"csr": ("index32", "bytes")}
        for layout, (like, where) in layouts.items():
            over = [row[where][layout] - row[where]["dense"] for row in mine]
            formula = break_even(like, kind.itemsize)
            out.append({"dtype": dtype, "layout": layout, "formula": formula, "measured": crossing(zeros, over)})
    return out


def measure() -> Record:
    """Measure sizes, and where they cross."""
    unet = pl.load(MODEL, device="cpu").unet
    # Weights that were rounded to 16 bits end in zero bits as float32, which a zip archive finds.
    rounded = all(torch.equal(t.half().to(t.dtype), t) for t in unet.state_dict().values())
    measured = rows(unet)
    data = {"model": MODEL, "part": "unet", "scope": "global", "zip_level": 6, "rounded_to_float16": rounded}
    return Record({**data, "rows": measured, "break_even": break_evens(measured)}, seeds=[], n=1)
