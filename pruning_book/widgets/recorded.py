"""Explorers on disk: a record with their figures, and beside it one sheet with all pictures, tied by its checksum."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pruning_lib.records import RecordError, check_writable, load_record, record_path, save_record

from .sheet import Sheet

__all__ = ["load_pictured", "save_pictured"]


def save_pictured(
    path: str | Path,
    experiment: str,
    data: Mapping[str, Any],
    sheet: Sheet,
    passport: Mapping,
    *,
    quality: int | None = None,
) -> Path:
    """Write figures as a record, `<path>.json`, and their pictures as a sheet beside it, `<path>.webp`.

    Args:
        path: the record's file, ending in .json.
        experiment: its name.
        data: JSON-ready.
        sheet: the pictures.
        passport: as `measure.passport` returns it.
        quality: of the sheet, as `Sheet.save` takes it.

    Raises:
        RecordError: the place cannot be written to.
    """
    path = check_writable(path)
    return save_record(path, experiment, {**_save_sheet(path, sheet, quality), **data}, passport)


def load_pictured(
    record: str | Path, kind: str, fields: Sequence[str], count: Callable[[Mapping[str, Any]], int]
) -> tuple[dict, Sheet, dict]:
    """Return data, sheet and passport of a record that `save_pictured` wrote.

    Args:
        record: name or file.
        kind: what it should be a record of, for messages.
        fields: what its data must hold besides the sheet.
        count: tells the number of pictures from the data.

    Raises:
        RecordError: the record cannot be read or is of another kind, or its sheet is missing or another one.
    """
    found, path = load_record(record), record_path(record)
    data = found["data"]
    missing = [key for key in (*fields, "tile", "sheet") if key not in data]
    if missing:
        raise RecordError(f"{path} is no record of {kind}: its data lack {', '.join(missing)}.")
    return data, _load_sheet(path, data, count(data)), found["passport"]


def _save_sheet(path: Path, sheet: Sheet, quality: int | None = None) -> dict[str, Any]:
    """Write a record's sheet beside the place of the record, and return what the record says about it.

    Args:
        path: the record's file.
        sheet: the pictures.
        quality: as `Sheet.save` takes it.
    """
    file = path.with_suffix(".webp")
    sheet.save(file, quality)
    return {"tile": [sheet.width, sheet.height], "sheet": {"file": file.name, "sha256": _checksum(file)}}


def _load_sheet(path: Path, data: Mapping[str, Any], count: int) -> Sheet:
    """Read the sheet of the record at `path`, which must be the one it was written with.

    Args:
        path: the record's file.
        data: of the record; holds what `_save_sheet` returned.
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


def _checksum(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
