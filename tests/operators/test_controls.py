"""Rankings to compare with: what they are by hand, and that measuring one leaves the model as it was."""

from __future__ import annotations

import pytest
import torch

import pruning_lib as pl
from pruning_book.rivals.rankings import contributions, output_ranking, params_ranking, random_ranking
from pruning_lib.operators.find import find_operators

PROMPTS = ["lion", "pizza", "rocket"]
SAMPLING = {"num_latents": 3, "steps": 2, "guidance_scale": 3.0}
FEW = {"num_latents": 2, "steps": 1}


@pytest.fixture(scope="module")
def pipe():
    found = pl.load("emoji-sd")
    found.set_progress_bar_config(disable=True)
    return found


@pytest.fixture(scope="module")
def operators(pipe):
    return find_operators(pipe.unet)


@pytest.fixture(scope="module")
def added(pipe, operators):
    return contributions(pipe, PROMPTS, operators=operators, **SAMPLING)


def test_chance_is_a_reproducible_order_of_all(operators):
    first = random_ranking(operators, 0)
    assert sorted(first) == sorted(operators.paths)
    assert first == random_ranking(operators, 0) and first != random_ranking(operators, 1)
    fronts = {random_ranking(operators, seed)[0] for seed in range(40)}
    assert len(fronts) > 25, "the first to go must be drawn from all"


def test_parameters_order_both_ways(operators):
    for largest_first in (False, True):
        sizes = [operators[path].params for path in params_ranking(operators, largest_first=largest_first)]
        assert sizes == sorted(sizes, reverse=largest_first) and len(set(sizes)) > 10
    equal = [p for p in params_ranking(operators) if operators[p].params == operators["conv_in"].params]
    assert [operators[p].order for p in equal] == sorted(operators[p].order for p in equal)


def test_a_branch_contributes_its_mean_size(pipe, operators, added):
    """By hand: what comes out of a self-attention is what it adds; a residual block adds output minus input."""
    seen = {"attn": [], "resnet": []}
    attention = "up_blocks.2.attentions.1.transformer_blocks.0.attn1"
    resnet = "down_blocks.1.resnets.1"
    unet = pipe.unet
    hooks = [
        unet.get_submodule(attention).register_forward_hook(lambda m, a, out: seen["attn"].append(out.abs().mean())),
        unet.get_submodule(resnet).register_forward_hook(
            lambda m, a, out: seen["resnet"].append((out - a[0]).abs().mean())
        ),
    ]
    noise = [torch.Generator().manual_seed(i) for i in range(3)]
    pipe(PROMPTS, num_inference_steps=2, guidance_scale=3.0, generator=noise, output_type="latent")
    for hook in hooks:
        hook.remove()
    assert operators[resnet].modifications[0] == "identity"
    assert added[attention] == pytest.approx(torch.stack(seen["attn"]).mean().item(), rel=1e-4)
    assert added[resnet] == pytest.approx(torch.stack(seen["resnet"]).mean().item(), rel=1e-4)


def test_what_cannot_be_removed_is_compared_with_its_cheaper_form(pipe, operators, added):
    """A convolution with one weight per window at its centre is its own 1x1 form and contributes nothing."""
    conv = pipe.unet.conv_in
    assert operators["conv_in"].modifications[0] == "pointwise" and added["conv_in"] > 0.01
    kept = conv.weight.detach().clone()
    with torch.no_grad():
        conv.weight.mul_(torch.tensor([[0.0, 0, 0], [0, 1, 0], [0, 0, 0]]))
    flat = contributions(pipe, ["lion"], operators=operators[:3], **FEW)
    with torch.no_grad():
        conv.weight.copy_(kept)
    assert flat["conv_in"] < 1e-5 < 0.01 < flat[operators[1].path]


def test_batches_do_not_change_it(pipe, operators, added):
    again = contributions(pipe, PROMPTS, operators=operators, **SAMPLING, batch=2)
    assert all(again[path] == pytest.approx(value, rel=1e-3) for path, value in added.items())


def test_the_ranking_begins_with_what_adds_least(pipe, operators, added):
    ranking = output_ranking(pipe, PROMPTS, operators=operators, **SAMPLING)
    assert sorted(ranking) == sorted(operators.paths)
    values = [added[path] for path in ranking]
    assert values == pytest.approx(sorted(values), rel=1e-4) and values[0] < 0.1 * values[-1]


def test_nothing_stays_behind(pipe, operators):
    before = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
    some = operators.of("resnet", "upsampler")
    contributions(pipe, ["lion"], operators=some, **FEW)
    assert not any(module._forward_hooks for module in pipe.unet.modules())
    fail = pipe.unet.mid_block.register_forward_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("stop")))
    with pytest.raises(RuntimeError, match="stop"):
        contributions(pipe, ["lion"], operators=some, **FEW)
    fail.remove()
    assert not any(module._forward_hooks for module in pipe.unet.modules()), "hooks go when a run fails, too"
    assert all(torch.equal(before[name], value) for name, value in pipe.unet.state_dict().items())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"prompts": []}, "prompts="),
        ({"prompts": "lion"}, "list of at least one"),
        ({"steps": 0}, "steps=0"),
        ({"batch": 0}, "batch=0"),
        ({"num_latents": 0}, "num_latents=0"),
    ],
)
def test_wrong_numbers_are_refused_before_any_work(pipe, change, says):
    arguments = {"prompts": ["lion"], **FEW, **change}
    prompts = arguments.pop("prompts")
    with pytest.raises(ValueError, match=says):
        contributions(pipe, prompts, **arguments)
