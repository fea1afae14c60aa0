"""Pickles are read as data: hostile ones run nothing and are refused by name, honest ones read as torch reads them."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
import time
import zipfile
from collections import OrderedDict, defaultdict

import numpy as np
import pytest
import torch

import pruning_lib as pl
from pruning_lib.checkpoint.files import open_file
from pruning_lib.checkpoint.pickle import CheckpointError, InertObject, UnsafePickleError, read_pickle


def read(value, protocol: int = 2):
    return read_pickle(io.BytesIO(pickle.dumps(value, protocol=protocol)))


def test_hostile_values_are_refused_by_name_and_run_nothing(calls, attack, tmp_path):
    marker, file, out = tmp_path / "marker", tmp_path / "model.ckpt", tmp_path / "out.safetensors"
    touch = f"open({str(marker)!r}, 'w').close()"
    attacks = [
        (attack, f"{os.system.__module__}.system"),
        (calls(eval, touch), "builtins.eval"),
        (calls(OrderedDict, [("a", attack)]), ".system"),
        (calls(exec, touch), "builtins.exec"),
        (calls(open, str(marker), "w"), "io.open"),
        (calls(subprocess.run, ["touch", str(marker)]), "subprocess.run"),
        ({attack: 1}, ".system"),
        (calls(getattr, calls(__import__, "os"), "system"), "builtins.getattr"),
        (calls(OrderedDict, state={"x": attack}), ".system"),
    ]
    for value, name in attacks:
        for protocol in range(6):
            with pytest.raises(UnsafePickleError) as caught:
                read([1, value], protocol)
            assert any(name in found for found in caught.value.names)
        for whole in (False, True):
            torch.save({"state_dict": {"a": torch.ones(3)}, "x": value}, file, _use_new_zipfile_serialization=whole)
            for attempt in (pl.inspect_checkpoint, lambda path: pl.slim(path, out)):
                with pytest.raises(UnsafePickleError, match="Nothing was run") as caught:
                    attempt(file)
                assert any(name in found for found in caught.value.names) and str(file) in str(caught.value)
    assert not marker.exists() and not out.exists()
    for value, _ in attacks[:3]:  # the attacks are real
        torch.save({"x": value}, file)
        torch.load(file, weights_only=False)
        marker.unlink()


def test_no_way_around_the_names():
    for text, name in (
        (b"\x80\x04\x8c\x07pathlib\x8c\x09os.system\x93)R.", "os.system"),  # out of a module that imported os
        (b"\x80\x04\x8c\x09omegaconf\x8c\x09os.system\x93)R.", "os.system"),
        (b"cpytorch_lightning.utilities\nload\n)R.", "pytorch_lightning.utilities.load"),  # a function, no leftover
        (b"(S'touch x'\nios\nsystem\n.", "os.system"),  # the oldest instructions
        (b"(cos\nsystem\nS'touch x'\no.", "os.system"),
        (b"c__builtin__\neval\n(S'1'\ntR.", "builtins.eval"),
    ):
        with pytest.raises(UnsafePickleError, match=name):
            read_pickle(io.BytesIO(text))


def test_nonsense_is_refused_in_words_and_large_numbers_take_no_memory():
    for text in (b"", b"\x80\x02}", b"\x82\x01.", b"N\x96" + b"\xff" * 8, b"0.", b"K\x01K\x02R.", b"K\x01Q.", b"\x97."):
        with pytest.raises(CheckpointError):
            read_pickle(io.BytesIO(text))
    assert read_pickle(io.BytesIO(b"\x80\x02]r\xff\xff\xff\xff.")).value == []  # kept in slot four billion


DOUBLED = b"K\x01" + b"2\x86" * 60  # 1, then sixty times the pair of what stands there with itself


def test_values_that_double_take_no_time(tmp_path):
    """Written out, or hashed, each of these would have more parts than there is time for."""
    started = time.perf_counter()
    for text in (
        b"}" + DOUBLED + b"K\x05s.",  # as a key, which would be hashed
        b"ctorch\ndevice\n" + DOUBLED + b"\x85R.",
        b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\n" + DOUBLED + b"X\x03\x00\x00\x00cpuK\x05tQ.",
        b"ccollections\nOrderedDict\n(((" + DOUBLED + b"K\x01tltR.",
        b"\x8a\xff" + b"\x7f" * 255 + b".",
    ):
        with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
            archive.writestr("a/data.pkl", b"\x80\x02" + text)
        try:
            open_file(tmp_path / "a.pt")
        except CheckpointError as error:
            assert len(str(error)) < 1000
    assert time.perf_counter() - started < 10


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_plain_values_come_back(protocol):
    value = {"a": [1, -2.5, True, None, (1, 2, 3, 4)], "b": b"bytes" if protocol > 2 else "x", 7: 2**70, "ü": ()}
    assert read(value, protocol).value == value
    assert read(OrderedDict(a=1), protocol).value == read(defaultdict(list, a=1), protocol).value == {"a": 1}
    found = read(np.float64(0.5), protocol).value  # other calls become inert
    assert isinstance(found, InertObject) and found.name.endswith("multiarray.scalar")


def test_unknown_names_are_read_only_when_allowed_and_dangerous_ones_never(foreign, attack, tmp_path):
    file = tmp_path / "model.ckpt"
    with foreign("mytrainer.config.Settings") as kind:
        torch.save({"state_dict": {"a": torch.ones(3)}, "config": kind()}, file)
    with pytest.raises(UnsafePickleError, match=r"mytrainer.config.Settings.*allow it by name"):
        open_file(file)
    source = open_file(file, allow=["mytrainer.*"])
    assert source.others == {"config": "mytrainer.config.Settings"} and len(source.entries) == 1
    assert "mytrainer" not in sys.modules
    torch.save({"x": attack}, file)
    with pytest.raises(UnsafePickleError, match="Delete the file"):
        open_file(file, allow=["*", f"{os.system.__module__}.system"])


def test_what_torch_reads_safely_we_read_alike_and_without_a_call(tmp_path, monkeypatch):
    base = torch.randn(6, 5)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Conv2d(2, 2, 3))
    optimizer = torch.optim.AdamW(model.parameters())
    model[0](torch.randn(2, 3)).sum().backward()
    optimizer.step()
    types = (torch.complex64, torch.bfloat16, torch.float16, torch.float64, torch.int16, torch.bool)
    value = {
        "state_dict": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "parameter": model[0].weight,
        "views": [base.t(), base[1:4, ::2], base[:0], torch.tensor(3.5), *(base.to(dtype) for dtype in types)],
        "no tensors": [torch.Size([1, 2]), torch.float16, torch.device("cpu"), 5],
    }
    whole, legacy = tmp_path / "whole.pt", tmp_path / "legacy.pt"
    torch.save(value, whole)
    torch.save(value, legacy, _use_new_zipfile_serialization=False)
    expected = torch.load(whole, weights_only=True)
    for place, name in ((pickle, "Unpickler"), (torch, "load"), (torch._utils, "_rebuild_tensor_v2")):
        monkeypatch.setattr(place, name, lambda *_, **__: pytest.fail("a global was looked up"))
    for file in (whole, legacy):
        source = open_file(file)
        for entry in source.entries:
            item = expected
            for key in entry.path:
                item = item[int(key) if not isinstance(item, dict) or key not in item else key]
            assert entry.dtype == item.dtype and entry.shape == item.shape
            assert torch.equal(torch.cat([item.detach().flatten()[:0], *source.pieces(entry)]), item.flatten()), entry
        count = sum(isinstance(leaf, torch.Tensor) for leaf in torch.utils._pytree.tree_leaves(expected))
        assert len({entry.path for entry in source.entries}) == count > 20
