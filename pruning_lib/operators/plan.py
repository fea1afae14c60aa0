"""A plan: which operators of which denoiser are changed, and how.  Scoring makes it, removal carries it out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from ..checks import nearest
from ..denoisers import Fingerprint
from ..files import check_format, load_json, reading, save_json
from .find import Operators


@dataclass(frozen=True)
class Plan:
    """Changes to the operators of one denoiser.

    Attributes:
        changes: (path, modification) pairs; none lies inside another.
        base: the denoiser they are for.
        norms: paths of norms that go too, since they only served what is removed; None in older plans, which name none.
    """

    changes: tuple[tuple[str, str], ...]
    base: Fingerprint
    norms: tuple[str, ...] | None = field(default=None, compare=False)

    def __len__(self) -> int:
        return len(self.changes)

    def __str__(self) -> str:
        lines = (f"  {path}: {how}" for path, how in self.changes)
        return "\n".join([f"{len(self)} operators of a {self.base}", *lines])

    @property
    def paths(self) -> list[str]:
        """Paths of the operators that are changed."""
        return [path for path, _ in self.changes]

    def check(self, denoiser: nn.Module) -> None:
        """Raise ValueError unless the plan was made for a denoiser of this structure."""
        here = Fingerprint.of(denoiser)
        if here != self.base:
            changed = "; it was pruned before" if getattr(denoiser, "config", {}).get("pruning_lib") else ""
            raise ValueError(
                f"This plan was made for a {self.base}; this denoiser is a {here}{changed}. Plans fit one structure: "
                "take the model it was made for, or score this one and plan again."
            )

    def to_dict(self) -> dict[str, object]:
        """Return plain values, from which `from_dict` makes the plan again."""
        changes = [list(pair) for pair in self.changes]
        norms = {} if self.norms is None else {"norms": list(self.norms)}
        return {"version": 1, "base": self.base.to_dict(), "changes": changes, **norms}

    @classmethod
    def from_dict(cls, data: Mapping[str, object], source: str = "this") -> Plan:
        """Make a plan from what `to_dict` gave; ValueError if it is not that, or of a newer version."""
        data = check_format(data, "plan", source=source)
        with reading("plan", source):
            changes = tuple((str(path), str(how)) for path, how in data["changes"])
            norms = None if data.get("norms") is None else tuple(map(str, data["norms"]))
            return cls(changes, Fingerprint(**data["base"]), norms)

    def save(self, path: str | Path) -> Path:
        """Write the plan as JSON."""
        return save_json(path, "plan", 1, self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read a plan; OSError where there is no file, ValueError where it holds no plan."""
        return cls.from_dict(load_json(path, "plan"), str(path))


def plan_for(changes: Iterable[str] | Mapping[str, str], operators: Operators) -> Plan:
    """Return a plan for the denoiser of `operators`; an operator inside another one that is changed is dropped.

    `changes` are paths of operators, each to get its default modification; or path -> modification, None the default.
    """
    changes = [changes] if isinstance(changes, str) else changes
    asked = dict(changes) if isinstance(changes, Mapping) else dict.fromkeys(changes)
    pairs = {}
    for path, how in asked.items():
        options = operators[path].modifications
        if how is not None and how not in options:
            raise ValueError(f"{path} does not allow {how!r}. {nearest(str(how), options)}")
        pairs[path] = how or options[0]
    outer = [path for path in pairs if not any(path.startswith(f"{other}.") for other in pairs)]
    along = [operators[path].norms if pairs[path].startswith("zero") else () for path in outer]
    norms = None if None in along else tuple(norm for some in along for norm in some)
    return Plan(tuple((path, pairs[path]) for path in outer), operators.base, norms)
