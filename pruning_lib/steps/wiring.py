"""Which unit reads which, traced on the structure alone; and what it makes of dead work.

*Dead work* is a cell that is switched on, but whose value nobody ever reads.  A unit that is off passes on its last
value, so a value computed now may be read many steps from now.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from ..capture import Call, MacsCounter, example_call, storage
from .units import Control, Unit, attach, tensors


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


@dataclass(frozen=True)
class Traced:
    """What one call of a denoiser tells about its units."""

    wiring: Wiring
    macs: tuple[int, ...]  # per unit, of the whole call, attention products included
    macs_without_attention: tuple[int, ...]
    base: tuple[int, int]  # what runs besides the units, with and without attention products


def trace(denoiser: nn.Module, units: Sequence[Unit], *, call: Call | None = None) -> Traced:
    """Trace which unit, as `units_of` lists them, reads which, and what each costs, in one call on the structure alone.

    Every tensor carries the set of units whose values it was made from, and operations hand these sets on; the value of
    a unit carries that unit only. So what a unit reads is what its inputs carry. `call` is as for `units_of`.
    """
    denoiser = getattr(denoiser, "_orig_mod", denoiser)
    call = call or example_call(denoiser)
    model, args, kwargs = call.on(denoiser)
    args, kwargs = pytree.tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, (args, kwargs))
    tracer, running = _Tracer(len(units)), [-1]
    counter = MacsCounter(model, running)

    def enter(index, *_):
        running.append(index)

    def leave(*_):
        running.pop()

    handles = []
    for index, unit in enumerate(units):
        for module in map(model.get_submodule, unit.modules):
            handles += [module.register_forward_pre_hook(partial(enter, index)), module.register_forward_hook(leave)]
    try:
        with attach(model, units, tracer), torch.no_grad(), sdpa_kernel(SDPBackend.MATH), tracer.origins, counter:
            tracer.origins.mark(tensors((args, kwargs)), tracer.given)
            output = model(*args, **kwargs)
            final = tracer.origins.of(tensors(output))
    finally:
        for handle in handles:
            handle.remove()
    missing = [unit.name for unit, read in zip(units, tracer.read, strict=True) if read is None]
    if missing:
        raise RuntimeError(f"{type(denoiser).__name__} did not call these units: {', '.join(missing[:5])}.")
    n = len(units)

    def members(mask: int) -> frozenset[int]:
        return frozenset(unit for unit in range(n) if mask >> unit & 1)

    wiring = Wiring(tuple(map(members, tracer.read)), members(final), bool(final & tracer.given))
    sums = [counter.macs[index] for index in (*range(n), -1)]
    whole, without = [weights + products for weights, products in sums], [weights for weights, _ in sums]
    return Traced(wiring, tuple(whole[:-1]), tuple(without[:-1]), (whole[-1], without[-1]))


def trace_wiring(denoiser: nn.Module, units: Sequence[Unit], *, call: Call | None = None) -> Wiring:
    """Return the wiring alone of what `trace` finds."""
    return trace(denoiser, units, call=call).wiring


class _Origins(TorchDispatchMode):
    """Hands on, from operation to operation, where tensors come from: bits of a whole number, one for each storage."""

    _SHAPES = re.compile("(zeros|ones|empty|full|rand|randn)_like|new_(zeros|ones|empty|full)")  # values are not read

    def __init__(self):
        super().__init__()
        self.bits: dict[int, int] = {}

    def of(self, some: Iterable[Tensor]) -> int:
        found = 0
        for tensor in some:
            found |= self.bits.get(storage(tensor), 0)
        return found

    def mark(self, some: Iterable[Tensor], bits: int) -> None:
        for tensor in some:
            self.bits[storage(tensor)] = bits

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = tensors((args, kwargs))
        bits = 0 if self._SHAPES.fullmatch(func.overloadpacket.__name__) else self.of(given)
        known = {storage(tensor) for tensor in given}
        out = func(*args, **kwargs)
        for tensor in tensors(out):  # a view, and what was written in place, keeps what it came from
            key = storage(tensor)
            self.bits[key] = bits | (self.bits.get(key, 0) if key in known else 0)
        if func._schema.is_mutable:
            for argument, value in zip(func._schema.arguments, args, strict=False):
                if argument.alias_info is not None and argument.alias_info.is_write:
                    self.mark(tensors(value), self.of(tensors(value)) | bits)
        return out


class _Tracer(Control):
    """Marks the value of every unit, and notes what each reads."""

    def __init__(self, units: int):
        self.origins, self.given = _Origins(), 1 << units
        self.read: list[int | None] = [None] * units

    def enters(self, index, args, kwargs):
        self.read[index] = (self.read[index] or 0) | self.origins.of(tensors((args, kwargs))) & (self.given - 1)

    def unit(self, index, compute):
        marked = [value.clone() for value in compute()]
        self.origins.mark(marked, 1 << index)
        return marked
