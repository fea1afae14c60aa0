"""Which operators a caller means, and what is to be done to each.

Score operators as LD-Pruner does: change one at a time, generate the same latents, see how far they moved.

The floor is k + 1 generations for k operators.  What is proven to change nothing is not generated, the first step is
shared up to the operator that was changed, and no picture is decoded.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..checks import nearest
from ..denoisers import denoiser_of
from ..processes import Share, is_out_of_memory
from ..sampling import LatentSampler
from .find import KINDS, Operator, Operators, find_operators
from .first_call import FirstCall
from .no_change import why_no_change
from .plan import Plan, plan_for
from .remove import change_operators
from .scores import OperatorScore, ScoreCache, Scores, checksum, measure

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

__all__ = ["asked_operators", "score_operators", "score_plans"]


def asked_operators(
    denoiser: nn.Module,
    operators: Operators | Iterable[str] | None = None,
    *,
    kinds: Sequence[str] | None = None,
    how: Mapping[str, str] | None = None,
    sample_size: int | tuple[int, int] | None = None,
) -> Operators:
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
            raise KeyError(f"how names {key!r}, which is neither an operator here nor a kind. {nearest(key, known)}")

    def chosen(op: Operator) -> Operator:
        name = how.get(op.path, how.get(op.kind, op.modifications[0]))
        if name not in op.modifications:
            raise ValueError(f"{op.path} does not allow {name!r}. {nearest(str(name), op.modifications)}")
        return replace(op, modifications=(name, *(m for m in op.modifications if m != name)))

    return Operators([chosen(op) for op in operators], operators.base)


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

    The score is how far the average and the standard deviation of the latents move, in Euclidean length (chapter 7).

    Under `accelerate launch` each process scores its share, and all of them return the whole.

    Args:
        pipe: a diffusers pipeline whose denoiser is of a known family; left as it was.
        prompts: texts or numbers of classes, taken in turn; None for an unconditional pipeline.
        operators: which ones: as `find_operators` lists them, or their paths. Default: all of `kinds`.
        kinds: as in `find_operators`.
        how: path or kind -> modification, where it is not to be the default one.
        sample_size: as in `find_operators`; only MACs and shapes in the result depend on it.
        folder: keeps what is finished, so that an interrupted run goes on; safe to share between processes. Default: a
            temporary one, which is kept, and named, only if the run fails.
        sampling: `num_latents` (default 16), `steps` (10), `guidance_scale` (the pipeline's), `seed` (0), `batch` (16)
            and `options`, as in `LatentSampler`; `keep_latents` (False) to keep them for `Scores.of_latents`;
            `share_mib` (1024), memory for sharing the first step, on the denoiser's device; `progress` (True).

    Returns:
        The scores. That of an operator without which the latents are not finite is infinite.

    Raises:
        TypeError: not a pipeline, or a denoiser of an unknown family.
        KeyError: no such operator.
        ValueError: no prompts, fewer than two latents, other numbers out of range, an unknown kind or modification, a
            folder with other scores, or an original that gives latents that are not finite.
        MemoryError: out of memory; the message says which batch to try, and where the finished scores are.

    Example:
        >>> scores = score_operators(pipe, ["lion", "pizza"], steps=8, guidance_scale=3)
        >>> small = remove_operators(pipe, scores.lowest(12))
    """
    _, denoiser = denoiser_of(pipe)
    found = asked_operators(denoiser, operators, kinds=kinds, how=how, sample_size=sample_size)
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
    """Score sets of changes made together, with the same latents and the same arguments as `score_operators`.

    Args:
        pipe, prompts: as there.
        plans: each a plan for the denoiser, or paths, or path -> modification.
        folder, sampling: as there.

    Returns:
        One `OperatorScore` per plan.
    """
    _, denoiser = denoiser_of(pipe)
    plans, every = list(plans), None
    if not all(isinstance(plan, Plan) for plan in plans):
        every = find_operators(denoiser, tuple(KINDS))
    made = [plan if isinstance(plan, Plan) else plan_for(plan, every) for plan in plans]
    for plan in made:
        plan.check(denoiser)
    return list(_score(pipe, prompts, made, folder=folder, **sampling)[1])


