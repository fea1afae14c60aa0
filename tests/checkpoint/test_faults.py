"""Faults found in the wild, each with its kin: right is what torch, diffusers and the disk would do."""

from __future__ import annotations

import io
import json
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import pruning_lib as pl
from pruning_book.ldm_layout import ldm_unet_names, to_ldm
from pruning_book.sparse_file import load_sparse, save_sparse
from pruning_lib.checkpoint import inspect as inspecting
from pruning_lib.checkpoint.files import DTYPES, open_file
from pruning_lib.checkpoint.parts import ema_name, live_name
from pruning_lib.checkpoint.pickle import CheckpointError, TensorRef, read_pickle
from pruning_lib.checkpoint.slim import CASTS
from pruning_lib.commands import app
from pruning_lib.files import check_new_file

LEGACY = {"_use_new_zipfile_serialization": False}
UNET = "unet/diffusion_pytorch_model"


def run(*arguments: object):
    return CliRunner().invoke(app, [str(a) for a in arguments], prog_name="pruning-lib")


def slimmed_state(state: dict, folder: Path, save=torch.save, **options) -> dict:
    """What `slim` makes of a state dict."""
    save(state, folder / "in.safetensors" if save is save_file else folder / "in.ckpt")
    pl.slim(folder / ("in.safetensors" if save is save_file else "in.ckpt"), folder / "out.safetensors", **options)
    return load_file(folder / "out.safetensors")


@pytest.mark.parametrize("way", ["new/../m.safetensors", "sub/new/../../m.safetensors", "link/m.safetensors"])
def test_the_input_is_known_however_its_path_is_written(way, tmp_path):
    path = tmp_path / "m.safetensors"
    save_file({"unet.a": torch.randn(4)}, path)
    (tmp_path / "link").symlink_to(tmp_path)
    before = path.read_bytes()
    for overwrite in (False, True):
        with pytest.raises(ValueError, match="never written over"):
            pl.slim(path, tmp_path / way, dtype="fp16", overwrite=overwrite)
    assert path.read_bytes() == before and not (tmp_path / "new").exists()
    with pytest.raises(ValueError, match="exists already"):
        check_new_file(tmp_path / "new/../m.safetensors")


def test_a_folder_is_not_written_into_however_its_path_is_written(emoji, tmp_path):
    emoji.unet.save_pretrained(tmp_path / "pipe/unet")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for way in ("pipe/new/../../pipe/out", "link/out", "new/../link", "pipe/unet/x/y"):
        with pytest.raises(ValueError, match="inside each other|never written over"):
            pl.slim(tmp_path / "pipe", tmp_path / way)
    assert sorted(path.name for path in tmp_path.rglob("*")) == sorted([
        "config.json", "diffusion_pytorch_model.safetensors", "link", "pipe", "unet"
    ])  # fmt: skip


@pytest.mark.parametrize("options", [{}, LEGACY])
def test_what_stands_beside_a_storage_is_applied(options, tmp_path):
    z, x = torch.tensor([1 + 2j, 3 - 4j, -1j]), torch.tensor([[1.0, 3.0], [0.0, -2.0]])
    state = {"neg": torch._neg_view(x), "conj": z.conj(), "imag": z.clone().conj().imag}
    state |= {"part": torch.nn.Parameter(torch._neg_view(x)), "t": torch._neg_view(x).t(), "plain": x, "z": z}
    state |= {str(d): torch._neg_view(torch.arange(4).to(d)) for d in (torch.uint8, torch.half, torch.int64)}
    state["both"] = torch._neg_view(z.conj())
    torch.save({"state_dict": state}, tmp_path / "a.ckpt", **options)
    pl.slim(tmp_path / "a.ckpt", tmp_path / "a.safetensors")
    found = load_file(tmp_path / "a.safetensors")
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], tensor.detach().resolve_conj().resolve_neg()) for name, tensor in state.items())
    torch.save({"w": torch._neg_view(torch.ones(2, dtype=torch.bool))}, tmp_path / "a.ckpt", **options)
    with pytest.raises(CheckpointError, match="clone"):
        open_file(tmp_path / "a.ckpt")


