"""Score operators as LD-Pruner does: change one at a time, generate the same latents, see how far they moved.

For k operators that takes k + 1 generations, of which no picture is decoded.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

from torch import nn
from tqdm.auto import tqdm

from ..denoisers import denoiser_of
from ..processes import Processes, is_out_of_memory
from ..sampling import LatentSampler
from .find import KINDS, Operators, find_operators
from .plan import Plan
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
    **sampling,
) -> Scores:
    """Score every operator alone, by LD-Pruner's score: low means that little would be lost with it.

    The score is how far the average and the standard deviation of the latents move, in Euclidean length (chapter 7);
    infinite where they are not finite. Under `accelerate launch` each process scores its share, all return the whole.

    Args:
        pipe: a diffusers pipeline whose denoiser is of a known family, else a TypeError; left as it was.
        prompts: texts or numbers of classes, taken in turn; None for an unconditional pipeline.
        operators: which ones: as `find_operators` lists them, or their paths. Default: all of `kinds`, as there.
        sampling: `num_latents` (default 16), `steps` (10), `guidance_scale` (the pipeline's), `seed` (0), `batch` (16)
            and `options`, as in `LatentSampler`; `keep_latents` (False) to keep them for `Scores.of_latents`;
            `progress` (True); and `folder`, which keeps what is finished, so that an interrupted run goes on, and may
            be shared between processes. Default: a temporary one, kept and named only if the run is interrupted or
            lacks memory.

    Raises:
        KeyError: no such operator.
        ValueError: numbers out of range, an unknown kind, a folder with other scores, or an original that gives latents
            that are not finite.
        MemoryError: out of memory; the message says which batch to try, and where the finished scores are.

    Example:
        >>> scores = score_operators(pipe, ["lion", "pizza"], steps=8, guidance_scale=3)
        >>> small = remove_operators(pipe, scores.lowest(12))
    """
    _, denoiser = denoiser_of(pipe)
    if isinstance(operators, Operators):
        found = operators
        Plan((), found.base).check(denoiser)
    elif operators is None:
        found = find_operators(denoiser, kinds)
    else:
        every = find_operators(denoiser, tuple(KINDS))
        chosen = {every[path] for path in ([operators] if isinstance(operators, str) else operators)}
        found = Operators(sorted(chosen, key=lambda op: op.order), every.base)
    plans = [Plan(((op.path, op.modifications[0]),), found.base) for op in found]
    original, scored, settings = _score(pipe, prompts, plans, **sampling)
    return Scores(found, scored, original, settings, denoiser)


def score_plans(
    pipe: DiffusionPipeline, prompts: Sequence[str] | Sequence[int] | None, plans: Sequence[Plan], **sampling
) -> list[OperatorScore]:
    """Score sets of changes made together, with the same latents and the other arguments of `score_operators`."""
    _, denoiser = denoiser_of(pipe)
    for plan in {plan.base: plan for plan in plans}.values():  # once for each base: a check reads the whole structure
        plan.check(denoiser)
    return list(_score(pipe, prompts, plans, **sampling)[1])


def _score(
    pipe, prompts, plans: Sequence[Plan], *, folder=None, keep_latents: bool = False, progress: bool = True, **sampling
) -> tuple[OperatorScore, tuple[OperatorScore, ...], dict[str, object]]:
    """Return the original, one score per plan, and the arguments that decide the latents."""
    name, denoiser = denoiser_of(pipe)
    sampler = LatentSampler(pipe, prompts, **sampling)
    processes, failure = Processes.of(device=pipe._execution_device), ""
    # All that decides a score, so that a folder is never continued with something else.
    texts = {n: checksum(m) for n, m in pipe.components.items() if isinstance(m, nn.Module) and "text" in n}
    models = {"denoiser": checksum(denoiser), **texts}
    cache = ScoreCache(folder, {**sampler.settings(), "models": models, "keep_latents": keep_latents})
    known = _union(processes, cache.load())
    todo = [plan for plan in dict.fromkeys(plans) if plan.changes and plan.changes not in known]
    mine = todo[processes.rank :: processes.count]
    wrapper, training = getattr(pipe, name), denoiser.training
    setattr(pipe, name, denoiser.eval())  # with the wrapper of torch.compile, every change would be compiled anew
    try:
        with tqdm(total=len(todo), desc="score operators", disable=not (progress and processes.is_main)) as bar:
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
    finally:
        setattr(pipe, name, wrapper)
        denoiser.train(training)
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


def _kept(known: dict, cache: ScoreCache) -> str:
    done = sum(bool(changes) for changes in known)
    return f"{done} finished scores are kept; the same call with folder={str(cache.folder)!r} goes on."
