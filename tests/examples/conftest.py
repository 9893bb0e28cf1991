"""The examples' programs, imported as those do who run them: from inside of their folder."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

SHOP = Path(__file__).parents[2] / "examples" / "shop"
SECRET = "tests-need-32-bytes-of-a-secret-too"


@contextmanager
def importing(folder: Path = SHOP) -> Iterator[Callable[[str], ModuleType]]:
    files = {str(file) for file in folder.glob("*.py")}
    before = {
        name: sys.modules.pop(name)
        for name, module in list(sys.modules.items())
        if getattr(module, "__file__", None) in files
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setenv("JWT_SECRET", SECRET)
        yield import_module
    for name, module in list(sys.modules.items()):
        if getattr(module, "__file__", None) in files:
            del sys.modules[name]
    sys.modules.update(before)


@pytest.fixture
def load() -> Iterator[Callable[[str], ModuleType]]:
    """Import a module of the shop anew: it keeps in memory what a test did."""
    with importing() as load:
        yield load


@pytest.fixture(scope="session")
def loaded() -> dict[str, ModuleType]:
    """The three services imported once, for tests that change nothing."""
    with importing() as load:
        return {name: load(name) for name in ("users", "products", "orders")}
