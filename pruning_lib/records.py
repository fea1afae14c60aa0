"""Result records: the only place a page takes a measured number from; each carries the passport of its measurement.

A record is a JSON file, `pruning_book/records/<experiment>.json`:

    {"schema_version": 1, "experiment": "first_explorer", "data": {...}, "passport": {...}}

`data` is the experiment's own; `passport` says where, when, with what and how often it was measured.
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

import torch

from .checks import best_device, check_device, check_whole, installed_version
from .files import beside, check_place, write_whole


def passport(*, seeds: Sequence[int], n: int, device: str | torch.device | None = None) -> dict[str, object]:
    """Describe the present machine and software, to be kept beside what was measured.

    Args:
        seeds: every seed that decides the result; empty where nothing is random.
        n: number of samples or timed calls behind a figure, >= 1.
        device: where it ran. Default: the GPU if there is one, else the CPU.

    Returns:
        Plain JSON types: hardware, software, seeds, n, date (UTC, ISO 8601), the commit of the repository this package
        runs from or was installed from ("uncommitted" where neither is known) and whether a tracked file of it was
        changed since (`dirty`; None where unknown). Of an NVIDIA GPU also driver, memory in MiB, clocks in MHz, and
        power limit in W.
    """
    if not isinstance(seeds, Sequence) or not all(type(s) is int for s in seeds):
        raise TypeError(f"seeds={seeds!r}; expected a list of whole numbers, as in [0, 1].")
    check_whole("n", n, 1)
    device = best_device() if device is None else check_device(device)
    commit, dirty = _commit()
    versions = {name: installed_version(name) for name in ("torch", "diffusers", "transformers", "numpy")}
    return {
        "hardware": _hardware(device),
        **({"gpu": _gpu(device)} if device.type == "cuda" else {}),
        "device": str(device),
        "cpu_threads": torch.get_num_threads(),
        "os": _system(),
        "python": platform.python_version(),
        "versions": {**versions, "pruning_lib": sys.modules[__package__].__version__},
        "seeds": list(seeds),
        "n": n,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit,
        "dirty": dirty,
    }


def _hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    known = Path("/proc/cpuinfo").read_text(errors="replace") if Path("/proc/cpuinfo").is_file() else ""
    found = re.search(r"^model name\s*:\s*(.*\S)", known, re.M)
    name = found[1] if found else _output("sysctl", "-n", "machdep.cpu.brand_string")
    return f"{name or platform.processor() or platform.machine()}, {os.cpu_count()} logical cores"


# what nvidia-smi is asked for -> what the passport calls it
_READ_OFF = {
    "driver_version": "driver",
    "clocks.sm": "sm_clock_mhz",
    "clocks.max.sm": "sm_clock_max_mhz",
    "clocks.mem": "memory_clock_mhz",
    "power.limit": "power_limit_w",
}


def _gpu(device: torch.device) -> dict[str, object]:
    """Describe a CUDA GPU: what PyTorch knows of it, and what `nvidia-smi` says now."""
    known = torch.cuda.get_device_properties(device)
    found = {"cuda": torch.version.cuda, "memory_mib": known.total_memory // 2**20}
    found["capability"] = f"{known.major}.{known.minor}"
    index = torch.cuda.current_device() if device.index is None else device.index
    asked = (f"--query-gpu={','.join(_READ_OFF)}", "--format=csv,noheader,nounits", f"--id={index}")
    said = [value.strip() for value in _output("nvidia-smi", *asked).split(",")]
    if len(said) == len(_READ_OFF):  # else there is no nvidia-smi, or it does not know one of these words
        found |= {name: value for name, value in zip(_READ_OFF.values(), said, strict=True) if "N/A" not in value}
    return found


def _system() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return f"{platform.system()} {platform.release()}"


def _commit() -> tuple[str, bool | None]:
    file = Path(__file__)
    git = ("git", "-C", str(file.parent))
    # A package inside somebody's environment may lie in a repository that is not its own: ask whether git tracks it.
    commit = _output(*git, "ls-files", "--error-unmatch", file.name) and _output(*git, "rev-parse", "HEAD")
    if commit:
        return commit, bool(_output(*git, "status", "--porcelain", "--untracked-files=no"))
    try:  # installed with pip from a repository, as the set-up cells on Colab do: pip notes the commit (PEP 610)
        note = json.loads(metadata.distribution("pruning-lib").read_text("direct_url.json") or "{}")
        return note["vcs_info"]["commit_id"], False
    except (metadata.PackageNotFoundError, KeyError, ValueError):
        return "uncommitted", None


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


_ADVICE = "Check that its folder is no file and that you may write there."
_VERSION = 1
_FIELDS = {"schema_version": int, "experiment": str, "data": dict, "passport": dict}
_PASSPORT_FIELDS = {"hardware": str, "versions": dict, "seeds": list, "n": int, "date": str, "commit": str}


class RecordError(ValueError):
    """A record cannot be read or written; the message says which file, what is wrong and what to do."""


def results_folder() -> Path:
    """Return where records are looked up by name.

    The environment variable PRUNING_LIB_RESULTS; else the nearest `pruning_book/records` at or above the working
    directory; else the records that are installed with `pruning_book`.
    """
    if os.environ.get("PRUNING_LIB_RESULTS"):
        return Path(os.environ["PRUNING_LIB_RESULTS"])
    near = (folder / "pruning_book" / "records" for folder in (Path.cwd(), *Path.cwd().parents))
    return next((folder for folder in near if folder.is_dir()), beside("records"))


def save_record(path: str | Path, experiment: str, data: Mapping, passport: Mapping) -> Path:
    """Write a record, whole or not at all, and return its file.

    If the place cannot be written to, the record is kept in the folder for temporary files and the error says where: a
    measurement may have taken hours.

    Args:
        path: the file, ending in .json; its folder is created.
        experiment: lower-case letters, digits and underscores, as in "first_explorer".
        data: JSON types, numbers finite; also tensors, arrays and dataclasses, which become lists and objects.
        passport: from `passport()`.

    Raises:
        RecordError: data that JSON cannot hold, a passport without its fields, or a place that cannot be written to.
    """
    path = _json_path(path)
    plain = {"data": _plain(data, "data"), "passport": _plain(passport, "passport")}
    record = _checked({"schema_version": _VERSION, "experiment": experiment, **plain}, str(path))
    text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        with write_whole(path) as part:
            part.write_text(text, "utf-8")
    except OSError as error:
        kept = Path(tempfile.mkdtemp(prefix=f"{experiment}-")) / path.name
        kept.write_text(text, "utf-8")
        lost = f"Nothing is lost: the record was kept as {kept}. {_ADVICE}"
        raise RecordError(f"Cannot write {path}: {error.strerror or error}. {lost}") from error
    return path


def check_writable(path: str | Path) -> Path:
    """Return the file of a record, after making its folder and checking, before the work, that it can be written."""
    path = _json_path(path)
    try:
        check_place(path)
    except OSError as error:
        reason = error.strerror or error
        raise RecordError(f"Cannot write {path}: {reason}. Nothing was measured yet. {_ADVICE}") from error
    return path


def record_path(path_or_name: str | Path) -> Path:
    """Return the file that `load_record` would read, whether it is there or not."""
    if not isinstance(path_or_name, (str, Path)):
        raise RecordError(f"{path_or_name!r} is neither the name of an experiment nor a file.")
    return results_folder() / f"{path_or_name}.json" if _is_name(path_or_name) else Path(path_or_name)


def _is_name(path_or_name: str | Path) -> bool:
    # A word without a folder or an ending is meant as a name, rightly spelt or not.
    return isinstance(path_or_name, str) and re.fullmatch(r"[\w-]+", path_or_name) is not None


def load_record(path_or_name: str | Path) -> dict[str, object]:
    """Return the `schema_version`, `experiment`, `data` and `passport` of a record, after checking its form.

    Args:
        path_or_name: a file; or the name of an experiment, looked up in `results_folder()`.

    Raises:
        RecordError: no such file, a file that cannot be read, is no JSON or has another form.

    Example:
        >>> load_record("first_explorer")["passport"]["hardware"]
    """
    path = record_path(path_or_name)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        known = ", ".join(sorted(other.stem for other in path.parent.glob("*.json"))) or "none"
        make = f"`python -m benchmarks {path.stem}`, restore it from version control, or set PRUNING_LIB_RESULTS."
        raise RecordError(f"There is no record {path}. Records there: {known}. Make it with {make}") from error
    except OSError as error:
        raise RecordError(f"Cannot read {path}: {error.strerror}. Restore it from version control.") from error
    except ValueError as error:
        advice = "It may be cut short; restore it from version control or measure again."
        raise RecordError(f"{path} is no valid JSON: {error}. {advice}") from error
    _checked(record, str(path))
    if _is_name(path_or_name) and record["experiment"] != path_or_name:
        name = record["experiment"]
        raise RecordError(f"{path} holds the experiment {name!r}, not {path_or_name!r}. Rename it, or measure again.")
    return record


def _checked(record: object, where: str) -> dict:
    """Return `record` if it has the form that the module's docstring shows, else raise RecordError."""
    _check_fields(record, _FIELDS, where)
    if record["schema_version"] != _VERSION:
        known = f"this pruning_lib reads {_VERSION}. Use the one it was written with, or measure again."
        raise RecordError(f"{where} has schema_version {record['schema_version']}; {known}")
    if not re.fullmatch("[a-z][a-z0-9_]*", name := record["experiment"]):
        raise RecordError(f"{where}: experiment is {name!r}; use lower-case letters, digits and underscores.")
    _check_fields(record["passport"], _PASSPORT_FIELDS, f"{where}, passport")
    return record


