"""Which operators a caller means, and what is to be done to each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from torch import nn

from .._text import nearest
from .families import KINDS
from .find import Operator, Operators, find_operators
from .plan import Plan

__all__ = ["asked_operators"]


def asked_operators(
    denoiser: nn.Module, operators: Operators | Iterable[str] | None = None, *, kinds: Sequence[str] | None = None,
    how: Mapping[str, str] | None = None, sample_size: int | tuple[int, int] | None = None,
) -> Operators:  # fmt: skip
    """Return the operators that were asked for, each with the modification that was asked for at the front.

    Args:
        denoiser: they belong to.
        operators: as `find_operators` lists them, or their paths. Default: all of `kinds`.
        kinds, sample_size: as in `find_operators`.
        how: path or kind -> modification; a path goes before its kind.

    Raises:
        KeyError: an unknown path or kind.
        ValueError: operators of another denoiser, or a modification that one of them does not allow.
    """
    return _with_how(_chosen(denoiser, operators, kinds, sample_size), how or {})


def _chosen(denoiser: nn.Module, operators, kinds, sample_size) -> Operators:
    if operators is None:
        return find_operators(denoiser, kinds, sample_size=sample_size)
    if isinstance(operators, Operators):
        Plan((), operators.base).check(denoiser)
        return operators
    every = find_operators(denoiser, tuple(KINDS), sample_size=sample_size)
    paths = [operators] if isinstance(operators, str) else list(dict.fromkeys(operators))
    return Operators(sorted((every[path] for path in paths), key=lambda op: op.order), every.base)


def _with_how(operators: Operators, how: Mapping[str, str]) -> Operators:
    """Put the modification that is asked for at the front, where everybody looks for it."""
    known = {*operators.paths, *KINDS}
    for key in how:
        if key not in known:
            raise KeyError(
                f"how names {key!r}, which is neither an operator here nor a kind. {nearest(key, known)}"
            )

    def chosen(op: Operator) -> Operator:
        name = how.get(op.path, how.get(op.kind, op.modifications[0]))
        if name not in op.modifications:
            raise ValueError(f"{op.path} does not allow {name!r}. {nearest(str(name), op.modifications)}")
        return replace(op, modifications=(name, *(m for m in op.modifications if m != name)))

    return Operators([chosen(op) for op in operators], operators.base)
