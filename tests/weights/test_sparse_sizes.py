"""Sizes of files: those of files that other programs write, and in the order that theory says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from pruning_book.sparse_file import dense_bytes, sparse_bytes
from pruning_book.sparse_speed import file_sizes, zip_bytes


def weights(sparsity: float) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(200, 300, generator=generator)
    return {"w": torch.where(torch.rand(200, 300, generator=generator) < sparsity, 0, weight), "b": torch.ones(200)}


def test_sizes_are_those_of_the_files() -> None:
    tensors = weights(0.8)
    sizes = file_sizes(tensors)
    assert sizes.dense == dense_bytes(tensors) == len(safetensors.torch.save(tensors))
    assert sizes.sparse == sparse_bytes(tensors)
    # CSR by hand: 4 bytes for each value, column and row start; then what torch.save adds.
    by_hand = 8 * int(tensors["w"].count_nonzero()) + 4 * (200 + 1) + 4 * 200
    assert by_hand < sizes.csr < by_hand + 5000


def test_zip_is_what_a_zip_program_writes(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    safetensors.torch.save_file(weights(0.8), file)
    subprocess.run([sys.executable, "-m", "zipfile", "-c", "x.zip", file.name], cwd=tmp_path, check=True)
    assert zip_bytes(file) == (tmp_path / "x.zip").stat().st_size
    assert zip_bytes(file, 9) <= zip_bytes(file, 1)


def test_order_of_sizes() -> None:
    none, many = file_sizes(weights(0)), file_sizes(weights(0.9))
    assert 1.9 * none.dense < none.csr < 2.1 * none.dense and none.sparse <= none.dense + 120
    assert many.sparse < many.zipped < many.dense and many.sparse_zipped < many.sparse
    assert many.dense == none.dense


def test_refusals() -> None:
    with pytest.raises(ValueError, match="level=0"):
        file_sizes(weights(0), level=0)
    with pytest.raises(TypeError, match="name: tensor"):
        file_sizes([torch.ones(3)])
