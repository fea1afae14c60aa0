"""The file written in pieces is the library's own, byte for byte."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from pruning_lib.checkpoint.files import DTYPES
from pruning_lib.checkpoint.write import TensorHeader, file_bytes, write_safetensors


@pytest.mark.parametrize("metadata", [{}, {"format": "pt"}])
def test_the_bytes_are_the_librarys(metadata, tmp_path):
    torch.manual_seed(0)
    state = {"ü": torch.randn(3, 3), "a": torch.randn(2), "empty": torch.zeros(0, 4), "scalar": torch.tensor(2.5)}
    state |= {f"t{i}": torch.arange(5).to(dtype) for i, dtype in enumerate(DTYPES.values())}
    save_file(state, tmp_path / "a.safetensors", metadata or None)
    headers = [TensorHeader(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in state.items()]
    pieces = [tensor.flatten().split(2) for tensor in state.values()]
    write_safetensors(tmp_path / "b.safetensors", headers, pieces, metadata)
    assert (tmp_path / "b.safetensors").read_bytes() == (tmp_path / "a.safetensors").read_bytes()
    assert (tmp_path / "b.safetensors").stat().st_size == file_bytes(headers, metadata)


@pytest.mark.parametrize(
    ("dtype", "piece", "words"),
    [
        (torch.float32, torch.ones(2), "8 bytes instead of 12"),
        (torch.float32, torch.ones(3).half(), "planned as torch.float32"),
        (torch.complex128, torch.ones(3), "complex128"),
    ],
)
def test_wrong_pieces_and_types_are_refused(dtype, piece, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        write_safetensors(tmp_path / "a", [TensorHeader("a", dtype, (3,))], [[piece]], {})
