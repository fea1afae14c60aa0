"""`slim` for a diffusers folder: the weights of each component in one safetensors file, configurations beside it."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path, PurePosixPath

import torch

from .checkpoint import Row, rows_of
from .folder import File, list_folder
from .parts import PARTS, part_of_file
from .reading import Source, open_file
from .slim_plan import Plan, make_plan
from .slimming import SlimReport, report_of, write_checked
from .writing import check_room, file_bytes, in_place

__all__ = ["slim_folder"]


def slim_folder(
    source: Path, target: Path, *, weights: str, cast: torch.dtype | None, remove, vae, aliases: str, allow
) -> SlimReport:
    """Write the folder that a plain `from_pretrained` loads; see `slim`."""
    files = list_folder(source, weights)
    before = sum(file.nbytes for file in files)
    away = {file.component for file in files if part_of_file(file.component, "") in remove and file.component}
    swap = Path(vae) if vae is not None else None
    if swap is not None and not (swap / "config.json").is_file():
        raise ValueError(
            f"{swap} is no folder of a VAE: it has no config.json. Give one that diffusers wrote."
        )
    if swap is not None:
        away.add("vae")

    other: Counter = Counter()
    components: dict[str, list[Source]] = {}
    configs: list[tuple[Path, str]] = []
    for file in files:
        if file.component in away:
            part = part_of_file(file.component, "")
            exchanged = swap is not None and file.component == "vae"
            other["VAE exchanged" if exchanged else f"removed as asked: {PARTS[part]}"] += file.nbytes
        elif file.role == "weights":
            components.setdefault(_output(file), []).append(open_file(source / file.name, allow))
        elif file.role == "config":
            configs.append((source / file.name, file.name))
        else:
            other[_cause(file)] += file.nbytes
    if swap is not None:
        for file in list_folder(swap):
            if file.role == "weights":
                components.setdefault(_output(file, "vae/"), []).append(open_file(swap / file.name, allow))
            elif file.role == "config" and file.name == "config.json":
                configs.append((swap / file.name, "vae/config.json"))
    if not components:
        raise ValueError("Nothing would be left. Remove fewer parts.")

    plans = {name: _plan(name, opened, cast, remove, aliases) for name, opened in components.items()}
    metadata = {
        name: {**plan.metadata, **components[name][0].metadata, "format": "pt"}
        for name, plan in plans.items()
    }
    needed = sum(file_bytes([k.planned for k in plan.kept], metadata[name]) for name, plan in plans.items())
    target.parent.mkdir(parents=True, exist_ok=True)
    check_room(target.parent, needed + sum(path.stat().st_size for path, _ in configs))
    with in_place(target, folder=True) as temporary:
        for name, plan in plans.items():
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            write_checked(temporary / name, plan.kept, metadata[name])
        for path, name in configs:
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, temporary / name)
        _forget(temporary / "model_index.json", away - ({"vae"} if swap is not None else set()))
        sizes = {
            p.relative_to(temporary).as_posix(): p.stat().st_size for p in temporary.rglob("*") if p.is_file()
        }

    _account(plans, components, sizes, other, swap)
    for path, name in configs:
        own = path.stat().st_size if swap is None or swap not in path.parents else 0
        other["VAE exchanged" if own == 0 else "container: names, shapes, pickle"] += own - sizes[name]
    plans[""] = Plan([], other)
    names = tuple({name: None for opened in components.values() for one in opened for name in one.names})
    return report_of(source, target, before, sum(sizes.values()), list(plans.values()), names, [])


def _output(file: File, folder: str = "") -> str:
    """Return where the weights of a component go, under the names that loaders expect."""
    component = file.component.removesuffix("_ema")
    stem = PurePosixPath(file.name).name.partition(".")[0].partition("-")[0]
    name = "diffusion_pytorch_model" if stem == "diffusion_pytorch_model" else "model"
    return f"{folder}{component + '/' if component else ''}{name}.safetensors"


def _plan(name: str, opened: list[Source], cast: torch.dtype | None, remove, aliases: str) -> Plan:
    component = name.rpartition("/")[0]
    rows: list[Row] = [row for one in opened for row in rows_of(one, part_of_file(component, ""))]
    return make_plan(rows, cast, remove, aliases)


def _account(
    plans: dict[str, Plan], components, sizes: dict[str, int], other: Counter, swap: Path | None
) -> None:
    """Add what the containers take, and book an exchanged VAE under one cause."""
    for name, plan in plans.items():
        tensors = sum(kept.planned.nbytes for kept in plan.kept)
        if swap is not None and name.startswith("vae/"):
            plan.causes.clear()
            other["VAE exchanged"] -= sizes[name]
            continue
        held = sum(one.nbytes - sum(one.storages.values()) for one in components[name])
        plan.causes["container: names, shapes, pickle"] += held - (sizes[name] - tensors)


def _cause(file: File) -> str:
    return {
        "live": "live copy",
        "index": "container: names, shapes, pickle",
        "other": "files that are not part of the model",
    }.get(file.role) or PARTS[file.role]


def _forget(index: Path, components: set[str]) -> None:
    """Strike removed components from `model_index.json`, as diffusers does for those that are None."""
    if not components or not index.is_file():
        return
    config = json.loads(index.read_text("utf-8"))
    for name in components & config.keys():
        config[name] = [None, None]
    if "safety_checker" in components:
        config["requires_safety_checker"] = False
    index.write_text(json.dumps(config, indent=2) + "\n", "utf-8")
