"""Which file of a diffusers folder is for what: weights, second copies of them, training state, configurations.

A component of a pipeline may hold the same weights several times, as safetensors and as .bin, and in variants such as
`.fp16.` and `.non_ema.`; a loader takes one. Training scripts leave `unet/`, perhaps `unet_ema/`, and training state.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from .parts import part_of_file
from .pickle import CheckpointError

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl")
_SAVED = re.compile(
    r"(diffusion_pytorch_model|pytorch_model|model)(?P<variant>(\.\w+)?)(-\d+-of-\d+)?(?P<ending>\.safetensors|\.bin)"
)
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
        return str(PurePosixPath(self.name).parent).removeprefix(".")

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
    files = [
        File(path.relative_to(folder).as_posix(), path.stat().st_size)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".git" not in path.relative_to(folder).parts
    ]
    pipeline = any(file.name == "model_index.json" for file in files)
    variants: dict[str, dict[tuple[str, str], list[File]]] = {}  # component -> (variant, ending) -> shards
    for file in files:
        name = PurePosixPath(file.name).name
        saved = _SAVED.fullmatch(name)
        part = None if file.component else part_of_file("", name)
        if saved and (file.component or not pipeline):
            of_component = variants.setdefault(file.component, {})
            of_component.setdefault((saved["variant"], saved["ending"]), []).append(file)
        elif part in ("optimizer", "training"):
            file.role = part
        elif name.endswith(".index.json"):
            file.role = "index"
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
    return files


def _choose(variants: dict[tuple[str, str], list[File]], which: str) -> None:
    """Mark one variant of a component as its weights, as a loader would choose, and the others as copies."""
    order = sorted(variants, key=lambda key: (key[0] == ".non_ema", key[0] != "", key[0], key[1] == ".bin"))
    live = next((key for key in order if key[0] == ".non_ema"), None)
    roles = dict.fromkeys(order, "copy")
    if live:
        averaged = next((key for key in order if key[0] == ""), None)
        roles |= {live: "live", averaged: "ema"}
    roles[live if live and which == "live" else order[0]] = "weights"
    for key in order:
        for file in variants[key]:
            file.role = roles[key]


def _settle_ema(folder: Path, files: list[File], which: str) -> None:
    """Treat `unet_ema/` as the EMA copy, or, if that is wanted, as the weights of `unet/`."""
    averaged = [file for file in files if file.component.endswith("_ema")]
    if which != "ema":
        for file in averaged:
            file.role = {"weights": "ema", "config": "other"}.get(file.role, file.role)
    elif averaged:
        plain = averaged[0].component.removesuffix("_ema")
        for file in files:
            if file.component == plain and file.role == "weights":
                file.role = "live"
            elif file in averaged and file.role == "config":
                file.role = "other"  # its configuration carries settings of the average; the live one fits as well
    elif not any(".non_ema" in file.name for file in files):
        raise CheckpointError(
            f"{folder} has no EMA copy: neither unet_ema/ nor a .non_ema. file beside the averaged one. "
            "Leave weights at 'default'."
        )
