"""Every figure draws on white, carries words made from its data, and shows what it was given."""

from __future__ import annotations

import io
import itertools

import numpy as np
import pytest
import torch
from comparison_samples import BUDGETS, interval, made_up
from explorer_samples import grid
from matplotlib.figure import Figure
from PIL import Image

import pruning_lib as pl
from pruning_book.plots import chapters, comparison, operator, pruner, schedule, speed, training, weight
from pruning_book.verdicts import METRICS
from pruning_lib.operators.find import KINDS
from pruning_lib.steps.units import units_of
from pruning_lib.steps.wiring import trace_wiring
from pruning_lib.weights.nm import nm_mask


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def pixels(figure: Figure) -> np.ndarray:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=50)
    return np.asarray(Image.open(file).convert("RGB"), float)


def point(ranking: str, asked: float, ssim: float, budget: str = "count", scope: str = "all") -> dict:
    """A row of the record of removals."""
    figures = {"figures": {"ssim": interval(ssim)}, "count": asked, "macs_ratio": asked / 100}
    return {"ranking": ranking, "asked": asked, "budget": budget, "scope": scope, **figures}


AB = ["a", "b"]
CUTS = [
    *(point("score", k, 1 - k / 40) for k in (8, 2, 4)),
    *(point(f"random-{i}", k, 0.6 + 0.2 * i - k / 40) for i in (0, 1) for k in (2, 4, 8)),
    point("score", 3, 0.1, scope="outside"),
    point("score", 5, 0.2, budget="macs_ratio"),
]
JUDGED = [{"ssim": {**interval(v), "by_seed": [v - d, v + d]}} for v, d in ((0.5, 0), (0.8, 0.1))]
RUN = {"name": "score-0.2", "label": "pruned", "steps": [0, 50], "judged": JUDGED}
STARTS = [
    {"label": label, **{w: {"ssim": {**interval(v), "by_seed": [v - 0.01, v + 0.01]}} for w in ("new", "old")}}
    for label, v in (("whole", 0.9), ("held", 0.4), ("free", 0.7))
]
PATHS = ("conv_in", "down_blocks.0.resnets.0", "down_blocks.0.attentions.0", "mid_block.resnets.0", "up_blocks.0.x")
USED = ("convolution", "resnet", "transformer", "resnet", "upsampler")
SCORES = [{"path": p, "kind": k, "score": s} for p, k, s in zip(PATHS, USED, (4.0, 0.5, 0, None, 8.0), strict=True)]
HARM = dict(zip(PATHS, (0.4, 0.05, 0.0, 0.9, 0.8), strict=True))
HISTORY = [{"step": i, "loss": loss, "macs_ratio": k} for i, loss, k in ((1, 0.0, 1.0), (2, 0.5, 0.1), (3, 0.25, 0.2))]
SPEEDS = {"dense kernel with zeros": [(0.5, 0.9, 0.8, 1.0), (0.9, 1.1, 1.0, 1.2)], "CSR": [(0.5, 0.2, 0.1, 0.3)]}
PAIRS = [{"joint": j, "sum": s, "linear": v} for j, s, v in ((1.0, 2.0, 1.0), (3.0, 2.0, 1.5), (0.1, 0.1, 0.1))]
SETS = [{**PAIRS[0], "by": "single", "count": 9, "macs_ratio": m, "ssim": interval(1 - m)} for m in (0.3, 0.1)]
WAYS = [
    {"way": w, "steps": s, "macs_ratio": k, "figures": {"ssim": interval(0.9 * k + 0.1)}}
    for w, s, k in itertools.product(AB, (20, 50), (0.2, 0.5, 1.0))
]
MEMORY = [{"steps": s, "checkpointing": c, "memory_mib": s * (1 if c else 10)} for s in (20, 5) for c in (True, False)]
SHRUNK = [{"macs_ratio": k, "ssim": interval(k)} for k in (0.5, 0.2)]
SPARSE = [{"sparsity": s, **interval(1 - s)} for s in (0.0, 0.5, 0.9)]
GATES = torch.tensor([[0.0, 0, 0], [0.9, 0.1, 0.5], [0.8, 0.2, 0.6]])
FILES = {"full": {"unet": 3_000_000, "ema": 3_000_000, "container": 5_000}, "slim": {"unet": 1_500_000}}
ALIKE = torch.tensor([[1.0, 0.9, 0.1], [0.9, 1.0, 0.2], [0.1, 0.2, 1.0]])
EXACT = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]])
RANKS = {f"op{i}": float(i) for i in range(12)}
PROMISES = {"batch 1": [("a", 1.5, interval(1.2)), ("b", 2.0, interval(2.1))], "batch 8": [("a", 1.5, interval(1.4))]}
LIVE = torch.tensor([[1, 1], [0, 0], [0, 1]], dtype=torch.bool)
ENDS = interval(0.8), interval(1)
RANKINGS = {"score": "score", "chance": "by chance"}
LOOK = {"budget": "count", "ylabel": "SSIM", "mark": point("bk-sdm", 6, 0.4)}
KERNELS = {"slow": (1.0, 1e9), "mid": (1.0, 3e9), "fast": (100.0, 4.5e10)}
CAUSES = {"cast": 7_500_000, "aliases": -500_000}
CELLS, LOST = comparison.Cells(made_up()), {"ssim": "1 - SSIM", "frechet_real": "Fréchet"}
MATRIX = torch.tensor([[0.9, -0.1], [0.2, -0.4]])


