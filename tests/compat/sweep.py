"""What holds for a pipeline: every check with its own, independent emulation. One row of the support matrix each."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from tiny_pipelines import Case
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

import pruning_lib as pl
from pruning_lib.denoisers import denoiser_of
from pruning_lib.steps.schedule import Grid, Schedule
from pruning_lib.steps.supernet import SuperNet, _backward


def tensors(tree: object) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def grid_of(case: Case, grain: str = "layers") -> Grid:
    return pl.grid_of(case.pipe, case.steps, grain, options=asked(case))


def table(grid: Grid, seed: int = 1) -> Schedule:
    """A table of coin flips, the first row on; at least one whole row off where there are four."""
    on = torch.rand(grid.shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    on[0] = True
    on[2:3] = False
    return grid.schedule(on)


@contextmanager
def emulated(case: Case, schedule: Schedule, denoiser: nn.Module) -> Iterator[None]:
    """Compute everything, and throw it away where the table says so: plain patches of `forward`, copies kept."""
    row, place, kept, times = [0], [0], {}, {}
    step = case.pipe.scheduler.step

    @functools.wraps(step)  # pipelines read its signature
    def stepped(*args, **kwargs):
        result = step(*args, **kwargs)
        row[0], place[0] = row[0] + 1, 0
        return result

    def counting(*args, **kwargs):
        times.clear()
        result = whole(*args, **kwargs)
        place[0] += 1
        return result

    def patched(forward: Callable, index: int, adds: bool) -> Callable:
        def run(*args, **kwargs):
            given = tensors((args, kwargs))
            output = forward(*args, **kwargs)
            leaves, spec = pytree.tree_flatten(output)
            nth = times[index] = times.get(index, 0) + 1
            key = place[0], index, nth
            fresh, taken = [], set()
            for leaf in leaves:
                before = None
                if adds and isinstance(leaf, Tensor):
                    at = next((j for j, x in enumerate(given) if x.shape == leaf.shape and j not in taken), None)
                    if at is not None:
                        taken.add(at)
                        before = given[at]
                fresh.append((leaf if before is None else leaf - before, before))
            same = {id(leaf): i for i, leaf in reversed(list(enumerate(leaves)))}
            if key not in kept or bool(schedule.on[row[0], index]):
                kept[key] = [v.clone() if isinstance(v, Tensor) else v for v, _ in fresh]
                return output
            made = [old if b is None else b + old for old, (_, b) in zip(kept[key], fresh, strict=True)]
            copies = [m.clone() if isinstance(m, Tensor) else m for m in made]
            return pytree.tree_unflatten([copies[same[id(leaf)]] for leaf in leaves], spec)

        return run

    paths = {}
    for index, unit in enumerate(schedule.grid.units):
        paths[unit.modules[-1]] = index, bool(unit.streams)
    whole = denoiser.forward
    hooked = []
    for path, (index, adds) in paths.items():
        module = denoiser.get_submodule(path)
        module.forward = patched(module.forward, index, adds)
        hooked.append(module)
    denoiser.forward, case.pipe.scheduler.step = counting, stepped
    try:
        yield
    finally:
        for module in (*hooked, denoiser):
            del module.forward
        del case.pipe.scheduler.step


def off(a: Tensor, b: Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max().clamp(min=1e-12)).item()


def asked(case: Case) -> dict:
    """The options of the pipeline's call, its prompt included."""
    return {**case.options, **dict([case.prompt] if case.prompt else [])}


