"""Score operators as LD-Pruner does: change one at a time, generate the same latents, see how far they moved.

For k operators that takes k + 1 generations, of which no picture is decoded.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import nn
from tqdm.auto import tqdm

from ..checks import nearest
from ..denoisers import denoiser_of
from ..processes import Processes, is_out_of_memory
from ..sampling import LatentSampler
from .find import KINDS, Operator, Operators, find_operators
from .plan import Plan, plan_for
from .remove import Replacement
from .scores import OperatorScore, ScoreCache, Scores, checksum, latent_shift

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def score_operators(
    pipe: DiffusionPipeline,
    prompts: Sequence[str] | Sequence[int] | None = None,
    *,
    operators: Operators | Iterable[str] | None = None,
    kinds: Sequence[str] | None = None,
    how: Mapping[str, str] | None = None,
    sample_size: int | tuple[int, int] | None = None,
    folder=None,
    **sampling,
) -> Scores:
    """Score every operator alone, by LD-Pruner's score: low means that little would be lost with it.

    The score is how far the average and the standard deviation of the latents move, in Euclidean length (chapter 7);
    infinite where they are not finite. Under `accelerate launch` each process scores its share, all return the whole.

    Args:
        pipe: a diffusers pipeline whose denoiser is of a known family; left as it was.
        prompts: texts or numbers of classes, taken in turn; None for an unconditional pipeline.
        operators: which ones: as `find_operators` lists them, or their paths. Default: all of `kinds`.
        kinds, sample_size: as in `find_operators`; of the size, only MACs and shapes in the result depend.
        how: path or kind -> modification, where it is not to be the default one; a path goes before its kind.
        folder: keeps what is finished, so that an interrupted run goes on; safe to share between processes. Default: a
            temporary one, which is kept, and named, only if the run is interrupted or lacks memory.
        sampling: `num_latents` (default 16), `steps` (10), `guidance_scale` (the pipeline's), `seed` (0), `batch` (16)
            and `options`, as in `LatentSampler`; `keep_latents` (False) to keep them for `Scores.of_latents`;
            `progress` (True).

    Raises:
        TypeError, KeyError: not a pipeline of a known family; no such operator.
        ValueError: numbers out of range, an unknown kind or modification, a folder with other scores, or an original
            that gives latents that are not finite.
        MemoryError: out of memory; the message says which batch to try, and where the finished scores are.

    Example:
        >>> scores = score_operators(pipe, ["lion", "pizza"], steps=8, guidance_scale=3)
        >>> small = remove_operators(pipe, scores.lowest(12))
    """
    _, denoiser = denoiser_of(pipe)
    found = _chosen(denoiser, operators, kinds, how or {}, sample_size)
    plans = [Plan(((op.path, op.modifications[0]),), found.base) for op in found]
    original, scored, settings = _score(pipe, prompts, plans, folder=folder, **sampling)
    return Scores(found, scored, original, settings, denoiser)


def score_plans(
    pipe: DiffusionPipeline,
    prompts: Sequence[str] | Sequence[int] | None,
    plans: Sequence[Plan | Iterable[str] | Mapping[str, str]],
    *,
    folder=None,
    **sampling,
) -> list[OperatorScore]:
    """Score sets of changes made together, with the same latents and the other arguments of `score_operators`.

    Each of `plans` is a plan for the denoiser, or paths, or path -> modification.
    """
    _, denoiser = denoiser_of(pipe)
    every = None if all(isinstance(plan, Plan) for plan in plans) else find_operators(denoiser, tuple(KINDS))
    made = [plan if isinstance(plan, Plan) else plan_for(plan, every) for plan in plans]
    for plan in {plan.base: plan for plan in made}.values():  # once for each base: a check reads the whole structure
        plan.check(denoiser)
    return list(_score(pipe, prompts, made, folder=folder, **sampling)[1])


def _chosen(denoiser: nn.Module, operators, kinds, how: Mapping[str, str], sample_size) -> Operators:
    """Return the operators that were asked for, each with the modification that was asked for at the front."""
    if isinstance(operators, Operators):
        found = operators
        Plan((), found.base).check(denoiser)
    elif operators is None:
        found = find_operators(denoiser, kinds, sample_size=sample_size)
    else:
        every = find_operators(denoiser, tuple(KINDS), sample_size=sample_size)
        chosen = {every[path] for path in ([operators] if isinstance(operators, str) else operators)}
        found = Operators(sorted(chosen, key=lambda op: op.order), every.base)
    known = {*found.paths, *KINDS}
    for key in how:
        if key not in known:
            raise KeyError(f"how names {key!r}, which is neither an operator here nor a kind. {nearest(key, known)}")

    def with_first(op: Operator) -> Operator:
        name = how.get(op.path, how.get(op.kind, op.modifications[0]))
        if name not in op.modifications:
            raise ValueError(f"{op.path} does not allow {name!r}. {nearest(str(name), op.modifications)}")
        return replace(op, modifications=(name, *(m for m in op.modifications if m != name)))

    return Operators(map(with_first, found), found.base)


def _score(
    pipe, prompts, plans: Sequence[Plan], *, folder=None, keep_latents: bool = False, progress: bool = True, **sampling
) -> tuple[OperatorScore, tuple[OperatorScore, ...], dict[str, object]]:
    """Return the original, one score per plan, and the arguments that decide the latents."""
    _, denoiser = denoiser_of(pipe)
    sampler = LatentSampler(pipe, prompts, **sampling)
    processes, failure = Processes.of(device=pipe._execution_device), ""
    # All that decides a score, so that a folder is never continued with something else.
    texts = {n: checksum(m) for n, m in pipe.components.items() if isinstance(m, nn.Module) and "text" in n}
    models = {"denoiser": checksum(denoiser), **texts}
    cache = ScoreCache(folder, {**sampler.settings(), "models": models, "keep_latents": keep_latents})
    known = _union(processes, cache.load())
    todo = [plan for plan in dict.fromkeys(plans) if plan.changes and plan.changes not in known]
    mine = todo[processes.rank :: processes.count]
    bar = tqdm(total=len(todo), desc="score operators", disable=not (progress and processes.is_main))
    try:
        with _ready(pipe, denoiser), bar:
            for scored in _generate(denoiser, sampler, mine, keep_latents) if mine or () not in known else ():
                known[scored.changes] = scored
                cache.add(scored)
                bar.update(min(processes.count, bar.total - bar.n) if scored.changes else 0)
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(f"Stopped. {_kept(known, cache)}") from stop
    except Exception as error:
        if not is_out_of_memory(error):
            cache.close()
            raise
        failure = str(error).partition("\n")[0] or type(error).__name__
    here, known = known, _union(processes, known)
    failure = next(filter(None, processes.gather(failure)), "")
    if failure:
        for scored in known.values():  # what only other processes have
            if processes.is_main and scored.changes not in here:
                cache.add(scored)
        less = f"batch={sampler.batch // 2}" if sampler.batch > 1 else "half precision, or enable_model_cpu_offload()"
        raise MemoryError(f"Out of memory with batch={sampler.batch}: {failure} Try {less}. {_kept(known, cache)}")
    cache.close()
    return known[()], tuple(known[plan.changes] for plan in plans), sampler.arguments()


def _generate(denoiser: nn.Module, sampler: LatentSampler, plans: list[Plan], keep: bool) -> Iterator[OperatorScore]:
    """Yield the score of the unchanged denoiser, then that of each plan."""
    original = None
    for plan in (None, *plans):
        started = time.perf_counter()
        with Replacement(denoiser, plan) if plan else nullcontext():
            latents = sampler.draw()
        seconds = time.perf_counter() - started
        original = latents if original is None else original
        if not original.isfinite().all():
            raise ValueError(
                "The unchanged pipeline gives latents that are infinite or not a number, so there is nothing to "
                "compare with. In float16, try bfloat16 or float32."
            )
        yield latent_shift(latents, original, plan.changes if plan else (), seconds=seconds, keep=keep)


def _union(processes: Processes, found: dict) -> dict:
    """Return the entries of all processes; where several have one, that of the lowest number."""
    return {key: value for other in reversed(processes.gather(found)) for key, value in other.items()}


def _kept(known: Mapping, cache: ScoreCache) -> str:
    done = sum(bool(changes) for changes in known)
    return f"{done} finished scores are kept; the same call with folder={str(cache.folder)!r} goes on."


@contextmanager
def _ready(pipe: DiffusionPipeline, denoiser: nn.Module) -> Iterator[None]:
    """Put the denoiser into evaluation mode, and where `torch.compile` wraps it, itself into the pipeline."""
    name, _ = denoiser_of(pipe)
    wrapper, training = getattr(pipe, name), denoiser.training
    setattr(pipe, name, denoiser.eval())  # with the wrapper, every change would be compiled anew
    try:
        yield
    finally:
        setattr(pipe, name, wrapper)
        denoiser.train(training)
