"""Verdicts say what was claimed, ruled and why; the rulings follow their records, and can come out every way."""

from __future__ import annotations

import pytest
from comparison_samples import BUDGETS, interval, made_up

from pruning_book import verdicts
from pruning_book.plots.comparison import Cells

RULINGS = ("holds", "holds in part", "does not hold", "not measured")


def test_the_box_says_claim_ruling_and_reason():
    for ruling in RULINGS:
        text = verdicts.verdict("Zeros are <fast>.", ruling, "0.98 times as fast & no less", source="a page").data
        assert "Claim: Zeros are &lt;fast&gt;." in text and "0.98 times as fast &amp; no less" in text
        assert f"{ruling.capitalize()}." in text and "Said by a page." in text
    for given, words in ((("x", "maybe", "y"), "'maybe'; allowed: 'holds'"), ((" ", "holds", "x"), "is empty")):
        with pytest.raises(ValueError, match=words):
            verdicts.verdict(*given)


def sizes(*shares: float) -> list[dict]:
    whole = {"dense": 1000}
    ways = verdicts.WAYS.values()
    return [{"sparsity": 0.2 * i, "bytes": {**dict.fromkeys(ways, 1000 * s), **whole}} for i, s in enumerate(shares)]


def curve(*top5: float) -> dict:
    rows = [{"part": "unet", "scope": "global", "asked": 0.2 * i, "top5": interval(t)} for i, t in enumerate(top5)]
    return {"rows": [*rows, {"part": "vae", "scope": "global", "asked": 0.0, "top5": interval(0)}], "n": 64}


def structured(size: float, speed: float | None, top5: float) -> dict:
    row = {"name": "narrow", "params": 100 / size, "after": {"top5": interval(top5)}, "finetune": {"steps": 400}}
    row["latency_times_as_fast"] = None if speed is None else interval(speed)
    return {"unpruned": {"params": 100, "top5": interval(0.9)}, "rows": [row]}


def smaller_and_faster(file: float, speed: float) -> tuple[str, str]:
    speeds = {"zeros": interval(speed, 0.05), "csr": interval(0.4, 0.05)}
    rows = [{"form": form, "sparsity": 0.5, "times_as_fast": found} for form, found in speeds.items()]
    return verdicts.smaller_and_faster(sizes(file)[0], rows)


def run(name: str, frechet: list[list[float]], ratio: float = 0.35) -> dict:
    """One run with a Fréchet distance for each moment and seed."""
    judged = [{"frechet": {"value": sum(f) / len(f), "by_seed": f}} for f in frechet]
    return {"name": name, "seeds": [0, 1], "judged": judged, "plan": {"macs_ratio": ratio}}


def lead(value: float) -> dict:
    return {"ssim": interval(value, 0.1)}


KEPT, FRESH = run("score-0.35", [[9, 9], [4, 4.2]]), run("scratch-0.35", [[90, 90], [50, 40]])
FAR, ONCE = run("score-0.2", [[9, 9], [4.4, 4.4]], 0.2), run("scratch-0.35", [[90, 90], [50, 4.1]])


def training(*runs: dict, gain: float | None = 0.4, whole: float = 4.0) -> dict:
    return {
        "runs": list(runs or (KEPT, FRESH)),
        "preserved_minus_scratch": {} if gain is None else {"0.35": lead(gain)},
        "unpruned": {"frechet": {"value": whole}},
        "finetune": {"steps": 200},
    }


def chooses_better(before: list[float], after: list[float], control: str = "output") -> tuple[str, str]:
    stop = {"budget": "macs_ratio", "scope": "all", "asked": 0.35, "ranking": "output"}
    rows = [{**stop, "score_minus_this": lead(v)} for v in before]
    rows += [{**stop, **other, "score_minus_this": lead(-9)} for other in ({"asked": 0.1}, {"scope": "outside"})]
    trained = [{"ranking": "output", "score_minus_this": lead(v)} for v in after]
    return verdicts.chooses_better({"rows": rows, "trained": trained, "levels": [0.35]}, [control])


def faster(training: dict, cuts: dict[float, str] | None = None, **times: float) -> tuple[str, str]:
    found = {name: {"times_as_fast": {"value": value}} for name, value in times.items()}
    latency = {"devices": {"cpu": {"times": {"generation": found}}}} if times else None
    return verdicts.faster_and_as_good(latency, training, cuts or {0.35: "cut"})


def compared(ties: int = 0, lost: str = "") -> tuple[str, str]:
    """Ours is ahead of both rivals, but for some ties, and for one or all metrics that are lost."""
    data = made_up()
    for cell in data["cells"] if lost == "all" else ():
        if "ours_minus" in cell:
            cell["ours_minus"] = {key: interval(-0.1 * sign) for key, (_, sign) in verdicts.METRICS.items()}
    for cell in data["cells"][:ties]:
        cell["ours_minus"]["ssim"] = interval(0.0)
    if lost == "one":
        data["cells"][0]["ours_minus"]["frechet_real"] = interval(0.2)  # lower is better
    return verdicts.best_or_tied(Cells(data), 4, ["ddim", "uniform"])


def as_fast(*fast: float) -> tuple[str, str]:
    found = zip(BUDGETS, fast, strict=False)
    times = {f"4-{budget:g}-ours": {"denoising": {"times_as_fast": interval(speed)}} for budget, speed in found}
    return verdicts.as_fast_as_macs_say({**made_up(), "speed": {"times": times}})