def some_schedule():
    """A schedule with cells of all three kinds."""
    on = torch.ones(4, 4, dtype=torch.bool)
    on[1, 3] = on[3, 2] = False
    return grid().schedule(on, method="by hand")


# (how to draw it, words that its alternative text must have)
FIGURES = {
    "image_grid": (lambda: chapters.image_grid(randn(4, 3, 8, 8), columns=AB, rows=AB, what="x"), "Rows: a, b."),
    "heat": (lambda: chapters.heat(ALIKE, list("abc"), list("abc"), what="likeness"), "a: b, b: a, c: b"),
    "lines": (lambda: chapters.lines([1, 4], {"a": [1, 3]}, xlabel="x", ylabel="y", log=True), "a from 1 to 3"),
    "roofline": (lambda: chapters.roofline(KERNELS, 5e10, 5e9), "most fast with 90 %, least slow with 20 %"),
    "shares": (lambda: chapters.shares(AB, {"params": [40, 60], "MACs": [90, 10]}), "params: b with 60 %; most"),
    "bytes_by_part": (lambda: weight.bytes_by_part(FILES), "full 6.0 MB, slim 1.5 MB"),
    "where_bytes_went": (lambda: weight.where_bytes_went(10**7, CAUSES, 3 * 10**6), "10.00 MB down to 3.00 MB"),
    "rounding": (lambda: weight.rounding(0.05 * randn(10_000)), "6.55e+04"),
    "matrix_cut": (lambda: weight.matrix_cut(MATRIX, MATRIX.abs() > 0.3, 0.2), "2 of 4 at or below the cut at 0.2"),
    "histograms": (lambda: weight.histograms({"a": randn(8, 32), "b": randn(256)}, cuts={"cut": 0.5}), "512 weights"),
    "quality_curves": (lambda: weight.quality_curves({"a": SPARSE}, ylabel="y", marks={"a": 0.5}), "a 0.5 at 0.5"),
    "sensitivity_strip": (
        lambda: weight.sensitivity_strip({"x": 0.5, "y": -1}, {"x": "a", "y": "b"}, ylabel="e"),
        "sensitive: x",
    ),
    "mask_patterns": (lambda: weight.mask_patterns({"2:4": nm_mask(randn(8, 32))}), "in every four neighbours: 2:4."),
    "byte_strips": (lambda: speed.byte_strips({"dense": (100, 0), "CSR": (24, 48)}), "dense 100; CSR 72"),
    "sizes": (
        lambda: speed.sizes([0, 0.5], {"zip": [0.9, 0.55]}, dense="the file"),
        "At 0.5, of the dense file: zip 55 %",
    ),
    "speeds": (lambda: speed.speeds({"one": SPEEDS, "three": {"CSR": []}}), "Slowest: CSR, one, sparsity 0.5, 0.2"),
    "patterns": (lambda: speed.patterns({"2:4": torch.tensor([[True, False] * 4] * 4)}), "2:4: 50 % zeros"),
    "expected_and_measured": (
        lambda: speed.expected_and_measured({"CSR": (2.0, (0.5, 0.4, 0.6))}),
        "CSR: 2.00 times fewer, 0.50 times",
    ),
    "recovery": (lambda: training.recovery([RUN], "ssim", ylabel="SSIM"), "steps: pruned from 0.50 to 0.80."),
    "starts": (lambda: training.starts(STARTS, "ssim", xlabel="SSIM"), "best whole 0.90, worst held 0.40"),
    "sorted_scores": (lambda: operator.sorted_scores(SCORES), "to 8 (up_blocks.0.x)"),
    "scores_by_kind": (lambda: operator.scores_by_kind(SCORES, list(KINDS)), "convolution 4, upsampler 8."),
    "scores_in_order": (lambda: operator.scores_in_order(SCORES), "up 0 with 8"),
    "score_against": (lambda: operator.score_against(SCORES, HARM, ylabel="y", marks={"conv_in": "it"}), "is 1.00. M"),
    "removal_curves": (lambda: training.removal_curves(CUTS, "ssim", RANKINGS, **LOOK), "BK-SDM 0.40 at 6"),
    "before_after": (
        lambda: training.before_after([("a", [0.5], [0.8, 0.84]), ("b", [0, 0.3], [0.4])], xlabel="S"),
        "b 0.15 to 0.40",
    ),
    "removal training": (
        lambda: training.training_curves([RUN], "ssim", {"score-0.2": "a"}, ylabel="y", reference=1),
        "a 0.50 to 0.80",
    ),
    "promise": (lambda: training.promise(PROMISES), "of 3 cuts, 1 on or above"),
    "rank_slopes": (lambda: operator.rank_slopes(RANKS, {**RANKS, "op2": 9.5, "op9": 2.5}, ("a", "b")), "is 7"),
    "decay": (lambda: operator.decay([2, 8], {"x": [4.0, 1.0]}, {"x": [4.0, 1.0]}, ylabel="score"), "x: 4 to 1"),
    "correlations": (lambda: operator.correlations({"latents": [2, 64]}, {"all": [[*ENDS]]}, [(2, 0.7)]), "0.800"),
    "pairs": (lambda: operator.pairs(PAIRS, PAIRS[1]), "median 1.00, 0.50 to 1.50"),
    "sets": (lambda: operator.sets(SETS, {"single": "chosen"}), "chosen: 0.900 at 10 % to 0.700 at 30 %"),
    "similarity_maps": (lambda: schedule.similarity_maps({"far": [[1, 0.5], [0.2, 1]]}), "far: neighbours 0.5"),
    "changes": (lambda: schedule.changes({"a": [[0.1], [0.01], [0.3]]}, ["x", "y", "z"]), "most z, least y"),
    "likeness_and_harm": (
        lambda: schedule.likeness_and_harm({"x": (1e-3, 1e-4), "y": (1e-5, 0.0)}, {"y": "A"}),
        "y: 1e-05 and 0",
    ),
    "rivals": (lambda: schedule.rivals(WAYS, {"a": "one", "b": "other"}, {20: "few", 50: "many"}), "one 0.28"),
    "training_curves": (lambda: pruner.training_curves({"a": HISTORY}), "loss 0 to 0.25, MACs 1.00 to 0.20 in 3"),
    "kept_curves": (lambda: pruner.kept_curves({"a": HISTORY}, floor=0.05), "At the last iteration: a: 0.20"),
    "score_map": (lambda: pruner.score_map({"one": GATES}, ["x", "y", "z"]), "highest in the mean x, lowest y"),
    "budget_curves": (lambda: pruner.budget_curves({"a": SHRUNK}, "ssim", ylabel="SSIM"), "a 0.200"),
    "memory_curves": (lambda: pruner.memory_curves(MEMORY), "all activations kept: 50 MiB at 5, 200 at 20"),
    "gradients": (lambda: pruner.gradients({"a": GATES.round()}, ["x", "y", "z"]), "a: 3 of 6 cells without gradient"),
    "schedule_map": (lambda: schedule.schedule_map(some_schedule()), "2 used again"),
    "schedule_maps": (lambda: schedule.schedule_maps({"b": grid().full()}), "b: 16 computed, 0 dead"),
    "against_budget": (lambda: comparison.against_budget(CELLS, 4, LOST), "25 %: ours 0.1, uniform"),
    "differences": (lambda: comparison.differences(CELLS, 4, METRICS, ["ddim", "uniform"]), "better in 0 of 16"),
    "timelines": (lambda: comparison.timelines({"a": LIVE}, (3, 1)), "a 2 of 3"),
}


