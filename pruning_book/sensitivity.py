"""How much each layer is missed when its smallest weights go, measured on inputs or by a loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pruning_lib.weights.magnitude import Sensitivity, magnitude_masks
from pruning_lib.weights.masks import PrunedWeights
from pruning_lib.weights.select import IGNORE, prunable_weights


@torch.no_grad()
def measure_sensitivity(
    module: nn.Module,
    inputs: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    *,
    sparsities: Sequence[float] = (0.5, 0.7, 0.8, 0.9, 0.95, 0.99),
    progress: Callable[[Iterable], Iterable] = iter,
) -> Sensitivity:
    """Prune one layer at a time and measure what it does to the output.

    Args:
        module: as for `prune_magnitude`; it is left as it was. Weights that are pruned already are a ValueError.
        inputs: keyword arguments of one call, or a list of them, at least one. The error is the squared change of the
            first output, which must be finite, relative to its square sum, over all calls.
        sparsities: increasing stops in (0, 1).
        progress: wraps the list of layers, as in `tqdm`.
    """
    calls = [inputs] if isinstance(inputs, Mapping) else list(inputs)
    if not calls:
        raise ValueError("inputs is empty; give the keyword arguments of at least one call.")
    unit = "squared change of the output, relative"
    Sensitivity((), tuple(sparsities), (), unit)  # refuses stops out of range before the work
    weights = prunable_weights(module, IGNORE).weights
    training = module.training
    module.eval()
    try:
        wanted = [_answer(module, call) for call in calls]
        whole = sum(answer.square().sum().item() for answer in wanted)
        if not (math.isfinite(whole) and whole):
            raise ValueError(f"The module's outputs have a square sum of {whole}; errors relative to it mean nothing.")
        rows = []
        for name in progress(list(weights)):
            row = []
            for sparsity in sparsities:
                mask = magnitude_masks({name: weights[name]}, sparsity, scope="layer")
                with PrunedWeights(module, mask, "layer", sparsity):
                    change = sum(
                        (_answer(module, call) - answer).square().sum().item()
                        for call, answer in zip(calls, wanted, strict=True)
                    )
                row.append(change / whole)
            rows.append(tuple(row))
    finally:
        module.train(training)
    return Sensitivity(tuple(weights), tuple(sparsities), tuple(rows), unit)


def _answer(module: nn.Module, call: Mapping[str, Any]) -> Tensor:
    """Return the first tensor of an output, of a distribution its mean, in float64."""
    output = module(**call)
    while not isinstance(output, Tensor):
        output = output.latent_dist.mean if hasattr(output, "latent_dist") else output[0]
    return output.double()
