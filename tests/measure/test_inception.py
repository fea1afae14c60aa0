"""clean-fid: its resizing, its formula, and its whole score where torchvision is there."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pruning_book import frechet as inception
from pruning_book.frechet import InceptionUnavailableError, clean_resize, frechet, torchvision_is_healthy

ROOT = Path(__file__).resolve().parents[2]
TARGET = os.environ.get("PRUNING_LIB_TORCHVISION_TARGET")

# What a folder with torchvision needs to load beside a CPU torch: two operators' names.  Only ever in a process of its
# own, because diffusers and transformers look for torchvision as well.
WITH_TORCHVISION = """
import sys, torch
sys.path.append({target!r})
library = torch.library.Library("torchvision", "DEF")
for name in ("nms", "qnms"):
    library.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""


def python(code: str, **env: str) -> subprocess.CompletedProcess:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **env}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=300)


def with_torchvision(code: str) -> str:
    """Run code in a process that has torchvision; skip without one, except where tests must not be skipped."""
    if not TARGET or not (Path(TARGET) / "torchvision").is_dir():
        reason = "PRUNING_LIB_TORCHVISION_TARGET names no folder with torchvision; `make unit` makes one"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    done = python(WITH_TORCHVISION.format(target=TARGET) + code)
    assert done.returncode == 0, done.stderr
    return done.stdout


def noise(n: int = 3, height: int = 20, width: int = 33) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, 3, height, width), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("size", [8, 299])
def test_resizing_is_clean_fids(size):
    from cleanfid.resize import make_resizer

    images = noise()
    theirs = make_resizer("PIL", False, "bicubic", (size, size))
    expected = np.stack([theirs(image.permute(1, 2, 0).numpy()) for image in images])
    ours = clean_resize(images, size)
    assert np.array_equal(ours.permute(0, 2, 3, 1).numpy(), expected)
    assert ours.dtype == torch.float32 and (ours != ours.round()).any(), "clean means: not rounded"


def test_resizing_refuses_nonsense():
    with pytest.raises(ValueError, match="size=0"):
        clean_resize(noise(), 0)
    with pytest.raises(ValueError, match=r"\[3, 20, 33\]"):
        clean_resize(noise()[0])


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is not None, reason="torchvision is there")
def test_without_torchvision_the_error_says_what_to_do():
    assert not torchvision_is_healthy()
    with pytest.raises(InceptionUnavailableError, match=r"(?s)torchvision.*not installed.*features=pb.load_clip"):
        frechet(noise(), noise(), features="inception")