@pytest.mark.parametrize("name", list(FIGURES))
@pytest.mark.filterwarnings("error::UserWarning", "error::RuntimeWarning")
def test_figures_draw_on_white_and_have_words(name: str) -> None:
    draw, words = FIGURES[name]
    figure = draw()
    shot = pixels(figure)
    assert (shot[0, 0] == 255).all(), "the ground must be opaque and white, for the dark theme"
    assert shot.std() > 5, "an empty figure"
    assert 20 < len(figure.alt) <= 248 and words in figure.alt


def drawn(name: str) -> list:
    return FIGURES[name][0]().axes


def test_images_keep_their_order_and_colour(tmp_path) -> None:
    two = torch.eye(3)[[0, 2]][:, :, None, None].expand(-1, -1, 4, 4)
    shot = pixels(chapters.image_grid(two, columns=["r", "b"], what="two colours"))
    red, blue = ((shot == colour).all(-1).any(0).nonzero()[0] for colour in ((255, 0, 0), (0, 0, 255)))
    assert red.max() < blue.min()
    levels = np.array([[0, 40, 80], [120, 160, 200]], np.uint8)
    Image.fromarray(np.kron(levels, np.ones((8, 8), np.uint8))).convert("RGB").save(tmp_path / "some.png")
    pl.save_record(tmp_path / "some.json", "some", {"sheet": "some.png"}, pl.passport(seeds=[], n=1, device="cpu"))
    tiles = training.recorded_tiles(tmp_path / "some.json", size=8)
    assert (chapters.to_tensor(tiles)[:, 0, 3, 3] * 255).round().tolist() == levels.ravel().tolist()


