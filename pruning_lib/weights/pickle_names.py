"""Which names may stand in a checkpoint's pickle, and what is said of a file that asks for others."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable

__all__ = ["CheckpointError", "UnsafePickleError", "may_stand"]

# What training programs leave beside the weights. It is read as inert data, listed in the report, and never kept.
# Under a * stand classes only: a library's functions, and what it has imported itself, are nobody's leftovers.
_LEFTOVERS = (
    "pytorch_lightning.*", "lightning.*", "lightning_fabric.*", "lightning_utilities.*", "omegaconf.*",
    "argparse.Namespace", "collections.*", "typing.*", "pathlib.*", "torch.optim.*", "numpy.dtypes.*",
    "torch.*Storage", "torch.cuda.*Storage", "torch.storage.*Storage",
)  # fmt: skip
_EXACT = {
    "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct", "numpy.dtype", "numpy.ndarray", "datetime.datetime", "datetime.timedelta",
    "datetime.date", "_codecs.encode", "collections.defaultdict", "collections.deque",
}  # fmt: skip
_PLAIN = {"set", "frozenset", "list", "dict", "tuple", "int", "float", "complex", "bool", "str", "bytes", "bytearray",
          "slice", "range", "object"}  # fmt: skip
# Modules whose names no caller may allow.
_NEVER = {"os", "posix", "nt", "sys", "subprocess", "builtins", "importlib", "runpy", "shutil", "socket", "ctypes",
          "pickle", "marshal", "code", "pty", "webbrowser", "operator", "functools", "types"}  # fmt: skip


class CheckpointError(ValueError):
    """A checkpoint that cannot be read: damaged, cut short, or not what it says it is."""


class UnsafePickleError(CheckpointError):
    """A pickle that asks for code. `names` lists what it asked for; nothing of it was run."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = tuple(dict.fromkeys(names))
        wanted = ", ".join(self.names[:5]) + (
            f" and {len(self.names) - 5} more" if len(self.names) > 5 else ""
        )
        mend = f"If you know that to be harmless, allow it by name ({self.names[0]}): it is then skipped, not run."
        if any(name.partition(".")[0] in _NEVER for name in self.names):
            mend = "Delete the file, and do not open it with another program."
        super().__init__(
            f"the file would run code when loaded: it asks for {wanted}. Nothing was run. {mend}"
        )


def may_stand(module: str, name: str, allow: Iterable[str] = ()) -> bool:
    """Return whether the global `module.name` may stand in a checkpoint.

    Args:
        module, name: as in the pickle; a name with dots fetches what a module has imported, and is never a leftover.
        allow: full names the caller knows to be harmless; "*" stands for anything.
    """
    full = f"{module}.{name}"
    if full in _EXACT or (module == "builtins" and name in _PLAIN):
        return True
    if name[:1].isupper() and "." not in name:
        if any(fnmatch.fnmatchcase(full, pattern) for pattern in _LEFTOVERS):
            return True
    wanted = any(fnmatch.fnmatchcase(full, pattern) for pattern in allow)
    return wanted and "." not in name and module.partition(".")[0] not in _NEVER
