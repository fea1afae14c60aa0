"""Layers that run on the weights that are left, swapped in reversibly, and how large the same tensors are as files.

CSR (compressed sparse row) keeps, row by row, the values that are not zero and the column of each; a product then reads
only those.  A linear layer is given its weight in CSR, which PyTorch multiplies itself; a convolution is first laid out
as a matrix (`unfold`, "im2col"; Chellapilla et al. 2006), unless its kernel is 1 × 1.
"""

from __future__ import annotations

import tempfile
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .sparse_file import save_sparse

_DTYPES = {"cpu": (torch.float32, torch.float64), "cuda": (torch.float32, torch.float64, torch.float16, torch.bfloat16)}


@dataclass(frozen=True)
class CsrRow:
    """A swapped layer: its path ("" for the module itself), its weight's shape, its nonzero weights, and all."""

    path: str
    shape: tuple[int, ...]
    nnz: int
    n: int


class CsrForm:
    """What `to_csr` swapped, and how to put it back.

    `rows` has one `CsrRow` per layer that runs in CSR; `left_dense` is path of every other linear layer and convolution
    -> why.
    """

    def __init__(self, module: nn.Module, layers: dict[str, nn.Module], left_dense: dict[str, str]) -> None:
        self._name, self._swapped, self.left_dense = type(module).__name__, list(layers.values()), left_dense
        self.rows = []
        for path, layer in layers.items():
            weight = layer.weight.detach()
            self.rows.append(CsrRow(path, tuple(weight.shape), int(weight.count_nonzero()), weight.numel()))
            layer.forward = _forward(layer)

    def remove(self) -> None:
        """Let every layer run as before; a second call does nothing."""
        for layer in self._swapped:
            del layer.forward  # ours lies in the instance and hides the one of the class
        self._swapped = []

    def __enter__(self) -> CsrForm:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def __repr__(self) -> str:
        sparsity = 1 - sum(row.nnz for row in self.rows) / sum(row.n for row in self.rows)
        told = f"{len(self.rows)} layers with {100 * sparsity:.1f} % zeros in CSR, {len(self.left_dense)} dense"
        return f"CsrForm({self._name}: {told}{'' if self._swapped else ', removed'})"


def to_csr(module: nn.Module, *, min_sparsity: float = 0.0) -> CsrForm:
    """Let linear layers and convolutions that hold zeros run in CSR, until `remove()` of the handle, a context manager.

    Weights, state dict and hooks stay as they are; only what a call does is swapped. The CSR copies take memory on top.
    For inference: a call that would record gradients is refused.

    Args:
        module: a layer, or a model with such layers, on the CPU in float32 or float64, or on a CUDA GPU. Another dtype
            or device, layers that are swapped already, or none to swap are a ValueError.
        min_sparsity: layers with this share of zeros or less stay dense, 0 to below 1.

    Example:
        >>> with torch.no_grad(), to_csr(pipe.unet, min_sparsity=0.9):
        ...     image = pipe("lion").images[0]
    """
    layers = {path: layer for path, layer in module.named_modules() if isinstance(layer, (nn.Linear, nn.Conv2d))}
    left_dense = {path: why for path, layer in layers.items() if (why := _problem(layer, min_sparsity))}
    chosen = {path: layer for path, layer in layers.items() if path not in left_dense}
    if not chosen:
        example = "".join(f" For example, {path or 'the layer'} {why}." for path, why in list(left_dense.items())[:1])
        raise ValueError(f"{type(module).__name__} has no layer to run in CSR.{example}")
    for path, layer in chosen.items():
        _check_runs(path, layer)
    return CsrForm(module, chosen, left_dense)


def _problem(layer: nn.Module, min_sparsity: float) -> str:
    """Say why a layer stays dense, or "" if it can be swapped."""
    if type(layer) not in (nn.Linear, nn.Conv2d):
        return f"is a {type(layer).__name__}, which may use its weight in another way"
    if isinstance(layer, nn.Conv2d):
        if layer.groups != 1 or layer.padding_mode != "zeros":
            return f"has groups={layer.groups} and padding_mode={layer.padding_mode!r}; allowed: 1 and 'zeros'"
        if isinstance(layer.padding, str):
            return f"has padding={layer.padding!r}; allowed: numbers"
    sparsity = 1 - int(layer.weight.detach().count_nonzero()) / max(layer.weight.numel(), 1)
    if sparsity <= min_sparsity:
        return f"has {100 * sparsity:.1f} % zeros; above {100 * min_sparsity:g} % are asked"
    return ""


