"""Which file of a diffusers folder is for what: weights, second copies of them, training state, configurations.

A component of a pipeline may hold the same weights several times, as safetensors and as .bin, and in variants such as
`.fp16.` and `.non_ema.`; a loader takes one. Training scripts leave `unet/`, perhaps `unet_ema/`, and training state.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from .parts import part_of_file
from .pickle import CheckpointError

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl")
_SAVED = re.compile(  # a variant stands before or behind the number of a shard, and in three places of an index
    r"(diffusion_pytorch_model|pytorch_model|model)(\.(?P<a>[\w-]+?))?(-\d{1,5}-of-(?P<shards>\d{1,5}))?"
    r"(\.(?P<b>[\w-]+))?(?P<ending>\.safetensors|\.bin)(?P<index>(\.(?P<c>[\w-]+))?\.index(\.(?P<d>[\w-]+))?\.json)?"
)
# The same weights for other programs, which no loader of diffusers looks at.
_FOREIGN = re.compile(
    r"(^|/)(\.|openvino_)|\.(onnx([_.]data)?|msgpack|h5|pb|pbtxt|tflite|ot|xml|gguf|npz|mlmodelc?|mlpackage|engine)(/|$)"
)
_INDEX = re.compile(r"\.index(\.[\w-]+)?\.json$")
_TEXTS = re.compile(r"(readme|licen[cs]e|notice|copying)", re.IGNORECASE)


@dataclass
class File:
    """One file of a folder."""

    name: str  # below the folder, with slashes
    nbytes: int
    # "weights", "copy", "live" (weights that another file replaces), "ema", "optimizer", "training", "index", "config"
    role: str = "other"

    @property
    def component(self) -> str:
        """The folder it lies in, as in "unet"; "" at the top."""
        return self.name.rpartition("/")[0]

    @property
    def new_name(self) -> str:
        """Its name where an EMA copy takes the place of the live one."""
        return f"{self.component.removesuffix('_ema')}/{PurePosixPath(self.name).name}".removeprefix("/")

    @property
    def suffix(self) -> str:
        """Its ending."""
        return PurePosixPath(self.name).suffix

    @property
    def holds_tensors(self) -> bool:
        """Whether it is one of the roles with tensors, and of a format that can be read."""
        return self.role not in ("index", "config", "other") and self.suffix in _WEIGHTS

    @property
    def part(self) -> str | None:
        """One of `parts.PARTS`, None where its tensors must tell."""
        if self.role == "weights":
            return part_of_file(self.component.removesuffix("_ema"), "")
        return "copy" if self.role == "live" else self.role


def list_folder(folder: Path, which: str = "default") -> list[File]:
    """Return every file of a folder and its role; `which` ("default", "live", "ema") copy of the denoiser is wanted.

    `unet_ema/` holds the EMA copy; where a file is called `.non_ema.`, that is the live one and the file without a
    variant is EMA. A CheckpointError says that there are no weights at all, or not the copy that was asked for.
    """
    files = [File(path.relative_to(folder).as_posix(), path.stat().st_size) for path in _walk(folder)]
    pipeline = any(file.name == "model_index.json" for file in files)
    variants: dict[str, dict[tuple[str, str], list[File]]] = {}  # component -> (variant, ending) -> files and index
    for file in files:
        name = PurePosixPath(file.name).name
        saved = _SAVED.fullmatch(name)
        part = None if file.component else part_of_file("", name)
        if _FOREIGN.search(file.name):
            continue
        if saved and (file.component or not pipeline):
            variant = next(filter(None, (saved[group] for group in "abcd")), "")
            variants.setdefault(file.component, {}).setdefault((variant, saved["ending"]), []).append(file)
        elif part in ("optimizer", "training"):
            file.role = part
        elif file.suffix in _WEIGHTS:
            file.role = "copy" if file.component or pipeline else "other"
        elif file.component or name in ("model_index.json", "config.json") or _TEXTS.match(name):
            file.role = "config"
    for of_component in variants.values():
        _choose(of_component, which)
    if not any(file.role == "weights" for file in files):
        raise CheckpointError(
            f"{folder} holds no weights that diffusers would load. Give the file itself, or the folder that "
            "save_pretrained or a training script of diffusers wrote."
        )
    _settle_ema(folder, files, which)
    for group in (group for of_component in variants.values() for group in of_component.values()):
        if group[0].role == "weights":
            _settle_shards(folder, group, files)
    for file in files:
        if _INDEX.search(file.name):
            file.role = "index"
    return files


def _walk(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """Yield the files below a folder, those behind links as well; a link that leads nowhere is a CheckpointError."""
    here = folder.resolve()
    if here in above:
        raise CheckpointError(f"{folder} is a link to a folder it lies in. Delete it")
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            yield from _walk(path, (*above, here)) if path.name != ".git" else ()
        elif path.is_file():
            yield path
        elif path.is_symlink():
            raise CheckpointError(f"{path} is a link to nothing. Restore what it names, or delete it")


def _settle_shards(folder: Path, group: list[File], files: list[File]) -> None:
    """Take what a loader would of a single file, shards and their index, which decides; no shard may be missing."""
    told = {file.name: _SAVED.fullmatch(PurePosixPath(file.name).name) for file in group}
    index = next((name for name, saved in told.items() if saved["index"]), None)
    single = next((name for name, saved in told.items() if not saved["index"] and not saved["shards"]), None)
    if index and (not single or told[index][1] == "diffusion_pytorch_model"):  # transformers prefers a single file
        try:
            shards = set(json.loads((folder / index).read_text("utf-8"))["weight_map"].values())
            wanted = {str(PurePosixPath(index).with_name(PurePosixPath(shard).name)) for shard in shards}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise CheckpointError(f"{folder / index} is damaged: it has no weight_map of file names") from error
    elif single:
        wanted = {single}
    else:
        first, saved = max(told.items(), key=lambda item: int(item[1]["shards"]))
        total, digits = int(saved["shards"]), len(saved["shards"])
        wanted = {re.sub(r"-\d+-of-", f"-{i:0{digits}d}-of-", first) for i in range(1, total + 1)}
    missing = sorted(wanted - {file.name for file in files})
    if missing:
        raise CheckpointError(f"{folder / missing[0]} is missing, one of {len(wanted)} shards. Fetch it again")
    for file in files:
        if file.name in wanted or file in group:
            file.role = "weights" if file.name in wanted else "copy"


def _choose(variants: dict[tuple[str, str], list[File]], which: str) -> None:
    """Mark one variant of a component as its weights, as a loader would choose, and the others as copies."""
    order = sorted(variants, key=lambda key: (key[0] == "non_ema", key[0] != "", key[0], key[1] == ".bin"))
    live = next((key for key in order if key[0] == "non_ema"), None)
    roles = dict.fromkeys(order, "copy")
    if live:
        averaged = next((key for key in order if key[0] == ""), None)
        roles |= {live: "live", averaged: "ema"}
    roles[live if live and which == "live" else order[0]] = "weights"
    for key in order:
        for file in variants[key]:
            file.role = roles[key]


def _settle_ema(folder: Path, files: list[File], which: str) -> None:
    """Treat `unet_ema/` as the EMA copy, or, if that is wanted or `unet/` has no weights, as those of `unet/`."""
    averaged = [file for file in files if file.component.endswith("_ema")]
    plain = {file.component: file for file in files if file.role == "weights"}
    configs = {file.name for file in files if file.role == "config"}
    for file in averaged:
        alone = file.component.removesuffix("_ema") not in plain
        if which == "live" or (which == "default" and not alone):
            file.role = {"weights": "ema", "config": "other"}.get(file.role, file.role)
        elif file.role == "config" and file.new_name in configs:
            file.role = "other"  # its configuration carries settings of the average; the live one fits as well
    replaced = {file.component.removesuffix("_ema") for file in averaged if file.role == "weights"}
    for file in files:
        if file.component in replaced and file.role == "weights":
            file.role = "live"
    if which == "ema" and not replaced and not any(".non_ema" in file.name for file in files):
        raise CheckpointError(
            f"{folder} has no EMA copy: neither unet_ema/ nor a .non_ema. file beside the averaged one. "
            "Leave weights at 'default'."
        )
