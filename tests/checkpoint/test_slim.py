"""`slim` on single files: what is kept is kept bit for bit, every byte has a cause, and the input is never touched."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import pruning_lib as pl
from pruning_lib.checkpoint import slim as slimming
from pruning_lib.checkpoint import write as writing
from pruning_lib.checkpoint.files import open_file
from pruning_lib.checkpoint.parts import ema_name
from pruning_lib.checkpoint.slim import CastError
from pruning_lib.commands import app

UNET = "model.diffusion_model."


def only(folder: Path, *names: str) -> None:
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)


def equal(found: dict, expected: dict) -> bool:
    same = found.keys() == expected.keys()
    return same and all(torch.equal(found[n], t) and found[n].dtype == t.dtype for n, t in expected.items())


def test_default_keeps_every_weight_and_drops_the_rest(small, small_ckpt, adds_up, tmp_path):
    before = small_ckpt.read_bytes()
    report = pl.slim(small_ckpt, tmp_path / "slim.safetensors")
    expected = {n: t for n, t in small.items() if not n.startswith("model_ema.") and ".loss." not in n}
    assert equal(load_file(tmp_path / "slim.safetensors"), expected) and small_ckpt.read_bytes() == before
    adds_up(report)
    unet = 4 * sum(t.numel() for n, t in small.items() if n.startswith(UNET))
    assert report.causes["EMA copy"] == unet + 4 + 8 and report.causes["optimiser state"] == 2 * unet
    assert report.causes["training leftovers"] == 8 and "cast" not in str(report.causes)
    assert report.dropped == {"ema": 5, "optimizer": 6, "training": 2} and report.kept == len(expected)
    notes = " ".join(report.notes)
    assert "EMA copy was dropped" in notes and "ModelCheckpoint" in notes and "times smaller" in report.table()
    only(tmp_path, "slim.safetensors")


@pytest.mark.parametrize("dtype", ["fp16", torch.bfloat16, "float32"])
def test_casts_are_torchs_own_and_leave_numbers_and_schedule(small, small_ckpt, adds_up, dtype, tmp_path):
    report = pl.slim(small_ckpt, tmp_path / "slim.safetensors", dtype=dtype)
    wanted = {"fp16": torch.float16, "float32": torch.float32}.get(dtype, dtype)
    for name, tensor in load_file(tmp_path / "slim.safetensors").items():
        whole = name == "betas" or not small[name].is_floating_point()
        assert torch.equal(tensor, small[name] if whole else small[name].to(wanted)), name
    adds_up(report)
    save_file({"unet.a": torch.randn(20).to(torch.float8_e4m3fn)}, tmp_path / "eight.safetensors")
    pl.slim(tmp_path / "eight.safetensors", tmp_path / "more.safetensors", dtype=dtype)
    eight, more = (load_file(tmp_path / f"{name}.safetensors")["unet.a"] for name in ("eight", "more"))
    assert torch.equal(more, eight.to(wanted))
    saved = 0 if wanted == torch.float32 else 2 * (report.params - 24 - 1000)
    assert report.causes.get(f"cast float32 to {str(wanted)[6:]}", 0) == saved
    back = pl.slim(tmp_path / "slim.safetensors", tmp_path / "back.safetensors", dtype="fp32")
    adds_up(back)
    assert back.causes.get(f"cast {str(wanted)[6:]} to float32", 0) == -saved  # it costs bytes


def test_overflow_names_the_tensor_and_leaves_nothing(tmp_path):
    source = tmp_path / "a.safetensors"
    state = {"conv_in.weight": torch.tensor([1.0, 65504.0]), "conv_out.weight": torch.tensor([1e-9, -7e4])}
    save_file(state, source)
    with pytest.raises(CastError, match=r"conv_out.weight holds -70,000, and float16 ends at 65,504.*bfloat16"):
        pl.slim(source, tmp_path / "b.safetensors", dtype="fp16")
    only(tmp_path, "a.safetensors")
    assert pl.slim(source, tmp_path / "b.safetensors", dtype="bf16").flushed == 0
    # infinite numbers of the input are no overflow, and what becomes 0 is counted
    save_file({"conv_in.weight": torch.tensor([float("inf"), float("nan"), 1e-9, 1e-8, 0.0, 1.0])}, source)
    report = pl.slim(source, tmp_path / "b.safetensors", dtype="fp16", overwrite=True)
    assert report.flushed == 2 and "2 of 6 elements became 0" in report.table()


def test_ema_takes_the_place_of_the_live_weights(small, small_ckpt, adds_up, tmp_path):
    report = pl.slim(small_ckpt, tmp_path / "ema.safetensors", weights="ema")
    found = load_file(tmp_path / "ema.safetensors")
    assert equal(found, {n: small[ema_name(n)] if n.startswith(UNET) else small[n] for n in found})
    assert not any(name.startswith("model_ema") for name in found)
    assert report.causes["live copy"] == 4 * sum(t.numel() for n, t in small.items() if n.startswith(UNET))
    assert report.causes["EMA copy"] == 12  # its counters
    adds_up(report)


@pytest.mark.parametrize("names", [("conv_in.weight", "conv_out.bias"), ("encoder.conv_in.weight", "decoder.mid.bias")])
def test_ema_of_our_own_trainer_and_of_named_copies(names, adds_up, tmp_path):
    live = dict(zip(names, (torch.randn(4, 4), torch.randn(3)), strict=True))
    ema = {name: tensor + 1 for name, tensor in live.items()}
    shadow = list(ema.values())
    torch.save({"model": live, "ema": {"decay": 0.9, "shadow_params": shadow}, "step": 3}, tmp_path / "a.pt")
    torch.save({"state_dict": live, "ema_state_dict": ema}, tmp_path / "b.pt")
    save_file({**live, **{f"ema.{n}": t for n, t in ema.items()}}, tmp_path / "c.safetensors")
    for name in ("a.pt", "b.pt", "c.safetensors"):
        adds_up(pl.slim(tmp_path / name, tmp_path / "out.safetensors", weights="ema", overwrite=True))
        assert equal(load_file(tmp_path / "out.safetensors"), ema), name
    torch.save({"model": live, "ema": {"shadow_params": shadow[::-1]}}, tmp_path / "d.pt")
    with pytest.raises(ValueError, match="nobody can tell"):
        pl.slim(tmp_path / "d.pt", tmp_path / "d.safetensors", weights="ema")


def test_half_a_pair_of_copies_is_remarked_or_refused(small, tmp_path):
    source, target = tmp_path / "a.ckpt", tmp_path / "b.safetensors"
    torch.save({n: t for n, t in small.items() if not n.startswith(UNET)}, source)
    assert any("no live denoiser" in note for note in pl.slim(source, target).notes)
    without = [n for n in small if not n.startswith("model_ema")]
    first = next(n for n in small if n.startswith("model_ema.diffusion_model"))
    for kept, words in (([n for n in small if n != first], "no fitting tensor for 1 of 3"), (without, "no EMA copy")):
        torch.save({n: small[n] for n in kept}, source)
        with pytest.raises(ValueError, match=words):
            pl.slim(source, target, weights="ema", overwrite=True)


def test_parts_can_be_removed_and_unknown_names_are_kept(small_ckpt, adds_up, tmp_path):
    report = pl.slim(small_ckpt, tmp_path / "a.safetensors", remove=("vae", "text_encoder", "schedule"))
    assert all(name.startswith(UNET) for name in load_file(tmp_path / "a.safetensors"))
    assert report.causes["removed as asked: VAE"] == 4 * (4 * 27 + 16)
    adds_up(report)
    save_file({"mystery.weight": torch.ones(3)}, tmp_path / "m.safetensors", {"modelspec.title": "Löwe"})
    assert pl.slim(tmp_path / "m.safetensors", tmp_path / "n.safetensors").kept == 1
    assert open_file(tmp_path / "n.safetensors").metadata == {"modelspec.title": "Löwe", "format": "pt"}
    with pytest.raises(ValueError, match="Nothing would be left"):
        pl.slim(tmp_path / "m.safetensors", tmp_path / "o.safetensors", remove=("other",))


def test_tensors_that_share_bytes(adds_up, tmp_path):
    base, source = torch.randn(100), tmp_path / "a.ckpt"
    torch.save({"unet.a": base, "unet.b": base, "unet.c": base[10:20], "model_ema.x": base}, source)
    each = pl.slim(source, tmp_path / "each.safetensors")
    once = pl.slim(source, tmp_path / "once.safetensors", aliases="once")
    adds_up(each), adds_up(once)
    assert each.causes["one tensor under two names, or two that overlap"] == -400 - 40
    expected = {"unet.a": base, "unet.b": base, "unet.c": base[10:20]}
    assert equal(load_file(tmp_path / "each.safetensors"), expected)
    assert once.kept == 2 and open_file(tmp_path / "once.safetensors").metadata["unet.b"] == "unet.a"
    torch.save({"unet.a": torch.randn(10_000)[:10]}, source)  # a slice does not bring the whole
    slice_only = pl.slim(source, tmp_path / "b.safetensors")
    assert slice_only.causes["bytes no tensor uses"] == 4 * 9_990
    adds_up(slice_only)
    torch.save({"state_dict": {"unet.a": torch.ones(2)}, "unet.a": torch.zeros(2)}, source)
    with pytest.raises(ValueError, match=r"twice, as unet.a"):
        pl.slim(source, tmp_path / "c.safetensors")


def test_the_input_is_never_written_over(small_ckpt, tmp_path):
    source = tmp_path / "a.safetensors"
    pl.slim(small_ckpt, source)
    (tmp_path / "link.safetensors").symlink_to(source)
    os.link(source, tmp_path / "hard.safetensors")
    (tmp_path / "sub").mkdir()
    before = source.read_bytes()
    for target in ("a.safetensors", "link.safetensors", "hard.safetensors", "sub/../a.safetensors"):
        with pytest.raises(ValueError, match="never written over"):
            pl.slim(source, tmp_path / target, overwrite=True)
    with pytest.raises(FileExistsError, match="--overwrite"):
        pl.slim(small_ckpt, source)
    assert source.read_bytes() == before
    assert pl.slim(small_ckpt, source, dtype="fp16", overwrite=True).bytes_after == source.stat().st_size


@pytest.mark.parametrize("fault", ["the disk is broken", "interrupt", "came back from the disk different"])
def test_a_failure_leaves_the_old_target_and_no_litter(fault, small_ckpt, tmp_path, monkeypatch):
    target = tmp_path / "out.safetensors"
    target.write_bytes(b"old")
    write = slimming.write_safetensors

    def corrupts(path, *args):
        write(path, *args)
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)

    def fails(*args):
        raise KeyboardInterrupt(fault) if fault == "interrupt" else OSError(fault)

    if "different" in fault:
        monkeypatch.setattr(slimming, "write_safetensors", corrupts)
    else:
        monkeypatch.setattr(writing.os, "fsync", fails)
    with pytest.raises((OSError, KeyboardInterrupt), match=fault):
        pl.slim(small_ckpt, target, overwrite=True)
    assert target.read_bytes() == b"old"
    only(tmp_path, "out.safetensors")


def test_a_full_disk_is_refused_before_writing(small_ckpt, tmp_path, monkeypatch):
    monkeypatch.setattr(writing.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 1000})())
    monkeypatch.setattr(slimming, "write_checked", lambda *a: pytest.fail("something was written"))
    with pytest.raises(OSError, match="needs 0.00 GB.*Nothing was written"):
        pl.slim(small_ckpt, tmp_path / "a.safetensors")
    only(tmp_path)


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"weights": "emma"}, ValueError, "Did you mean 'ema'"),
        ({"dtype": "fp61"}, ValueError, "dtype='fp61'"),
        ({"dtype": torch.int8}, ValueError, "dtype='int8'"),
        ({"aliases": "twice"}, ValueError, "aliases='twice'"),
        ({"remove": ("vea",)}, ValueError, "Did you mean 'vae'"),
        ({"remove": ("ema",)}, ValueError, "remove='ema'"),
        ({"target": "a.ckpt"}, ValueError, "does not end in .safetensors"),
        ({"source": "no.ckpt"}, FileNotFoundError, "neither a file nor"),
        ({"target": "folder.safetensors", "overwrite": True}, IsADirectoryError, "Is a directory"),
    ],
)
def test_mistakes_are_told(options, kind, words, small_ckpt, tmp_path):
    (tmp_path / "folder.safetensors").mkdir()
    options = {"source": small_ckpt, "target": "a.safetensors"} | options
    with pytest.raises(kind, match=words):
        pl.slim(tmp_path / options.pop("source"), tmp_path / options.pop("target"), **options)
    only(tmp_path, "folder.safetensors")


def load_single(path: Path, folder: Path) -> StableDiffusionPipeline:
    options = {"config": str(folder), "local_files_only": True, "torch_dtype": torch.float32}
    return StableDiffusionPipeline.from_single_file(str(path), **options)


def test_the_result_draws_the_same_pictures(emoji, averaged, emoji_ckpt, emoji_folder, draw, adds_up, tmp_path):
    expected, target = draw(emoji), tmp_path / "slim.safetensors"
    report = pl.slim(emoji_ckpt, target)
    adds_up(report)
    assert report.times_smaller > 2.9 and torch.equal(draw(load_single(target, emoji_folder)), expected)
    # the weights were trained in full precision but ship as float16, so this cast loses nothing
    pl.slim(emoji_ckpt, target, dtype="fp16", overwrite=True)
    assert torch.equal(draw(load_single(target, emoji_folder)), expected)
    pl.slim(emoji_ckpt, target, weights="ema", overwrite=True)
    assert equal(load_single(target, emoji_folder).unet.state_dict(), averaged)


MEASURE = """
import sys, torch
import pruning_lib as pl
def peak():  # not ru_maxrss, which a process inherits from the one that started it
    with open("/proc/self/status") as status:
        return 1024 * int(next(line for line in status if line.startswith("VmHWM")).split()[1])
