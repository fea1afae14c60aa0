"""Containers: claims are checked before anything is read, lies are told in words, all formats are read alike."""

from __future__ import annotations

import io
import json
import pickle
import tracemalloc
import zipfile
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import pruning_lib as pl
from pruning_lib.checkpoint import files
from pruning_lib.checkpoint.files import open_file
from pruning_lib.checkpoint.pickle import CheckpointError


@pytest.fixture
def state() -> dict:
    torch.manual_seed(0)
    return {"a": torch.randn(7, 3), "b": torch.randn(5).half(), "c": torch.arange(4), "d": torch.zeros(0, 2)}


def refused(path: Path, words: str) -> None:
    with pytest.raises(CheckpointError, match=words) as caught:
        pl.inspect_checkpoint(path)
    assert str(path) in str(caught.value)


def test_every_format_gives_the_same_tensors_and_the_content_decides(state, tmp_path):
    save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "a.pt")
    torch.save(state, tmp_path / "a.bin", _use_new_zipfile_serialization=False)
    torch.save(state, tmp_path / "b.safetensors")
    kinds = {"a.safetensors": "safetensors", "a.pt": "torch zip", "a.bin": "torch legacy", "b.safetensors": "torch zip"}
    for name, kind in kinds.items():
        source = open_file(tmp_path / name)
        assert source.kind == kind and bool(source.notes) == name.startswith("b")
        assert {entry.path[0] for entry in source.entries} == state.keys()
        for entry in source.entries:
            true, pieces = state[entry.path[0]], list(source.pieces(entry))
            assert entry.shape == true.shape and entry.dtype == true.dtype
            assert torch.equal(torch.cat([true[:0].flatten(), *pieces]), true.flatten())
    assert "torch zip" in source.notes[0] and ".safetensors" in source.notes[0]


def test_a_tensor_comes_in_pieces_and_a_file_that_shrinks_is_noticed(state, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "PIECE", 4)
    torch.save({"a": state["a"], "t": state["a"].t()}, tmp_path / "a.pt")
    source = open_file(tmp_path / "a.pt")
    (a, *_), (t,) = (list(source.pieces(entry)) for entry in source.entries)
    assert len(a) == 4 and torch.equal(t, state["a"].t().flatten())
    (tmp_path / "a.pt").write_bytes((tmp_path / "a.pt").read_bytes()[:10])
    with pytest.raises(CheckpointError, match="shorter"):
        list(source.pieces(source.entries[0]))


def test_what_is_no_checkpoint_is_named(tmp_path):
    for words, content in {
        "empty": b"",
        "git-lfs": b"version https://git-lfs.github.com/spec/v1\noid",
        "web page": b"<!DOCTYPE html><html>",
        "GGUF": b"GGUF\x03\x00",
        "tar": bytes(257) + b"ustar" + bytes(300),
        "neither safetensors nor": b"some words that are no model",
        "bare pickle": pickle.dumps({"a": [1, 2]}, protocol=2),
    }.items():
        (tmp_path / "model.ckpt").write_bytes(content)
        refused(tmp_path / "model.ckpt", words)


