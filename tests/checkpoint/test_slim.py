"""`slim` on single files: what is kept is kept bit for bit, every byte has a cause, and the input is never touched."""

from __future__ import annotations

import json
import os
import re
import tracemalloc
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import pruning_lib as pl
from pruning_lib.checkpoint import write as writing
from pruning_lib.checkpoint.files import DTYPES, open_file
from pruning_lib.checkpoint.parts import ema_name
from pruning_lib.checkpoint.write import CastError
from pruning_lib.commands import app

UNET = "model.diffusion_model."


def test_default_keeps_every_weight_and_drops_the_rest(small, small_ckpt, equal, slimmed, tmp_path):
    before = small_ckpt.read_bytes()
    report = slimmed(small_ckpt, tmp_path / "slim.safetensors")
    expected = {n: t for n, t in small.items() if not n.startswith("model_ema.") and ".loss." not in n}
    assert equal(load_file(tmp_path / "slim.safetensors"), expected) and small_ckpt.read_bytes() == before
    unet = 4 * sum(t.numel() for n, t in small.items() if n.startswith(UNET))
    assert report.causes["EMA copy"] == unet + 4 + 8 and report.causes["optimiser state"] == 2 * unet
    assert report.causes["training leftovers"] == 8 and "cast" not in str(report.causes)
    assert report.dropped == {"ema": 5, "optimizer": 6, "training": 2} and report.kept == len(expected)
    notes = " ".join(report.notes)
    assert "EMA copy was dropped" in notes and "ModelCheckpoint" in notes and "times smaller" in report.table()
    assert len(list(tmp_path.iterdir())) == 1


def test_the_bytes_are_the_librarys(tmp_path):
    state = {"ü": torch.randn(3, 3), "a": torch.randn(2), "empty": torch.zeros(0, 4), "scalar": torch.tensor(2.5)}
    state |= {f"t{i}": torch.arange(80, dtype=torch.uint8).view(dtype) for i, dtype in enumerate(DTYPES.values())}
    torch.save(state, tmp_path / "a.ckpt")
    save_file(state, tmp_path / "a.safetensors", {"format": "pt"})
    pl.slim(tmp_path / "a.ckpt", tmp_path / "b.safetensors")
    assert (tmp_path / "b.safetensors").read_bytes() == (tmp_path / "a.safetensors").read_bytes()
    torch.save({"a": torch.ones(3, dtype=torch.complex128)}, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match="complex128"):
        pl.slim(tmp_path / "a.ckpt", tmp_path / "c.safetensors")


@pytest.mark.parametrize("wanted", [torch.float16, torch.bfloat16])
def test_casts_are_torchs_own_and_leave_numbers_and_schedule(small, small_ckpt, slimmed, wanted, tmp_path):
    report = slimmed(small_ckpt, tmp_path / "slim.safetensors", dtype=wanted)
    for name, tensor in load_file(tmp_path / "slim.safetensors").items():
        whole = name == "betas" or not small[name].is_floating_point()
        assert torch.equal(tensor, small[name] if whole else small[name].to(wanted)), name
    save_file({"unet.a": torch.randn(20).to(torch.float8_e4m3fn)}, tmp_path / "eight.safetensors")
    pl.slim(tmp_path / "eight.safetensors", tmp_path / "more.safetensors", dtype=wanted)
    eight, more = (load_file(tmp_path / f"{name}.safetensors")["unet.a"] for name in ("eight", "more"))
    assert torch.equal(more, eight.to(wanted))
    saved = 2 * (report.params - 24 - 1000)
    assert report.causes[f"cast float32 to {str(wanted)[6:]}"] == saved
    back = slimmed(tmp_path / "slim.safetensors", tmp_path / "back.safetensors", dtype="fp32")
    assert back.causes[f"cast {str(wanted)[6:]} to float32"] == -saved  # it costs bytes


def test_overflow_names_the_tensor_and_leaves_nothing(tmp_path):
    source, target = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    state = {"conv_in.weight": torch.tensor([1.0, 65504.0]), "conv_out.weight": torch.tensor([1e-9, -7e4])}
    save_file(state, source)
    with pytest.raises(CastError, match=r"conv_out.weight holds -70,000, and float16 ends at 65,504.*bfloat16"):
        pl.slim(source, target, dtype="fp16")
    assert list(tmp_path.iterdir()) == [source]
    assert pl.slim(source, target, dtype="bf16").flushed == 0
    # infinite numbers of the input are no overflow, and what becomes 0 is counted
    save_file({"conv_in.weight": torch.tensor([float("inf"), float("nan"), 1e-9, 1e-8, 0.0, 1.0])}, source)
    report = pl.slim(source, target, dtype="fp16", overwrite=True)
    assert report.flushed == 2 and "2 of 6 elements became 0" in report.table()