def _check_runs(path: str, layer: nn.Module) -> None:
    weight, name = layer.weight, path or type(layer).__name__
    if "forward" in vars(layer):
        why = "it is in CSR already, or something else has patched it. Call remove() of the other handle first."
        raise ValueError(f"{name} does not run its own forward: {why}")
    if weight.dtype not in _DTYPES.get(weight.device.type, ()):
        what = f"{name} is {weight.dtype} on {weight.device.type!r}"
        raise ValueError(f"{what}, for which PyTorch multiplies no CSR matrix. Use module.float().")


def _forward(layer: nn.Linear | nn.Conv2d) -> Callable[[Tensor], Tensor]:
    """Return what the layer does instead, on a copy of its weights in CSR."""
    source, version, matrix = layer.weight, layer.weight._version, as_csr(layer.weight)

    def forward(x: Tensor) -> Tensor:
        if layer.weight is not source or source._version != version:
            raise ValueError("The weights changed after to_csr. Call remove() and to_csr again.")
        if torch.is_grad_enabled() and (x.requires_grad or source.requires_grad):
            raise ValueError("A layer in CSR is for inference. Call it under torch.no_grad(), or remove() it first.")
        if isinstance(layer, nn.Linear):
            return F.linear(x.contiguous(), matrix, layer.bias)
        return _convolution(x, matrix, layer)

    return forward


def _convolution(x: Tensor, matrix: Tensor, layer: nn.Conv2d) -> Tensor:
    batched = x if x.ndim == 4 else x[None]
    kernel, stride, pad, spread = layer.kernel_size, layer.stride, layer.padding, layer.dilation
    sides = zip(batched.shape[2:], kernel, stride, pad, spread, strict=True)
    height, width = ((side + 2 * p - d * (k - 1) - 1) // s + 1 for side, k, s, p, d in sides)
    if kernel == (1, 1) and stride == (1, 1) and pad == (0, 0):
        columns = batched.flatten(2)  # [batch, in, height width]
    else:
        columns = F.unfold(batched, kernel, spread, pad, stride)  # [batch, in kh kw, height width]
    out = torch.stack([matrix @ one for one in columns])
    if layer.bias is not None:
        out += layer.bias[:, None]
    out = out.reshape(len(batched), len(matrix), height, width)
    return out if x.ndim == 4 else out[0]


def as_csr(weight: Tensor) -> Tensor:
    """Return a weight `[out, in]`, or `[out, in, kh, kw]` as `[out, in kh kw]`, in CSR with indices of 4 bytes.

    `to_sparse_csr` alone gives indices of 8 bytes that share a storage with the row numbers of every value, so that its
    result takes, and `torch.save` writes, 20 bytes a float32 value instead of 8.
    """
    matrix = weight.detach().flatten(1)
    with warnings.catch_warnings():
        # PyTorch says once per process that CSR is in beta; a reader of this module has been told.
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        wide = matrix.to_sparse_csr()
    rows, columns = wide.crow_indices().int(), wide.col_indices().int()
    return torch.sparse_csr_tensor(rows, columns, wide.values(), matrix.shape, check_invariants=False)


@dataclass(frozen=True)
class FileSizes:
    """Sizes in bytes of files that were really written.

    As plain safetensors and in the layouts of `sparse_file`, each also in a zip archive (deflate), and by `torch.save`
    of matrices and kernels as CSR with indices of 4 bytes, the rest dense.
    """

    dense: int
    zipped: int
    sparse: int
    sparse_zipped: int
    csr: int


def file_sizes(tensors: Mapping[str, Tensor]) -> FileSizes:
    """Write tensors in five ways into a folder for temporary files, and return the sizes; as for `save_sparse`."""
    with tempfile.TemporaryDirectory() as folder:
        plain, csr = Path(folder, "plain.safetensors"), Path(folder, "csr.pt")
        sparse = save_sparse(tensors, Path(folder, "sparse.safetensors"))
        safetensors.torch.save_file({name: t.detach().contiguous().clone() for name, t in tensors.items()}, plain)
        torch.save({name: as_csr(t) if t.ndim > 1 else t.detach().clone() for name, t in tensors.items()}, csr)
        dense, small, rows = (file.stat().st_size for file in (plain, sparse, csr))
        return FileSizes(dense, _zip_bytes(plain), small, _zip_bytes(sparse), rows)


def _zip_bytes(path: Path) -> int:
    with tempfile.TemporaryFile() as archive:
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as zipped:
            zipped.write(path, path.name)
        return archive.seek(0, 2)
