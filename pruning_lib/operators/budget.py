"""Go down a ranking until a budget is met: a count, or a share of MACs, parameters or measured time.

Sizes are counted on the pruned structure itself, on the meta device, so what operators share is not counted twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..capture import Call, MacsCounter, example_call
from ..checks import check_number, check_whole, nearest
from ..denoisers import example_inputs
from ..latency import measure_latency, ratio
from .find import Operators
from .plan import Plan, plan_for
from .remove import Replacement, pruned_copy


def choose(
    ranking: Sequence[str],
    operators: Operators,
    denoiser: nn.Module,
    *,
    count: int | None = None,
    macs_ratio: float | None = None,
    params_ratio: float | None = None,
    latency_ratio: float | None = None,
    sample_size: int | tuple[int, int] | None = None,
    batch: int = 1,
) -> Plan:
    """Return the shortest plan that takes the first operators of a ranking and meets one budget.

    An operator inside one that was taken is skipped; an outer one that comes later replaces those inside it.

    Args:
        ranking: paths among those of `operators`, the first to go first.
        operators: those of the denoiser.
        denoiser: the model the plan is for; only read, but for `latency_ratio` it runs.
        count: operators to change, >= 0.
        macs_ratio, params_ratio, latency_ratio: share of the MACs, of the parameters, or of the time of a call on the
            denoiser's device, in (0, 1); at least as much is removed.
        sample_size, batch: side of the latent or (height, width) at which MACs and time count, by default the
            configuration's; and the batch for the time.

    Raises KeyError for a path that is no operator, ValueError for a budget that is wrong or cannot be met.
    """
    ratios = {"macs_ratio": macs_ratio, "params_ratio": params_ratio, "latency_ratio": latency_ratio}
    asked = {name: value for name, value in {"count": count, **ratios}.items() if value is not None}
    if len(asked) != 1:
        given = ", ".join(asked) or "none"
        raise ValueError(f"Give exactly one of count, {', '.join(ratios)}; given: {given}.")
    (name, value), steps = *asked.items(), _steps(ranking, operators)
    if name == "count":
        check_whole("count", count, 0)
        # An outer operator takes the place of inner ones, so a later step may hold fewer; the first that fits is taken.
        for taken in steps:
            if len(taken) == count:
                return plan_for(taken, operators)
        most = max(map(len, steps))
        raise ValueError(
            f"count={count}, but the ranking offers at most {most} operators that do not lie inside one another."
        )

    check_number(name, value, "(0, 1)")
    Plan((), operators.base).check(denoiser)
    call = _call(denoiser, sample_size, operators.call)
    counted = call.on(denoiser)
    whole = _sizes(*counted)

    def removed(paths: list[str]) -> float:
        plan = plan_for(paths, operators)
        if name != "latency_ratio":
            return _removed(plan, whole, *counted)[name == "params_ratio"]
        weight, pruned = next(denoiser.parameters()), pruned_copy(denoiser, plan)
        args, inputs = call.args, call.kwargs
        if call is not operators.call:
            kind = {"batch": batch, "device": weight.device, "dtype": weight.dtype}
            args, inputs = (), example_inputs(denoiser, sample_size=sample_size, **kind)
        calls = {"whole": lambda: denoiser(*args, **inputs), "pruned": lambda: pruned(*args, **inputs)}
        with torch.no_grad():  # both take turns, so that a slow moment hits both
            times = measure_latency(calls, repeats=15, device=weight.device)
        return 1 - 1 / ratio(times["whole"], times["pruned"]).value

    low, high = 0, len(steps) - 1
    most = removed(steps[high])
    if most < value:
        raise ValueError(
            f"{name}={value}, but changing all {len(steps[high])} operators of the ranking removes {most:.3f}."
        )
    while high - low > 1:  # what is removed grows along the ranking
        middle = (low + high) // 2
        low, high = (low, middle) if removed(steps[middle]) >= value else (middle, high)
    return plan_for(steps[high], operators)


def reductions(
    denoiser: nn.Module, plan: Plan, sample_size: int | tuple[int, int] | None = None, call: Call | None = None
) -> tuple[float, float]:
    """Return the shares of MACs (batch 1, with attention products) and of parameters that a plan removes.

    `call` is what the denoiser is called with, as `find_operators(pipe).call`, which one of no known family needs.
    """
    plan.check(denoiser)
    counted = _call(denoiser, sample_size, call).on(denoiser)
    return _removed(plan, _sizes(*counted), *counted)


def _removed(plan: Plan, whole: _Sizes, model: nn.Module, args: tuple, kwargs: dict) -> tuple[float, float]:
    """Return the shares that a plan removes of a model of these sizes, counted with these inputs."""
    with Replacement(model, plan):
        less = _sizes(model, args, kwargs)
    return 1 - less.macs / whole.macs, 1 - less.params / whole.params


def _call(denoiser: nn.Module, sample_size: int | tuple[int, int] | None, call: Call | None) -> Call:
    """Return a call to count with: one of a known family, else one that was captured."""
    try:
        return example_call(denoiser, sample_size=sample_size)
    except (TypeError, ValueError):
        if call is None or sample_size is not None:
            raise
        return call


class _Sizes(NamedTuple):
    macs: int
    params: int


def _sizes(model: nn.Module, args: tuple, kwargs: dict) -> _Sizes:
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), MacsCounter(model, [""]) as counter:
        model(*args, **kwargs)
    return _Sizes(sum(counter.macs[""]), sum(p.numel() for p in model.parameters()))


def _steps(ranking: Sequence[str], operators: Operators) -> list[list[str]]:
    """Return the sets of operators after each step down the ranking that changes something, beginning with none."""
    known, taken, steps = set(operators.paths), [], [[]]
    for path in ranking:
        if path not in known:
            raise KeyError(f"The ranking names {path!r}, which is no operator here. {nearest(path, known)}")
        if not any(f"{path}.".startswith(f"{other}.") for other in taken):
            taken = [other for other in taken if not other.startswith(f"{path}.")] + [path]
            steps.append(taken)
    return steps
