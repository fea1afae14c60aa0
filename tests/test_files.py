"""Files of the library: written whole or not at all, and read back with words for what is wrong."""

from __future__ import annotations

import json
import os

import pytest
import torch
from safetensors.torch import save_file

from pruning_lib.files import load_json, load_tensors, reading, save_json, save_tensors, write_whole


def test_what_is_saved_is_loaded_and_others_may_read_it(tmp_path):
    paths = [save_json(tmp_path / "new/a.json", "plan", 2, {"x": [1, "µ"]})]
    assert load_json(paths[0], "plan", (1, 2)) == {"x": [1, "µ"], "version": 2}
    table = torch.arange(6).reshape(2, 3).T  # not contiguous
    paths.append(save_tensors(tmp_path / "new/a.safetensors", "scores", 1, {"table": table}, {"x": 1}))
    tensors, told = load_tensors(paths[1], "scores")
    assert torch.equal(tensors["table"], table) and told == {"x": 1, "version": 1}
    assert sorted(paths[0].parent.iterdir()) == paths and all(path.stat().st_mode & 0o044 for path in paths)
    save_file({"t": torch.ones(1)}, paths[1], {"scores": '{"version": 1}'})  # as old ones say it
    assert load_tensors(paths[1], "scores")[1] == {"version": 1}


@pytest.mark.parametrize("inside", ["", "part"], ids=["file", "folder"])
def test_a_crash_while_writing_leaves_what_was_there(tmp_path, inside):
    def write(text: str, crash: bool = False) -> None:
        with write_whole(tmp_path / "a") as part:
            if inside:
                part.mkdir()
            (part / inside).write_text(text)
            if crash:
                raise KeyboardInterrupt

    write("old")
    with pytest.raises(KeyboardInterrupt):
        write("new", crash=True)
    if inside:
        with pytest.raises(OSError):  # one that is not empty stays
            write("new")
    assert os.listdir(tmp_path) == ["a"] and (tmp_path / "a" / inside).read_text() == "old"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"format": "pruning_lib.plan/1"', "is not valid JSON|is damaged"),
        ("[1]", "holds no plan, but list"),
        ('{"format": "pruning_lib.schedule/1"}', "holds no plan: its format is 'pruning_lib.schedule/1'"),
        ('{"format": "pruning_lib.plan/3"}', "is a plan of version 3; this pruning_lib reads 1, 2"),
    ],
)
def test_another_file_is_named(tmp_path, text, said):
    (tmp_path / "a.json").write_text(text)
    save_file({"t": torch.ones(1)}, tmp_path / "a.safetensors", {"plan": text})
    for load, name in ((load_json, "a.json"), (load_tensors, "a.safetensors")):
        with pytest.raises(ValueError, match=rf"{name}.*({said})"):
            load(tmp_path / name, "plan", (1, 2))


def test_damage_is_named(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(ValueError, match="holds no scores, or is damaged"):
        load_tensors(tmp_path / "a.safetensors", "scores")
    with pytest.raises(FileNotFoundError, match="There is no such file"):
        load_tensors(tmp_path, "scores")
    with pytest.raises(ValueError, match="x.json is a damaged plan: 'base' is missing"), reading("plan", "x.json"):
        json.loads("{}")["base"]
    with pytest.raises(ValueError, match="does not end in .safetensors"):
        save_tensors(tmp_path / "a.pt", "scores", 1, {}, {})