@pytest.mark.parametrize("options", [{}, LEGACY])
def test_strides_of_every_kind_are_read(options, tmp_path):
    x, cube = torch.arange(100.0), torch.arange(60).reshape(3, 4, 5)
    state = {
        "step": x[::7],
        "column": cube[:, 0],
        "inner": cube[..., 2],
        "diagonal": cube[0].diagonal(),
        "t": cube.permute(2, 1, 0),
    }
    state |= {"wide": torch.ones(3, 1).expand(3, 50), "one": torch.tensor(2.0).expand(5), "windows": x.unfold(0, 9, 2)}
    state |= {"none": x[100::3], "empty": torch.zeros(0, 3).t(), "scalar": x[5], "permuted": cube.permute(1, 2, 0)[::2]}
    state |= {
        "last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "half": x.half().reshape(10, 10)[:, 1],
    }
    torch.save(state, tmp_path / "a.pt", **options)
    pl.slim(tmp_path / "a.pt", tmp_path / "a.safetensors")
    found = load_file(tmp_path / "a.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items()) and found.keys() == state.keys()
    assert pl.inspect_checkpoint(tmp_path / "a.pt").parts["other"].floats > 0


def test_the_types_of_safetensors_are_read_and_written(tmp_path):
    names = [name for name in DTYPES if name.startswith(("F4", "F8"))]
    assert len(names) == 6
    state = {name: torch.arange(16, dtype=torch.uint8).reshape(2, 8).view(DTYPES[name]) for name in names}
    save_file(state, tmp_path / "a.safetensors")
    slimmed_state(state, tmp_path, save_file)
    with safe_open(tmp_path / "out.safetensors", "pt") as file:
        for name in names:
            tensor = file.get_tensor(name)
            assert tensor.dtype == state[name].dtype and tensor.shape == state[name].shape
            assert torch.equal(tensor.view(torch.uint8), state[name].view(torch.uint8)), name
    assert pl.inspect_checkpoint(tmp_path / "a.safetensors").parts["other"].params == 16 * 5 + 32
    header = json.dumps({"a": {"dtype": "F6_E2M3", "shape": [4], "data_offsets": [0, 3]}}).encode()
    (tmp_path / "b.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(3))
    with pytest.raises(CheckpointError, match="F6_E2M3, which torch .* does not have"):
        open_file(tmp_path / "b.safetensors")


@pytest.mark.parametrize(
    ("weight", "scales"),
    [
        (torch.float8_e4m3fn, ("scale_weight", "scale_input")),
        (torch.float8_e4m3fn, ("weight_scale", "input_scale", "weight_scale_inv")),
        (torch.float8_e5m2, ("weight.scale", "scale")),
        (torch.int8, ("weight.absmax", "SCB", "weight_zero_point")),
    ],
)
def test_scales_keep_their_type(weight, scales, tmp_path):
    model = "model.diffusion_model.double_blocks.0."
    state = {f"{model}qkv.weight": torch.randint(0, 100, (4, 4)).to(weight), f"{model}qkv.bias": torch.randn(4)}
    state |= {f"{model}qkv.{name}": torch.rand(4, 1) * 1e-6 for name in scales}
    state |= {f"{model}norm.scale": torch.randn(4), "scaled_fp8": torch.zeros(2).to(torch.float8_e4m3fn)}
    for dtype in ("fp16", "bf16"):
        found = slimmed_state(state, tmp_path, save_file, dtype=dtype, overwrite=True)
        for name in (*(f"{model}qkv.{scale}" for scale in scales), "scaled_fp8"):
            assert found[name].dtype == state[name].dtype and torch.equal(found[name].float(), state[name].float()), (
                name
            )
        assert torch.equal(found[f"{model}qkv.weight"].float(), state[f"{model}qkv.weight"].float())
        assert found[f"{model}qkv.bias"].dtype == found[f"{model}norm.scale"].dtype == CASTS[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64])
def test_position_ids_are_compared_with_what_they_should_be(dtype, tmp_path):
    name, right = "text_model.embeddings.position_ids", torch.arange(77)[None]
    merged = (right * (75 / 76)).to(dtype)
    found = slimmed_state({name: merged, "text_model.final_layer_norm.bias": torch.ones(3)}, tmp_path, dtype="fp16")
    assert torch.equal(found[name], right)
    assert any("damaged" in note and "mends" in note for note in pl.inspect_checkpoint(tmp_path / "in.ckpt").notes)
    for kept in (right.to(dtype), right.to(dtype) + 2):  # whole numbers that increase are meant so
        assert torch.equal(slimmed_state({name: kept}, tmp_path, dtype="bf16", overwrite=True)[name], kept)
        assert not any("damaged" in note for note in pl.inspect_checkpoint(tmp_path / "in.ckpt").notes)
    if dtype.is_floating_point:
        with pytest.raises(CheckpointError, match=r"position_ids is damaged: in place 0 it holds 76"):
            slimmed_state({name: right.flip(1).to(dtype)}, tmp_path, overwrite=True)


def test_a_format_of_its_own_is_kept_or_refused(tmp_path):
    dense = {"unet.a": torch.zeros(64, 64), "vae.b": torch.eye(64), "vae.c": torch.randn(3)}
    save_sparse(dense, tmp_path / "sparse.safetensors")
    pl.slim(tmp_path / "sparse.safetensors", tmp_path / "again.safetensors")
    found = load_sparse(tmp_path / "again.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in dense.items()) and found.keys() == dense.keys()
    for options in ({"dtype": "fp16"}, {"remove": ("vae",)}):
        with pytest.raises(CheckpointError, match="pruning-lib-sparse"):
            pl.slim(tmp_path / "sparse.safetensors", tmp_path / "not.safetensors", **options)
    save_file(dense, tmp_path / "flax.safetensors", {"format": "flax", "author": "me"})
    pl.slim(tmp_path / "flax.safetensors", tmp_path / "half.safetensors", dtype="fp16")
    assert open_file(tmp_path / "half.safetensors").metadata == {"format": "flax", "author": "me"}


def test_an_average_without_live_weights_becomes_the_model(emoji, averaged, equal, tmp_path):
    names = [*ldm_unet_names(emoji.unet.state_dict()).values()]
    names += ldm_unet_names(pl.denoiser_on_meta("sd-1.5").state_dict()).values()
    names += ["input_blocks.10.1.transformer_blocks.11.attn1.to_out.0.bias", "label_emb.0.2.weight"]
    names = [f"model.diffusion_model.{name}" for name in names]
    assert [live_name(ema_name(name)) for name in names] == names
    ldm, vae = to_ldm(averaged), {"first_stage_model.decoder.conv_in.weight": torch.randn(4, 4, 3, 3)}
    counters = {"decay": torch.tensor(0.9), "num_updates": torch.tensor(5)}
    layouts = [
        ({ema_name(name): tensor for name, tensor in ldm.items()} | {"model_ema.decay": torch.tensor(0.9)}, ldm),
        ({f"ema.{name}": tensor for name, tensor in averaged.items()}, averaged),
        (
            {f"unet_ema.{name}": tensor for name, tensor in averaged.items()},
            {f"unet.{n}": t for n, t in averaged.items()},
        ),
        ({"ema": averaged | counters}, averaged),
        ({"ema_state_dict": {"module": averaged}}, averaged),
        ({"state_dict": {ema_name(name): tensor for name, tensor in ldm.items()}}, ldm),
    ]
    for value, expected in layouts:
        for weights in ("default", "ema"):
            assert equal(
                slimmed_state({**value, **vae}, tmp_path, weights=weights, overwrite=True), {**expected, **vae}
            )
    report = pl.slim(tmp_path / "in.ckpt", tmp_path / "out.safetensors", overwrite=True)
    assert any("EMA copy took its place" in note for note in report.notes)
    both = {f"ema.{name}": tensor for name, tensor in {**ldm, **vae}.items()}  # the VAE is there
    assert equal(slimmed_state({**both, **vae}, tmp_path, overwrite=True), {**ldm, **vae})
    assert equal(slimmed_state({"ema": {"a.b": torch.ones(2)}}, tmp_path, overwrite=True), {"a.b": torch.ones(2)})
    strange = {"model_ema.unknown9words": torch.ones(5)}
    for value in ({"ema": {"shadow_params": list(averaged.values())}}, strange, {**layouts[0][0], **strange}):
        with pytest.raises(CheckpointError, match="do not say what they are"):
            slimmed_state({**value, **vae}, tmp_path, overwrite=True)
        assert slimmed_state({**value, **vae}, tmp_path, overwrite=True, weights="live").keys() == vae.keys()


def test_an_averaged_folder_without_a_live_one_becomes_the_model(emoji, equal, tmp_path):
    emoji.unet.save_pretrained(tmp_path / "in/unet_ema")
    for weights in ("default", "ema"):
        pl.slim(tmp_path / "in", tmp_path / weights, weights=weights)
        assert equal(
            UNet2DConditionModel.from_pretrained(tmp_path / weights / "unet").state_dict(), emoji.unet.state_dict()
        )
        assert [path.name for path in (tmp_path / weights).iterdir()] == ["unet"]


@pytest.fixture
def shards(emoji, tmp_path) -> Path:
    emoji.unet.save_pretrained(tmp_path / "pipe/unet", max_shard_size="5MB")
    return tmp_path / "pipe"


def test_the_index_decides_which_shards_belong(emoji, shards, equal, tmp_path):
    def loaded(name: str) -> dict:
        pl.slim(shards, tmp_path / name)
        assert {path.name for path in (tmp_path / name / "unet").iterdir()} == {
            "config.json",
            Path(UNET).name + ".safetensors",
        }
        return load_file(tmp_path / name / f"{UNET}.safetensors")

    whole, index = emoji.unet.state_dict(), shards / f"{UNET}.safetensors.index.json"
    first, *_, last = sorted((shards / "unet").glob("*.safetensors"))
    shutil.copy(first, shards / f"{UNET}-00001-of-00009.safetensors")  # left over from another day
    assert equal(loaded("a"), whole)
    save_file({"conv_in.weight": torch.ones(2)}, shards / f"{UNET}.safetensors")  # diffusers asks for an index first
    assert equal(loaded("b"), whole)
    (shards / f"{UNET}.safetensors").unlink()
    (shards / f"{UNET}-00001-of-00009.safetensors").unlink()
    told = index.read_text()
    for damaged in ("[]", "{", '{"weight_map": {"a": 5}}'):
        index.write_text(damaged)
        with pytest.raises(CheckpointError, match="index.json is damaged"):
            pl.inspect_checkpoint(shards)
    index.unlink()
    assert equal(loaded("c"), whole)  # all numbers are there
    for text in (None, told):
        if text:
            index.write_text(text)
        last.rename(tmp_path / "away")
        for attempt in (pl.inspect_checkpoint, lambda path: pl.slim(path, tmp_path / "d")):
            with pytest.raises(CheckpointError, match=f"{last.name} is missing"):
                attempt(shards)
        (tmp_path / "away").rename(last)
    for shard in (first, last):
        shard.unlink()
    with pytest.raises(CheckpointError, match=f"{first.name} is missing"):
        pl.slim(shards, tmp_path / "d")


@pytest.mark.parametrize(
    "index", ["safetensors.index.fp16.json", "fp16.safetensors.index.json", "safetensors.fp16.index.json"]
)
@pytest.mark.parametrize("late", [True, False])
def test_a_variant_stands_in_either_place(emoji, shards, equal, index, late, tmp_path):
    old = shards / f"{UNET}.safetensors.index.json"
    text = old.read_text()
    for path in (shards / "unet").glob("*.safetensors"):
        front, number = path.stem.split("-", 1)
        new = f"{path.stem}.fp16.safetensors" if late else f"{front}.fp16-{number}.safetensors"
        path.rename(path.with_name(new))
        text = text.replace(path.name, new)
    old.unlink()
    (shards / f"{UNET}.{index}").write_text(text)
    pl.slim(shards, tmp_path / "out")
    assert equal(load_file(tmp_path / "out" / f"{UNET}.safetensors"), emoji.unet.state_dict())
    next((shards / "unet").glob("*00001*")).unlink()
    with pytest.raises(CheckpointError, match="00001-of.* is missing"):
        pl.slim(shards, tmp_path / "out2")


def test_links_are_followed_and_those_to_nothing_told(emoji, equal, tmp_path):
    pipe, store = tmp_path / "pipe", tmp_path / "store"
    emoji.save_pretrained(store)
    pipe.mkdir()
    for path in store.iterdir():  # as a hub's snapshot, and folders besides
        (pipe / path.name).symlink_to(path)
    pl.slim(pipe, tmp_path / "out")
    assert equal(load_file(tmp_path / "out/vae/diffusion_pytorch_model.safetensors"), emoji.vae.state_dict())
    assert {path.name for path in (tmp_path / "out").iterdir()} == {path.name for path in store.iterdir()}
    for link, to in (
        ("vae", "nowhere"),
        ("unet/x.safetensors", "nowhere"),
        ("unet/again", store),
        ("unet/self", "self"),
    ):
        place = pipe / link
        kept = place.resolve() if place.is_symlink() else None
        if kept:
            place.unlink()
        place.symlink_to(to)
        with pytest.raises(CheckpointError, match=f"{link}.* is a link to"):
            pl.slim(pipe, tmp_path / "out2")
        place.unlink()
        if kept:
            place.symlink_to(kept)


def test_what_diffusers_ignores_is_left_out_and_said(emoji, tmp_path):
    pipe = tmp_path / "pipe"
    emoji.save_pretrained(pipe)
    foreign = """
        unet/openvino_model.bin unet/openvino_model.xml unet/model.onnx unet/model.onnx_data unet/weights.pb
        unet/diffusion_flax_model.msgpack text_encoder/tf_model.h5 text_encoder/rust_model.ot text_encoder/model.onnx
        vae/coreml/vae.mlpackage/Data/weight.bin .cache/huggingface/download/x.metadata vae_decoder/model.onnx
    """.split()
    for name in foreign:
        (pipe / name).parent.mkdir(parents=True, exist_ok=True)
        (pipe / name).write_bytes(b"\x08\x07nothing of torch" * 9)
    (pipe / "unet/other.bin").write_bytes(b"no checkpoint")
    before = pl.inspect_checkpoint(pipe)
    assert any("other.bin" in note for note in before.notes)
    report = pl.slim(pipe, tmp_path / "out")
    assert not any(list((tmp_path / "out").rglob(Path(name).name)) for name in [*foreign, "unet/other.bin"])
    assert (tmp_path / "out/tokenizer/tokenizer.json").is_file()
    assert any("12 files that no loader" in note and ".onnx" in note for note in report.notes)


def polyglot(path: Path, state: dict, changed: dict) -> None:
    """Write a zip again, with members besides, or other names."""
    torch.save(state, path)
    with zipfile.ZipFile(path) as old:
        members = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w") as new:
        for name, content in (members | changed).items():
            new.writestr(zipfile.ZipInfo(name), content)


@pytest.mark.parametrize(
    "name", ["Data.pkl", "DATA.PKL", "data/0", "DATA/0", "VERSION", "sub/data.pkl", "Constants.pkl"]
)
def test_a_zip_that_can_be_read_in_two_ways_is_refused(name, attack, tmp_path):
    path, hostile = tmp_path / "in.pt", pickle.dumps(attack, 2)
    torch.save({"a": torch.ones(3)}, path)
    folder = zipfile.ZipFile(path).namelist()[0].split("/")[0]
    if name == "data/0":
        with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "a") as more:
            more.writestr(f"{folder}/data/0", bytes(12))
    else:
        polyglot(path, {"a": torch.ones(3)}, {f"{folder}/{name}": hostile})
    with pytest.raises(CheckpointError, match="twice|several|TorchScript"):
        pl.inspect_checkpoint(path)


def test_what_torch_would_read_in_a_zip_decides(tmp_path):
    path = tmp_path / "in.pt"
    torch.save({"a": torch.ones(3)}, path)
    data = path.read_bytes()
    at, end = data.index(b"PK\x01\x02"), data.rindex(b"PK\x05\x06")
    path.write_bytes(
        data[:end] + data[at:]
    )  # two directories: where the end says, for torch; before the end, for Python
    with pytest.raises(CheckpointError):
        open_file(path)
    path.write_bytes(data)
    with zipfile.ZipFile(path) as old:
        members = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w") as new:  # torch takes the folder of the first member
        for name, content in {"elsewhere/x": b"", **members}.items():
            new.writestr(zipfile.ZipInfo(name), content)
    with pytest.raises(CheckpointError, match=r"torch\.load"):
        open_file(path)


def test_a_file_that_is_also_a_tar_is_refused(tmp_path):
    """The name of a tar's first member is where a pickle of the older format begins."""
    torch.save({"a": torch.ones(3)}, tmp_path / "legacy", **LEGACY)
    legacy = (tmp_path / "legacy").read_bytes()
    magic = pickle.dumps(0x1950A86A20F9469CFC6C, 2)
    for front in (magic[:-1], (504).to_bytes(8, "little") + b'{"a":1}'):
        info = tarfile.TarInfo("x")
        block = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
        block[: len(front)] = front
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
        (tmp_path / "a.ckpt").write_bytes(bytes(block) + legacy + bytes(1024))
        assert tarfile.is_tarfile(tmp_path / "a.ckpt")
        with pytest.raises(CheckpointError, match="tar archive"):
            pl.inspect_checkpoint(tmp_path / "a.ckpt")
    (tmp_path / "b.safetensors").write_bytes(b"PK\x03\x04" + bytes(4) + b"{" + bytes(100))
    with pytest.raises(CheckpointError, match="as a zip and as safetensors"):
        open_file(tmp_path / "b.safetensors")


def claim(shape: object, size: object = 10) -> bytes:
    """A pickle of one tensor of this shape, by hand."""
    stream = io.BytesIO()

    class Claim:
        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (Storage(), 0, shape, shape, False, OrderedDict())

    class Storage:
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return ("storage", torch.FloatStorage, "0", "cpu", size) if isinstance(value, Storage) else None

    Pickler(stream, 2).dump({"a": Claim()})
    return stream.getvalue()


def copies(call: bytes, length: int, times: int) -> bytes:
    """A pickle that hands one list of `length` pairs to `times` calls."""
    pairs = b"K\x01K\x02\x86" * length
    return b"\x80\x02](" + pairs + b"eq\x010](" + call * times + b"e."


@pytest.mark.parametrize(
    "content",
    [
        claim(tuple([1 << 1_300_000] * 60)),
        claim((2**32, 2**32)),
        claim((3,) * 65),
        claim((2,), 1 << 1_300_000),
        copies(b"ccollections\nOrderedDict\nh\x01\x85R", 9_000, 5_000),
        copies(b"cbuiltins\nset\nh\x01\x85R", 9_000, 5_000),
        copies(b"ctorch\nSize\nh\x01\x85R", 9_000, 5_000),
        copies(b"h\x01\x85", 9_000, 5_000),
        copies(b"]h\x01a", 9_000, 5_000),
    ],
    ids="huge many deep count dict set size tuple list".split(),
)
def test_claims_are_counted_before_anything_is_multiplied_or_copied(content, tmp_path):
    torch.save({"a": torch.zeros(10)}, tmp_path / "in.pt")
    polyglot(tmp_path / "in.pt", {"a": torch.zeros(10)}, {"in/data.pkl": content})
    started, peak = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError) as caught:
        open_file(tmp_path / "in.pt")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 400_000  # KB
    assert time.perf_counter() - started < 10
    assert len(str(caught.value)) < 1200 and "damaged" not in str(caught.value)


