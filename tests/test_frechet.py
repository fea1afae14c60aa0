"""The Fréchet distance against closed forms and clean-fid, and its interval against repeated experiments."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import linalg

from pruning_book.frechet import RankDeficientWarning, frechet, frechet_distance, frechet_interval

ROOT = Path(__file__).resolve().parents[1]
TARGET = os.environ.get("PRUNING_LIB_TORCHVISION_TARGET")


def draw(n: int, dim: int, seed: int, scale: float = 1.0, shift: float = 0.0) -> torch.Tensor:
    return shift + scale * torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_against_the_textbook_formula_where_covariances_are_singular_too():
    # By hand: means 1 and 7, variances 2 and 18, so 36 + (sqrt 18 - sqrt 2)^2 = 36 + 8.
    assert frechet_distance(torch.tensor([[0.0], [2.0]]), torch.tensor([[4.0], [10.0]])) == pytest.approx(44)
    # Heusel et al. 2017, Eq. 6, with a matrix square root: another road than ours.
    mix = draw(40, 40, 9)
    a, b = draw(200, 40, 0) @ mix, draw(150, 40, 1, scale=1.3, shift=0.2)
    covariance = [np.cov(x.numpy(), rowvar=False) for x in (a, b)]
    root = linalg.sqrtm(covariance[0] @ covariance[1]).real
    wanted = (a.mean(0) - b.mean(0)).square().sum() + np.trace(sum(covariance) - 2 * root)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # these are enough images
        assert frechet_distance(a, b) == pytest.approx(wanted.item(), rel=1e-8)
        assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-10)
    # Twenty images differ in nineteen directions only; dropping all others must not change the distance.
    a, b = draw(20, 64, 0), draw(20, 64, 1, scale=2)
    basis = torch.linalg.qr(torch.cat([a, b]).T).Q  # [64, 40]
    with pytest.warns(RankDeficientWarning, match="20 images for 64 features.*rank 19"):
        assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    with pytest.warns(RankDeficientWarning):
        assert frechet_distance(a, b) == pytest.approx(frechet_distance(a @ basis, b @ basis), rel=1e-9)


def test_interval_holds_what_a_new_sample_of_the_same_size_gives():
    n, dim, runs = 60, 12, 30  # few images for the features: resampling alone would lie far too high

    def pair(i):
        return draw(n, dim, 2 * i), draw(n, dim, 2 * i + 1, shift=0.3)

    expected = sum(frechet_distance(*pair(i)) for i in range(300)) / 300  # with the excess that 60 images cause
    found = [frechet_interval(*pair(5000 + i), n_boot=100, seed=i) for i in range(runs)]
    held = sum(interval.low <= expected <= interval.high for interval in found)
    assert held / runs >= 0.8  # 95 % asked for; four standard errors below it
    assert all(interval.low <= interval.value <= interval.high and interval.n == n for interval in found)
    few, many = (frechet_interval(draw(n, 4, 0), draw(n, 4, 1, shift=0.5), n_boot=100) for n in (100, 1600))
    assert many.high - many.low < 0.5 * (few.high - few.low)


class Colours:
    """Features that can be done in one's head: the mean of each colour channel, from 0 to 255."""

    features_name = "mean colour"

    def features(self, images):
        assert images.dtype == torch.uint8
        return images.double().mean((2, 3))


def flat(n: int, seed: int) -> torch.Tensor:
    colours = torch.randint(0, 200, (n, 3, 1, 1), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return colours.expand(n, 3, 4, 4)


def test_frechet_of_images_names_its_features():
    a, b = flat(60, 0), flat(50, 1) + 20
    colours = Colours().features
    found = frechet(a, b, features=Colours(), n_boot=100)
    assert found.value == frechet_distance(colours(a), colours(b)) and found.low < found.value < found.high
    assert found.to_dict()["label"] == "Fréchet distance, mean colour features, n = 60 and 50" and found.dim == 3
    assert frechet(a, b, features=colours, name="mine", n_boot=100).value == found.value


def test_bad_input(monkeypatch):
    good = draw(10, 3, 0)
    for wrong, said in [(draw(10, 4, 0), "3 and 4"), (good[:1], r"\[1, 3\]"), (good * torch.nan, "not a number")]:
        with pytest.raises(ValueError, match=said):
            frechet_distance(good, wrong)
    for options, said in [
        ({"features": "clip"}, "only name is 'inception'"),
        ({"features": lambda x: x.double().mean((2, 3))}, "Pass name="),
        ({"features": Colours(), "n_boot": 5}, "n_boot=5"),
    ]:
        with pytest.raises((TypeError, ValueError), match=said):
            frechet(flat(9, 0), flat(9, 1), **options)
    monkeypatch.setitem(sys.modules, "cleanfid", None)  # where it cannot run, the error says what to do
    with pytest.raises(RuntimeError, match=r"cleanfid.*pip install 'pruning-lib\[fid\]'.*features=pb.load_clip"):
        frechet(flat(9, 0), flat(9, 1), features="inception")


def test_clean_fids_own_score_is_the_one_reported():
    # A small network stands in Inception's place, so that nothing is fetched. It runs in a process of its own, because
    # diffusers looks for torchvision as well, and torchvision needs two operators' names to load beside a CPU torch.
    if not TARGET or not (Path(TARGET) / "torchvision").is_dir():
        reason = "PRUNING_LIB_TORCHVISION_TARGET names no folder with torchvision; `make unit` makes one"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    code = f"""
import pathlib, sys, tempfile, torch, unittest.mock, urllib.error
sys.path.append({TARGET!r})
try:  # its compiled part, which we do not use, fits a torch of the same build only
    torch.ops.load_library(str(next(pathlib.Path({TARGET!r}, "torchvision").glob("_C*"))))
except (OSError, StopIteration):
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
import cleanfid.features
from cleanfid import fid
from PIL import Image
from pruning_book.frechet import frechet

weights = torch.randn(5, 3 * 13 * 13, generator=torch.Generator().manual_seed(0))
def network(x):
    assert x.shape[1:] == (3, 299, 299) and x.max() > 1.5
    return torch.nn.functional.avg_pool2d(x / 255, 23).flatten(1) @ weights.T

torch.manual_seed(1)
sets = [torch.randint(0, high, (24, 3, 16, 16), dtype=torch.uint8) for high in (256, 120)]
with tempfile.TemporaryDirectory() as top:
    for i, images in enumerate(sets):
        pathlib.Path(top, str(i)).mkdir()
        for j, image in enumerate(images):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(f"{{top}}/{{i}}/{{j:03d}}.png")
    theirs = fid.compute_fid(top + "/0", top + "/1", mode="clean", custom_feat_extractor=network, num_workers=0,
                             device=torch.device("cpu"), verbose=False)
cleanfid.features.build_feature_extractor = lambda mode, device, use_dataparallel: network
found = frechet(*sets, features="inception", n_boot=100)
assert abs(found.value - theirs) <= 1e-6 * theirs, (found.value, theirs)
assert found.features == "inception (clean-fid)" and found.low < found.value < found.high

for error in (urllib.error.URLError("no route to host"), RuntimeError("failed reading zip archive")):
    cleanfid.features.build_feature_extractor = unittest.mock.Mock(side_effect=error)
    try: frechet(*sets, features="inception")
    except RuntimeError as told: print(told)
"""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode == 0, done.stderr
    offline, damaged = done.stdout.strip().splitlines()
    assert "no route to host" in offline and "features=pb.load_clip" in offline
    assert "failed reading zip archive" in damaged and "inception-2015-12-05.pt" in damaged
