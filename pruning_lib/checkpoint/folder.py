"""Which file of a diffusers folder is for what: weights, second copies of them, training state, configurations.

Folders come in two kinds. A pipeline has `model_index.json` and a folder for each component. A training script of
diffusers leaves `checkpoint-500/` with `unet/`, perhaps `unet_ema/`, and the state of optimiser, schedule and random
numbers beside them. A component may hold the same weights several times, as safetensors and as .bin, and in variants
such as `.fp16.` and `.non_ema.`; a loader takes one of them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from .parts import part_of_file
from .pickle import CheckpointError

__all__ = ["File", "list_folder"]

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl")
_SAVED = re.compile(
    r"(?P<stem>diffusion_pytorch_model|pytorch_model|model)(?P<variant>(\.\w+)?)(-\d+-of-\d+)?"
    r"(?P<ending>\.safetensors|\.bin)"
)
_TEXTS = re.compile(r"(readme|licen[cs]e|notice|copying)", re.IGNORECASE)


@dataclass
class File:
    """One file of a folder.

    Attributes:
        name: below the folder, with slashes.
        nbytes: its length.
        role: "weights", "copy", "live" (weights that another file replaces), "ema", "optimizer", "training", "index",
            "config" or "other".
    """

    name: str
    nbytes: int
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
    def weights(self) -> bool:
        """Whether it holds tensors."""
        return self.role in ("weights", "copy", "live", "ema", "optimizer", "training") and self.suffix in WEIGHTS

    @property
    def part(self) -> str | None:
        """One of `parts.PARTS`, None where its tensors must tell."""
        if self.role == "weights":
            return part_of_file(self.component.removesuffix("_ema"), "")
        return "copy" if self.role == "live" else self.role


def list_folder(folder: Path, which: str = "default") -> list[File]:
    """Return every file of a folder and its role.

    Args:
        folder: a pipeline, a model, or what a training script wrote.
        which: "default", "live" or "ema": which copy of the denoiser is the one to use. `unet_ema/` holds the EMA copy;
            where a file is called `.non_ema.`, that is the live one and the file without a variant is EMA.

    Raises:
        CheckpointError: no weights at all, or not the copy that was asked for.
    """
    files = [
        File(path.relative_to(folder).as_posix(), path.stat().st_size)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".git" not in path.relative_to(folder).parts
    ]
    pipeline = any(file.name == "model_index.json" for file in files)
    groups: dict[str, dict[tuple[str, str], list[File]]] = {}
    for file in files:
        name = PurePosixPath(file.name).name
        saved = _SAVED.fullmatch(name)
        told = part_of_file("", name) if not file.component else None
        if saved and (file.component or not pipeline):
            group = saved["variant"], saved["ending"]
            groups.setdefault(file.component, {}).setdefault(group, []).append(file)
        elif told in ("optimizer", "training"):
            file.role = told
        elif name.endswith(".index.json"):
            file.role = "index"
        elif file.suffix in WEIGHTS:
            file.role = "copy" if file.component or pipeline else "other"
        elif file.component or name in ("model_index.json", "config.json") or _TEXTS.match(name):
            file.role = "config"
    for component, found in groups.items():
        _choose(component, found, which)
    if not any(file.role == "weights" for file in files):
        raise CheckpointError(
            f"{folder} holds no weights that diffusers would load. Give the file itself, or the folder that "
            "save_pretrained or a training script of diffusers wrote."
        )
    _settle_ema(folder, files, which)
    return files


def _choose(component: str, found: dict[tuple[str, str], list[File]], which: str) -> None:
    """Mark one group of a component as its weights, as a loader would choose, and the others as copies."""
    order = sorted(found, key=lambda group: (group[0] == ".non_ema", group[0] != "", group[0], group[1] == ".bin"))
    chosen = order[0]
    live = next((group for group in order if group[0] == ".non_ema"), None)
    if which == "live" and live:
        chosen = live
    roles = dict.fromkeys(order, "copy")
    if live:
        averaged = next((group for group in order if group[0] == ""), None)
        roles |= {live: "live", averaged: "ema"}
    roles[chosen] = "weights"
    for group in order:
        for file in found[group]:
            file.role = roles[group]


def _settle_ema(folder: Path, files: list[File], which: str) -> None:
    """Treat `unet_ema/` as the EMA copy, or, if that is wanted, as the weights of `unet/`."""
    averaged = [file for file in files if file.component.endswith("_ema")]
    variants = any(".non_ema" in file.name for file in files)
    if which == "ema" and not averaged and not variants:
        raise CheckpointError(
            f"{folder} has no EMA copy: neither unet_ema/ nor a .non_ema. file beside the averaged one. "
            "Leave weights at 'default'."
        )
    for file in averaged:
        if which != "ema":
            file.role = "ema" if file.role == "weights" else "other" if file.role == "config" else file.role
    if which == "ema" and averaged:
        plain = averaged[0].component.removesuffix("_ema")
        for file in files:
            if file.component == plain and file.role == "weights":
                file.role = "live"
            elif file.component.endswith("_ema") and file.role == "config":
                file.role = "other"  # its configuration carries settings of the average; the live one fits as well