TEN = sizes(1.0, 0.5, 0.05)  # ten times smaller a little before the last stop, so the one before it is judged
GOOD = training(whole=4.2)
BOTH = training(KEPT, FRESH, run("score-0.5", [[9, 9], [8, 8]], 0.5), whole=4.2)
CUTS = {0.5: "large", 0.35: "small"}


@pytest.mark.parametrize(
    ("rule", "ruling", "words"),
    [
        (lambda: verdicts.ten_times_smaller(TEN, None), "not measured", "38 % zeros"),
        (lambda: verdicts.ten_times_smaller(sizes(1.0, 0.5), curve(1.0, 1.0)), "does not hold", "best is 2.0 times"),
        (lambda: verdicts.ten_times_smaller(TEN, curve(1.0, 0.96, 0.0)), "holds", "n = 64"),
        (lambda: verdicts.ten_times_smaller(TEN, curve(1.0, 0.9, 1.0)), "does not hold", "Already at 20 %"),
        (lambda: smaller_and_faster(0.5, 1.5), "holds", "1.50 (1.45 to 1.55)"),
        (lambda: smaller_and_faster(0.5, 1.0), "holds in part", "0.40 (0.35 to 0.45)"),
        (lambda: smaller_and_faster(0.9, 1.5), "holds in part", "90 %"),
        (lambda: smaller_and_faster(0.9, 1.0), "does not hold", "1.00"),
        (lambda: verdicts.four_times_smaller(structured(4, 3, 0.9)), "holds", "4.0 times fewer parameters, 3.0"),
        (lambda: verdicts.four_times_smaller(structured(4, 3, 0.5)), "holds in part", "nearest is narrow"),
        (lambda: verdicts.four_times_smaller(structured(2, 3, 0.9)), "does not hold", "2.0 times fewer"),
        (lambda: verdicts.four_times_smaller(None), "not measured", "not all there"),
        (lambda: verdicts.preserved_beat_scratch(training()), "holds", "0.400 (0.300 to 0.500) SSIM"),
        (lambda: verdicts.preserved_beat_scratch(training(KEPT, ONCE)), "holds in part", "3 of 4"),
        (lambda: verdicts.preserved_beat_scratch(training(gain=0.05)), "does not hold", "0.050"),
        (lambda: verdicts.preserved_beat_scratch(training(gain=None)), "not measured", "have not been made"),
        (lambda: verdicts.little_training(training()), "holds", "from 9.0 to 4.1; the original has 4.0, and close"),
        (lambda: verdicts.little_training(training(KEPT, FAR)), "holds in part", "from 9.0 to 4.4"),
        (lambda: verdicts.little_training(training(FAR)), "does not hold", "20 % of the MACs"),
        (lambda: verdicts.little_training(training(FRESH)), "not measured", "No compressed"),
        (lambda: chooses_better([0.5], [0.3]), "holds", "1 of 1 comparisons before"),
        (lambda: chooses_better([0.5, 0.5], [0.05]), "holds in part", "2 of 2 comparisons before"),
        (lambda: chooses_better([0.5], [0.0]), "does not hold", "0 of 1 after"),
        (lambda: chooses_better([], []), "not measured", "No control"),
        (lambda: faster(training(), cut=1.5), "holds in part", "4.1, the unpruned model's 4.0"),
        (lambda: faster(GOOD, cut=1.5), "holds", "33 % less time"),
        (lambda: faster(training(), cut=1.2), "does not hold", "17 % less time"),
        (lambda: faster(GOOD), "not measured", "not there yet"),
        (lambda: faster(BOTH, CUTS, small=1.5, large=1.9), "holds", "35 % of the MACs"),  # the mildest that is enough
        (lambda: faster(BOTH, CUTS, small=1.3, large=1.9), "holds in part", "50 % of the MACs"),
        (lambda: compared(), "holds", "clearly better in 16, clearly worse in 0"),
        (lambda: compared(2, "one"), "holds in part", "fewer steps at 50 % (Fréchet distance to the real"),
        (lambda: compared(lost="all"), "does not hold", "and others"),
        (lambda: as_fast(1.9, 3.7), "holds", "2 of 2 schedules"),
        (lambda: as_fast(1.7, 3.7), "holds in part", "1.70 times as fast instead of 2.00"),
        (lambda: as_fast(1.7, 3.0), "does not hold", "0 of 2"),
        (lambda: as_fast(), "not measured", "have not been measured"),
    ],
)
def test_rulings_follow_the_records(rule, ruling, words):
    found, because = rule()
    assert found == ruling and words in because, because


def test_what_the_page_reads_from_its_records():
    rows = sizes(1.0, 0.5, 0.1)
    assert verdicts.sparsity_for(2, rows) == pytest.approx(0.2)
    assert verdicts.sparsity_for(1 / 0.3, rows) == pytest.approx(0.3)
    rows = [{"form": "csr", "sparsity": s, "times_as_fast": interval(s, 0.1)} for s in (0.5, 0.9)]
    assert verdicts.only_row(rows, "csr", 0.9) is rows[1]
    with pytest.raises(ValueError, match="2 rows"):
        verdicts.only_row(rows, "csr")
    assert verdicts.speed_points(rows, "csr")[0] == (0.5, 0.5, 0.4, 0.6)
    found = [verdicts.crossing({"sparsity": sparsity, "says": "slower"}) for sparsity in (0.876, None)]
    assert found == ["0.88", "slower"]
