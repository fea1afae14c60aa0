"""What may be pruned, what is left alone, and by which rule."""

from __future__ import annotations

import pytest
import torch
from small_models import MODELS, unet
from torch import nn

from pruning_lib.weights.select import IGNORE, prunable_weights


def test_what_each_model_leaves_alone() -> None:
    found = {name: prunable_weights(make()) for name, make in MODELS.items()}
    ends = {name: sorted(n for n, why in s.ignored.items() if why == "ends") for name, s in found.items()}
    assert ends["unet"] == ["conv_in.weight", "conv_out.weight"]
    assert ends["dit"] == ["pos_embed.proj.weight", "proj_out_1.weight", "proj_out_2.weight"]
    assert ends["vae"] == sorted(
        f"{part}.weight"
        for part in (
            "encoder.conv_in",
            "encoder.conv_out",
            "decoder.conv_in",
            "decoder.conv_out",
            "quant_conv",
            "post_quant_conv",
        )
    )
    assert ends["clip_text"] == []
    tables = {n for n, why in found["clip_text"].ignored.items() if why == "embeddings"}
    assert {n.rpartition(".")[0].rpartition(".")[2] for n in tables} == {"token_embedding", "position_embedding"}
    for name, selection in found.items():
        model = MODELS[name]()
        assert set(selection.weights) | set(selection.ignored) == {n for n, _ in model.named_parameters()}
        assert not set(selection.weights) & set(selection.ignored)
        for chosen in selection.weights:
            owner = model.get_submodule(chosen.rpartition(".")[0])
            assert isinstance(owner, (nn.Linear, nn.Conv2d)) and chosen.endswith(".weight")
        norms = [n for n, why in selection.ignored.items() if why == "norms"]
        assert (norms or name == "dit") and all("norm" in n for n in norms), norms  # DiT's norms have no weights


def test_an_empty_list_leaves_nothing_alone() -> None:
    model = unet()
    selection = prunable_weights(model, [])
    assert not selection.ignored and selection.n == sum(p.numel() for p in model.parameters())


def test_patterns_spare_paths_names_and_all_below() -> None:
    model = unet()
    by_path = prunable_weights(model, [*IGNORE, "mid_block"])
    assert all(by_path.ignored[n] for n, _ in model.named_parameters() if n.startswith("mid_block."))
    assert not any(n.startswith("mid_block") for n in by_path.weights)
    by_star = prunable_weights(model, [*IGNORE, "*.attn2.*"])
    assert not any(".attn2." in n for n in by_star.weights) and any(".attn1." in n for n in by_star.weights)
    exact = prunable_weights(model, [*IGNORE, "mid_block.resnets.0.conv1.weight"])
    assert exact.n == prunable_weights(model).n - model.mid_block.resnets[0].conv1.weight.numel()


def test_a_pattern_that_matches_nothing_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="Did you mean 'mid_block"):
        prunable_weights(unet(), ["mid_blok"])
    with pytest.raises(ValueError, match="Did you mean 'norms'"):
        prunable_weights(unet(), ["norm"])


def test_modules_without_prunable_weights_are_refused() -> None:
    for module in (nn.LayerNorm(4), nn.ReLU(), nn.Embedding(4, 2)):
        with pytest.raises(ValueError, match="no weights to prune"):
            prunable_weights(module)
    with pytest.raises(ValueError, match="no weights to prune"):
        prunable_weights(unet(), ["*"])


def test_other_objects_are_refused() -> None:
    class Pipe:
        components = {}

    with pytest.raises(TypeError, match=r"pipe\.unet"):
        prunable_weights(Pipe())
    with pytest.raises(TypeError, match="dict"):
        prunable_weights({"a": torch.ones(2)})
    with pytest.raises(TypeError, match=r"\['ends'\]"):
        prunable_weights(unet(), "ends")
    with pytest.raises(TypeError, match="holds 3"):
        prunable_weights(unet(), [3])


def test_tied_weights_count_once() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    assert list(prunable_weights(model).weights) == ["0.weight"]


def test_packed_projections_of_torch_attention_are_weights() -> None:
    assert "in_proj_weight" in prunable_weights(nn.MultiheadAttention(8, 2)).weights
