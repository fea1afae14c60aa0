"""The trap of gate training: all gates shut within a few iterations, and none opens again.

While everything is computed the consistency loss is 0 and flat, so only the sparsity loss pulls; and gates that share a
network move together.  They reach one half at the same time and shut at once.  Then almost nothing has a gradient any
more, because what lies behind a shut gate is not seen.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["PrunerCollapseError", "collapse_message", "shut_for"]


class PrunerCollapseError(RuntimeError):
    """Training has shut all gates and does not open them again."""


def shut_for(history: Sequence[dict[str, object]]) -> int:
    """Return for how many iterations, up to the last one, nothing but the first call was left."""
    count = 0
    for line in reversed(history):
        if not line["collapsed"]:
            break
        count += 1
    return count


def collapse_message(history: Sequence[dict[str, object]], *, lr: float, alpha: float, folder: object) -> str:
    """Explain a collapse: when, how, why, and what to do.

    Args:
        history: of the run, one dict per iteration, with "step", "macs_ratio" and "collapsed".
        lr, alpha: of the run.
        folder: of the run, or None.
    """
    shut = shut_for(history)
    since = history[-shut]["step"]
    before = ", ".join(f"{line['macs_ratio']:.2f}" for line in history[-shut - 4 : len(history) - shut + 1])
    where = f" What was trained so far is in {folder}." if folder else ""
    return (
        f"The pruner has collapsed: since iteration {since} all gates behind the first call are shut. The kept share "
        f"of MACs went {before}. While all gates are open the consistency loss is 0 and only the sparsity loss (alpha="
        f"{alpha:g}) pulls, on all of them alike, until they shut together; behind shut gates there is no gradient to "
        "open them again. Use recipe='best', whose gates keep to a budget; or a lower lr "
        f"(now {lr:g}, try {lr / 10:g}); or a lower alpha (try {alpha / 10:g}); or leak=0.25. "
        f"Pass on_collapse='go on' to watch it.{where}"
    )
