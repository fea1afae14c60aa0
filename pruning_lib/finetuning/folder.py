"""The folder of a training: a note of what it is about, a checkpoint to go on from, a log of one JSON line per step."""

from __future__ import annotations

import json
import pickle
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import torch
from diffusers.training_utils import EMAModel

from ..files import plain, write_whole
from ..processes import Processes


def note_run(path: Path, told: dict[str, object], differs: str, processes: Processes) -> Path:
    """Note in the file `path` what a run is about, and return its folder, made when absent; each process calls this.

    Where the note there says something else than `told`, a ValueError in every process names what
    `differs`: "other captions, or another teacher".
    """
    note, folder = json.dumps(plain(told), ensure_ascii=False), path.parent
    folder.mkdir(parents=True, exist_ok=True)
    if processes.any(path.is_file() and path.read_text("utf-8") != note):
        raise ValueError(f"{folder} holds a run with {differs}. Choose another folder.")
    if processes.is_main:
        path.write_text(note, encoding="utf-8")
    return folder


def read_log(folder: str | Path) -> list[dict[str, object]]:
    """Return the lines of a run's log; of repeated steps the later ones, and none that a crash cut short."""
    found = {}
    for text in (Path(folder) / "log.jsonl").read_text("utf-8", errors="replace").splitlines():
        with suppress(ValueError, TypeError, KeyError):
            line = json.loads(text)
            found[line["step"]] = line
    return list(found.values())


def add_line(folder: Path, line: dict) -> None:
    """Write one more line of the log."""
    with (folder / "log.jsonl").open("a", encoding="utf-8") as log:
        log.write(json.dumps(line) + "\n")


def end_line(folder: Path) -> None:
    """End a line that a crash cut short, so that the next one starts on its own."""
    log = folder / "log.jsonl"
    if log.is_file() and not log.read_bytes().endswith(b"\n"):
        with log.open("a", encoding="utf-8") as file:
            file.write("\n")


def save_checkpoint(folder: Path, model, optimizer, ema: EMAModel | None, config, step: int, seconds: float) -> None:
    """Write all that a run needs to go on; a crash while writing leaves the checkpoint before."""
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "ema": ema.state_dict() if ema else None}
    state |= {"config": asdict(config), "step": step, "seconds": seconds}
    with write_whole(folder / "checkpoint.pt") as part:
        torch.save(state, part)


def read_checkpoint(path: Path) -> dict:
    """Return what a checkpoint holds, on the CPU; a damaged one is a ValueError, and left as it is."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"{path} is damaged or cut short: {reason} Restore it, or move it away to train this part anew."
        ) from error


def restore(folder: Path, model, optimizer, ema: EMAModel | None, config) -> tuple[int, float]:
    """Load what `save_checkpoint` wrote into the parts, and return the step and the seconds; zeros without a file."""
    path = folder / "checkpoint.pt"
    if not path.is_file():
        return 0, 0.0
    saved = read_checkpoint(path)  # on the CPU, where the optimiser counts its steps; the rest is copied over
    may_differ = {"steps", "decay", "device", "checkpoint_every", "log_every", "validate_every"}
    now = asdict(config)
    wrong = {k: (saved["config"][k], now[k]) for k in now if k not in may_differ and saved["config"].get(k) != now[k]}
    if wrong:
        raise ValueError(f"{path} was made with other settings (saved, asked): {wrong}. Use them, or another folder.")
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    if ema:
        ema.load_state_dict(saved["ema"])
        ema.to(config.device)
    return saved["step"], saved["seconds"]
