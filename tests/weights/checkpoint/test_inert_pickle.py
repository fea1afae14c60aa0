"""Pickles are read as data: hostile ones run nothing and are refused by name, honest ones read as torch reads them."""

from __future__ import annotations

import builtins
import io
import os
import pickle
import subprocess
import sys
import time
import zipfile
from collections import OrderedDict, defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch

from pruning_lib.checkpoint.files import open_file
from pruning_lib.checkpoint.inspect import inspect_checkpoint
from pruning_lib.checkpoint.pickle import CheckpointError, Made, UnsafePickleError, read_pickle
from pruning_lib.checkpoint.slim import slim

PROTOCOLS = range(6)


class Calls:
    """Pickles as a call of `function` with `args`."""

    def __init__(self, function, *args) -> None:
        self.call = function, args

    def __reduce__(self):
        return self.call


def read(value, protocol: int = 2):
    return read_pickle(io.BytesIO(pickle.dumps(value, protocol=protocol)))


def hostile(marker: Path) -> dict[str, tuple[object, str]]:
    """Return harmless attacks, each of which would make the file `marker`, and the name each must be refused with."""
    touch = f"open({str(marker)!r}, 'w').close()"
    return {
        "system": (Calls(os.system, f"touch {marker}"), f"{os.system.__module__}.system"),
        "eval": (Calls(eval, touch), "builtins.eval"),
        "exec": (Calls(exec, touch), "builtins.exec"),
        "open": (Calls(builtins.open, str(marker), "w"), "io.open"),
        "run": (Calls(subprocess.run, ["touch", str(marker)]), "subprocess.run"),
        "nested": (Calls(OrderedDict, [("a", Calls(os.system, f"touch {marker}"))]), ".system"),
        "key": ({Calls(os.system, f"touch {marker}"): 1}, ".system"),
        "getattr": (Calls(getattr, Calls(__import__, "os"), "system"), "builtins.getattr"),
        "state": (Stateful(Calls(os.system, f"touch {marker}")), ".system"),
    }


class Stateful:
    """Pickles with a state, which BUILD would set."""

    def __init__(self, state) -> None:
        self.state = state

    def __reduce__(self):
        return OrderedDict, (), {"x": self.state}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("attack", list(hostile(Path("x"))))
def test_hostile_files_are_refused_by_name_and_run_nothing(attack, legacy, tmp_path):
    marker, file = tmp_path / "marker", tmp_path / "model.ckpt"
    value, name = hostile(marker)[attack]
    torch.save({"state_dict": {"a": torch.ones(3)}, "x": value}, file, _use_new_zipfile_serialization=not legacy)
    for attempt in (inspect_checkpoint, lambda path: slim(path, tmp_path / "out.safetensors")):
        with pytest.raises(UnsafePickleError, match="Nothing was run") as caught:
            attempt(file)
        assert any(name in found for found in caught.value.names) and str(file) in str(caught.value)
    assert not marker.exists() and not (tmp_path / "out.safetensors").exists()
    # the attack is a real one: the ordinary loader runs it
    if attack in ("system", "eval", "nested"):
        torch.load(file, weights_only=False)
        assert marker.exists()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_hostile_names_are_seen_in_every_protocol(protocol, tmp_path):
    for attack, (value, name) in hostile(tmp_path / "marker").items():
        with pytest.raises(UnsafePickleError) as caught:
            read([1, value], protocol)
        assert any(name in found for found in caught.value.names), attack
    assert not (tmp_path / "marker").exists()


def test_names_with_dots_cannot_reach_through_a_harmless_module():
    # protocol 4 fetches "os.system" out of any module that imported os
    for module, name in (("pathlib", "os.system"), ("pytorch_lightning.trainer", "os.system"), ("typing", "sys.exit")):
        text = b"\x80\x04\x8c" + bytes([len(module)]) + module.encode() + b"\x8c" + bytes([len(name)])
        with pytest.raises(UnsafePickleError, match=name):
            read_pickle(io.BytesIO(text + name.encode() + b"\x93)R."))


def test_functions_of_leftover_libraries_are_no_leftovers():
    with pytest.raises(UnsafePickleError, match="pytorch_lightning.utilities.load"):
        read_pickle(io.BytesIO(b"cpytorch_lightning.utilities\nload\n)R."))


def test_old_instructions_are_data_too():
    for text in (b"(S'touch x'\nios\nsystem\n.", b"(cos\nsystem\nS'touch x'\no.", b"c__builtin__\neval\n(S'1'\ntR."):
        with pytest.raises(UnsafePickleError, match=r"os.system|builtins.eval"):
            read_pickle(io.BytesIO(text))


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\x80\x02",
        b"\x80\x02}",
        b"\x82\x01.",
        b"N\x96" + b"\xff" * 8,
        b"0.",
        b"K\x01K\x02R.",
        b"K\x01Q.",
        b"\x97.",
    ],
)
def test_nonsense_is_refused_in_words(text):
    with pytest.raises(CheckpointError):
        read_pickle(io.BytesIO(text))


