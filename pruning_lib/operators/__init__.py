"""The second grain: whole operators of the denoiser, removed or made cheaper for every step (LD-Pruner).

`find_operators` lists them, `score_operators` says what each is worth, a `Plan` names those that go, `remove_operators`
carries it out.  Nothing here knows the zoo; pipelines come in as arguments.  Names are imported when used.
"""

from __future__ import annotations

from .._lazy import lazy_names

_WHERE: dict[str, str] = {
    "KINDS": "families",
    "DEFAULT_KINDS": "families",
    "FAMILIES": "families",
    "Operator": "find",
    "Operators": "find",
    "find_operators": "find",
    "MODIFICATIONS": "modify",
    "modifications": "modify",
    "Base": "denoiser",
    "denoiser_of": "denoiser",
    "Plan": "plan",
    "Cut": "remove",
    "change_operators": "remove",
    "remove_operators": "remove",
    "load_pruned": "saving",
    "load_pruned_denoiser": "saving",
    "pruned_copy": "remove",
    "choose": "budget",
    "score_operators": "score",
    "score_plans": "score",
    "Scores": "scores",
    "Scored": "distance",
    "FORMULAS": "distance",
    "LatentSampler": "generate",
    "rank_agreement": "agreement",
    "overlap": "agreement",
    "spearman": "agreement",
    "greedy_plan": "greedy",
    "score_together": "pairs",
    "pairs_of": "pairs",
    "reductions": "budget",
    "contributions": "controls",
    "output_ranking": "controls",
    "params_ranking": "controls",
    "random_ranking": "controls",
}

__all__ = list(_WHERE)

__getattr__, __dir__ = lazy_names(__name__, _WHERE)