def test_truncated_files_are_refused_wherever_they_end(state, tmp_path):
    whole, short = tmp_path / "whole", tmp_path / "short"
    for save in (save_file, torch.save, partial(torch.save, _use_new_zipfile_serialization=False)):
        save(state, whole)
        data = whole.read_bytes()
        for end in {1, 5, 9, 20, len(data) // 3, len(data) // 2, len(data) - 100, len(data) - 30, len(data) - 1}:
            short.write_bytes(data[:end])
            with pytest.raises(CheckpointError):
                open_file(short)


def test_a_safetensors_header_that_lies_is_refused_and_none_is_taken_for_a_pickle(tmp_path):
    path, fields = tmp_path / "a.safetensors", ("dtype", "shape", "data_offsets")
    lies = (
        {"a": ("F32", [2], [0, 800])},  # beyond the file
        {"a": ("F32", [200], [0, 8])},  # the shape does not fit the bytes
        {"a": ("F32", [2**62, 2**62], [0, 8])},
        {"a": ("F32", [-2], [0, 8])},
        {"a": ("F99", [2], [0, 8])},
        {"a": ("F32", [1], [0, 4]), "b": ("F32", [2], [0, 8])},  # overlap
        {"a": ("F32", [1], [4, 8])},  # a hole
    )
    texts = [json.dumps({name: dict(zip(fields, lie, strict=True)) for name, lie in one.items()}) for one in lies]
    lengths = {text: len(text) for text in (*texts, "{not json", '{"a": 5}')} | {"{}": 2**62}
    for text, length in lengths.items():
        path.write_bytes(length.to_bytes(8, "little") + text.encode() + bytes(8))
        refused(path, "header")
    for length in range(30, 60):  # among them a header of 128 bytes, 0x80, with which a pickle begins
        save_file({"a": torch.ones(1)}, path, {"text": "x" * length})
        assert open_file(path).kind == "safetensors"


def repack(source: Path, target: Path, change, packing: int = zipfile.ZIP_STORED) -> Path:
    """Write a zip anew; `change(name, data)` returns the bytes to write for a member, None to leave it out."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for info in old.infolist():
            made = change(info.filename, old.read(info))
            if made is not None:
                new.writestr(zipfile.ZipInfo(info.filename), made, packing)
    return target


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
        lambda name, data: text.getvalue() if name.endswith("data.pkl") else data,
    )


def test_tensors_that_claim_too_much_are_refused(tmp_path):
    for size, shape, stride, offset in (
        (10**12, (10**12,), (1,), 0),  # a storage far beyond the file
        (10, (10**9,), (0,), 0),  # one number repeated a thousand million times
        (10, (10,), (1,), 1),
        (10, (5,), (-1,), 4),
        (10, (2, 2), (1,), 0),
        (10, (2**40, 2**40), (1, 1), 0),
    ):
        refused(with_pickle(tmp_path, size, shape, stride, offset), "claims|impossible")
    assert open_file(with_pickle(tmp_path, 10, (2, 3), (3, 1), 1)).entries[0].offset == 1  # an honest claim


def test_other_zips_are_told_apart(tmp_path):
    honest, made = tmp_path / "a.pt", tmp_path / "b.pt"
    torch.save({"a": torch.zeros(100)}, honest)
    for words, change in (
        ("0 is missing", lambda name, data: None if "/data/" in name else data),
        ("big-endian", lambda name, data: b"big" if name.endswith("byteorder") else data),
        ("not one that torch.save writes", lambda name, data: None if name.endswith("data.pkl") else data),
    ):
        refused(repack(honest, made, change), words)
    torch.save({"a": torch.zeros(1_000_000)}, tmp_path / "large.pt")
    repack(tmp_path / "large.pt", made, lambda name, data: data, zipfile.ZIP_DEFLATED)
    assert made.stat().st_size < 100_000
    tracemalloc.start()
    refused(made, "zip bomb")
    assert tracemalloc.get_traced_memory()[1] < 1e6  # before anything is unpacked
    tracemalloc.stop()
    data = bytearray(honest.read_bytes())
    second = data.index(b"PK\x01\x02", data.index(b"PK\x01\x02") + 4)  # record of the directory
    data[second + 42 : second + 46] = bytes(4)  # the second member claims the bytes of the first
    made.write_bytes(data)
    refused(made, "made up|damaged")
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(made))
    refused(made, "TorchScript|zip bomb")
    torch.save(torch.nn.Linear(2, 2), made)
    refused(made, "torch.nn.modules.linear.Linear")
    endless, bomb = [], []
    endless.append(endless)
    for _ in range(40):  # forty lists, and a thousand thousand million paths through them
        bomb = [bomb, bomb]
    for value in (endless, bomb):
        torch.save({"a": value}, made)
        refused(made, "nested")