NASTY = "\x1b[2J\nError: all is well\u202e\x07" + "x" * 8_000_000


def test_names_are_shown_printable_and_short(foreign, tmp_path):
    def told(text: str) -> None:
        assert len(text) < 20_000 and all(sign.isprintable() or sign == "\n" for sign in text)
        assert not any(line.startswith("Error: all is well") for line in text.splitlines())

    ids = {f"unet.{NASTY}.position_ids": torch.arange(5) * 0.9}
    save_file(ids | {f"unet.{NASTY}": torch.tensor([1e9])}, tmp_path / "a.safetensors")
    torch.save({NASTY: "a word\x1b[2J", "unet.a": torch.ones(2), **ids}, tmp_path / "a.ckpt")
    torch.save({f"vae.{NASTY}": torch.zeros(2, dtype=torch.complex128)}, tmp_path / "b.ckpt")
    torch.save({"state_dict": {NASTY: torch.ones(2)}, NASTY: torch.zeros(2)}, tmp_path / "c.ckpt")
    (tmp_path / "d.ckpt").write_bytes(pickle.dumps({"a": 1}, 2))
    for name in "abc":
        done = run("inspect", tmp_path / f"{name}.ckpt")
        assert done.exit_code == 0
        told(done.stdout)
        json.loads(run("inspect", tmp_path / f"{name}.ckpt", "--json").stdout)
    for source, options in (("a.safetensors", ("--dtype", "fp16")), ("b.ckpt", ()), ("c.ckpt", ())):
        done = run("slim", tmp_path / source, tmp_path / "out.safetensors", *options)
        assert done.exit_code == 2 and done.stderr
        told(done.stderr)
    with foreign(f"mytrainer.{NASTY[:500]}") as kind:
        torch.save({"x": kind()}, tmp_path / "e.ckpt", pickle_protocol=4)
    done = run("inspect", tmp_path / "e.ckpt")
    told(done.stderr)
    assert "Nothing was run" in done.stderr and "skipped, not run" in done.stderr
    polyglot(tmp_path / "f.pt", {"a": torch.ones(2)}, {"f/\x1b[2J": b"", "F/\x1b[2j": b""})
    told(run("inspect", tmp_path / "f.pt").stderr)


