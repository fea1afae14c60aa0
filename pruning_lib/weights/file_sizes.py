"""How large the same tensors are as a file: plain, zipped, compressed-sparse, both, and as CSR."""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from .sparse_file import save_sparse
from .sparse_speed import as_csr

__all__ = ["FileSizes", "file_sizes", "zip_bytes"]


@dataclass(frozen=True)
class FileSizes:
    """Sizes of files that were really written, in bytes.

    Attributes:
        dense: plain safetensors.
        zipped: that, in a zip archive (deflate).
        sparse: the layout of `sparse_file`.
        sparse_zipped: that, in a zip archive.
        csr: `torch.save` of matrices and kernels as CSR with indices of 4 bytes, the rest dense.
    """

    dense: int
    zipped: int
    sparse: int
    sparse_zipped: int
    csr: int


def file_sizes(tensors: Mapping[str, Tensor], *, level: int = 6) -> FileSizes:
    """Write tensors in five ways into a folder for temporary files, and return the sizes.

    Args:
        tensors: as for `save_sparse`.
        level: of the zip archive, 1 (fast) to 9 (small); 6 is zip's own default.

    Raises:
        TypeError, ValueError: as `save_sparse`; also a level out of range.
    """
    if not isinstance(level, int) or not 1 <= level <= 9:
        raise ValueError(f"level={level!r}; it must be a whole number from 1 to 9.")
    with tempfile.TemporaryDirectory() as folder:
        plain, csr = Path(folder, "plain.safetensors"), Path(folder, "csr.pt")
        sparse = save_sparse(tensors, Path(folder, "sparse.safetensors"))  # refuses what is no state dict
        safetensors.torch.save_file(
            {name: t.detach().contiguous().clone() for name, t in tensors.items()}, plain
        )
        torch.save(
            {name: as_csr(t) if t.ndim > 1 else t.detach().clone() for name, t in tensors.items()}, csr
        )
        return FileSizes(
            dense=plain.stat().st_size,
            zipped=zip_bytes(plain, level),
            sparse=sparse.stat().st_size,
            sparse_zipped=zip_bytes(sparse, level),
            csr=csr.stat().st_size,
        )


def zip_bytes(path: str | Path, level: int = 6) -> int:
    """Return the size of a zip archive that holds this one file.

    Args:
        path: the file.
        level: of the compression, 1 to 9.
    """
    with tempfile.TemporaryFile() as archive:
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=level) as zipped:
            zipped.write(path, Path(path).name)
        return archive.seek(0, 2)