def _check_fields(found: object, fields: dict[str, type], where: str) -> None:
    if not isinstance(found, dict):
        raise RecordError(f"{where} holds {type(found).__name__}; a record is an object with {', '.join(fields)}.")
    missing = [name for name in fields if name not in found]
    if missing:
        raise RecordError(f"{where} lacks {', '.join(missing)}; it has {', '.join(found) or 'nothing'}.")
    for name, kind in fields.items():
        if not isinstance(found[name], kind) or isinstance(found[name], bool):
            raise RecordError(f"{where}: {name} is {type(found[name]).__name__}; expected {kind.__name__}.")


def _plain(value: object, where: str) -> object:
    """Return `value` as JSON types; `where` names it in errors."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if hasattr(value, "tolist"):  # tensors, arrays and numpy's numbers
        value = value.tolist()
    if isinstance(value, float) and not math.isfinite(value):
        raise RecordError(f"{where} is {value}, which JSON cannot hold. Use None, or leave it out.")
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{where}[{key!r}]") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, Path):
        return value.as_posix()
    raise RecordError(f"{where} is of type {type(value).__name__}, which a record cannot hold. Turn it into numbers.")


def _json_path(path: str | Path) -> Path:
    if Path(path).suffix != ".json":
        raise RecordError(f"{path} does not end in .json. Name a file, as in pruning_book/records/name.json.")
    return Path(path)