FLUX = "img_in.weight txt_in.bias time_in.in_layer.weight vector_in.out_layer.bias guidance_in.in_layer.bias".split()
FLUX += ["double_blocks.0.img_attn.qkv.weight", "final_layer.linear.weight", "something_new.weight"]
CONTROL = """
    controlnet_cond_embedding.conv_in.weight controlnet_down_blocks.0.weight down_blocks.0.resnets.0.conv1.weight
    conv_in.weight time_embedding.linear_1.weight mid_block.resnets.0.norm1.weight
""".split()
LDM_CONTROL = """
    input_hint_block.0.weight zero_convs.0.0.weight middle_block_out.0.weight input_blocks.0.0.weight time_embed.0.bias
""".split()
OPEN_CLIP = """
    transformer.resblocks.0.attn.in_proj_weight transformer.resblocks.0.ln_1.weight positional_embedding
    token_embedding.weight ln_final.weight text_projection
""".split()
CLIP = "embeddings.token_embedding.weight encoder.layers.0.mlp.fc1.weight text_model.final_layer_norm.weight".split()
VISION = """
    vision_model.embeddings.class_embedding vision_model.encoder.layers.0.mlp.fc1.weight visual_projection.weight
""".split()
T5 = "shared.weight encoder.block.0.layer.0.SelfAttention.q.weight encoder.final_layer_norm.weight".split()
LORA = [f"down_blocks.0.attentions.0.to_q.{kind}" for kind in ("lora_A.weight", "lora_B.default.weight", "alpha")]