def test_bars_strips_and_texts_show_the_true_sizes_and_values() -> None:
    (ax,) = drawn("bytes_by_part")
    assert {3.0, 6.0, 1.5} <= {round(bar.get_x() + bar.get_width(), 3) for bar in ax.patches}
    (ax,) = drawn("where_bytes_went")
    assert [round(bar.get_width(), 2) for bar in ax.patches] == [10, 7.5, -0.5, 3]
    assert len(drawn("byte_strips")[0].patches) == 172, "every byte is a square"
    before, _, after = ([text.get_text() for text in ax.texts] for ax in drawn("matrix_cut"))
    assert before == ["0.9", "-0.1", "0.2", "-0.4"] and after == ["0.9", "0", "0", "-0.4"]
    half, brain = drawn("rounding")[0].lines[:2]
    for line, error in ((half, 2**-11), (brain, 2**-8)):
        assert line.get_ydata()[abs(line.get_xdata() - 1).argmin()] == pytest.approx(error, rel=0.2)
    assert half.get_xdata().max() < 65520 < brain.get_xdata().max()  # float16 ends, bfloat16 goes on


def test_bands_hold_the_intervals_and_the_range_of_chance_and_every_seed_is_drawn() -> None:
    (ax,) = drawn("removal_curves")
    bands = [found.get_paths()[0].vertices[:, 1] for found in ax.collections]
    assert [(band.min(), band.max()) for band in bands] == [pytest.approx((0.79, 0.96)), pytest.approx((0.4, 0.75))]
    assert [list(line.get_xdata()) for line in ax.lines[:2]] == [[2, 4, 8]] * 2
    asked = [row["asked"] for row in training.curve_of(CUTS, "chance", budget="count")]
    assert asked == [2, 2, 4, 4, 8, 8]
    assert [row["asked"] for row in training.curve_of(CUTS, "score", budget="count", scope="outside")] == [3]
    seeds = [list(line.get_ydata()) for line in drawn("removal training")[0].lines[:3]]
    assert seeds == [pytest.approx([0.5, end]) for end in (0.7, 0.9, 0.8)]
    for name, counts in (("before_after", [1, 2, 2, 1]), ("starts", [2, 2, 2])):
        dots = [line for line in drawn(name)[0].lines if line.get_marker() == "o"]
        assert [len(line.get_xdata()) for line in dots] == counts