small, *large, out = sys.argv[1:]
pl.slim(small, out, dtype="fp16")
before = peak()
for file in large:
    pl.slim(file, out, dtype="fp16", overwrite=True)
    print(peak() - before)
torch.load(large[-1], weights_only=True)
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="only Linux tells a process its own peak")
def test_peak_memory_stays_below_one_tensor(small_ckpt, tmp_path):
    """Files of 80 MB, each of their tensors 20 MB: a process that slims them needs less than one tensor more."""
    state = {f"unet.{i}": torch.full((5_000_000,), float(i)) for i in range(4)}
    save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "b.ckpt")
    torch.save(state, tmp_path / "c.ckpt", _use_new_zipfile_serialization=False)
    del state
    files = [small_ckpt, *(tmp_path / name for name in ("a.safetensors", "b.ckpt", "c.ckpt", "out.safetensors"))]
    done = subprocess.run([sys.executable, "-c", MEASURE, *map(str, files)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *slimmed, loaded = needed = [int(line) for line in done.stdout.split()]
    assert len(slimmed) == 3 and max(slimmed) < 20e6, needed
    assert loaded > 60e6, "the measure sees what a process that loads the whole file needs"


def run(*arguments: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, [str(a) for a in arguments], prog_name="pruning-lib")
    return done.exit_code, done.stdout, re.sub(r"[\s│]+", " ", done.stderr)


def test_the_command_line_does_what_the_library_does(small_ckpt, tmp_path):
    assert run("inspect", small_ckpt)[:2] == (0, pl.inspect_checkpoint(small_ckpt).table() + "\n")
    out = run("inspect", small_ckpt, "--json", "--no-values")[1]
    assert json.loads(out) == pl.inspect_checkpoint(small_ckpt, values=False).to_dict()
    options = "--dtype fp16 --weights ema --remove vae --remove schedule --json".split()
    code, out, said = run("slim", small_ckpt, tmp_path / "a.safetensors", *options)
    assert code == 0, said
    pl.slim(small_ckpt, tmp_path / "b.safetensors", dtype="fp16", weights="ema", remove=("vae", "schedule"))
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    report = json.loads(out)
    assert sum(report["causes"].values()) == report["bytes_before"] - report["bytes_after"]
    code, out, _ = run("slim", small_ckpt, tmp_path / "a.safetensors", "--overwrite")
    assert code == 0 and "EMA copy" in out and "times smaller" in out


def test_mistakes_on_the_command_line_are_one_line_and_exit_code_2(attack, foreign, tmp_path):
    torch.save({"x": attack}, tmp_path / "bad.ckpt")
    with foreign("mytrainer.Settings") as kind:
        torch.save({"state_dict": {"unet.a": torch.ones(2)}, "config": kind()}, tmp_path / "a.ckpt")
    for arguments, words in (
        (("inspect", tmp_path / "bad.ckpt"), "system"),
        (("slim", tmp_path / "bad.ckpt", tmp_path / "x.safetensors"), "would run code"),
        (("inspect", tmp_path / "none.ckpt"), "neither a file"),
        (("inspect", tmp_path / "a.ckpt"), "mytrainer.Settings"),
    ):
        code, _, said = run(*arguments)
        assert code == 2 and words in said and "Traceback" not in said, said
    assert "config (mytrainer.Settings)" in run("inspect", tmp_path / "a.ckpt", "--allow", "mytrainer.Settings")[1]
    assert not (tmp_path / "marker").exists() and not (tmp_path / "x.safetensors").exists()