def check_training(case: Case, grain: str = "blocks") -> dict[str, str]:
    """The gradient of one gate against finite differences, and that the pipeline is as it was."""
    prompts = case.prompt[1] if case.prompt and case.prompt[0] in ("prompt", "class_labels") else [{}]
    try:
        grid = grid_of(case, grain)
    except (ValueError, TypeError):
        return {}
    plain, flags = case(), [p.requires_grad for p in denoiser_of(case.pipe)[1].parameters()]
    net = SuperNet(case.pipe, grid, options=case.options)
    wanted = net.reference(prompts, [0])
    gates = torch.full(grid.shape, 0.6, requires_grad=True)

    def loss(at: Tensor) -> Tensor:
        return (net.latents(at, prompts, [0]).double() - wanted).square().mean()

    with net:
        try:
            _backward(net, loss(gates))
        except ValueError as error:
            return {"gradient": f"refused: {error}"}
        cell = gates.grad[1:].abs().argmax().item() + grid.shape[1]
        found, eps = gates.grad.flatten()[cell].item(), 0.002
        with torch.no_grad():
            ends = []
            for sign in (eps, -eps):
                moved = gates.detach().clone()
                moved.view(-1)[cell] += sign
                ends.append(loss(moved).item())
    expected = (ends[0] - ends[1]) / (2 * eps)
    noise = 1e-6 * max(map(abs, ends)) / eps  # of single precision
    same = abs(found - expected) <= 0.05 * abs(expected) + noise
    left = [x for x in tensors(list(vars(case.pipe.scheduler).values())) if x.grad_fn is not None]
    after = [p.requires_grad for p in denoiser_of(case.pipe)[1].parameters()]
    return {
        "gradient": "yes" if same else f"wrong: {found:.3g}, by differences {expected:.3g}",
        "untouched": "yes" if not left and after == flags and torch.equal(case(), plain) else "wrong",
    }


def check_steps(case: Case, grain: str) -> dict[str, str]:
    """Grid, all on, reuse against the emulation, MACs that ran."""
    denoiser = denoiser_of(case.pipe)[1]
    try:
        grid = grid_of(case, grain)
    except (ValueError, TypeError) as error:
        return {"grid": f"refused: {error}"}
    found = {"grid": "yes"}
    plain = case()
    with grid.full().applied(case.pipe):
        found["all on"] = "yes" if torch.equal(case(), plain) else "wrong"
    schedule = table(grid)
    with emulated(case, schedule, denoiser):
        wanted = case()
    with schedule.applied(case.pipe):
        drawn = case()
        again = case()
    error = off(drawn, wanted)
    found["reuse"] = "yes" if error < 1e-4 else f"wrong: {error:.2g}"
    found["twice"] = "yes" if torch.equal(drawn, again) else "wrong"
    found["differs"] = "yes" if off(drawn, plain) > 1e-6 else "wrong: reuse changes nothing"
    found["as before"] = "yes" if torch.equal(case(), plain) else "wrong"
    total, share = macs_of_runs(case, schedule, denoiser)
    found["MACs"] = "yes" if abs(total / grid.total_macs - 1) < 0.01 else f"wrong: {total / grid.total_macs:.3f}"
    told = schedule.macs_ratio()
    found["share"] = "yes" if abs(share - told) < 0.01 else f"wrong: {share:.3f} ran, {told:.3f} told"
    return found


def macs_of_runs(case: Case, schedule: Schedule, denoiser: nn.Module) -> tuple[float, float]:
    """Return the MACs that ran in the denoiser, of one sample and one call a step, and the share under a schedule."""
    samples = []

    def run() -> int:
        total, calls = [0], [0]
        forward = denoiser.forward

        def counted(*args, **kwargs):
            with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
                result = forward(*args, **kwargs)
            total[0] += counter.get_total_flops() // 2
            calls[0] += 1
            first = kwargs.get("hidden_states", kwargs.get("sample", (*args, *kwargs.values())[0]))
            samples.append(len(first))
            return result

        had = "forward" in vars(denoiser)
        denoiser.forward = counted
        try:
            case()
        finally:
            if had:
                denoiser.forward = forward
            else:
                del denoiser.forward
        return total[0], calls[0]

    with schedule.grid.full().applied(case.pipe):  # without dead work, which a schedule leaves out
        whole, calls = run()
    per_row = calls / len(schedule.grid.timesteps)
    with schedule.applied(case.pipe):
        some, _ = run()
    return whole / samples[0] / per_row, some / whole