def test_ema_takes_the_place_of_the_live_weights(small, small_ckpt, equal, slimmed, tmp_path):
    report = slimmed(small_ckpt, tmp_path / "ema.safetensors", weights="ema")
    found = load_file(tmp_path / "ema.safetensors")
    assert equal(found, {n: small[ema_name(n)] if n.startswith(UNET) else small[n] for n in found})
    assert not any(name.startswith("model_ema") for name in found)
    assert report.causes["live copy"] == 4 * sum(t.numel() for n, t in small.items() if n.startswith(UNET))
    assert report.causes["EMA copy"] == 12  # its counters


@pytest.mark.parametrize("names", [("conv_in.weight", "conv_out.bias"), ("encoder.conv_in.weight", "decoder.mid.bias")])
def test_ema_of_our_own_trainer_and_of_named_copies(names, equal, slimmed, tmp_path):
    target = tmp_path / "out.safetensors"
    live = dict(zip(names, (torch.randn(4, 4), torch.randn(3)), strict=True))
    ema = {name: tensor + 1 for name, tensor in live.items()}
    shadow = list(ema.values())
    torch.save({"model": live, "ema": {"decay": 0.9, "shadow_params": shadow}, "step": 3}, tmp_path / "a.pt")
    torch.save({"state_dict": live, "ema_state_dict": ema}, tmp_path / "b.pt")
    save_file({**live, **{f"ema.{n}": t for n, t in ema.items()}}, tmp_path / "c.safetensors")
    for name in ("a.pt", "b.pt", "c.safetensors"):
        slimmed(tmp_path / name, target, weights="ema", overwrite=True)
        assert equal(load_file(target), ema), name
    for value, words in (
        ({"model": live, "ema": {"shadow_params": shadow[::-1]}}, "nobody can tell"),
        ({"model": live, "ema": {names[0]: shadow[0]}}, "no fitting tensor for 1 of 2"),
        ({"model": live}, "no EMA copy"),
    ):
        torch.save(value, tmp_path / "d.pt")
        with pytest.raises(ValueError, match=words):
            pl.slim(tmp_path / "d.pt", target, weights="ema", overwrite=True)


def test_parts_can_be_removed_and_unknown_names_are_kept(small_ckpt, slimmed, tmp_path):
    report = slimmed(small_ckpt, tmp_path / "a.safetensors", remove=("vae", "text_encoder", "schedule"))
    assert all(name.startswith(UNET) for name in load_file(tmp_path / "a.safetensors"))
    assert report.causes["removed as asked: VAE"] == 4 * (4 * 27 + 16)
    save_file({"mystery.weight": torch.ones(3)}, tmp_path / "m.safetensors", {"modelspec.title": "Löwe"})
    assert pl.slim(tmp_path / "m.safetensors", tmp_path / "n.safetensors").kept == 1
    assert open_file(tmp_path / "n.safetensors").metadata == {"modelspec.title": "Löwe", "format": "pt"}
    with pytest.raises(ValueError, match="Nothing would be left"):
        pl.slim(tmp_path / "m.safetensors", tmp_path / "o.safetensors", remove=("other",))
    torch.save({"model_ema.x": torch.ones(2), "vae.x": torch.ones(2)}, tmp_path / "p.ckpt")
    assert any("no live denoiser" in note for note in pl.slim(tmp_path / "p.ckpt", tmp_path / "p.safetensors").notes)


def test_tensors_that_share_bytes(equal, slimmed, tmp_path):
    base, source = torch.randn(100), tmp_path / "a.ckpt"
    torch.save({"unet.a": base, "unet.b": base, "unet.c": base[10:20], "model_ema.x": base}, source)
    each = slimmed(source, tmp_path / "each.safetensors")
    once = slimmed(source, tmp_path / "once.safetensors", aliases="once")
    assert each.causes["one tensor under two names, or two that overlap"] == -400 - 40
    expected = {"unet.a": base, "unet.b": base, "unet.c": base[10:20]}
    assert equal(load_file(tmp_path / "each.safetensors"), expected)
    assert once.kept == 2 and open_file(tmp_path / "once.safetensors").metadata["unet.b"] == "unet.a"
    torch.save({"unet.a": torch.randn(10_000)[:10]}, source)  # a slice does not bring the whole
    assert slimmed(source, tmp_path / "b.safetensors").causes["bytes no tensor uses"] == 4 * 9_990
    torch.save({"state_dict": {"unet.a": torch.ones(2)}, "unet.a": torch.zeros(2)}, source)
    with pytest.raises(ValueError, match=r"twice, as unet.a"):
        pl.slim(source, tmp_path / "c.safetensors")


