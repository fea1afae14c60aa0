"""Score operators as LD-Pruner does: change one at a time, generate the same latents, see how far they moved.

For k operators that takes k + 1 generations, of which no picture is decoded.
"""

from __future__ import annotations

import functools
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import count
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..capture import modules_as_they_were
from ..checks import check_whole
from ..denoisers import denoiser_of
from ..processes import Processes, is_out_of_memory
from ..sampling import Unroll, replaced
from .find import KINDS, Operators, find_operators
from .plan import Plan, plan_for
from .remove import Replacement
from .scores import OperatorScore, ScoreCache, Scores, checksum, latent_shift

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


class LatentSampler:
    """Draws the same latents again and again, so that only what was changed in the denoiser can make a difference.

    Args:
        pipe: a diffusers pipeline with a denoiser and a scheduler; text-to-image, class-conditional or unconditional.
        prompts: texts, or numbers of classes, taken in turn and encoded once; None for an unconditional pipeline.
        num_latents: how many, >= 2.
        steps: denoising steps, >= 1.
        seed: latent i starts from noise of seed `seed` + i.
        batch: latents at a time, >= 1. A pipeline with guidance calls its denoiser with twice as many.
        sampling: `guidance_scale` and `options`, as in `Unroll`.
    """

    def __init__(
        self,
        pipe: DiffusionPipeline,
        prompts: Sequence[str] | Sequence[int] | None,
        *,
        num_latents: int = 16,
        steps: int = 10,
        seed: int = 0,
        batch: int = 16,
        **sampling,
    ):
        check_whole("num_latents", num_latents, 2)  # of one latent there is no standard deviation
        check_whole("batch", batch, 1)
        check_whole("seed", seed, 0)
        self.pipe, self.batch, self.seed, self.num_latents = pipe, batch, seed, num_latents
        self.unroll, self.prompts = Unroll(pipe, steps=steps, **sampling), None
        if self.unroll.argument != "batch_size":
            self.prompts = self.unroll.check(prompts)
        elif prompts:
            raise ValueError(f"{self.unroll.name} is unconditional and takes no prompts. Give prompts=None.")
        self._texts: dict[int, list] = {}  # of the batch that starts there, in the order of the calls

    def arguments(self) -> dict[str, object]:
        """Return the arguments that make a sampler of the same latents for the same pipeline."""
        options = dict(self.unroll.call)
        return {
            "prompts": self.prompts and list(self.prompts),
            "num_latents": self.num_latents,
            "steps": options.pop("num_inference_steps"),
            "guidance_scale": options.pop("guidance_scale", None),
            "seed": self.seed,
            "options": options,
        }

    def settings(self) -> dict[str, object]:
        """Return what decides the latents besides the models; the batch size does not."""
        scheduler = self.pipe.scheduler
        plain = {key: value for key, value in scheduler.config.items() if not key.startswith("_")}
        told = {"class": type(scheduler).__name__, **plain}
        return {"pipeline": self.unroll.name, "scheduler": told, **self.arguments()}

    def draw(self) -> Tensor:
        """Return the latents, float32 `[num_latents, ...]` on the CPU."""
        drawn, prompts = [], self.prompts or [0]
        for start in range(0, self.num_latents, self.batch):
            part = range(self.num_latents)[start : start + self.batch]
            mine = [prompts[i % len(prompts)] for i in part]
            with torch.no_grad(), self._encoded_once(start):
                drawn.append(self.unroll.latents(mine, [self.seed + i for i in part]).float().cpu())
        return torch.cat(drawn)

    def _encoded_once(self, start: int) -> AbstractContextManager:
        encode, calls, known = getattr(self.pipe, "encode_prompt", None), count(), self._texts.setdefault(start, [])
        if encode is None:
            return nullcontext()

        @functools.wraps(encode)
        def remembered(*args, **kwargs):
            call = next(calls)
            if call == len(known):
                known.append(encode(*args, **kwargs))
            return known[call]

        return replaced(self.pipe, "encode_prompt", remembered)


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
        pipe: a diffusers pipeline; left as it was. Of several denoisers the first is scored.
        prompts: texts, numbers of classes, or arguments of the pipeline's call for one latent, such as embeddings, as
            mappings; taken in turn; None for an unconditional pipeline.
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
    else:
        chosen, how = (tuple(KINDS) if operators is not None else kinds), _asked(pipe, prompts, **sampling)
        found = find_operators(pipe, chosen, **how)
        if operators is not None:
            some = {found[path] for path in ([operators] if isinstance(operators, str) else operators)}
            found = found.only(sorted(some, key=lambda op: op.order))
    plans = [plan_for([op.path], found) for op in found]
    original, scored, settings = _score(pipe, prompts, plans, **sampling)
    return Scores(found, scored, original, settings, denoiser)


def _asked(pipe, prompts, *, steps: int = 10, guidance_scale=None, options=None, **_) -> dict[str, object]:
    """Return how `find_operators` runs a pipeline as it is scored."""
    unroll = Unroll(pipe, steps=steps, guidance_scale=guidance_scale, options=options)
    asked = {} if unroll.argument == "batch_size" and not prompts else unroll.asked(unroll.check(prompts)[:1], [0])
    return {"steps": steps, "options": {**unroll.options, **asked}}


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
    wrapper = getattr(pipe, name)
    quiet = not (progress and processes.is_main)
    try:
        with modules_as_they_were(denoiser), tqdm(total=len(todo), desc="score operators", disable=quiet) as bar:
            setattr(pipe, name, denoiser.eval())  # with torch.compile's wrapper, every change would be compiled anew
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
            try:
                latents = sampler.draw()
            except (ValueError, AttributeError, TypeError, KeyError) as error:
                if original is None:
                    raise
                warnings.warn(
                    f"The pipeline cannot run without {', '.join(plan.paths)}: {error}. The score is infinite.",
                    stacklevel=2,
                )
                latents = torch.full_like(original, torch.nan)
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