def test_on_a_logarithmic_axis_zeros_stand_at_the_edge_and_ssim_is_what_is_lost() -> None:
    (ax,) = operator.sorted_scores(SCORES).axes
    assert sorted(y for line in ax.lines for y in line.get_ydata()) == [0.25, 0.5, 4.0, 8.0]
    assert drawn("training_curves")[0].lines[0].get_ydata()[0] > 0
    assert drawn("likeness_and_harm")[0].lines[0].get_ydata().min() > 0
    assert len(drawn("rivals")[0].containers[0].lines[0].get_xdata()) == 2, "the unpruned has no place on it"
    lost, distance = comparison.against_budget(CELLS, 4, LOST, ["ours"], log=["ssim"]).axes
    assert (lost.get_yscale(), distance.get_yscale()) == ("log", "linear")
    line, _, (bars,) = lost.containers[0]
    assert line.get_ydata() == pytest.approx([1 - 0.4 * b for b in BUDGETS])
    assert bars.get_segments()[0][:, 1] == pytest.approx([0.79, 0.81])


def test_maps_show_what_every_cell_is() -> None:
    shown = torch.tensor(drawn("score_map")[0].images[0].get_array().tolist()).T  # by rank
    assert shown[0].tolist() == [1, 1, 1] and shown[1:].flatten().argmax() == 0 and shown[1, 1] == 0
    white = drawn("gradients")[0].images[0].get_array().mask.T  # gates without gradient
    assert white.tolist() == (GATES.round()[1:] == 0).tolist()
    made = some_schedule()
    figure = schedule.schedule_map(made)
    state = np.asarray(figure.axes[0].images[0].get_array())
    assert np.array_equal(state, (made.on.int() + made.live().int()).T) and set(state.flat) == {0, 1, 2}
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["computed", "dead work", "used again"]
    long = torch.ones(250, 56, dtype=torch.bool)
    figure = schedule.table_maps({"long": (long, long)}, [f"transformer_blocks.{i}" for i in range(56)])
    assert max(figure.get_size_inches()) < 9


def test_arcs_are_the_connections_across() -> None:
    model = pl.denoiser_on_meta("emoji-sd")
    units = units_of(model)
    wiring = trace_wiring(model, units)
    figure = schedule.wiring_arcs(units, wiring)
    across = sum(reader - source > 1 for reader, read in enumerate(wiring.inputs) for source in read)
    assert len(figure.axes[0].patches) == across == 11
    assert "27 units" in figure.alt and "from down_blocks.0.layers.0 to up_blocks.3.layers.1" in figure.alt


OTHER = {"a": some_schedule(), "b": grid(names=tuple("abcd")).full()}


@pytest.mark.parametrize(
    ("draw", "words"),
    [
        (lambda: chapters.image_grid(randn(3, 3, 4, 4), columns=["a", "b"], rows=["c", "d"], what=""), "3 images do"),
        (lambda: weight.bytes_by_part({"a": {"brain": 1}}), "brain"),
        (lambda: weight.where_bytes_went(10, {"a": 3}, 6), "every byte"),
        (lambda: training.curve_of(CUTS, "rank", budget="count"), "random-0, random-1, score"),
        (lambda: training.training_curves([RUN], "ssim", {"scratch": "random"}, ylabel="SSIM"), "scratch"),
        (lambda: schedule.table_maps({}, []), "no table"),
        (lambda: schedule.schedule_maps(OTHER), "2 schedules of 2 lists"),
    ],
)
def test_what_cannot_be_drawn_is_refused(draw, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        draw()
