"""Every operator is found, with the figures of its module, in each family."""

from __future__ import annotations

import pytest
from tiny_denoisers import DENOISERS, make
from torch import nn

import pruning_lib as pl
from pruning_lib.operators.find import DEFAULT_KINDS, KINDS, find_operators


@pytest.mark.parametrize("name", DENOISERS)
def test_figures_are_those_of_the_modules(name):
    model = make(name)
    costs = pl.count_macs(model)
    operators = find_operators(model, tuple(KINDS))
    assert len(operators) > 20
    for op in operators:
        module = model.get_submodule(op.path)
        assert op.module == type(module).__name__
        assert op.params == sum(p.numel() for p in module.parameters())
        assert op.macs == costs.modules[op.path].macs and op.modifications
    assert [op.order for op in operators] == list(range(len(operators)))
    assert len(set(operators.paths)) == len(operators)


def test_the_kinds_of_a_small_unet_are_counted_by_hand():
    # Down: 2 + 2 resnets; mid: 2; up: 3 + 3.  Transformers: 2 down, 1 mid, 3 up.
    model = make()
    kinds = [op.kind for op in find_operators(model, tuple(KINDS))]
    count = {kind: kinds.count(kind) for kind in KINDS}
    assert count["resnet"] == 12
    for kind in ("transformer", "transformer block", "self-attention", "cross-attention", "feed-forward"):
        assert count[kind] == 6, kind
    assert count["downsampler"] == count["upsampler"] == 1
    assert count["convolution"] == 2 * 12 + 2  # two in each resnet, conv_in, conv_out; none inside the samplers
    assert count["norm"] == 2 * 12 + 6 + 3 * 6 + 1
    assert [op.kind for op in find_operators(model)] == [kind for kind in kinds if kind in DEFAULT_KINDS]


def test_sd15_has_the_operators_its_structure_says():
    kinds = [op.kind for op in find_operators(pl.denoiser_on_meta("sd-1.5"))]
    assert (kinds.count("resnet"), kinds.count("transformer"), kinds.count("convolution")) == (22, 16, 46)
    assert len(kinds) == 22 + 5 * 16 + 6 + 46


def test_shapes_follow_the_stream_and_the_size_asked_for_also_without_weights():
    model = make()
    op = find_operators(model, ["resnet"])["down_blocks.1.resnets.0"]
    assert (op.in_shape, op.out_shape) == ((1, 8, 4, 4), (1, 16, 4, 4))
    assert not any(module._forward_hooks for module in model.modules())
    model.to("meta")
    assert find_operators(model, "resnet", sample_size=16)["down_blocks.1.resnets.0"].in_shape == (1, 8, 8, 8)


def test_transformers_have_blocks_of_their_own_kinds():
    block = "transformer_blocks.0"
    operators = find_operators(make("dit"))
    assert operators[f"{block}.attn1"].kind == "self-attention" and operators[f"{block}.ff"].kind == "feed-forward"
    assert find_operators(make("pixart"))[f"{block}.attn2"].kind == "cross-attention"
    # A transformer adds what attention gives to the stream; in a UNet without text, attention does so itself.
    assert operators[f"{block}.attn1"].modifications == ("zero",)
    assert {op.modifications for op in find_operators(make("unet"), ["self-attention"])} == {("identity",)}
    # The first block of DiT lends its embedding to the output layer.
    assert block not in operators and "transformer_blocks.1" in operators


def test_a_selection_is_read_by_path_position_and_slice():
    operators = find_operators(make())
    assert operators[0] is operators[operators.paths[0]]
    assert list(operators[2:4]) == [operators[2], operators[3]]
    assert operators[0] in operators and operators[0].path in operators
    assert len(operators.table().splitlines()) == 2 + len(operators)
    assert operators.of("resnet", "norm").paths == [op.path for op in operators if op.kind == "resnet"]
    with pytest.raises(KeyError, match="mid_block.resnets.0"):
        operators["mid_block.resnet.0"]


@pytest.mark.parametrize(
    ("arguments", "kind", "says"),
    [
        ((make(), ["conv"]), ValueError, "'conv' is unknown.*convolution"),
        ((nn.Linear(2, 2),), TypeError, "not of a known family.*find.py.*denoisers.py"),
        (("unet",), TypeError, "Expected a diffusers denoiser"),
    ],
)
def test_bad_input(arguments, kind, says):
    with pytest.raises(kind, match=says):
        find_operators(*arguments)