@pytest.mark.parametrize("front", ["", "model.", "module.", "_orig_mod.", "transformer."])
@pytest.mark.parametrize(
    ("part", "names"),
    [("unet", FLUX), ("controlnet", CONTROL), ("controlnet", LDM_CONTROL), ("text_encoder", OPEN_CLIP)]
    + [("text_encoder", [f"text_model.{name}" for name in CLIP]), ("text_encoder", CLIP), ("text_encoder", T5)]
    + [("image_encoder", VISION), ("safety_checker", [*VISION, "concept_embeds", "special_care_embeds_weights"])]
    + [("image_encoder", ["embeddings.patch_embeddings.projection.weight", "encoder.layer.0.attention.output.bias"])]
    + [("vae", ["encoder.layers.0.weight", "decoder.layers.3.conv.0.bias"]), ("adapter", LORA)],
)
def test_a_family_of_names_tells_its_part(front, part, names, tmp_path):
    state = {front + name: torch.ones((1,) * (4 if "layers.0.weight" in name else 2)) for name in names}
    save_file(state, tmp_path / "a.safetensors")
    assert pl.inspect_checkpoint(tmp_path / "a.safetensors").parts.keys() == {part}
    save_file({**state, "first_stage_model.quant_conv.bias": torch.ones(2)}, tmp_path / "b.safetensors")
    report = pl.inspect_checkpoint(tmp_path / "b.safetensors")
    assert report.parts.keys() - {"other"} == {part, "vae"}