def test_the_input_is_never_written_over(small_ckpt, tmp_path):
    source = tmp_path / "a.safetensors"
    pl.slim(small_ckpt, source)
    (tmp_path / "link.safetensors").symlink_to(source)
    os.link(source, tmp_path / "hard.safetensors")
    before = source.read_bytes()
    for target in ("a.safetensors", "link.safetensors", "hard.safetensors"):
        with pytest.raises(ValueError, match="never written over"):
            pl.slim(source, tmp_path / target, overwrite=True)
    with pytest.raises(FileExistsError, match="--overwrite"):
        pl.slim(small_ckpt, source)
    assert source.read_bytes() == before


@pytest.mark.parametrize("fault", ["broken", "full", "interrupt", "came back from the disk different"])
def test_a_failure_leaves_the_old_target_and_no_litter(fault, small_ckpt, tmp_path, monkeypatch):
    target = tmp_path / "out.safetensors"
    target.write_bytes(b"old")

    def fsync(handle: int) -> None:
        if "different" not in fault:
            raise KeyboardInterrupt(fault) if fault == "interrupt" else OSError(fault)
        os.pwrite(handle, b"\x55", os.fstat(handle).st_size - 1)

    words = "needs 0.00 GB.*Nothing was written" if fault == "full" else fault
    if fault == "full":
        monkeypatch.setattr(writing.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    monkeypatch.setattr(writing.os, "fsync", fsync)
    with pytest.raises((OSError, KeyboardInterrupt), match=words):
        pl.slim(small_ckpt, target, overwrite=True)
    assert target.read_bytes() == b"old" and list(tmp_path.iterdir()) == [target]


def test_mistakes_are_told(small_ckpt, tmp_path):
    (tmp_path / "folder.safetensors").mkdir()
    for words, options in {
        "Did you mean 'ema'": {"weights": "emma"},
        "dtype='int8'": {"dtype": torch.int8},
        "aliases='twice'": {"aliases": "twice"},
        "remove='ema'": {"remove": ("ema",)},
        "does not end in .safetensors": {"target": tmp_path / "a.ckpt"},
        "neither a file nor": {"source": tmp_path / "no.ckpt"},
        "Is a directory": {"target": tmp_path / "folder.safetensors", "overwrite": True},
    }.items():
        with pytest.raises((ValueError, OSError), match=words):
            pl.slim(**{"source": small_ckpt, "target": tmp_path / "a.safetensors", **options})
    assert len(list(tmp_path.iterdir())) == 1


def test_no_tensor_is_held_as_a_whole(tmp_path):
    """Tensors of 8 MB each: what Python holds of them at a time is a piece of 1 MB, and the one it is compared with."""
    torch.save({f"unet.{i}": torch.full((2_000_000,), float(i)) for i in range(2)}, tmp_path / "a.ckpt")
    tracemalloc.start()
    pl.slim(tmp_path / "a.ckpt", tmp_path / "b.safetensors", dtype="fp16")
    assert 1e6 < tracemalloc.get_traced_memory()[1] < 4e6
    tracemalloc.stop()


def test_the_command_line_does_what_the_library_does(small_ckpt, attack, foreign, tmp_path):
    def run(*arguments: object) -> str:
        done = CliRunner().invoke(app, [str(a) for a in arguments], prog_name="pruning-lib")
        assert done.exit_code == 0 or (done.exit_code == 2 and "Traceback" not in done.stderr)
        return done.stdout + re.sub(r"[\s│]+", " ", done.stderr)

    assert run("inspect", small_ckpt) == pl.inspect_checkpoint(small_ckpt).table() + "\n"
    found = json.loads(run("inspect", small_ckpt, "--json", "--no-values"))
    assert found == pl.inspect_checkpoint(small_ckpt, values=False).to_dict()
    ours, theirs = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    options = "--dtype fp16 --weights ema --remove vae --remove schedule --json".split()
    report = json.loads(run("slim", small_ckpt, ours, *options))
    pl.slim(small_ckpt, theirs, dtype="fp16", weights="ema", remove=("vae", "schedule"))
    assert ours.read_bytes() == theirs.read_bytes() and report["bytes_after"] == ours.stat().st_size
    assert "times smaller" in run("slim", small_ckpt, ours, "--overwrite")
    with foreign("mytrainer.Settings") as kind:
        torch.save({"state_dict": {"unet.a": torch.ones(2)}, "config": kind()}, tmp_path / "a.ckpt")
    assert "config (mytrainer.Settings)" in run("inspect", tmp_path / "a.ckpt", "--allow", "mytrainer.Settings")
    torch.save({"x": attack}, tmp_path / "bad.ckpt")
    assert "would run code" in run("slim", tmp_path / "bad.ckpt", tmp_path / "x.safetensors")
