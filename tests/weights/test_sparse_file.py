"""The compressed-sparse file: every bit comes back, sizes are exact, and damage is named."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from pruning_book.sparse_file import LAYOUTS, dense_bytes, load_sparse, plan_sparse, save_sparse, sparse_bytes

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn)
WHOLE = (torch.int64, torch.int32, torch.uint16, torch.uint8, torch.bool)


def thinned(n: int, sparsity: float, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Return n entries of which about this share is zero."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(1, 100, (n,), generator=generator)
    return torch.where(torch.rand(n, generator=generator) < sparsity, 0, values).to(dtype)


def bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def assert_same(found: dict[str, Tensor], given: dict[str, Tensor]) -> None:
    assert list(found) == sorted(given)
    for name, tensor in given.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape, name
        assert bits(found[name]) == bits(tensor), name


@pytest.mark.parametrize("dtype", [*FLOATS, *WHOLE], ids=str)
@pytest.mark.parametrize("sparsity", [0, 0.3, 0.8, 0.97, 0.9995, 1])
def test_every_bit_comes_back_and_the_size_was_known(dtype: torch.dtype, sparsity: float, tmp_path: Path) -> None:
    given = {"w": thinned(6000, sparsity, dtype).reshape(3, 20, 100), "b": thinned(7, 0, dtype)}
    path = save_sparse(given, tmp_path / "w.safetensors")
    assert_same(load_sparse(path), given)
    assert path.stat().st_size == sparse_bytes(given)


def test_every_layout_is_used_and_comes_back(tmp_path: Path) -> None:
    given = {str(s): thinned(100_000, s) for s in (0, 0.5, 0.95, 0.9995)}
    assert [entry.stored.layout for entry in plan_sparse(given)] == list(LAYOUTS)
    assert_same(load_sparse(save_sparse(given, tmp_path / "x")), given)


def test_odd_values_and_shapes_come_back(tmp_path: Path) -> None:
    odd = torch.zeros(4000)
    odd[[0, 1, 2, 3, 3999]] = torch.tensor([-0.0, float("nan"), float("inf"), -float("inf"), 1e-45])
    other_nan = torch.zeros(4000)
    other_nan.view(torch.int32)[7] = 0x7FC00123  # a NaN of another payload
    given = {
        "odd": odd,
        "nan": other_nan,
        "zero": torch.zeros(30, 300),
        "scalar": torch.tensor(0.0),
        "none": torch.empty(0, 5),
        "turned": thinned(5000, 0.9).reshape(50, 100).t(),
        "channels last": thinned(5000, 0.9).reshape(2, 25, 10, 10).to(memory_format=torch.channels_last),
        "complex": torch.complex(thinned(900, 0.9), thinned(900, 0.9)).conj(),
        "ünïcode\n": thinned(900, 0.9),
    }
    found = load_sparse(save_sparse(given, tmp_path / "x"))
    assert_same(found, {k: v.resolve_conj() for k, v in given.items()})
    assert str(found["odd"][0].item()) == "-0.0"


def test_escapes_at_every_edge(tmp_path: Path) -> None:
    # Gaps right at the largest code, one below and above, at the start and at the end, for both widths.
    given = {}
    for edge in (255, 65535):
        for gap in (edge - 1, edge, edge + 1, 2 * edge, 3 * edge + 1):
            tensor = torch.zeros(gap + 300_000)
            tensor[gap], tensor[gap + 1] = 1, 2
            given[f"{edge} {gap}"] = tensor
            last = torch.zeros(300_000)
            last[-1] = 1
            given[f"{edge} {gap} last"] = last
    assert_same(load_sparse(save_sparse(given, tmp_path / "x")), given)


def test_a_module_takes_what_was_read(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 30), nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3))
    with torch.no_grad():
        model[0].weight[model[0].weight.abs() < 0.15] = 0
    path = save_sparse(model.state_dict(), tmp_path / "folder" / "m.safetensors")
    twin = nn.Sequential(nn.Linear(20, 30), nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3))
    twin.load_state_dict(load_sparse(path))
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), twin.state_dict().values(), strict=True))


def test_a_plain_file_has_the_size_the_library_gives_it(tmp_path: Path) -> None:
    given = {"a": thinned(1000, 0.9), "b.c": thinned(31, 0.5, torch.float16), "n": torch.tensor(3)}
    safetensors.torch.save_file(given, tmp_path / "plain.safetensors")
    assert dense_bytes(given) == (tmp_path / "plain.safetensors").stat().st_size


@pytest.mark.parametrize("sparsity", [0, 0.02, 0.05, 0.07, 0.3, 0.9, 0.99, 1])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_never_larger_than_dense_by_more_than_a_note(sparsity: float, dtype: torch.dtype) -> None:
    # Many small tensors with long names, where headers weigh most.
    given = {f"down_blocks.{i}.attentions.0.weight": thinned(64 * i, sparsity, dtype, i) for i in range(40)}
    assert sparse_bytes(given) <= dense_bytes(given) + 120


def test_it_is_valid_safetensors(tmp_path: Path) -> None:
    given = {"w": thinned(1000, 0.5), "b": torch.ones(3)}
    found = safetensors.torch.load_file(save_sparse(given, tmp_path / "x"))
    assert sorted(found) == ["b", "w#bitmap", "w#values"]
    assert torch.equal(found["b"], given["b"]) and torch.equal(found["w#values"], given["w"][given["w"] != 0])


def test_equal_tensors_make_equal_bytes(tmp_path: Path) -> None:
    given = {"b": thinned(1000, 0.5), "a": thinned(1000, 0.95), "c": torch.ones(3)}
    first = save_sparse(given, tmp_path / "1").read_bytes()
    turned = {name: given[name].clone() for name in reversed(given)}
    assert save_sparse(turned, tmp_path / "2").read_bytes() == first
    assert save_sparse(load_sparse(tmp_path / "1"), tmp_path / "3").read_bytes() == first


def test_a_tied_tensor_is_written_once_and_stays_tied(tmp_path: Path) -> None:
    weight = thinned(50_000, 0.5).reshape(500, 100)
    tied = {"in": weight, "out": weight, "part": weight[:250], "turned": weight.t()}
    path = save_sparse(tied, tmp_path / "x")
    found = load_sparse(path)
    assert_same(found, tied)
    assert found["in"].data_ptr() == found["out"].data_ptr() != found["part"].data_ptr()
    assert sparse_bytes({"in": weight, "out": weight}) < sparse_bytes({"in": weight}) + 100
    assert path.stat().st_size == sparse_bytes(tied)


def test_a_folder_is_not_replaced_and_a_failure_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"w": thinned(1000, 0.5)}
    with pytest.raises(IsADirectoryError):
        save_sparse(given, tmp_path)
    path = save_sparse(given, tmp_path / "x")
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_sparse({"w": torch.ones(3)}, path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize(
    "given, what",
    [
        ([torch.ones(2)], "name: tensor"),
        ({"w": [1.0]}, "list"),
        ({1: torch.ones(2)}, "named 1"),
        ({"w#values": torch.ones(2)}, "load_sparse"),
        ({"__metadata__": torch.ones(2)}, "__metadata__"),
        ({"w": torch.empty(2, device="meta")}, "on meta"),
        ({"w": torch.eye(3).to_sparse()}, "to_dense"),
        ({"w": torch.ones(2, dtype=torch.complex128)}, "complex128"),
    ],
)
def test_what_cannot_be_written_is_refused_before_anything_is(given: object, what: str, tmp_path: Path) -> None:
    with pytest.raises((TypeError, ValueError), match=what):
        save_sparse(given, tmp_path / "x")
    assert not list(tmp_path.iterdir())


def rewrite(path: Path, change) -> Path:
    """Change the tensors or the metadata of a file, and write it as safetensors does."""
    with safetensors.safe_open(path, "pt") as file:
        notes, tensors = dict(file.metadata()), {name: file.get_tensor(name) for name in file.keys()}
    change(tensors, notes)
    safetensors.torch.save_file({k: v.contiguous().clone() for k, v in tensors.items()}, path, notes)
    return path


def out_of_range(tensors: dict, notes: dict) -> None:
    tensors["gap#gap8"][-1] = 254
    tensors["gap#gap8"][-20:-1] = 254


def too_large(tensors: dict, notes: dict) -> None:
    notes["sparse"] = json.dumps({**json.loads(notes["sparse"]), "map": ["bitmap", [10**9, 10**9]]})


DAMAGE = {
    "version": (lambda t, n: n.update(version="2"), "version '2'"),
    "format": (lambda t, n: n.update(format="other"), "no compressed-sparse file"),
    "notes": (lambda t, n: n.update(sparse="{"), "notes on layouts"),
    "notes of another form": (lambda t, n: n.update(sparse='{"map": 3}'), "notes on layouts"),
    "negative side": (lambda t, n: n.update(sparse='{"map": ["bitmap", [-1]]}'), "notes on layouts"),
    "layout": (lambda t, n: n.update(sparse='{"map": ["zip", [800]]}'), "notes on layouts"),
    "part missing": (lambda t, n: t.pop("map#bitmap"), "lacks map#bitmap"),
    "part too much": (lambda t, n: t.update({"other#gap8": torch.ones(2)}), "belongs to no tensor"),
    "twice": (lambda t, n: t.update({"map": torch.ones(2)}), "'map' is in it twice"),
    "same as nothing": (lambda t, n: n.update(same='{"a": "b"}'), "'b'"),
    "bitmap too short": (lambda t, n: t.update({"map#bitmap": t["map#bitmap"][:-1]}), "does not fit 1003"),
    "bitmap past the end": (lambda t, n: t["map#bitmap"].__setitem__(-1, 255), "past the last of 1003"),
    "value lost": (lambda t, n: t.update({"map#values": t["map#values"][:-1]}), r"name \d+ entries"),
    "code lost": (lambda t, n: t.update({"gap#gap8": t["gap#gap8"][:-1]}), r"name \d+ entries"),
    "open escape": (lambda t, n: t["gap#gap8"].__setitem__(-1, 255), "last gap"),
    "gap past the end": (out_of_range, "past the last of 1000"),
    "codes of another type": (lambda t, n: t.update({"gap#gap8": t["gap#gap8"].int()}), "torch.int32"),
    "a bomb of zeros": (too_large, "limit_bytes"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named(name: str, tmp_path: Path) -> None:
    path = save_sparse({"map": thinned(1003, 0.5), "gap": thinned(1000, 0.95)}, tmp_path / "x.safetensors")
    change, said = DAMAGE[name]
    with pytest.raises(ValueError, match=said) as raised:
        load_sparse(rewrite(path, change))
    assert str(path) in str(raised.value)


def test_a_file_cut_short_or_not_there_is_named(tmp_path: Path) -> None:
    path = save_sparse({"w": thinned(1000, 0.5)}, tmp_path / "x")
    whole = path.read_bytes()
    for cut in (0, 5, 100, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match="no valid safetensors"):
            load_sparse(path)
    with pytest.raises(FileNotFoundError, match="no file"):
        load_sparse(tmp_path / "absent")
    safetensors.torch.save_file({"w": torch.ones(3)}, path)
    with pytest.raises(ValueError, match="load_file"):
        load_sparse(path)