@pytest.mark.parametrize(
    ("front", "names", "part"),
    [
        ("diffusion_model.", FLUX, "unet"),
        ("model.diffusion_model.", FLUX, "unet"),
        ("diffusion_model.", LORA, "adapter"),
        ("unet.", LORA, "adapter"),
        ("text_encoder.", LORA, "adapter"),
        ("base_model.model.", LORA, "adapter"),
        ("cond_stage_model.transformer.", CLIP, "text_encoder"),
        ("cond_stage_model.model.", OPEN_CLIP, "text_encoder"),
        ("conditioner.embedders.1.model.", OPEN_CLIP, "text_encoder"),
        ("conditioner.embedders.0.open_clip.model.visual.", OPEN_CLIP, "image_encoder"),
        ("text_encoders.clip_l.transformer.", CLIP, "text_encoder"),
        ("text_encoders.t5xxl.transformer.", T5, "text_encoder"),
        ("control_model.", LDM_CONTROL, "controlnet"),
        ("visual.", OPEN_CLIP, "image_encoder"),
    ],
)
def test_what_stands_in_front_tells_the_part(front, names, part, tmp_path):
    save_file({front + name: torch.ones(2) for name in names}, tmp_path / "a.safetensors")
    assert pl.inspect_checkpoint(tmp_path / "a.safetensors").parts.keys() == {part}


