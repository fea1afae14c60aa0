"""Loading, drawing and removing operators, on a GPU where there is one."""

from __future__ import annotations

import pytest
import torch
from on_gpu import draw, relative, same, state

import pruning_lib as pl

# Mean absolute difference of pictures in [0, 1] to those of a CPU. In float32 only the order of additions differs;
# float16, and TF32 in convolutions, have 11 bits (allowed: half a level of an 8-bit picture), bfloat16 has 8.
TOLERANCES = {"float32": 1e-4, "float16": 2e-3, "float32, TF32": 2e-3, "bfloat16": 1.6e-2}


@pytest.fixture(scope="module")
def reference() -> torch.Tensor:
    """A picture that the CPU draws in float32."""
    return draw(pl.load("emoji-sd"), output_type="pt")


@pytest.mark.parametrize("kind", TOLERANCES)
def test_the_picture_is_that_of_a_cpu(kind, shared, reference, device, monkeypatch):
    if device.type == "cpu" and kind in ("float16", "float32, TF32"):
        pytest.skip("a CPU has no TF32, and is slow in float16; the same lines run in bfloat16")
    dtype = getattr(torch, kind.partition(",")[0])
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", "TF32" in kind)
    pipe = shared(dtype)
    drawn = draw(pipe, output_type="pt")
    assert drawn.device.type == device.type and drawn.dtype == dtype
    away = (drawn.float().cpu() - reference).abs().mean()
    assert away <= TOLERANCES[kind]
    assert away > 0 or dtype == torch.float32, "half precision was not used"
    assert torch.equal(draw(pipe, output_type="pt"), drawn), "drawing repeats bit for bit"


def test_every_part_goes_to_the_device(device):
    pipe, wanted = pl.load("emoji-sd", device=device), torch.float16 if device.type == "cuda" else torch.float32
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        assert {(w.device.type, w.dtype) for w in part.parameters()} == {(device.type, wanted)}


def test_score_remove_save_load(shared, half, device, tmp_path):
    pytest.importorskip("accelerate")
    pipe = shared(half)
    before, plain = state(pipe.unet), draw(pipe)
    operators = pl.find_operators(pipe.unet, ["resnet", "cross-attention"])[::9]
    how = {"operators": operators, "num_latents": 2, "steps": 2, "guidance_scale": 3.0, "progress": False}
    scores = pl.score_operators(pipe, ["lion", "pizza"], **how)
    assert len(scores) == len(operators) and all(0 < score < float("inf") for score in scores.values().values())
    small = pl.remove_operators(pipe, scores.lowest(2))
    sizes = [sum(w.numel() for w in model.unet.parameters()) for model in (small, pipe)]
    cut = draw(small)
    assert sizes[0] < sizes[1] and cut.device.type == device.type
    assert cut.isfinite().all() and relative(cut, plain) > 1e-3
    small.save_pretrained(tmp_path)
    assert torch.equal(draw(pl.load(tmp_path, dtype=half, device=device)), cut)
    assert same(pipe.unet, before) and torch.equal(draw(pipe), plain), "the pipeline itself is whole"
