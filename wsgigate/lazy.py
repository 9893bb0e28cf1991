"""Public names of a package that are imported on first use (PEP 562).

A package lists its public names once, as imports of the form ``from module import Name as Name``
below ``if TYPE_CHECKING``. Type checkers and editors follow them: the typing specification makes a
name that is imported in this form public, also without ``__all__``. While the program runs, the
block is not executed; :func:`attach` parses it at the first access to a name that is not there yet.

A table of names and modules beside the imports would be a second list, and ``__all__`` a third. An
application that is distributed without its sources has nothing to parse: its packages execute the
block, and import everything at once. Python 3.15 replaces this module by ``lazy from module import
Name`` (PEP 810).
"""

from __future__ import annotations

import ast
import linecache
from collections.abc import Callable
from importlib import import_module
from typing import Any

__all__ = ["attach", "source"]


def source(package: dict[str, Any]) -> str | None:
    """Return the source of a package; ``None`` if only its compiled form is there.

    :param package: The ``globals()`` of the package.
    """
    # not loader.get_source() alone: pytest's loader, which imports its plugins, has no such method
    return "".join(linecache.getlines(package["__spec__"].origin or "", package)) or None


def attach(
    package: dict[str, Any], source: str
) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """Return the functions ``__getattr__`` and ``__dir__`` of a package with lazy names.

    ``__all__`` is one of these names, so ``from package import *`` imports all of them.

    :param package: The ``globals()`` of the package.
    :param source: Its source, with the imports below ``if TYPE_CHECKING``.
    """
    homes: dict[str, tuple[str, str]] = {}

    def read() -> None:
        if not homes:
            homes.update(_imports(ast.parse(source)))

    def get(name: str) -> object:
        read()
        value: object
        if name == "__all__":
            value = sorted(homes)
        elif name in homes:
            module, original = homes[name]
            value = getattr(import_module(module), original)
        else:
            raise AttributeError(f"module {package['__name__']!r} has no attribute {name!r}")
        package[name] = value
        return value

    def names() -> list[str]:
        read()
        return sorted({*package, *homes})

    return get, names


def _imports(tree: ast.Module) -> dict[str, tuple[str, str]]:
    """Return, by public name, the module and the name that it is imported from."""
    return {
        alias.asname: (node.module, alias.name)
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
        if alias.asname
    }
