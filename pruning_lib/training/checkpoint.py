"""What a run leaves in its folder: a checkpoint to go on from, and a log with one line of JSON per logged step."""

from __future__ import annotations

import json
import os
import pickle
from dataclasses import asdict
from pathlib import Path

import torch

from .fit_config import FitConfig
from .processes import Processes

__all__ = ["add_line", "end_line", "note_run", "read_checkpoint", "read_log", "restore", "save_checkpoint"]


def note_run(path: Path, told: dict[str, object], differs: str, processes: Processes) -> Path:
    """Note in a file what a run is about, and refuse to go on from another one; each process has to call this.

    Args:
        path: the note, in the run's folder, which is made.
        told: what makes it this run; plain values.
        differs: what a run with another note was about, for the message: "other captions, or another teacher".

    Returns:
        The folder.

    Raises:
        ValueError: the folder holds another run; in every process.
    """
    note, folder = json.dumps(told, ensure_ascii=False), path.parent
    folder.mkdir(parents=True, exist_ok=True)
    if processes.any(path.is_file() and path.read_text("utf-8") != note):
        raise ValueError(f"{folder} holds a run with {differs}. Choose another folder.")
    if processes.is_main:
        path.write_text(note, encoding="utf-8")
    return folder


def read_checkpoint(path: Path) -> dict:
    """Return what a checkpoint holds, on the CPU.

    Raises:
        ValueError: the file is damaged; it is left as it is.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"{path} is damaged or cut short: {reason} Restore it, or move it away to train this part anew."
        ) from error


def _state(model, optimizer, ema, config, step, seconds) -> dict:
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "ema": ema.state_dict() if ema else None,
        "config": asdict(config),
        "step": step,
        "seconds": seconds,
    }


def save_checkpoint(folder: Path, *parts) -> None:
    """Write the model, the optimiser, the average, the configuration, the step and the seconds, in this order."""
    temporary = folder / "checkpoint.pt.part"
    torch.save(_state(*parts), temporary)
    os.replace(temporary, folder / "checkpoint.pt")


def restore(folder: Path, model, optimizer, ema, config: FitConfig) -> tuple[int, float]:
    """Load what `save_checkpoint` wrote into the parts, and return the step and the seconds; zeros without a file.

    Raises:
        ValueError: the file is damaged or belongs to another configuration.
    """
    path = folder / "checkpoint.pt"
    if not path.is_file():
        return 0, 0.0
    saved = read_checkpoint(path)  # on the CPU, where the optimiser counts its steps; the rest is copied over
    may_differ = {"steps", "decay", "device", "checkpoint_every", "log_every", "validate_every"}
    now = asdict(config)
    wrong = {
        k: (saved["config"][k], now[k])
        for k in now
        if k not in may_differ and saved["config"].get(k) != now[k]
    }
    if wrong:
        raise ValueError(
            f"{path} was made with other settings (saved, asked): {wrong}. Use them, or another folder."
        )
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    if ema:
        ema.load_state_dict(saved["ema"])
        ema.to(config.device)
    return saved["step"], saved["seconds"]


def read_log(folder: str | Path) -> list[dict[str, object]]:
    """Return the lines of a run's log; where a resumed run repeated steps, the later ones count.

    A line that a crash cut short is left out: it belongs to steps that the resumed run repeated.
    """
    found = {}
    for text in (Path(folder) / "log.jsonl").read_text("utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
            found[line["step"]] = line
        except (ValueError, TypeError, KeyError):
            continue
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
