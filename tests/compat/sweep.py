"""What holds for a pipeline: every check with its own, independent emulation. One row of the support matrix each."""

from __future__ import annotations

import functools
import inspect
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from tiny_pipelines import Case
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

import pruning_lib as pl
from pruning_lib.denoisers import denoiser_of
from pruning_lib.operators.find import Operators
from pruning_lib.operators.plan import plan_for
from pruning_lib.operators.remove import change_operators, load_pruned
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
    hooked = [(denoiser, vars(denoiser).get("forward"))]  # offloading puts one of its own there
    for path, (index, adds) in paths.items():
        module = denoiser.get_submodule(path)
        hooked.append((module, vars(module).get("forward")))
        module.forward = patched(module.forward, index, adds)
    denoiser.forward, case.pipe.scheduler.step = counting, stepped
    try:
        yield
    finally:
        for module, before in hooked:
            if before is None:
                del module.forward
            else:
                module.forward = before
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


def first_call_macs(case: Case, denoiser: nn.Module) -> dict[str, float]:
    """Return the MACs that ran in each module in the first call of a run, of one sample, by PyTorch's own counter."""
    found = {}

    def counted(*args, **kwargs):
        if found:
            return forward(*args, **kwargs)
        handles, begun = [], {}
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:

            def enter(path, *_):
                begun[path] = counter.get_total_flops()

            def leave(path, *_):
                found[path] = found.get(path, 0) + counter.get_total_flops() - begun[path]

            for path, module in denoiser.named_modules():
                handles.append(module.register_forward_pre_hook(functools.partial(enter, path)))
                handles.append(module.register_forward_hook(functools.partial(leave, path)))
            result = forward(*args, **kwargs)
        samples = len((*args, *kwargs.values())[0])
        found.update({path: flops / 2 / samples for path, flops in found.items()})
        for handle in handles:
            handle.remove()
        return result

    with patched_forward(denoiser, counted) as forward:
        case()
    return found


@contextmanager
def patched_forward(module: nn.Module, by: Callable) -> Iterator[Callable]:
    before = vars(module).get("forward")
    forward, module.forward = module.forward, by
    try:
        yield forward
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before


@contextmanager
def branch_of_zeros(case: Case, denoiser: nn.Module, path: str, kind: str) -> Iterator[None]:
    """Set what ends a branch to zero: its last layer, of text beside it too; of blocks and transformers all layers."""
    module, order = denoiser.get_submodule(path), []
    layers = {m: n for n, m in module.named_modules() if isinstance(m, nn.Linear | nn.modules.conv._ConvNd)}
    handles = [layer.register_forward_hook(lambda m, *_: order.append(m)) for layer in layers]
    case()
    for handle in handles:
        handle.remove()
    last = [layer for layer in order if "shortcut" not in layers[layer]][-1:]
    if kind in ("transformer", "transformer block"):
        last = list(layers)
    elif kind.endswith("attention"):
        names = ("to_out", "to_add_out", "proj_attn", "out_layer", "to_v", "add_v_proj")
        ends = [m for m, n in layers.items() if n.split(".")[0] in names[:4]]
        last = ends or [m for m, n in layers.items() if n.split(".")[0] in names] or last
    saved = {weight: weight.detach().clone() for layer in last for weight in layer.parameters()}
    for weight in saved:
        weight.data.zero_()
    try:
        yield
    finally:
        for weight, value in saved.items():
            weight.data.copy_(value)


def last_latents(case: Case, seeds: range) -> Tensor:
    """Return what the last step of the scheduler gave, of each seed alone."""
    drawn, scheduler = [], case.pipe.scheduler
    step = scheduler.step

    @functools.wraps(step)
    def noted(*args, **kwargs):
        result = step(*args, **kwargs)
        drawn[-1] = result[0] if isinstance(result, tuple) else result.prev_sample
        return result

    scheduler.step = noted
    try:
        for seed in seeds:
            drawn.append(None)
            case(seed)
    finally:
        del scheduler.step
    frames = type(case.pipe).__name__ == "TextToVideoSDPipeline"  # its scheduler is given one sample for each
    return torch.cat([latents[None].float() if frames else latents[:1].float() for latents in drawn])


def state(case: Case, denoiser: nn.Module) -> list[object]:
    """Return what scoring and removal leave alone."""
    held = [(m.training, type(getattr(m, "processor", None)), len(m._forward_hooks)) for m in denoiser.modules()]
    flags = [(name, w.requires_grad, w._version, id(w)) for name, w in denoiser.named_parameters()]
    return [held, flags, dict(vars(denoiser.config)), vars(case.pipe).get("_progress_bar_config")]


