"""Names of the package are found, and none is hidden by a file of the same name."""

from __future__ import annotations

import pkgutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from pruning_lib import measure


def test_every_name_is_there_after_every_file_was_imported():
    files = [file.name for file in pkgutil.iter_modules(measure.__path__)]
    for file in files:
        import_module(f"pruning_lib.measure.{file}")
    # Importing a file binds its name in the package: a function of that name would be replaced by the module.
    assert not set(files) & set(measure.__all__)
    for name in measure.__all__:
        assert callable(getattr(measure, name)), name
    assert set(measure.__all__) <= set(dir(measure))


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(AttributeError, match="no attribute 'fid'. It has: .*frechet"):
        measure.fid  # noqa: B018


def test_nothing_heavy_and_nothing_of_the_zoo_is_imported_before_it_is_used():
    code = (
        "import sys, pruning_lib.measure\n"
        "assert 'torch' not in sys.modules\n"
        "from pruning_lib.measure import *\n"
        "print([m for m in sys.modules if m.startswith(('pruning_lib.zoo', 'pruning_lib.show', 'cleanfid', 'scipy'))])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(measure.__file__).parents[2]
    )
    assert done.stdout.strip() == "[]", done.stderr
