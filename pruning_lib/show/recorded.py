"""Sweeps on disk: a record with axes and metrics, and beside it one sheet with all pictures, tied by its checksum."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..measure.record import RecordError, check_writable, load_record, record_path, save_record
from .lattice import Axis, Metric
from .sprites import Sheet

__all__ = ["load_sheet", "load_sweep", "save_sheet", "save_sweep"]

_FIELDS = ("axes", "metrics", "tile", "sheet")


def save_sweep(
    path: str | Path,
    experiment: str,
    axes: Sequence[Axis],
    metrics: Sequence[Metric],
    sheet: Sheet,
    passport: Mapping,
    **more: Any,
) -> Path:
    """Write a sweep as a record and, beside it, `<record>.webp`; see `SweepExplorer.save`."""
    path = check_writable(path)
    data = {
        "axes": [axis.to_dict() for axis in axes], "metrics": [metric.to_dict() for metric in metrics],
        **save_sheet(path, sheet), **more,
    }  # fmt: skip
    return save_record(path, experiment, data, passport)


def save_sheet(path: Path, sheet: Sheet, quality: int | None = None) -> dict[str, Any]:
    """Write a record's sheet beside the place of the record, and return what the record says about it.

    Args:
        path: the record's file.
        sheet: the pictures.
        quality: as `Sheet.save` takes it.
    """
    file = path.with_suffix(".webp")
    sheet.save(file, quality)
    return {"tile": [sheet.width, sheet.height], "sheet": {"file": file.name, "sha256": _checksum(file)}}


def load_sheet(path: Path, data: Mapping[str, Any], count: int) -> Sheet:
    """Read the sheet of the record at `path`, which must be the one it was written with.

    Args:
        path: the record's file.
        data: of the record; holds what `save_sheet` returned.
        count: pictures in the sheet.

    Raises:
        RecordError: the sheet is missing, or another one.
    """
    file = path.with_name(data["sheet"]["file"])
    if not file.is_file():
        raise RecordError(f"{file}, the sheet of {path.name}, is missing. Restore it from version control.")
    if _checksum(file) != data["sheet"]["sha256"]:
        raise RecordError(
            f"{file} is not the sheet that {path.name} was written with (its SHA-256 differs). "
            "Restore both from version control, or measure again."
        )
    return Sheet.read(file, *data["tile"], count)


def load_sweep(record: str | Path) -> tuple[list[dict], list[dict], Sheet, dict]:
    """Return axes, metrics, sheet and passport of a sweep; see `SweepExplorer.from_record`."""
    found = load_record(record)
    path = record_path(record)
    data = found["data"]
    missing = [key for key in _FIELDS if key not in data]
    if missing:
        raise RecordError(
            f"{path} is no record of a sweep: its data lack {', '.join(missing)}. Write it with SweepExplorer.save."
        )
    count = math.prod(len(axis["stops"]) for axis in data["axes"])
    return data["axes"], data["metrics"], load_sheet(path, data, count), found["passport"]


def _checksum(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
