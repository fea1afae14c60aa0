"""A folder of finished scores: one small file for each, so that an interrupted run loses nothing but the running one.

Each file is written under another name and moved into place.  `settings.json` says what the scores belong to, and a
run with other settings, or another model, is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .._files import check_place
from .distance import Change, Scored

__all__ = ["ScoreStore", "checksum"]

_NUMBERS = ("avg_dist", "std_dist", "mse", "seconds")
_TENSORS = ("avg", "std", "latents")


class ScoreStore:
    """Finished scores of one setting, in a folder.

    Args:
        folder: made when absent. Default: a temporary one, which `close` removes.
        settings: JSON values that decide the scores.

    Raises:
        OSError: the folder cannot be written.
        ValueError: it holds scores of other settings.
    """

    def __init__(self, folder: str | Path | None, settings: Mapping[str, object]):
        self._own = folder is None
        self.folder = Path(tempfile.mkdtemp(prefix="operator-scores-") if folder is None else folder)
        mine = json.loads(json.dumps(settings, default=str))
        path = self.folder / "settings.json"
        check_place(path)
        if path.is_file():
            _check_settings(json.loads(path.read_text("utf-8")), mine, path)
        else:
            _write(path, lambda part: part.write_text(json.dumps(mine, indent=1) + "\n", encoding="utf-8"))

    def load(self) -> dict[tuple[Change, ...], Scored]:
        """Return what is finished: changes -> score. A file that is damaged counts as not there."""
        found = {}
        for path in sorted(self.folder.glob("*.safetensors")):
            try:
                scored = read_scored(path)
            except (SafetensorError, OSError, ValueError, KeyError, TypeError):
                continue
            found[scored.changes] = scored
        return found

    def add(self, scored: Scored) -> None:
        """Keep a score."""
        _write(self.folder / _name(scored.changes), lambda part: write_scored(part, scored))

    def close(self) -> None:
        """Remove the folder if it was a temporary one."""
        if self._own:
            shutil.rmtree(self.folder, ignore_errors=True)


def write_scored(path: Path, scored: Scored) -> None:
    """Write a score as safetensors: tensors, and the numbers beside them."""
    tensors = {name: getattr(scored, name) for name in _TENSORS if getattr(scored, name) is not None}
    note = {name: getattr(scored, name) for name in _NUMBERS}
    note |= {"changes": scored.changes, "skipped": scored.skipped}
    save_file({k: v.contiguous() for k, v in tensors.items()}, path, {"scored": json.dumps(note)})


def read_scored(path: Path) -> Scored:
    """Read what `write_scored` wrote."""
    with safe_open(path, "pt") as file:
        note = json.loads(file.metadata()["scored"])
        tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}
    changes = tuple((str(p), str(how)) for p, how in note.pop("changes"))
    return Scored(changes, **{name: tensors.get(name) for name in _TENSORS}, **note)


def checksum(module: nn.Module) -> str:
    """Return a hash of all weights of a module, the same on every device; of their shapes only, where they are absent.

    Bits are added up as whole numbers, which no order of summation changes.
    """
    text = hashlib.sha256()
    for name, weight in module.state_dict().items():
        text.update(f"{name} {tuple(weight.shape)} {weight.dtype} ".encode())
        if not weight.is_meta:
            whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[weight.element_size()]
            bits = weight.detach().contiguous().view(-1).view(whole)
            # Halves are told apart, so that two weights that change places are noticed in most cases.
            sums = [part.sum(dtype=torch.int64) for part in (bits, bits[::2], bits[::7])]
            text.update(str([s.item() for s in sums]).encode())
    return text.hexdigest()[:16]


def _name(changes: tuple[Change, ...]) -> str:
    if not changes:
        return "original.safetensors"
    code = hashlib.sha256(json.dumps(changes).encode()).hexdigest()[:12]
    return f"{changes[0][0][:100]}-{code}.safetensors"


def _write(path: Path, write) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _check_settings(saved: dict, mine: dict, path: Path) -> None:
    wrong = {k: (saved.get(k), mine.get(k)) for k in {**saved, **mine} if saved.get(k) != mine.get(k)}
    if wrong:
        told = "; ".join(f"{k}: {_short(a)} there, {_short(b)} now" for k, (a, b) in wrong.items())
        raise ValueError(
            f"{path.parent} holds scores of another model or other settings ({told}). Give another folder, or call as "
            "before to go on."
        )


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