def test_without_clean_fid_the_error_says_what_to_install(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(inception, "find_spec", lambda name: None if name == "cleanfid" else real(name))
    with pytest.raises(InceptionUnavailableError, match=r"pip install 'pruning-lib\[fid\]'"):
        frechet(noise(), noise(), features="inception")


def test_a_scipy_that_is_too_new_is_named(monkeypatch):
    import scipy.linalg

    monkeypatch.setattr(inception, "torchvision_is_healthy", lambda: True)
    monkeypatch.setattr(scipy.linalg, "sqrtm", lambda A: A)  # the signature of SciPy 1.18
    with pytest.raises(InceptionUnavailableError, match=r"scipy<1\.18"):
        inception.require_clean_fid()


def test_a_broken_torchvision_is_not_healthy(tmp_path):
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision/__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    done = python(
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from pruning_lib.measure import torchvision_is_healthy, inception\n"
        "print(torchvision_is_healthy())\n"
        "try: inception.require_clean_fid()\n"
        "except inception.InceptionUnavailableError as error: print(error)\n"
    )
    assert done.stdout.startswith("False\n") and "does not load beside torch" in done.stdout, done.stderr


def test_health_needs_the_operators():
    # The registry's torchvision beside a CPU torch, as it comes.
    out = with_torchvision("from pruning_lib.measure import torchvision_is_healthy; print(torchvision_is_healthy())")
    assert out.strip() == "True"
    if torch.version.cuda is None:
        bare = python(
            f"import sys; sys.path.append({TARGET!r})\n"
            "from pruning_lib.measure import torchvision_is_healthy; print(torchvision_is_healthy())"
        )
        assert bare.stdout.strip() == "False", bare.stderr


def test_our_formula_agrees_with_clean_fids_on_the_same_features():
    out = with_torchvision("""
from cleanfid import fid
from pruning_lib.measure import frechet_distance
from pruning_book.frechet import clean_fid_distance
for dim, n, scale in [(2, 30, 1.0), (64, 500, 1.7), (128, 400, 1e-3)]:
    generator = torch.Generator().manual_seed(dim)
    mix = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    a = torch.randn(n, dim, generator=generator, dtype=torch.float64) @ mix
    b = 0.3 + scale * torch.randn(n + 7, dim, generator=generator, dtype=torch.float64)
    ours, theirs = frechet_distance(a, b), clean_fid_distance(a, b)
    assert abs(ours - theirs) <= 1e-6 * theirs, (dim, ours, theirs)
    print(ours, theirs)
""")
    assert len(out.splitlines()) == 3


def test_clean_fids_own_score_is_the_one_reported():
    """The whole way through clean-fid, with a small network in Inception's place, so that nothing is fetched."""
    out = with_torchvision("""
import pathlib, tempfile
from PIL import Image
from cleanfid import fid
import cleanfid.features
from pruning_lib.measure import clean_resize, frechet, inception

weights = torch.randn(5, 3 * 13 * 13, generator=torch.Generator().manual_seed(0))
def network(x):
    assert x.shape[1:] == (3, 299, 299) and x.max() > 1.5
    return torch.nn.functional.avg_pool2d(x / 255, 23).flatten(1) @ weights.T

generator = torch.Generator().manual_seed(1)
sets = [torch.randint(0, high, (24, 3, 16, 16), generator=generator, dtype=torch.uint8) for high in (256, 120)]
cpu = torch.device("cpu")
with tempfile.TemporaryDirectory() as top:
    for i, images in enumerate(sets):
        folder = pathlib.Path(top, str(i)); folder.mkdir()
        for j, image in enumerate(images):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{j:03d}.png")
    theirs = fid.compute_fid(top + "/0", top + "/1", mode="clean", custom_feat_extractor=network, num_workers=0,
                             device=cpu, verbose=False)

asked = []
def build(mode, device, use_dataparallel):
    asked.append(mode)
    return network
cleanfid.features.build_feature_extractor = build
found = frechet(sets[0], sets[1], features="inception", n_boot=100)
assert asked == ["clean", "clean"]
assert abs(found.value - theirs) <= 1e-9 * theirs, (found.value, theirs)
assert found.features == "inception (clean-fid)" and found.low < found.value < found.high
features = inception.inception_features(sets[0], extractor=network)
assert torch.allclose(features, network(clean_resize(sets[0])), atol=1e-4)
print(theirs, found.label)
""")
    assert "inception (clean-fid)" in out


def test_no_network_and_a_damaged_download_are_told_apart():
    out = with_torchvision("""
import urllib.error
import cleanfid.features
from pruning_lib.measure import frechet, InceptionUnavailableError
images = torch.zeros(3, 3, 8, 8, dtype=torch.uint8)
for error in (urllib.error.URLError("no route to host"), RuntimeError("failed reading zip archive")):
    def build(mode, device, use_dataparallel):
        raise error
    cleanfid.features.build_feature_extractor = build
    try:
        frechet(images, images, features="inception")
    except InceptionUnavailableError as told:
        print(told)
""")
    offline, damaged = out.strip().splitlines()
    assert "could not be fetched" in offline and "no route to host" in offline and "features=pb.load_clip" in offline
    assert "could not be read" in damaged and "inception-2015-12-05.pt" in damaged


def test_pil_images_are_taken_too():
    image = Image.new("RGB", (10, 6), (10, 20, 30))
    assert clean_resize([image], 4)[0, :, 2, 2].tolist() == pytest.approx([10, 20, 30], abs=1e-3)
