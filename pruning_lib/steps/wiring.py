"""Which unit reads which, traced on the structure alone; and what it makes of dead work.

*Dead work* is a cell that is switched on, but whose value nobody ever reads.  A unit that is off passes on its last
value, so a value computed now may be read many steps from now.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..denoisers import example_inputs, meta_copy
from .units import Control, Unit, attach


@dataclass(frozen=True)
class Wiring:
    """Who reads whose value within one call.

    If the output reads units only, and all of these are reused, then it is that of the call before.
    """

    inputs: tuple[frozenset[int], ...]  # for each unit, the units whose values it reads; all come before it
    output: frozenset[int]  # the units that the denoiser's output reads
    output_reads_input: bool  # whether it reads something besides: the sample, the timestep or the text

    def __post_init__(self):
        if not isinstance(self.output_reads_input, bool):
            raise ValueError(f"output_reads_input is {self.output_reads_input!r}; it must be true or false.")
        for reader, read in enumerate(self.inputs):
            if any(not 0 <= unit < reader for unit in read):
                raise ValueError(f"Unit {reader} reads units {sorted(read)}; it can only read units before it.")
        if not self.output or any(not 0 <= unit < len(self.inputs) for unit in self.output):
            raise ValueError(f"The output reads units {sorted(self.output)} of {len(self.inputs)}.")

    def to_dict(self) -> dict[str, object]:
        """Return plain values, for JSON."""
        inputs = [sorted(read) for read in self.inputs]
        return {"inputs": inputs, "output": sorted(self.output), "output_reads_input": self.output_reads_input}

    @classmethod
    def from_dict(cls, data: dict) -> Wiring:
        """Read what `to_dict` wrote."""
        return cls(tuple(map(frozenset, data["inputs"])), frozenset(data["output"]), data["output_reads_input"])


def live_cells(on: Tensor, wiring: Wiring, *, later: bool = True) -> Tensor:
    """Return which of the cells that are on, bool `[T, N]`, do work that reaches the picture, bool `[T, N]`.

    Walks back from the last step, through wiring and steps; with later=False within each step alone. Leaving out what
    is on and not live changes no bit of the picture.
    """
    # Sets of units are the bits of whole numbers: searches ask for live cells thousands of times.
    readers = [0] * len(wiring.inputs)
    for reader, read in enumerate(wiring.inputs):
        for unit in read:
            readers[unit] |= 1 << reader
    output = sum(1 << unit for unit in wiring.output)
    rows = [sum(1 << unit for unit, is_on in enumerate(row) if is_on) for row in on.tolist()]
    found = []
    needed_later = 0  # units whose value at this row some later row reads, before they are computed again
    for row in reversed(rows):
        live = needed = 0
        for unit in reversed(range(len(readers))):
            bit = 1 << unit
            if (output | needed_later) & bit or readers[unit] & live:
                needed |= bit
                live |= row & bit
        found.append([bool(live >> unit & 1) for unit in range(len(readers))])
        if later:
            needed_later = needed & ~live  # not computed here, so read from the row before
    return torch.tensor(found[::-1]).reshape(on.shape)


def paper_cascade(on: Tensor, wiring: Wiring) -> Tensor:
    """Return the cells that the paper's rule keeps: within one step, a unit none of whose readers runs is switched off.

    That is the rule of the authors' public code. It forgets readers at later steps: a unit computed now for a later
    one loses its fresh value, so the picture may change.
    """
    return live_cells(on, wiring, later=False)


def trace_wiring(
    denoiser: nn.Module, units: Sequence[Unit], *, sample_size: int | tuple[int, int] | None = None
) -> Wiring:
    """Trace which unit, as `units_of` lists them, reads which, in one call without weights.

    Every unit's value leaves a mark in autograd's graph; what a unit reads are the nearest marks behind its input. The
    sample's size is that of `example_inputs`.
    """

    def in_the_graph(value: object) -> object:
        return value.detach().float().requires_grad_() if isinstance(value, Tensor) else value

    model, tracer = meta_copy(denoiser), _Tracer()
    inputs = example_inputs(model, sample_size=sample_size)
    for name, value in inputs.items():
        # A timestep can carry a gradient as a fraction; numbers of classes choose rows of a table and must stay whole.
        if name != "class_labels" or value.is_floating_point():
            inputs[name] = pytree.tree_map(in_the_graph, value)
    with attach(model, units, tracer), torch.enable_grad():
        output = model(**inputs, return_dict=False)
    missing = [unit.name for index, unit in enumerate(units) if index not in tracer.read]
    if missing:
        raise RuntimeError(f"{type(model).__name__} did not call these units: {', '.join(missing[:5])}.")
    final, reads_input = tracer.walk(pytree.tree_leaves(output))
    return Wiring(tuple(frozenset(tracer.read[i]) for i in range(len(units))), frozenset(final), reads_input)


class _Tracer(Control):
    """Marks the value of every unit, and notes what each reads."""

    def __init__(self):
        self.read: dict[int, set[int]] = {}
        self.nodes: dict[object, int] = {}

    def enters(self, index, args, kwargs):
        found, _ = self.walk(pytree.tree_leaves((args, kwargs)))
        self.read.setdefault(index, set()).update(found)

    def unit(self, index, compute):
        marked = [value.clone() for value in compute()]  # the copy leaves a node of its own
        self.nodes |= {value.grad_fn: index for value in marked}
        return marked

    def walk(self, tensors: Iterable[object]) -> tuple[set[int], bool]:
        """Return the nearest units behind these tensors, and whether a path leads past them to the inputs."""
        stack = [t.grad_fn for t in tensors if isinstance(t, Tensor) and t.grad_fn is not None]
        found, seen, leaf = set(), set(), False
        while stack:
            node = stack.pop()
            if node in seen:
                continue
            seen.add(node)
            if node in self.nodes:
                found.add(self.nodes[node])
                continue
            leaf |= type(node).__name__ == "AccumulateGrad"
            stack += [before for before, _ in node.next_functions if before is not None]
        return found, leaf
