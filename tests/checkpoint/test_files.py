"""Containers: claims are checked before anything is read, lies told in words; what is written is the library's own."""

from __future__ import annotations

import io
import json
import pickle
import struct
import tracemalloc
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pruning_lib.checkpoint import files
from pruning_lib.checkpoint.files import open_file
from pruning_lib.checkpoint.inspect import inspect_checkpoint
from pruning_lib.checkpoint.pickle import CheckpointError
from pruning_lib.checkpoint.write import TensorHeader, file_bytes, write_safetensors


@pytest.fixture
def state() -> dict:
    torch.manual_seed(0)
    return {"a": torch.randn(7, 3), "b": torch.randn(5).half(), "c": torch.arange(4), "d": torch.zeros(0, 2)}


def write_header(path: Path, header: dict | bytes, data: bytes = b"\x00" * 8) -> Path:
    text = json.dumps(header).encode() if isinstance(header, dict) else header
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def repack(source: Path, target: Path, change) -> Path:
    """Write a zip anew; `change(info, data)` returns the bytes to write for a member, None to leave it out."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for info in old.infolist():
            made = change(info, old.read(info))
            if made is not None:
                new.writestr(zipfile.ZipInfo(info.filename), made)
    return target


def refused(path: Path, words: str) -> None:
    with pytest.raises(CheckpointError, match=words) as caught:
        inspect_checkpoint(path)
    assert str(path) in str(caught.value)


def test_every_format_gives_the_same_tensors(state, tmp_path):
    save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "a.pt")
    torch.save(state, tmp_path / "a.bin", _use_new_zipfile_serialization=False)
    for suffix, kind in ((".safetensors", "safetensors"), (".pt", "torch zip"), (".bin", "torch legacy")):
        source = open_file(tmp_path / f"a{suffix}")
        assert source.kind == kind and not source.notes
        assert {entry.path[0] for entry in source.entries} == state.keys()
        for entry in source.entries:
            found, true = source.read(entry), state[entry.path[0]]
            assert found.dtype == true.dtype and torch.equal(found, true)


def test_a_tensor_comes_in_pieces(state, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "PIECE", 4)
    torch.save({"a": state["a"], "t": state["a"].t(), "one": torch.randn(3, 1)[:, :1]}, tmp_path / "a.pt")
    source = open_file(tmp_path / "a.pt")
    a, t, _ = source.entries
    assert [len(piece) for piece in source.pieces(a)] == [4, 4, 4, 4, 4, 1]
    assert torch.equal(source.read(a), state["a"]) and torch.equal(source.read(t), state["a"].t())


def test_the_content_decides_and_the_name_is_remarked(state, tmp_path):
    save_file(state, tmp_path / "a.ckpt")
    torch.save(state, tmp_path / "b.safetensors")
    for path, kind in ((tmp_path / "a.ckpt", "safetensors"), (tmp_path / "b.safetensors", "torch zip")):
        source = open_file(path)
        assert source.kind == kind and kind in source.notes[0] and path.suffix in source.notes[0]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "git-lfs"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"GGUF\x03\x00", "GGUF"),
        (b"\x00" * 257 + b"ustar" + b"\x00" * 300, "tar"),
        (b"some words that are no model", "neither safetensors nor"),
        (pickle.dumps({"a": [1, 2]}, protocol=2), "bare pickle"),
    ],
)
def test_what_is_no_checkpoint_is_named(content, words, tmp_path):
    (tmp_path / "model.ckpt").write_bytes(content)
    refused(tmp_path / "model.ckpt", words)


@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
def test_truncated_files_are_refused_wherever_they_end(kind, state, tmp_path):
    whole, short = tmp_path / "whole", tmp_path / "short"
    if kind == "safetensors":
        save_file(state, whole)
    else:
        torch.save(state, whole, _use_new_zipfile_serialization=kind == "zip")
    data = whole.read_bytes()
    for end in {1, 5, 9, 20, len(data) // 3, len(data) // 2, len(data) - 100, len(data) - 30, len(data) - 1}:
        short.write_bytes(data[:end])
        with pytest.raises(CheckpointError):
            open_file(short)


def lie(shape: list, place: list, dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": place}


@pytest.mark.parametrize(
    "header",
    [
        {"a": lie([2], [0, 800])},  # beyond the file
        {"a": lie([200], [0, 8])},  # the shape does not fit the bytes
        {"a": lie([2**62, 2**62], [0, 8])},
        {"a": lie([-2], [0, 8])},
        {"a": lie([2], [8, 0])},
        {"a": lie([2], [0, 8], "F99")},
        {"a": lie([1], [0, 4]), "b": lie([2], [0, 8])},  # overlap
        {"a": lie([1], [4, 8])},  # a hole
        {"a": 5},
        b"{not json",
    ],
)
def test_a_safetensors_header_that_lies_is_refused(header, tmp_path):
    refused(write_header(tmp_path / "a.safetensors", header), "header")


def test_a_header_length_is_checked_and_never_taken_for_a_pickle(tmp_path):
    path = tmp_path / "a.safetensors"
    for length in range(30, 60):  # among them a header of 128 bytes, 0x80, with which a pickle begins
        save_file({"a": torch.ones(1)}, path, {"text": "x" * length})
        assert open_file(path).kind == "safetensors"
    for length in (2**63, 10**9, 200):
        path.write_bytes(length.to_bytes(8, "little") + b'{"a": 1}')
        refused(path, "header")


def test_a_header_that_names_a_tensor_twice_is_never_read_two_ways(tmp_path):
    one, two = (f'"a":{json.dumps(lie([1], place))}' for place in ([0, 4], [4, 8]))
    path = write_header(tmp_path / "a.safetensors", f"{{{one},{two}}}".encode(), struct.pack("ff", 1, 2))
    try:
        expected = load_file(path)
    except Exception:
        refused(path, "header")
    else:
        source = open_file(path)
        assert torch.equal(source.read(source.entries[0]), expected["a"])


def test_zip_bombs_are_refused_before_anything_is_unpacked(tmp_path):
    torch.save({"a": torch.zeros(5_000_000)}, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as old, zipfile.ZipFile(tmp_path / "b.pt", "w") as new:
        for info in old.infolist():
            new.writestr(zipfile.ZipInfo(info.filename), old.read(info), zipfile.ZIP_DEFLATED)
    assert (tmp_path / "b.pt").stat().st_size < 100_000
    tracemalloc.start()
    refused(tmp_path / "b.pt", "zip bomb")
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()


def test_members_that_share_bytes_are_refused(tmp_path):
    torch.save({"a": torch.zeros(100)}, tmp_path / "a.pt")
    data = bytearray((tmp_path / "a.pt").read_bytes())
    with zipfile.ZipFile(tmp_path / "a.pt") as archive:
        first_member = archive.infolist()[0].header_offset
    second = data.index(b"PK\x01\x02", data.index(b"PK\x01\x02") + 4)  # record of the directory
    data[second + 42 : second + 46] = first_member.to_bytes(4, "little")
    (tmp_path / "b.pt").write_bytes(data)
    refused(tmp_path / "b.pt", "made up|damaged")


def with_pickle(tmp_path: Path, size: int, shape: tuple, stride: tuple, offset: int = 0) -> Path:
    """A torch zip whose pickle claims a view of a storage of `size` numbers, while the file holds 10."""
    torch.save({"a": torch.zeros(10)}, tmp_path / "honest.pt")

    class Storage:
        pass

    class Claim:
        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (Storage(), offset, shape, stride, False, {})

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return ("storage", torch.FloatStorage, "0", "cpu", size) if isinstance(value, Storage) else None

    text = io.BytesIO()
    Pickler(text, protocol=2).dump({"a": Claim()})
    return repack(
        tmp_path / "honest.pt",
        tmp_path / "lie.pt",
        lambda info, data: text.getvalue() if info.filename.endswith("data.pkl") else data,
    )


@pytest.mark.parametrize(
    ("size", "shape", "stride", "offset"),
    [
        (10**12, (10**12,), (1,), 0),  # a storage far beyond the file
        (10, (10**9,), (0,), 0),  # one number repeated a thousand million times
        (10, (11,), (1,), 0),
        (10, (10,), (1,), 1),
        (10, (5,), (-1,), 4),
        (10, (2,), (1,), -1),
        (10, (2, 2), (1,), 0),
        (10, (2**40, 2**40), (1, 1), 0),
    ],
)
def test_tensors_that_claim_too_much_are_refused(size, shape, stride, offset, tmp_path):
    refused(with_pickle(tmp_path, size, shape, stride, offset), "claims|impossible")


def test_an_honest_claim_of_the_same_kind_is_read(tmp_path):
    assert open_file(with_pickle(tmp_path, 10, (2, 3), (3, 1), 1)).entries[0].offset == 1


def test_other_zips_are_told_apart(tmp_path):
    honest, made = tmp_path / "a.pt", tmp_path / "b.pt"
    torch.save({"a": torch.zeros(3)}, honest)
    for words, change in (
        ("0 is missing", lambda info, data: None if "/data/" in info.filename else data),
        ("big-endian", lambda info, data: b"big" if info.filename.endswith("byteorder") else data),
        ("not one that torch.save writes", lambda info, data: None if info.filename.endswith("data.pkl") else data),
    ):
        refused(repack(honest, made, change), words)
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(made))
    refused(made, "TorchScript|zip bomb")
    torch.save(torch.nn.Linear(2, 2), made)
    refused(made, "torch.nn.modules.linear.Linear")


def test_values_that_never_end_are_refused(tmp_path):
    endless, bomb = [], []
    endless.append(endless)
    for _ in range(40):  # forty lists, and a thousand thousand million paths through them
        bomb = [bomb, bomb]
    for value in (endless, bomb):
        torch.save({"a": value}, tmp_path / "a.pt")
        refused(tmp_path / "a.pt", "nested")


def test_a_file_that_shrinks_while_it_is_read_is_noticed(state, tmp_path):
    save_file(state, tmp_path / "a.safetensors")
    source = open_file(tmp_path / "a.safetensors")
    with (tmp_path / "a.safetensors").open("r+b") as file:
        file.truncate(source.nbytes - 10)
    with pytest.raises(CheckpointError, match="shorter"):
        [source.read(entry) for entry in source.entries]


@pytest.mark.parametrize("metadata", [{}, {"format": "pt"}])
def test_the_bytes_are_the_librarys(metadata, tmp_path):
    torch.manual_seed(0)
    state = {"ü": torch.randn(3, 3), "a": torch.randn(2), "empty": torch.zeros(0, 4), "scalar": torch.tensor(2.5)}
    state |= {f"t{i}": torch.arange(5).to(dtype) for i, dtype in enumerate(files.DTYPES.values())}
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
