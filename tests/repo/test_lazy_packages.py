"""Names of the packages are found, and none is hidden by a file of the same name."""

from __future__ import annotations

import pkgutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

PACKAGES = ("measure", "weights", "operators", "steps")
BRINGS_ITS_OWN = {"steps": "import diffusers.hooks"}  # diffusers' hooks, which steps is built on, import scipy


@pytest.mark.parametrize("name", PACKAGES)
def test_every_name_is_there_after_every_file_was_imported(name):
    package = import_module(f"pruning_lib.{name}")
    files = [file.name for file in pkgutil.iter_modules(package.__path__)]
    for file in files:
        import_module(f"pruning_lib.{name}.{file}")
    # Importing a file binds its name in the package: a function of that name would be replaced by the module.
    assert not set(files) & set(package.__all__)
    assert package.__all__
    for public in package.__all__:
        assert not isinstance(getattr(package, public), ModuleType), public
    assert set(package.__all__) <= set(dir(package))


@pytest.mark.parametrize("name", PACKAGES)
def test_an_unknown_name_lists_the_known_ones(name):
    package = import_module(f"pruning_lib.{name}")
    with pytest.raises(AttributeError, match=f"no attribute 'fid'. It has: .*{package.__all__[-1]}"):
        package.fid  # noqa: B018


@pytest.mark.parametrize("name", PACKAGES)
def test_nothing_heavy_and_nothing_of_the_zoo_is_imported_before_it_is_used(name, root: Path):
    code = (
        f"import sys, pruning_lib.{name}\n"
        "assert 'torch' not in sys.modules\n"
        f"{BRINGS_ITS_OWN.get(name, '')}\nbefore = set(sys.modules)\n"
        f"from pruning_lib.{name} import *\n"
        "unwanted = ('zoo.__init__', 'pruning_lib.show', 'cleanfid', 'scipy')\n"
        "print([m for m in set(sys.modules) - before if m.startswith(unwanted)])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert done.stdout.strip() == "[]", done.stderr
