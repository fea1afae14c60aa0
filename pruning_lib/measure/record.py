"""Result records: the only place a page takes a measured number from.

A record is a JSON file, `book/results/<experiment>.json`:

    {"schema_version": 1, "experiment": "first_explorer", "data": {...}, "passport": {...}}

`data` is the experiment's own; `passport` says where, when and with what it was measured.
"""

from __future__ import annotations

import json
import math
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path

from .._files import check_place
from .provenance import passport

__all__ = ["RecordError", "check_writable", "load_record", "passport", "record_path", "results_folder", "save_record"]

SCHEMA_VERSION = 1
FIELDS = {"schema_version": int, "experiment": str, "data": dict, "passport": dict}
PASSPORT_FIELDS = {
    "hardware": str, "versions": dict, "seeds": list, "n": int, "date": str, "commit": str
}  # fmt: skip
_NAME = re.compile(r"[a-z][a-z0-9_]*\Z")


class RecordError(ValueError):
    """A record cannot be read or written; the message says which file, what is wrong and what to do."""


def results_folder() -> Path:
    """Return where records are looked up by name.

    The environment variable PRUNING_LIB_RESULTS; else the nearest `book/results` at or above the working directory;
    else the records that ship with the package (in a checkout, `pruning_lib/results` is a link to `book/results`).
    """
    if os.environ.get("PRUNING_LIB_RESULTS"):
        return Path(os.environ["PRUNING_LIB_RESULTS"])
    for folder in (Path.cwd(), *Path.cwd().parents):
        if (folder / "book" / "results").is_dir():
            return folder / "book" / "results"
    return Path(__file__).resolve().parents[1] / "results"


def save_record(path: str | Path, experiment: str, data: Mapping, passport: Mapping) -> Path:
    """Write a record, whole or not at all.

    It is written beside its place and moved there, so a crash leaves the old record as it was. If the place cannot be
    written to, the record is kept in the folder for temporary files and the error says where: a measurement may have
    taken hours.

    Args:
        path: the file, ending in .json; its folder is created.
        experiment: lower-case letters, digits and underscores, as in "first_explorer".
        data: JSON types, numbers finite; also tensors, arrays and dataclasses, which become lists and objects.
        passport: from `passport()`.

    Returns:
        The file.

    Raises:
        RecordError: data that JSON cannot hold, a passport without its fields, or a place that cannot be written to.
    """
    path = _json_path(path)
    record = {"schema_version": SCHEMA_VERSION, "experiment": experiment, "data": _plain(data, "data"),
              "passport": _plain(passport, "passport")}  # fmt: skip
    _check(record, str(path))
    text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        return _write(path, text)
    except OSError as error:
        kept = _keep(experiment, text)
        raise RecordError(
            f"Cannot write {path}: {error.strerror or error}. {kept}"
            "Check that its folder exists, is no file, and that you may write there."
        ) from error


def check_writable(path: str | Path) -> Path:
    """Check that a record can be written, before the work that fills it.

    Args:
        path: the file, ending in .json; its folder is created, the file itself is not touched.

    Raises:
        RecordError: it cannot.
    """
    path = _json_path(path)
    try:
        check_place(path)
    except OSError as error:
        raise RecordError(
            f"Cannot write {path}: {error.strerror or error}. Nothing was measured yet. "
            "Check that its folder is no file and that you may write there."
        ) from error
    return path


def record_path(path_or_name: str | Path) -> Path:
    """Return the file of a record, whether it is there or not.

    Args:
        path_or_name: as `load_record` takes it.

    Raises:
        RecordError: neither a name nor a path.
    """
    if not isinstance(path_or_name, (str, Path)):
        raise RecordError(f"{path_or_name!r} is neither the name of an experiment nor a file.")
    return results_folder() / f"{path_or_name}.json" if _is_name(path_or_name) else Path(path_or_name)