def test_a_slot_number_of_four_billion_takes_no_memory():
    assert read_pickle(io.BytesIO(b"\x80\x02]r\xff\xff\xff\xff.")).value == []


DOUBLED = b"K\x01" + b"2\x86" * 60  # 1, then sixty times the pair of what stands there with itself


@pytest.mark.parametrize(
    "text",
    [
        b"}" + DOUBLED + b"K\x05s.",  # as a key, which would be hashed
        b"ctorch\ndevice\n" + DOUBLED + b"\x85R.",
        b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\n" + DOUBLED + b"X\x03\x00\x00\x00cpuK\x05tQ.",
        b"ccollections\nOrderedDict\n(((" + DOUBLED + b"K\x01tltR.",
        b"\x8a\xff" + b"\x7f" * 255 + b".",
    ],
)
def test_values_that_double_take_no_time(text, tmp_path):
    """Written out, or hashed, each of these would have more parts than there is time for."""
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02" + text)
    started = time.perf_counter()
    try:
        open_file(tmp_path / "a.pt")
    except CheckpointError as error:
        assert len(str(error)) < 1000
    assert time.perf_counter() - started < 5


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_plain_values_come_back(protocol):
    value = {"a": [1, -2.5, True, None, (1, 2, 3, 4)], "b": b"bytes" if protocol > 2 else "x", 7: 2**70, "ü": ()}
    assert read(value, protocol).value == value
    assert read(OrderedDict(a=1), protocol).value == {"a": 1}
    assert read(defaultdict(list, a=1), protocol).value == {"a": 1}


def test_other_calls_become_inert():
    found = read(np.float64(0.5))
    assert isinstance(found.value, Made) and found.value.name.endswith("multiarray.scalar")
    assert any("numpy" in name for name in found.names)


def test_leftovers_are_read_and_unknown_names_only_when_allowed(foreign, tmp_path):
    file = tmp_path / "model.ckpt"
    with foreign("mytrainer.config.Settings") as kind:
        torch.save({"state_dict": {"a": torch.ones(3)}, "config": kind()}, file)
    with pytest.raises(UnsafePickleError, match=r"mytrainer.config.Settings.*allow it by name"):
        open_file(file)
    source = open_file(file, allow=["mytrainer.*"])
    assert source.others == {"config": "mytrainer.config.Settings"} and len(source.entries) == 1
    assert "mytrainer" not in sys.modules


def test_dangerous_modules_cannot_be_allowed(tmp_path):
    torch.save({"x": Calls(os.system, "true")}, tmp_path / "a.ckpt")
    with pytest.raises(UnsafePickleError, match="Delete the file"):
        open_file(tmp_path / "a.ckpt", allow=["*", f"{os.system.__module__}.system"])


def test_what_torch_reads_safely_we_read_alike(tmp_path):
    base = torch.randn(6, 5)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Conv2d(2, 2, 3))
    optimizer = torch.optim.AdamW(model.parameters())
    model[0](torch.randn(2, 3)).sum().backward()
    optimizer.step()
    value = {
        "state_dict": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "parameter": model[0].weight,
        "views": [base.t(), base[1:4, ::2], base[:0], torch.tensor(3.5), base.to(torch.bfloat16)],
        "whole": [torch.arange(5), torch.tensor([True, False]), torch.tensor([1, 2], dtype=torch.int16)],
        "complex": torch.randn(3, dtype=torch.complex64),
        "half": base.half(),
        "double": base.double(),
        "size": torch.Size([1, 2]),
        "dtype": torch.float16,
        "device": torch.device("cpu"),
        "step": 5,
    }
    for legacy in (False, True):
        file = tmp_path / f"{legacy}.pt"
        torch.save(value, file, _use_new_zipfile_serialization=not legacy)
        expected = torch.load(file, weights_only=True)
        source = open_file(file)
        seen = set()
        for entry in source.entries:
            item = expected
            for key in entry.path:
                item = item[int(key) if not isinstance(item, dict) or key not in item else key]
            found = source.read(entry)
            assert found.dtype == item.dtype and found.shape == item.shape and torch.equal(found, item), entry
            seen.add(entry.path)
        count = sum(isinstance(leaf, torch.Tensor) for leaf in torch.utils._pytree.tree_leaves(expected))
        assert len(seen) == count > 20


def test_reading_imports_and_calls_nothing(monkeypatch, small_ckpt):
    def forbidden(*_, **__):
        raise AssertionError("a global was looked up")

    monkeypatch.setattr(pickle, "Unpickler", forbidden)
    monkeypatch.setattr(pickle, "loads", forbidden)
    monkeypatch.setattr(torch, "load", forbidden)
    monkeypatch.setattr(torch._utils, "_rebuild_tensor_v2", forbidden)
    assert len(open_file(small_ckpt).entries) > 10