@dataclass
class _Run:
    """The parts of one run that every generation needs."""

    denoiser: nn.Module
    sampler: LatentSampler
    keep: bool
    original: Tensor | None = None
    first_calls: tuple[FirstCall | None, ...] = ()

    def draw_original(self, plans: Sequence[Plan], share_mib: float) -> OperatorScore:
        """Generate with the unchanged denoiser, and keep what the others can share."""
        paths = {path for plan in plans for path in plan.paths}
        started, parts, kept, left = time.perf_counter(), [], [], share_mib * 2**20
        for index in range(len(self.sampler.parts)):
            first = FirstCall() if left > 0 else None
            around = first.recording(self.denoiser, paths) if first else nullcontext()
            parts.append(self.sampler.draw_part(index, around))
            if first:
                left -= first.bytes
            kept.append(first if left >= 0 else None)
        self.original, self.first_calls = torch.cat(parts), tuple(kept)
        if not self.original.isfinite().all():
            raise ValueError(
                "The unchanged pipeline gives latents that are infinite or not a number, so there is nothing to "
                "compare with. In float16, try bfloat16 or float32."
            )
        return measure(self.original, self.original, seconds=time.perf_counter() - started, keep=self.keep)

    def draw(self, plan: Plan) -> OperatorScore:
        """Score one plan."""
        reasons = [why_no_change(self.denoiser, *change) for change in plan.changes]
        if all(reasons):
            same = measure(self.original, self.original, plan.changes, keep=self.keep)
            return replace(same, skipped=reasons[0] if reasons else "nothing is changed")
        started, parts = time.perf_counter(), []
        with change_operators(self.denoiser, plan):
            for index, first in enumerate(self.first_calls):
                around = first.replaying(self.denoiser, plan.paths) if first else nullcontext()
                parts.append(self.sampler.draw_part(index, around))
        seconds = time.perf_counter() - started
        return measure(torch.cat(parts), self.original, plan.changes, seconds=seconds, keep=self.keep)


def _score(
    pipe,
    prompts,
    plans: Sequence[Plan],
    *,
    folder=None,
    keep_latents: bool = False,
    share_mib: float = 1024,
    progress: bool = True,
    **sampling,
) -> tuple[OperatorScore, tuple[OperatorScore, ...], dict[str, object]]:
    """Return the original, one score per plan, and the settings."""
    _, denoiser = denoiser_of(pipe)
    sampler = LatentSampler(pipe, prompts, **sampling)
    run, share, failure = _Run(denoiser, sampler, keep_latents), Share.here(pipe._execution_device), ""
    store = ScoreCache(folder, _settings(pipe, denoiser, sampler, keep_latents))
    known = share.union(store.load())
    todo = [plan for plan in dict.fromkeys(plans) if plan.changes not in known]
    bar = tqdm(total=len(todo), desc="score operators", disable=not (progress and share.is_main))
    try:
        with _ready(pipe, denoiser), bar:
            if todo or () not in known:
                known[()] = run.draw_original(todo, share_mib)
                store.add(known[()])
            for plan in share.of(todo):
                known[plan.changes] = run.draw(plan)
                store.add(known[plan.changes])
                bar.update(min(share.count, bar.total - bar.n))
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(f"Stopped. {_told(known, store)}") from stop
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            store.close()
            raise
        failure = str(error).partition("\n")[0] or type(error).__name__
    except BaseException:
        store.close()
        raise
    mine, known = known, share.union(known)
    failure = next(filter(None, share.gather(failure)), "")
    if failure:
        for scored in known.values():  # what only other processes have
            if share.is_main and scored.changes not in mine:
                store.add(scored)
        raise MemoryError(
            f"Out of memory with batch={sampler.batch}: {failure} {_next_try(sampler.batch)} {_told(known, store)}"
        )
    store.close()
    return known[()], tuple(known[plan.changes] for plan in plans), sampler.arguments()


def _next_try(batch: int) -> str:
    if batch > 1:
        return f"Try batch={batch // 2}; share_mib=0 saves a little more."
    return "Try share_mib=0, half precision, or pipe.enable_model_cpu_offload()."


def _told(known: Mapping, store: ScoreCache) -> str:
    done = sum(bool(changes) for changes in known)
    return f"{done} finished scores are kept; the same call with folder={str(store.folder)!r} goes on."


def _settings(pipe, denoiser: nn.Module, sampler: LatentSampler, keep_latents: bool) -> dict[str, object]:
    """Return all that decides a score, so that a folder is never continued with something else."""
    texts = {n: checksum(m) for n, m in pipe.components.items() if isinstance(m, nn.Module) and "text" in n}
    models = {"denoiser": checksum(denoiser), **texts}
    return {**sampler.settings(), "models": models, "keep_latents": keep_latents}


@contextmanager
def _ready(pipe: DiffusionPipeline, denoiser: nn.Module) -> Iterator[None]:
    """Put the denoiser into evaluation mode, and where `torch.compile` wraps it, itself into the pipeline."""
    name, _ = denoiser_of(pipe)
    wrapper, training = getattr(pipe, name), denoiser.training
    try:
        denoiser.eval()
        if wrapper is not denoiser:  # every change would be compiled anew
            setattr(pipe, name, denoiser)
        yield
    finally:
        denoiser.train(training)
        if wrapper is not denoiser:
            setattr(pipe, name, wrapper)