def check_operators(case: Case, many: int = 1) -> dict[str, str]:
    """Operators: found, MACs, removal against a branch of zeros, a score by hand, saved and loaded, all as before."""
    denoiser = denoiser_of(case.pipe)[1]
    plain, before = case(), state(case, denoiser)
    try:
        operators = pl.find_operators(case.pipe, steps=case.steps, options=asked(case))
    except (ValueError, TypeError) as error:
        return {"found": f"refused: {error}"}
    kinds = [op.kind for op in operators]
    inner = [kind for kind in kinds if "attention" in kind or kind in ("resnet", "transformer block")]
    found = {"found": "yes" if inner else f"refused: no attention and no block can be removed: {operators.refused}"}
    macs, wrong = first_call_macs(case, denoiser), []
    wrong = [op.path for op in operators if abs(op.macs / max(macs.get(op.path, 0), 1) - 1) > 0.01 and op.macs]
    found["MACs"] = "yes" if not wrong else f"wrong: {wrong}"
    paths = [p for k in dict.fromkeys(kinds) for p in operators.of(k).paths[:many] + operators.of(k).paths[-many:]]
    for path in dict.fromkeys(paths):
        op = operators[path]
        try:
            with change_operators(denoiser, plan_for([path], operators)):
                removed = case()
        except ValueError as error:  # of the pipeline's own: it looks for that layer
            found[f"removed {path}"] = f"refused: without {path}: {error}"
            continue
        except Exception as error:
            found[f"removed {path}"] = f"wrong: {type(error).__name__} {error} {op.modifications}"
            continue
        if op.kind in ("downsampler", "upsampler", "convolution"):
            continue
        with branch_of_zeros(case, denoiser, path, op.kind):
            wanted = case()
        error = off(removed, wanted)
        if error > 5e-5:
            found[f"removed {path}"] = f"wrong: {error:.2g} {op.kind} {op.modifications} of {off(removed, plain):.2g}"
    found["as before"] = "yes" if torch.equal(case(), plain) and state(case, denoiser) == before else "wrong"
    if not inner:
        return found
    path = next(op.path for op in operators if op.kind in inner)
    found |= check_score(case, denoiser, operators, path) | check_saved(case, operators, path)
    found["as before at the end"] = "yes" if torch.equal(case(), plain) and state(case, denoiser) == before else "wrong"
    return found


def check_score(case: Case, denoiser: nn.Module, operators: Operators, path: str) -> dict[str, str]:
    """A score against one by hand."""
    prompts = case.prompt and ([dict([case.prompt])] if case.prompt[0] not in ("prompt", "class_labels") else None)
    takes = inspect.signature(type(case.pipe).__call__).parameters
    none = None if "batch_size" in takes and "class_labels" not in takes else [{}]
    prompts = prompts or (case.prompt[1] if case.prompt else none)
    how = {"num_latents": 2, "batch": 1, "steps": case.steps, "options": case.options, "progress": False}
    try:
        scores = pl.score_operators(case.pipe, prompts, operators=operators.only([operators[path]]), **how)
        scores.save(Path(tempfile.mkdtemp()) / "scores.safetensors")
    except Exception as error:
        return {"score": f"refused: {type(error).__name__} {error}"}
    whole = last_latents(case, range(2))
    with change_operators(denoiser, plan_for([path], operators)):
        less = last_latents(case, range(2))
    wanted = ((whole.mean(0) - less.mean(0)).norm() + (whole.std(0) - less.std(0)).norm()).item()
    told = scores.values()[path]
    return {"score": "yes" if abs(told - wanted) <= 1e-3 * abs(wanted) else f"wrong: {told:.5g}, by hand {wanted:.5g}"}


def check_saved(case: Case, operators: Operators, path: str) -> dict[str, str]:
    """Removed, saved and loaded: the same weights and the same picture."""
    small = pl.remove_operators(case.pipe, plan_for([path], operators))
    wanted = replace(case, pipe=small)()
    held = denoiser_of(small)[1].state_dict()
    with tempfile.TemporaryDirectory() as folder:
        try:
            small.save_pretrained(folder)
            again = load_pruned(folder)
        except Exception as error:
            return {"saved": f"refused: {type(error).__name__} {error}"}
    name, loaded = denoiser_of(again)
    back = loaded.state_dict()
    if [*back] != [*held] or not all(torch.equal(back[key], held[key]) for key in held):
        return {"saved": "wrong: other weights"}
    freeu = getattr(denoiser_of(small)[1], "up_blocks", [None])[0]
    if hasattr(freeu, "b1"):  # is switched on, which no file holds
        loaded.enable_freeu(s1=freeu.s1, s2=freeu.s2, b1=freeu.b1, b2=freeu.b2)
    small.register_modules(**{name: loaded})  # the other parts are not ours to load
    error = off(replace(case, pipe=small)(), wanted)
    return {"saved": "yes" if error < 1e-5 else f"wrong: {error:.2g}"}
