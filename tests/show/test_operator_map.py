"""The drawing of operators: a U whose arms meet at the bottom, every operator in it, nothing on top of another."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from operator_samples import PATHS, worths

import pruning_lib as pl
from pruning_book.widgets.operator_map import WIDTH, draw_map


@pytest.fixture(scope="module", params=["emoji-sd", "sd-1.5", "dit-xl-2-256"])
def drawn(request):
    operators = pl.find_operators(pl.denoiser_on_meta(request.param))
    return operators, draw_map(operators)


def overlap(a, b) -> bool:
    across = min(a.x + a.width, b.x + b.width) - max(a.x, b.x)
    down = min(a.y + a.height, b.y + b.height) - max(a.y, b.y)
    return across > 1e-6 and down > 1e-6


def test_every_operator_is_drawn_and_no_cell_covers_another(drawn) -> None:
    operators, picture = drawn
    assert {cell.operator for grain in picture.grains for cell in grain} == set(range(len(operators)))
    for grain in picture.grains:
        order = [cell.operator for cell in grain]
        assert order == sorted(set(order)), "in the order in which they run"
        paths = [operators[i].path for i in order]
        assert not any(a != b and a.startswith(f"{b}.") for a in paths for b in paths), "none inside another"
        for k, cell in enumerate(grain):
            assert 0 <= cell.x and cell.x + cell.width <= WIDTH + 1e-6 and 0 <= cell.y
            assert cell.y + cell.height <= picture.height
            assert not any(overlap(cell, other) for other in grain[k + 1 :])


def test_an_inner_cell_lies_within_the_outer_one(drawn) -> None:
    operators, picture = drawn
    for outer, inner in zip(picture.grains, picture.grains[1:], strict=False):
        for cell in inner:
            path = operators[cell.operator].path
            (around,) = [c for c in outer if f"{path}.".startswith(f"{operators[c.operator].path}.")]
            assert around.x - 1e-6 <= cell.x and cell.x + cell.width <= around.x + around.width + 1e-6
            assert around.y == cell.y


def test_a_unet_is_a_letter_u() -> None:
    operators = pl.find_operators(pl.denoiser_on_meta("emoji-sd"))
    picture = draw_map(operators)
    at = {operators[cell.operator].path: cell for cell in picture.grains[0]}
    left = [at[f"down_blocks.{k}.resnets.0"] for k in range(4)]
    right = [at[f"up_blocks.{k}.resnets.0"] for k in range(4)]
    assert [c.y for c in left] == sorted(c.y for c in left)
    assert [c.y for c in right] == sorted((c.y for c in right), reverse=True)
    assert {c.x for c in left} == {0} and all(c.x > WIDTH / 2 for c in right)
    assert at["mid_block.resnets.0"].y > max(c.y for path, c in at.items() if not path.startswith("mid"))
    assert at["conv_in"].y == at["conv_out"].y == 0
    assert [text for _, _, text in picture.levels] == ["16×16", "8×8", "4×4", "2×2"]
    same = [at["down_blocks.3.resnets.1"].y, at["up_blocks.0.resnets.2"].y]
    y, height, _ = picture.levels[3]
    assert all(y <= value < y + height for value in same), "one level for one size"


def test_a_chain_is_read_downwards_in_two_columns() -> None:
    operators = pl.find_operators(pl.denoiser_on_meta("dit-xl-2-256"))
    picture = draw_map(operators)
    blocks = [c for c in picture.grains[0] if operators[c.operator].kind == "transformer block"]
    assert picture.levels == () and len({c.x for c in blocks}) == 2
    assert [(c.x, c.y) for c in blocks] == sorted((c.x, c.y) for c in blocks)


def test_labels_fit_their_cells() -> None:
    picture = draw_map(worths())
    labels = {cell.operator: cell.label for cell in picture.grains[-1]}
    assert labels[0] == "convolution" and labels[5] == "self"
    crowded = [SimpleNamespace(path=f"a.{k}", kind="resnet", in_shape=(1, 4)) for k in range(2)]
    inner = [SimpleNamespace(path=f"a.0.{k}", kind="resnet", in_shape=(1, 4)) for k in range(20)]
    assert {cell.label for cell in draw_map([crowded[0], *inner, crowded[1]]).grains[1][:20]} == {""}


def test_no_operators_and_equal_paths_are_refused() -> None:
    for wrong in ([], [worths()[0]] * 2):
        with pytest.raises(ValueError, match="at least one, each with its own"):
            draw_map(wrong)
    assert len(PATHS) == len(worths())
