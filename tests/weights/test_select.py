"""What may be pruned, what is left alone, and by which rule."""

from __future__ import annotations

import math

import pytest
import torch
from small_models import MODELS, linears, unet
from torch import nn

from pruning_lib.weights.select import IGNORE, prunable_weights

ENDS = {
    "unet": {"conv_in", "conv_out"},
    "dit": {"pos_embed.proj", "proj_out_1", "proj_out_2"},
    "vae": {
        "quant_conv",
        "post_quant_conv",
        *(f"{p}.conv_{end}" for p in ("encoder", "decoder") for end in ("in", "out")),
    },
    "clip_text": set(),
}


@pytest.mark.parametrize("name", MODELS)
def test_what_each_model_leaves_alone(name) -> None:
    model = MODELS[name]()
    selection = prunable_weights(model)
    by_group = {group: {n for n, why in selection.ignored.items() if why == group} for group in IGNORE}
    assert by_group["ends"] == {f"{path}.weight" for path in ENDS[name]}
    assert (by_group["norms"] or name == "dit") and all("norm" in n for n in by_group["norms"])  # DiT's have no weights
    if name == "clip_text":
        assert {n.split(".")[-2] for n in by_group["embeddings"]} == {"token_embedding", "position_embedding"}
    assert sorted([*selection.weights, *selection.ignored]) == sorted(n for n, _ in model.named_parameters())
    for chosen in selection.weights:
        owner = model.get_submodule(chosen.rpartition(".")[0])
        assert isinstance(owner, (nn.Linear, nn.Conv2d)) and chosen.endswith(".weight")


def test_patterns_spare_paths_names_and_all_below() -> None:
    model = unet()
    everything = prunable_weights(model, [])
    assert not everything.ignored and everything.n == sum(p.numel() for p in model.parameters())
    by_path = prunable_weights(model, [*IGNORE, "mid_block"])
    assert not any(n.startswith("mid_block") for n in by_path.weights)
    assert all(by_path.ignored[n] for n, _ in model.named_parameters() if n.startswith("mid_block."))
    by_star = prunable_weights(model, [*IGNORE, "*.attn2.*"])
    assert not any(".attn2." in n for n in by_star.weights) and any(".attn1." in n for n in by_star.weights)
    exact = prunable_weights(model, [*IGNORE, "mid_block.resnets.0.conv1.weight"])
    assert exact.n == prunable_weights(model).n - model.mid_block.resnets[0].conv1.weight.numel()


def test_tied_weights_count_once_and_packed_projections_are_weights() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    assert list(prunable_weights(model).weights) == ["0.weight"]
    assert "in_proj_weight" in prunable_weights(nn.MultiheadAttention(8, 2)).weights


class Pipe:
    components = {}


def damaged(value: float) -> nn.Module:
    model = linears((4, 3), (3, 2))
    model[1].weight.data[0, 0] = value
    return model


def quantised() -> nn.Module:
    layer = nn.Linear(2, 2)
    layer.weight = nn.Parameter(torch.ones(2, 2, dtype=torch.int8), requires_grad=False)
    return layer


@pytest.mark.parametrize(
    ("module", "ignore", "error", "words"),
    [
        (Pipe(), IGNORE, TypeError, r"pipe\.unet"),
        ({"a": torch.ones(2)}, IGNORE, TypeError, "dict"),
        (unet(), "ends", TypeError, r"\['ends'\]"),
        (unet(), [3], TypeError, "holds 3"),
        (unet(), ["mid_blok"], ValueError, "Did you mean 'mid_block"),
        (unet(), ["norm"], ValueError, "Did you mean 'norms'"),
        (unet(), ["*"], ValueError, "no weights to prune"),
        (nn.Embedding(4, 2), IGNORE, ValueError, "no weights to prune"),
        (damaged(math.nan), IGNORE, ValueError, r"1\.weight holds NaN or infinite"),
        (damaged(math.inf), IGNORE, ValueError, "NaN or infinite"),
        (nn.Linear(4, 3, device="meta"), IGNORE, ValueError, "meta device"),
        (quantised(), IGNORE, ValueError, "int8"),
    ],
)
def test_what_is_refused(module, ignore, error, words) -> None:
    with pytest.raises(error, match=words):
        prunable_weights(module, ignore)
