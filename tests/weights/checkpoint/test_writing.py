"""The file written in pieces is the library's own, byte for byte."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from pruning_lib.checkpoint.files import DTYPES
from pruning_lib.checkpoint.write import Planned, file_bytes, in_place, write_safetensors


def written(path, state: dict, metadata: dict) -> bytes:
    plan = [Planned(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in state.items()]
    pieces = [tensor.flatten().split(2) for tensor in state.values()]
    write_safetensors(path, plan, pieces, metadata)
    assert path.stat().st_size == file_bytes(plan, metadata)
    return path.read_bytes()


@pytest.mark.parametrize("metadata", [{}, {"format": "pt"}])
def test_the_bytes_are_the_librarys(metadata, tmp_path):
    torch.manual_seed(0)
    state = {"ü": torch.randn(3, 3), "a": torch.randn(2), "empty": torch.zeros(0, 4), "scalar": torch.tensor(2.5)}
    for i, dtype in enumerate(DTYPES.values()):
        state[f"t{i}"] = torch.arange(5).to(dtype)
    save_file(state, tmp_path / "a.safetensors", metadata or None)
    assert written(tmp_path / "b.safetensors", state, metadata) == (tmp_path / "a.safetensors").read_bytes()


def test_wrong_pieces_and_types_are_refused(tmp_path):
    plan = [Planned("a", torch.float32, (3,))]
    with pytest.raises(ValueError, match="8 bytes instead of 12"):
        write_safetensors(tmp_path / "a", plan, [[torch.ones(2)]], {})
    with pytest.raises(ValueError, match="planned as torch.float32"):
        write_safetensors(tmp_path / "b", plan, [[torch.ones(3).half()]], {})
    with pytest.raises(ValueError, match="complex128"):
        write_safetensors(tmp_path / "c", [Planned("z", torch.complex128, (1,))], [[]], {})


def test_in_place_moves_only_what_is_finished(tmp_path):
    with in_place(tmp_path / "new/a.txt") as temporary:
        assert temporary.parent.parent == tmp_path / "new"  # the same disk, so the move is one step
        temporary.write_text("new")
        assert not (tmp_path / "new/a.txt").exists()
    assert (tmp_path / "new/a.txt").read_text() == "new"
    with pytest.raises(KeyboardInterrupt), in_place(tmp_path / "new/a.txt") as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.txt"] and (tmp_path / "new/a.txt").read_text() == "new"
