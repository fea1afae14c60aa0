"""`slim` on single files: what is kept is kept bit for bit, every byte has a cause, and the input is never touched."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

import pruning_lib as pl
from pruning_lib.checkpoint import slim as slimming
from pruning_lib.checkpoint import write as writing
from pruning_lib.checkpoint.files import open_file
from pruning_lib.checkpoint.ldm_layout import to_ldm
from pruning_lib.checkpoint.parts import ema_name
from pruning_lib.checkpoint.slim import CastError

UNET = "model.diffusion_model."


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def adds_up(report) -> None:
    assert sum(report.causes.values()) == report.bytes_before - report.bytes_after
    assert report.bytes_before == Path(report.source).stat().st_size
    assert report.bytes_after == Path(report.target).stat().st_size


def only(folder: Path, *names: str) -> None:
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)


def test_default_keeps_every_weight_and_drops_the_rest(small, small_ckpt, tmp_path):
    before = digest(small_ckpt)
    report = pl.slim(small_ckpt, tmp_path / "slim.safetensors")
    found = load_file(tmp_path / "slim.safetensors")
    state = small["state_dict"]
    expected = {n: t for n, t in state.items() if not n.startswith("model_ema.") and ".loss." not in n}
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[n], t) and found[n].dtype == t.dtype for n, t in expected.items())
    assert digest(small_ckpt) == before
    adds_up(report)
    unet = 4 * sum(t.numel() for n, t in state.items() if n.startswith(UNET))
    assert report.causes["EMA copy"] == unet + 4 + 8
    assert report.causes["optimiser state"] == 2 * unet
    assert report.causes["training leftovers"] == 8 and "cast" not in str(report.causes)
    assert report.dropped == {"ema": 5, "optimizer": 6, "training": 2} and report.kept == len(expected)
    assert any("EMA copy was dropped" in note for note in report.notes) and "times smaller" in report.table()
    only(tmp_path, "slim.safetensors")


@pytest.mark.parametrize("dtype", ["fp16", "bf16", torch.float16, "float32"])
def test_casts_are_torchs_own_and_leave_numbers_and_schedule(small, small_ckpt, dtype, tmp_path):
    report = pl.slim(small_ckpt, tmp_path / "slim.safetensors", dtype=dtype)
    wanted = {"fp16": torch.float16, "bf16": torch.bfloat16, "float32": torch.float32}.get(dtype, dtype)
    for name, tensor in load_file(tmp_path / "slim.safetensors").items():
        true = small["state_dict"][name]
        whole = name == "betas" or not true.is_floating_point()
        assert torch.equal(tensor, true if whole else true.to(wanted)), name
    adds_up(report)
    floats = report.params - 24 - 1000
    expected = 0 if wanted == torch.float32 else 2 * floats
    assert report.causes.get(f"cast float32 to {str(wanted)[6:]}", 0) == expected


def test_upcasting_costs_bytes(small_ckpt, tmp_path):
    pl.slim(small_ckpt, tmp_path / "half.safetensors", dtype="fp16")
    report = pl.slim(tmp_path / "half.safetensors", tmp_path / "full.safetensors", dtype="fp32")
    adds_up(report)
    assert report.causes["cast float16 to float32"] == -2 * (report.params - 24 - 1000) and report.times_smaller < 1


def test_ema_takes_the_place_of_the_live_weights(small, small_ckpt, tmp_path):
    report = pl.slim(small_ckpt, tmp_path / "ema.safetensors", weights="ema")
    found, state = load_file(tmp_path / "ema.safetensors"), small["state_dict"]
    for name, tensor in found.items():
        true = state[ema_name(name)] if name.startswith(UNET) else state[name]
        assert torch.equal(tensor, true)
    assert not any(name.startswith("model_ema") for name in found)
    unet = 4 * sum(t.numel() for n, t in state.items() if n.startswith(UNET))
    assert report.causes["live copy"] == unet
    assert report.causes["EMA copy"] == 12  # its counters
    adds_up(report)


def test_ema_of_our_own_trainer_and_of_named_copies(tmp_path):
    live = {"conv_in.weight": torch.randn(4, 4), "conv_out.bias": torch.randn(3)}
    ema = {name: tensor + 1 for name, tensor in live.items()}
    torch.save(
        {"model": live, "ema": {"decay": 0.9, "shadow_params": list(ema.values())}, "step": 3}, tmp_path / "a.pt"
    )
    torch.save({"state_dict": live, "ema_state_dict": ema}, tmp_path / "b.pt")
    save_file({**live, **{f"ema.{n}": t for n, t in ema.items()}}, tmp_path / "c.safetensors")
    for name in ("a.pt", "b.pt", "c.safetensors"):
        pl.slim(tmp_path / name, tmp_path / "out.safetensors", weights="ema", overwrite=True)
        found = load_file(tmp_path / "out.safetensors")
        assert found.keys() == live.keys() and all(torch.equal(found[n], ema[n]) for n in live), name
    # a list whose shapes do not follow the weights cannot be matched
    torch.save({"model": live, "ema": {"shadow_params": list(ema.values())[::-1]}}, tmp_path / "d.pt")
    with pytest.raises(ValueError, match="nobody can tell"):
        pl.slim(tmp_path / "d.pt", tmp_path / "d.safetensors", weights="ema")


def test_the_averaged_copy_of_any_part_can_be_taken(tmp_path):
    live = {"encoder.conv_in.weight": torch.randn(4, 4), "decoder.conv_out.bias": torch.randn(3)}
    torch.save({"model": live, "ema": {"shadow_params": [t + 1 for t in live.values()]}}, tmp_path / "vae.pt")
    report = pl.slim(tmp_path / "vae.pt", tmp_path / "vae.safetensors", weights="ema")
    found = load_file(tmp_path / "vae.safetensors")
    assert all(torch.equal(found[name], tensor + 1) for name, tensor in live.items())
    adds_up(report)


def test_a_file_with_nothing_but_an_ema_copy_is_remarked(small, tmp_path):
    state = {n: t for n, t in small["state_dict"].items() if not n.startswith(UNET)}
    torch.save(state, tmp_path / "a.ckpt")
    report = pl.slim(tmp_path / "a.ckpt", tmp_path / "b.safetensors")
    assert any("no live denoiser" in note for note in report.notes)


def test_numbers_of_eight_bits_are_cast_too(tmp_path):
    weight = torch.randn(20).to(torch.float8_e4m3fn)
    save_file({"unet.a": weight}, tmp_path / "a.safetensors")
    pl.slim(tmp_path / "a.safetensors", tmp_path / "b.safetensors", dtype="fp16")
    assert torch.equal(load_file(tmp_path / "b.safetensors")["unet.a"], weight.half())
    assert pl.inspect_checkpoint(tmp_path / "a.safetensors").parts["unet"].floats == 20


def test_leftovers_of_trainers_are_named(small_ckpt, tmp_path):
    report = pl.slim(small_ckpt, tmp_path / "a.safetensors")
    assert any("ModelCheckpoint" in note and "never run" in note for note in report.notes)


def test_a_missing_or_broken_ema_is_refused(small, tmp_path):
    state = dict(small["state_dict"])
    del state[next(name for name in state if name.startswith("model_ema.diffusion_model"))]
    torch.save(state, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match="no fitting tensor for 1 of 3"):
        pl.slim(tmp_path / "a.ckpt", tmp_path / "b.safetensors", weights="ema")
    torch.save({n: t for n, t in state.items() if not n.startswith("model_ema")}, tmp_path / "c.ckpt")
    with pytest.raises(ValueError, match="no EMA copy beside live"):
        pl.slim(tmp_path / "c.ckpt", tmp_path / "b.safetensors", weights="ema")
    only(tmp_path, "a.ckpt", "c.ckpt")


def test_overflow_names_the_tensor_and_leaves_nothing(tmp_path):
    save_file(
        {"conv_in.weight": torch.tensor([1.0, 65504.0]), "conv_out.weight": torch.tensor([1e-9, -7e4])},
        tmp_path / "a.safetensors",
    )
    with pytest.raises(CastError, match=r"conv_out.weight holds -70,000, and float16 ends at 65,504.*bfloat16"):
        pl.slim(tmp_path / "a.safetensors", tmp_path / "b.safetensors", dtype="fp16")
    only(tmp_path, "a.safetensors")
    report = pl.slim(tmp_path / "a.safetensors", tmp_path / "b.safetensors", dtype="bf16")
    assert report.flushed == 0 and load_file(tmp_path / "b.safetensors")["conv_out.weight"].isfinite().all()


def test_infinite_numbers_of_the_input_are_no_overflow_and_lost_ones_are_counted(tmp_path):
    weight = torch.tensor([float("inf"), float("nan"), 1e-9, 1e-8, 0.0, 1.0])
    save_file({"conv_in.weight": weight}, tmp_path / "a.safetensors")
    report = pl.slim(tmp_path / "a.safetensors", tmp_path / "b.safetensors", dtype="fp16")
    assert report.flushed == 2 and "2 of 6 elements became 0" in report.table()
    assert torch.equal(load_file(tmp_path / "b.safetensors")["conv_in.weight"].isnan(), weight.isnan())


def test_parts_can_be_removed_and_unknown_names_are_kept(small_ckpt, tmp_path):
    report = pl.slim(small_ckpt, tmp_path / "a.safetensors", remove=("vae", "text_encoder", "schedule"))
    assert all(name.startswith(UNET) for name in load_file(tmp_path / "a.safetensors"))
    assert report.causes["removed as asked: VAE"] == 4 * (4 * 27 + 16)
    adds_up(report)
    save_file({"mystery.weight": torch.ones(3)}, tmp_path / "m.safetensors")
    assert pl.slim(tmp_path / "m.safetensors", tmp_path / "n.safetensors").kept == 1
    with pytest.raises(ValueError, match="Nothing would be left"):
        pl.slim(tmp_path / "m.safetensors", tmp_path / "o.safetensors", remove=("other",))


def test_a_name_under_and_beside_a_wrapper_is_refused(tmp_path):
    torch.save({"state_dict": {"unet.a": torch.ones(2)}, "unet.a": torch.zeros(2)}, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=r"twice, as unet.a"):
        pl.slim(tmp_path / "a.ckpt", tmp_path / "b.safetensors")


def test_aliases_are_written_under_each_name_or_once(tmp_path):
    base = torch.randn(100)
    torch.save({"unet.a": base, "unet.b": base, "unet.c": base[10:20], "model_ema.x": base}, tmp_path / "a.ckpt")
    each = pl.slim(tmp_path / "a.ckpt", tmp_path / "each.safetensors")
    adds_up(each)
    assert each.causes["one tensor under two names, or two that overlap"] == -400 - 40
    found = load_file(tmp_path / "each.safetensors")
    assert torch.equal(found["unet.b"], base) and torch.equal(found["unet.c"], base[10:20])
    once = pl.slim(tmp_path / "a.ckpt", tmp_path / "once.safetensors", aliases="once")
    adds_up(once)
    assert once.kept == 2 and open_file(tmp_path / "once.safetensors").metadata["unet.b"] == "unet.a"
    assert once.bytes_after < each.bytes_after


def test_a_slice_does_not_bring_the_whole(tmp_path):
    torch.save({"unet.a": torch.randn(10_000)[:10]}, tmp_path / "a.ckpt")
    report = pl.slim(tmp_path / "a.ckpt", tmp_path / "b.safetensors")
    assert report.causes["bytes no tensor uses"] == 4 * 9_990
    adds_up(report)


def test_the_input_is_never_written_over(small_ckpt, tmp_path):
    source = tmp_path / "a.safetensors"
    pl.slim(small_ckpt, source)
    (tmp_path / "link.safetensors").symlink_to(source)
    os.link(source, tmp_path / "hard.safetensors")
    before = digest(source)
    for target in ("a.safetensors", "link.safetensors", "hard.safetensors", "sub/../a.safetensors"):
        (tmp_path / "sub").mkdir(exist_ok=True)
        with pytest.raises(ValueError, match="never written over"):
            pl.slim(source, tmp_path / target, overwrite=True)
    with pytest.raises(FileExistsError, match="--overwrite"):
        pl.slim(small_ckpt, source)
    assert digest(source) == before
    assert pl.slim(small_ckpt, source, dtype="fp16", overwrite=True).bytes_after == source.stat().st_size


@pytest.mark.parametrize("when", ["writing", "checking", "interrupt"])
def test_a_failure_leaves_the_old_target_and_no_litter(when, small_ckpt, tmp_path, monkeypatch):
    target = tmp_path / "out.safetensors"
    target.write_bytes(b"old")

    def fails(*args):
        if when == "interrupt":
            raise KeyboardInterrupt
        raise OSError("the disk is broken")

    monkeypatch.setattr(*{"checking": (slimming, "open_file")}.get(when, (writing.os, "fsync")), fails)
    if when == "checking":
        real, calls = open_file, []
        monkeypatch.setattr(
            slimming, "open_file", lambda *a: calls.append(1) or (fails() if len(calls) > 1 else real(*a))
        )
    with pytest.raises(KeyboardInterrupt if when == "interrupt" else OSError):
        pl.slim(small_ckpt, target, overwrite=True)
    assert target.read_bytes() == b"old"
    only(tmp_path, "out.safetensors")


def test_a_disk_that_changes_bytes_is_caught(small_ckpt, tmp_path, monkeypatch):
    real = slimming.write_safetensors

    def corrupts(path, *args):
        real(path, *args)
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)

    monkeypatch.setattr(slimming, "write_safetensors", corrupts)
    with pytest.raises(OSError, match="came back from the disk different"):
        pl.slim(small_ckpt, tmp_path / "a.safetensors")
    only(tmp_path)


def test_a_full_disk_is_refused_before_writing(small_ckpt, tmp_path, monkeypatch):
    monkeypatch.setattr(
        writing.shutil, "disk_usage", lambda folder: os.statvfs_result and type("U", (), {"free": 1000})()
    )
    monkeypatch.setattr(slimming, "write_checked", lambda *a: pytest.fail("something was written"))
    with pytest.raises(OSError, match="needs 0.00 GB.*Nothing was written"):
        pl.slim(small_ckpt, tmp_path / "a.safetensors")
    only(tmp_path)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"weights": "emma"}, "Did you mean 'ema'"),
        ({"dtype": "fp61"}, "dtype='fp61'"),
        ({"dtype": torch.int8}, "dtype='int8'"),
        ({"aliases": "twice"}, "aliases='twice'"),
        ({"remove": ("vea",)}, "Did you mean 'vae'"),
        ({"remove": ("ema",)}, "remove='ema'"),
    ],
)
def test_wrong_options_are_told(options, words, small_ckpt, tmp_path):
    with pytest.raises(ValueError, match=words):
        pl.slim(small_ckpt, tmp_path / "a.safetensors", **options)


def test_wrong_places_are_told(small_ckpt, tmp_path):
    with pytest.raises(ValueError, match="does not end in .safetensors"):
        pl.slim(small_ckpt, tmp_path / "a.ckpt")
    with pytest.raises(FileNotFoundError, match="neither a file nor"):
        pl.slim(tmp_path / "no.ckpt", tmp_path / "a.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(OSError):
        pl.slim(small_ckpt, tmp_path / "folder.safetensors", overwrite=True)


def test_text_entries_of_the_header_stay(tmp_path):
    save_file({"conv_in.weight": torch.ones(2)}, tmp_path / "a.safetensors", {"modelspec.title": "Löwe"})
    pl.slim(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert open_file(tmp_path / "b.safetensors").metadata == {"modelspec.title": "Löwe", "format": "pt"}


def load_single(path: Path, folder: Path) -> StableDiffusionPipeline:
    return StableDiffusionPipeline.from_single_file(
        str(path), config=str(folder), local_files_only=True, torch_dtype=torch.float32
    )


def test_the_result_draws_the_same_pictures(emoji, averaged, emoji_ckpt, emoji_folder, draw, tmp_path):
    expected = draw(emoji)
    report = pl.slim(emoji_ckpt, tmp_path / "live.safetensors")
    adds_up(report)
    assert report.times_smaller > 2.9
    assert torch.equal(draw(load_single(tmp_path / "live.safetensors", emoji_folder)), expected)
    # the weights were trained in full precision but ship as float16, so this cast loses nothing
    pl.slim(emoji_ckpt, tmp_path / "half.safetensors", dtype="fp16")
    assert torch.equal(draw(load_single(tmp_path / "half.safetensors", emoji_folder)), expected)
    pl.slim(emoji_ckpt, tmp_path / "brain.safetensors", dtype="bf16")
    rough = draw(load_single(tmp_path / "brain.safetensors", emoji_folder))
    assert not torch.equal(rough, expected) and pl.measure.psnr(rough, expected).min() > 25
    pl.slim(emoji_ckpt, tmp_path / "ema.safetensors", weights="ema")
    other = load_single(tmp_path / "ema.safetensors", emoji_folder)
    assert all(torch.equal(tensor, averaged[name]) for name, tensor in other.unet.state_dict().items())


def test_the_vae_can_be_exchanged(emoji, emoji_ckpt, emoji_folder, tmp_path):
    other = {name: tensor * 0.5 for name, tensor in emoji.vae.state_dict().items()}
    ldm = to_ldm(vae=other)
    save_file({n: t.contiguous() for n, t in other.items()}, tmp_path / "diffusers.safetensors")
    save_file({n: t.contiguous() for n, t in ldm.items()}, tmp_path / "prefixed.safetensors")
    save_file(
        {n.removeprefix("first_stage_model."): t.contiguous() for n, t in ldm.items()}, tmp_path / "bare.safetensors"
    )
    for name in ("diffusers", "prefixed", "bare"):
        report = pl.slim(emoji_ckpt, tmp_path / f"{name}-out.safetensors", vae=tmp_path / f"{name}.safetensors")
        adds_up(report)
        assert "VAE exchanged" not in report.causes  # as large as the old one
        pipe = load_single(tmp_path / f"{name}-out.safetensors", emoji_folder)
        assert all(torch.equal(tensor, other[key]) for key, tensor in pipe.vae.state_dict().items())
    with pytest.raises(ValueError, match="is the VAE to put in"):
        pl.slim(emoji_ckpt, tmp_path / "bare.safetensors", vae=tmp_path / "bare.safetensors", overwrite=True)
    smaller = pl.slim(emoji_ckpt, tmp_path / "h.safetensors", vae=tmp_path / "bare.safetensors", dtype="fp16")
    adds_up(smaller)
    assert smaller.causes["VAE exchanged"] == 2 * sum(t.numel() for t in other.values())
    save_file({"decoder.conv_in.weight": torch.ones(2)}, tmp_path / "wrong.safetensors")
    with pytest.raises(ValueError, match="does not fit"):
        pl.slim(emoji_ckpt, tmp_path / "x.safetensors", vae=tmp_path / "wrong.safetensors")
    with pytest.raises(ValueError, match="no tensor of a VAE"):
        save_file({"conv_in.weight": torch.ones(2)}, tmp_path / "none.safetensors")
        pl.slim(emoji_ckpt, tmp_path / "x.safetensors", vae=tmp_path / "none.safetensors")


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
    """Files of 144 MB, each of their tensors 36 MB: a process that slims them needs less than one tensor more."""
    state = {f"unet.{i}": torch.full((9_000_000,), float(i)) for i in range(4)}
    save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "b.ckpt")
    torch.save(state, tmp_path / "c.ckpt", _use_new_zipfile_serialization=False)
    del state
    files = [small_ckpt, *(tmp_path / name for name in ("a.safetensors", "b.ckpt", "c.ckpt", "out.safetensors"))]
    command = [sys.executable, "-c", MEASURE, *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    needed = [int(line) for line in done.stdout.split()]
    *slimmed, loaded = needed
    assert len(slimmed) == 3 and max(slimmed) < 36e6, needed
    assert loaded > 100e6, "the measure sees what a process that loads the whole file needs"
