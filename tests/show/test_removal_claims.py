"""The rulings on cutting operators follow their records, and turn when these do."""

from __future__ import annotations

import copy

import pytest

from pruning_book.removal_claims import chooses_better, faster_and_as_good, little_training, preserved_beat_scratch


def lead(value: float) -> dict:
    return {"ssim": {"value": value, "low": value - 0.1, "high": value + 0.1}}


def run(name: str, frechet: list[list[float]], ratio: float = 0.35) -> dict:
    """One run with a Fréchet distance for each moment and seed."""
    judged = [{"frechet": {"value": sum(f) / len(f), "by_seed": f}} for f in frechet]
    return {"name": name, "seeds": [0, 1], "judged": judged, "plan": {"macs_ratio": ratio}}


TRAINING = {
    "runs": [run("score-0.35", [[9, 9], [4, 4.2]]), run("scratch-0.35", [[90, 90], [50, 40]])],
    "preserved_minus_scratch": {"0.35": lead(0.4)},
    "unpruned": {"frechet": {"value": 4.0}},
    "finetune": {"steps": 200},
    "levels": [0.2, 0.35],
}


def changed(data: dict, **parts) -> dict:
    return {**copy.deepcopy(data), **parts}


def test_preserved_weights_must_lead_beyond_chance_and_always():
    ruling, because = preserved_beat_scratch(TRAINING)
    assert ruling == "holds" and "0.400 (0.300 to 0.500)" in because and "4 of 4" in because
    once = [TRAINING["runs"][0], run("scratch-0.35", [[90, 90], [50, 4.1]])]
    ruling, because = preserved_beat_scratch(changed(TRAINING, runs=once))
    assert ruling == "holds in part" and "3 of 4" in because
    level = changed(TRAINING, preserved_minus_scratch={"0.35": lead(0.05)})
    assert preserved_beat_scratch(level)[0] == "does not hold"
    assert preserved_beat_scratch(changed(TRAINING, preserved_minus_scratch={}))[0] == "not measured"


def test_close_is_what_it_was_in_the_paper():
    ruling, because = little_training(TRAINING)
    assert ruling == "holds" and "from 9.0 to 4.1" in because and "4.3 or less" in because
    far = [*TRAINING["runs"], run("score-0.2", [[9, 9], [4.4, 4.4]], 0.2)]
    assert little_training(changed(TRAINING, runs=far))[0] == "holds in part"
    assert little_training(changed(TRAINING, runs=far[1:]))[0] == "does not hold"
    assert little_training(changed(TRAINING, runs=far[1:2]))[0] == "not measured"


def removal(before: list[float], after: list[float]) -> dict:
    stop = {"budget": "macs_ratio", "scope": "all", "asked": 0.35}
    rows = [{**stop, "ranking": "output", "score_minus_this": lead(v)} for v in before]
    others = [
        {**stop, **other, "ranking": "output", "score_minus_this": lead(-9)}
        for other in ({"asked": 0.1}, {"scope": "outside"})
    ]
    trained = [{"ranking": "output", "score_minus_this": lead(v)} for v in after]
    return {"rows": rows + others, "trained": trained, "levels": [0.35]}


@pytest.mark.parametrize(
    ("before", "after", "ruling"),
    [
        ([0.5], [0.3], "holds"),
        ([0.5, 0.5], [0.05], "holds in part"),
        ([0.5], [0.0], "does not hold"),
        ([], [], "not measured"),
    ],
)
def test_the_score_must_lead_in_every_comparison(before, after, ruling):
    found, because = chooses_better(removal(before, after), ["output"])
    assert found == ruling
    if before:
        assert f"of {len(before)} comparisons before" in because
    assert chooses_better(removal(before, after), ["params"])[0] == "not measured"


def test_speed_and_quality_are_both_asked_for():
    def times(**cuts: float) -> dict:
        found = {name: {"times_as_fast": {"value": value}} for name, value in cuts.items()}
        return {"devices": {"cpu": {"times": {"generation": found}}}}

    one = {0.35: "cut"}
    assert faster_and_as_good(times(cut=1.5), TRAINING, one)[0] == "holds in part"
    good = changed(TRAINING, unpruned={"frechet": {"value": 4.2}})
    ruling, because = faster_and_as_good(times(cut=1.5), good, one)
    assert ruling == "holds" and "33 % less time" in because
    assert faster_and_as_good(times(cut=1.2), good, one)[0] == "holds in part"
    assert faster_and_as_good(times(cut=1.2), TRAINING, one)[0] == "does not hold"
    assert faster_and_as_good(None, good, one)[0] == "not measured"


def test_the_mildest_cut_that_is_fast_enough_is_asked():
    cuts = {0.5: "large", 0.35: "small"}
    runs = [*TRAINING["runs"], run("score-0.5", [[9, 9], [8, 8]], 0.5)]
    training = changed(TRAINING, runs=runs, unpruned={"frechet": {"value": 4.2}})

    def ruled(small: float, large: float) -> tuple[str, str]:
        found = {n: {"times_as_fast": {"value": v}} for n, v in (("small", small), ("large", large))}
        return faster_and_as_good({"devices": {"cpu": {"times": {"generation": found}}}}, training, cuts)

    assert ruled(1.5, 1.9)[0] == "holds" and "35 % of the MACs" in ruled(1.5, 1.9)[1]
    assert ruled(1.3, 1.9)[0] == "holds in part" and "50 % of the MACs" in ruled(1.3, 1.9)[1]
