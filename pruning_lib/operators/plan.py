"""A plan: which operators of which denoiser are changed, and how.  Scoring makes it, removal carries it out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from ..checks import nearest
from ..denoisers import Fingerprint
from ..files import check_place
from .find import KINDS, Operators, find_operators

__all__ = ["Plan", "as_plan"]

_VERSION = 1


@dataclass(frozen=True)
class Plan:
    """Changes to the operators of one denoiser.

    Attributes:
        changes: (path, modification) pairs; none lies inside another.
        base: the denoiser they are for.
    """

    changes: tuple[tuple[str, str], ...]
    base: Fingerprint

    def __len__(self) -> int:
        return len(self.changes)

    def __str__(self) -> str:
        lines = [f"{len(self)} operators of a {self.base}"]
        return "\n".join([*lines, *(f"  {path}: {how}" for path, how in self.changes)])

    @property
    def paths(self) -> list[str]:
        """Paths of the operators that are changed."""
        return [path for path, _ in self.changes]

    def check(self, denoiser: nn.Module) -> None:
        """Raise unless the plan was made for a denoiser of this structure.

        Raises:
            ValueError: it was not, or the denoiser was changed since.
        """
        here = Fingerprint.of(denoiser)
        if here == self.base:
            return
        changed = "; it was pruned before" if getattr(denoiser, "config", {}).get("pruning_lib") else ""
        raise ValueError(
            f"This plan was made for a {self.base}; this denoiser is a {here}{changed}. Plans fit one structure: take "
            "the model it was made for, or score this one and plan again."
        )

    def to_dict(self) -> dict[str, object]:
        """Return plain values, from which `from_dict` makes the plan again."""
        return {"version": _VERSION, "base": self.base.to_dict(), "changes": [list(pair) for pair in self.changes]}

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> Plan:
        """Make a plan from what `to_dict` gave.

        Raises:
            ValueError: it is not that, or of a newer version.
        """
        try:
            version, base = data["version"], Fingerprint(**data["base"])
            changes = tuple((str(path), str(how)) for path, how in data["changes"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"This is no plan: {error!r}. Expected version, base (class_name, params, structure) and changes "
                "([path, modification] pairs), as Plan.save writes them."
            ) from error
        if version != _VERSION:
            raise ValueError(f"This plan has version {version}; this package reads version {_VERSION}. Update it.")
        return cls(changes, base)

    def save(self, path: str | Path) -> Path:
        """Write the plan as JSON."""
        path = Path(path)
        check_place(path)
        path.write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")
        return path

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read a plan.

        Raises:
            OSError: no such file.
            ValueError: it holds no plan.
        """
        try:
            data = json.loads(Path(path).read_text("utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is not JSON ({error}). Expected a file that Plan.save wrote.") from error
        if not isinstance(data, dict):
            raise ValueError(f"{path} holds a {type(data).__name__}, not a plan that Plan.save wrote.")
        return cls.from_dict(data)


def as_plan(changes: Plan | Iterable[str] | Mapping[str, str], denoiser: nn.Module) -> Plan:
    """Turn paths, or path -> modification, into a plan for `denoiser`; a plan is checked against it.

    An operator inside another one that is changed is dropped.

    Raises:
        KeyError: no such operator.
        ValueError: a modification that the operator does not allow, or a plan for another denoiser.
    """
    if isinstance(changes, Plan):
        changes.check(denoiser)
        return changes
    if isinstance(changes, str):
        changes = [changes]
    return plan_for(changes, find_operators(denoiser, tuple(KINDS)))


def plan_for(changes: Iterable[str] | Mapping[str, str], operators: Operators) -> Plan:
    """Turn paths, or path -> modification, into a plan for the denoiser of `operators`; see `as_plan`."""
    asked = dict(changes) if isinstance(changes, Mapping) else dict.fromkeys(changes)
    pairs = {}
    for path, how in asked.items():
        options = operators[path].modifications
        if how is not None and how not in options:
            raise ValueError(f"{path} does not allow {how!r}. {nearest(str(how), options)}")
        pairs[path] = how or options[0]
    outer = [path for path in pairs if not any(path.startswith(f"{other}.") for other in pairs)]
    return Plan(tuple((path, pairs[path]) for path in outer), operators.base)