def _is_name(path_or_name: str | Path) -> bool:
    # A word without a folder or an ending is meant as a name, rightly spelt or not.
    return isinstance(path_or_name, str) and re.fullmatch(r"[\w-]+", path_or_name) is not None


def load_record(path_or_name: str | Path) -> dict[str, object]:
    """Read a record and check its form.

    Args:
        path_or_name: a file; or the name of an experiment, looked up in `results_folder()`.

    Returns:
        `schema_version`, `experiment`, `data` and `passport`.

    Raises:
        RecordError: no such file, a file that cannot be read, is no JSON or has another form.

    Example:
        >>> record = load_record("first_explorer")
        >>> record["passport"]["hardware"]
    """
    path = record_path(path_or_name)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        known = sorted(p.stem for p in path.parent.glob("*.json")) if path.parent.is_dir() else []
        raise RecordError(
            f"There is no record {path}. Records there: {', '.join(known) or 'none'}. Make it with "
            f"`python benchmarks/{path.stem}.py`, restore it from version control, or set PRUNING_LIB_RESULTS."
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RecordError(f"Cannot read {path}: {reason}. Restore it from version control.") from error
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        raise RecordError(
            f"{path} is no valid JSON: {error}. It may be cut short; restore it from version control or measure again."
        ) from error
    _check(record, str(path))
    if _is_name(path_or_name) and record["experiment"] != path_or_name:
        raise RecordError(
            f"{path} holds the experiment {record['experiment']!r}, not {path_or_name!r}. Rename it, or measure again."
        )
    return record


def _check(record: object, where: str) -> None:
    """Raise RecordError unless `record` has the form that the module's docstring shows."""
    if not isinstance(record, dict):
        raise RecordError(
            f"{where} holds {type(record).__name__}; a record is an object with {', '.join(FIELDS)}."
        )
    _check_fields(record, FIELDS, where)
    if record["schema_version"] != SCHEMA_VERSION:
        raise RecordError(
            f"{where} has schema_version {record['schema_version']}; this pruning_lib reads {SCHEMA_VERSION}. "
            "Use the pruning_lib it was written with, or measure again."
        )
    if not _NAME.match(record["experiment"]):
        raise RecordError(
            f"{where}: experiment is {record['experiment']!r}; use lower-case letters, digits and underscores."
        )
    _check_fields(record["passport"], PASSPORT_FIELDS, f"{where}, passport")


def _check_fields(found: dict, fields: dict[str, type], where: str) -> None:
    missing = [name for name in fields if name not in found]
    if missing:
        raise RecordError(
            f"{where} lacks {', '.join(missing)}; it has {', '.join(map(str, found)) or 'nothing'}."
        )
    for name, kind in fields.items():
        if not isinstance(found[name], kind) or isinstance(found[name], bool):
            raise RecordError(f"{where}: {name} is {type(found[name]).__name__}; expected {kind.__name__}.")


def _plain(value: object, where: str) -> object:
    """Return `value` as JSON types; `where` names it in errors."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if hasattr(value, "tolist"):  # tensors, arrays and numpy's numbers
        value = value.tolist()
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise RecordError(f"{where} is {value}, which JSON cannot hold. Use None, or leave it out.")
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{where}[{key!r}]") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, Path):
        return value.as_posix()
    raise RecordError(
        f"{where} is of type {type(value).__name__}, which a record cannot hold. Turn it into numbers."
    )


def _json_path(path: str | Path) -> Path:
    path = Path(path)
    if path.suffix != ".json":
        raise RecordError(
            f"{path} does not end in .json. Name the file of the record, as in book/results/name.json."
        )
    return path


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp's files are private
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def _keep(experiment: str, text: str) -> str:
    try:
        handle, name = tempfile.mkstemp(prefix=f"{experiment}-", suffix=".json")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        return f"Nothing is lost: the record was kept as {name}. "
    except OSError:
        return ""
