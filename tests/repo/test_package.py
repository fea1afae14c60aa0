"""The wheel holds the package and all its data, and nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

LEFT_OUT = {"__pycache__"}
LIMIT_MIB = 40


def test_wheel_is_complete(tmp_path: Path, root: Path) -> None:
    source = tmp_path / "source"
    # As a clone has it: pruning_lib/results is a link, and the wheel must hold what it leads to.
    for name in ("pruning_lib", "pruning_book/records"):
        shutil.copytree(root / name, source / name, symlinks=True, ignore=shutil.ignore_patterns(*LEFT_OUT))
    assert (source / "pruning_lib/results").is_symlink()
    for name in ("pyproject.toml", "README.md", "LICENSE", "LICENSE-TEXT", "NOTICE"):
        shutil.copy(root / name, source)
    (source / "notebooks").mkdir()  # a second top-level folder must not confuse the packaging
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet", "-w", tmp_path]
    result = subprocess.run([*map(str, command), str(source)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    (wheel,) = tmp_path.glob("pruning_lib-*.whl")
    notices = {name.rsplit("/", 1)[1] for name in zipfile.ZipFile(wheel).namelist() if "/licenses/" in name}
    assert notices == {"LICENSE", "LICENSE-TEXT", "NOTICE"}
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    wanted = {str(path.relative_to(root)) for path in (root / "pruning_lib").rglob("*") if path.is_file()}
    wanted = {name for name in wanted if not LEFT_OUT & set(Path(name).parts)}
    results = [path.name for path in (root / "pruning_book/records").iterdir()]
    assert results, "the chapters read records, which an installed package must bring"
    assert held == wanted | {f"pruning_lib/results/{name}" for name in results}
    assert wheel.stat().st_size < LIMIT_MIB * 2**20
