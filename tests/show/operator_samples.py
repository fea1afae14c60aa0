"""A small operator explorer with made-up figures, for the tests here and in a browser."""

from __future__ import annotations

from PIL import Image

from pruning_book.widgets.operators import OperatorExplorer, OperatorResult, PruningStop

__all__ = ["PATHS", "PROMPTS", "colour", "explorer", "stops", "worths"]

PROMPTS = ("lion", "a <b> & 'c'")
BLOCK = "attentions.0.transformer_blocks.0"
# path, kind, average part, spread part; in the order in which they run
ROWS = (
    ("conv_in", "convolution", 3.0, 1.0),
    ("down_blocks.0.resnets.0", "resnet", 0.5, 0.25),
    ("down_blocks.0.resnets.0.conv1", "convolution", 0.5, 0.5),
    ("down_blocks.0.attentions.0", "transformer", 2.0, 1.0),
    (f"down_blocks.0.{BLOCK}", "transformer block", 1.5, 1.0),
    (f"down_blocks.0.{BLOCK}.attn1", "self-attention", 0.1, 0.1),
    (f"down_blocks.0.{BLOCK}.attn2", "cross-attention", 1.0, 0.5),
    ("down_blocks.0.downsamplers.0", "downsampler", 1.0, 1.0),
    ("down_blocks.1.resnets.0", "resnet", 0.01, 0.0),
    ("mid_block.resnets.0", "resnet", 0.0, 0.0),
    ("up_blocks.0.resnets.0", "resnet", 0.2, 0.1),
    ("up_blocks.0.upsamplers.0", "upsampler", None, None),
    ("up_blocks.1.resnets.0", "resnet", 1.0, 0.75),
    ("conv_out", "convolution", 9.0, 1.0),
)
PATHS = [row[0] for row in ROWS]
REMOVED = ([], ["mid_block.resnets.0"], ["mid_block.resnets.0", "down_blocks.1.resnets.0", PATHS[5]])


def worths() -> list[OperatorResult]:
    """Return one entry per row; similarity falls along the rows."""
    return [
        OperatorResult(
            path,
            kind,
            (1, 4, 8, 8),
            (1, 4, 8, 8),
            "identity",
            avg,
            std,
            saved_params=1000 * i,
            saved_macs=10_000 * i,
            ssim=[1 - i / 20, 1 - i / 40],
            mean_ssim={"value": 1 - i / 20, "low": 0.9 - i / 20, "high": 1.0},
        )
        for i, (path, kind, avg, std) in enumerate(ROWS)
    ]


def stops() -> list[PruningStop]:
    """Return three stops."""
    return [
        PruningStop(
            ratio,
            [(path, "identity") for path in paths],
            params=100_000 - 10_000 * k,
            macs=1_000_000 - 150_000 * k,
            ssim=[1 - k / 10, 1 - k / 5],
            mean_ssim={"value": 1 - k / 10, "low": 0.9 - k / 10, "high": 1.0},
        )
        for k, (ratio, paths) in enumerate(zip((0.0, 0.1, 0.25), REMOVED, strict=True))
    ]


def colour(prompt: int, place: int) -> tuple[int, int, int]:
    """Return the flat colour of a picture: place 0 to 2 are the stops, then come the operators."""
    return (10 + 14 * place, 200 - 10 * place, 60 + 120 * prompt)


def explorer(**changes) -> OperatorExplorer:
    """Return the explorer, with some arguments replaced."""
    places = range(len(REMOVED) + len(ROWS))
    images = [Image.new("RGB", (8, 6), colour(p, k)) for p in range(len(PROMPTS)) for k in places]
    given = {
        "name": "worth",
        "model": "tiny",
        "operators": worths(),
        "stops": stops(),
        "prompts": PROMPTS,
        "images": images,
        "n": 16,
        "title": "What is it worth?",
        "passport": "Made up.",
        **changes,
    }
    return OperatorExplorer(**given)
