"""The chapters' figures: words made from the data, and clear refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from drawn import check_figure, pixels
from PIL import Image

from pruning_book.plots import chapters as plots


def every_figure() -> dict:
    torch.manual_seed(0)
    paths = torch.randn(6, 5)
    return {
        "grid": plots.image_grid(torch.rand(4, 3, 8, 8), columns=["a", "b"], rows=["c", "d"], what="noise"),
        "channels": plots.latent_channels(torch.randn(2, 4, 8, 8), ["start", "end"]),
        "toy": plots.toy_diffusion(paths, {"1 step": paths[-1], "2 steps": paths[-2]}, 0.2),
        "heat": plots.heat(torch.rand(2, 3), ["a", "b"], ["x", "y", "z"], what="values"),
        "lines": plots.lines([1, 2, 4], {"one": [1.0, 2.0, 3.0]}, xlabel="x", ylabel="y", log=True),
        "roofline": plots.roofline({"small": (2.0, 1e9), "large": (90.0, 4e10)}, 5e10, 5e9),
        "shares": plots.shares(["in", "out"], {"params": [40.0, 60.0], "MACs": [90.0, 10.0]}),
    }


@pytest.mark.parametrize("name", list(every_figure()))
def test_figures_draw_on_white_and_have_words(name: str) -> None:
    check_figure(every_figure()[name])


def test_words_follow_the_data() -> None:
    alt = plots.shares(["in", "out"], {"MACs": [90.0, 10.0]}).alt
    assert "most MACs: in with 90 %" in alt
    assert "most MACs: out with 70 %" in plots.shares(["in", "out"], {"MACs": [30.0, 70.0]}).alt


def test_heat_names_the_highest_other() -> None:
    alike = torch.tensor([[1.0, 0.9, 0.1], [0.9, 1.0, 0.2], [0.1, 0.2, 1.0]])
    alt = plots.heat(alike, list("abc"), list("abc"), what="likeness").alt
    assert "a: b, b: a, c: b" in alt


def test_heat_with_many_rows_names_the_highest_pair_in_full() -> None:
    names = [f"a name of twenty {i:02d}" for i in range(12)]
    alike = torch.rand(12, 12, generator=torch.Generator().manual_seed(0)) / 2
    alike[7, 3] = 0.9
    alt = plots.heat(alike, names, names, what="likeness").alt
    assert alt.endswith(f"Highest, itself left out: {names[7]} and {names[3]}.")


def test_roofline_names_the_nearest_and_the_farthest() -> None:
    alt = plots.roofline({"slow": (1.0, 1e9), "mid": (1.0, 3e9), "fast": (100.0, 4.5e10)}, 5e10, 5e9).alt
    assert "most fast with 90 %, least slow with 20 %" in alt


def test_image_grid_keeps_order_and_colour() -> None:
    red, blue = torch.zeros(3, 4, 4), torch.zeros(3, 4, 4)
    red[0], blue[2] = 1, 1
    shot = pixels(plots.image_grid(torch.stack([red, blue]), columns=["r", "b"], what="two colours"))
    is_red = (shot == (255, 0, 0)).all(-1).any(0).nonzero()[0]
    is_blue = (shot == (0, 0, 255)).all(-1).any(0).nonzero()[0]
    assert is_red.max() < is_blue.min()


def test_image_grid_refuses_a_wrong_count() -> None:
    with pytest.raises(ValueError, match="3 images do not fill 2 rows of 2"):
        plots.image_grid(torch.rand(3, 3, 4, 4), columns=["a", "b"], rows=["c", "d"], what="noise")


def test_pil_and_tensor_agree() -> None:
    tensor = torch.randint(0, 256, (2, 3, 5, 5), dtype=torch.uint8)
    pil = [Image.fromarray(t.permute(1, 2, 0).numpy()) for t in tensor]
    assert torch.allclose(plots.to_tensor(pil), tensor / 255, atol=1e-6)
    assert np.allclose(plots.as_array(pil), plots.as_array(tensor))