def test_removing_the_denoiser_leaves_the_text_encoder(tmp_path):
    state = {f"transformer.{name}": torch.ones(2) for name in ("text_model.a", "resblocks.0.b")}
    found = slimmed_state({**state, "unet.conv_in.weight": torch.ones(2)}, tmp_path, remove=("unet",))
    assert found.keys() == state.keys()


def test_errors_say_something(emoji, tmp_path, monkeypatch):
    for error in (RuntimeError(), MemoryError(), OSError(), ValueError("\n")):
        with monkeypatch.context() as broken:
            broken.setattr(inspecting, "open_file", lambda *_, error=error: (_ for _ in ()).throw(error))
            save_file({"a": torch.ones(2)}, tmp_path / "a.safetensors")
            done = run("inspect", tmp_path / "a.safetensors")
            assert done.exit_code == 2 and type(error).__name__ in done.stderr
    torch.save({"a": torch.ones(1000)}, tmp_path / "hole.ckpt")
    data = (tmp_path / "hole.ckpt").read_bytes()
    for cut in (slice(100, 2000), slice(0, 0), slice(200, 4000)):
        (tmp_path / "hole.ckpt").write_bytes(data[: cut.start] + data[cut.stop :] if cut.stop else data)
        done = run("inspect", tmp_path / "hole.ckpt")
        assert done.exit_code == (2 if cut.stop else 0) and "Errno" not in done.stderr
        assert not cut.stop or "hole.ckpt" in done.stderr.replace("\n", "")
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(tmp_path / "script.pt"))
    done = run("inspect", tmp_path / "script.pt")
    assert "TorchScript" in done.stderr and "bomb" not in done.stderr
    save_file({"unet.a": torch.tensor([3.4e38])}, tmp_path / "a.safetensors")
    done = run("slim", tmp_path / "a.safetensors", tmp_path / "b.safetensors", "--dtype", "bf16")
    assert done.exit_code == 2 and "Use bfloat16" not in done.stderr and "Keep the type" in done.stderr
    emoji.save_pretrained(tmp_path / "pipe")
    for text in ("[]", "5", "{", '"unet"'):
        (tmp_path / "pipe/model_index.json").write_text(text)
        done = run("slim", tmp_path / "pipe", tmp_path / "out", "--remove", "vae")
        assert done.exit_code == 2 and "model_index.json is damaged" in done.stderr.replace("\n", " ")
        assert not (tmp_path / "out").exists()


KILLED = """
import sys, time
from pathlib import Path
import pruning_lib.files as files
with files.write_whole(Path(sys.argv[1])) as part:
    part.write_bytes(bytes(1_000_000))
    print("begun", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_run_leaves_nothing_or_is_told_of_at_the_next(number, tmp_path):
    target = tmp_path / "out.safetensors"
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(target)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "begun\n"
    os.kill(process.pid, number)
    assert process.wait(30) == -number
    left = [path for path in tmp_path.iterdir()]
    assert len(left) == (number == signal.SIGKILL)
    save_file({"unet.a": torch.ones(2)}, tmp_path / "in.safetensors")
    if left:
        with pytest.warns(UserWarning, match=rf"killed run left {left[0]} \(1\.0 MB\)\. Delete it"):
            pl.slim(tmp_path / "in.safetensors", target)
    else:
        pl.slim(tmp_path / "in.safetensors", target)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL and target.is_file()


def test_a_tensor_is_not_changed_after_it_was_made():
    text = claim((2,), 10)
    with pytest.raises(CheckpointError, match="changed after"):
        read_pickle(io.BytesIO(text[:-2] + b"}b" + text[-2:]))
    assert isinstance(read_pickle(io.BytesIO(text)).value["a"], TensorRef)
