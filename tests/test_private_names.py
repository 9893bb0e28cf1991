"""Tests use what an object shows, never its private names, so that a redesign breaks none of them.

``tests/support/objects.py`` finds what an object keeps, whichever attribute it is in.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

FILES = sorted(
    path
    for folder in ("tests", "wsgigate/testing", "benchmarks", "examples", "docs")
    for path in (ROOT / folder).rglob("*.py")
)

ALLOWED = {
    "_asdict": "a public method of named tuples",
    "_exit": "os._exit, by which a forked child ends",
    "_replace": "a public method of named tuples",
    "_run_exitfuncs": "what atexit does at the end of a process, which a test needs before it",
    "_TestState": "the only sign of Django's test runner, in whose place a test puts its own",
}
"""Names with an underscore that tests may use, with the reason."""

SETTERS = {"attrgetter", "delattr", "getattr", "hasattr", "setattr"}

NAMES = re.compile(r"\b_\w+")

IN_CODE = re.compile(r"[\w)\]]\.(_[a-zA-Z]\w*)")
"""A private attribute in code that a test passes to another interpreter."""


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in ALLOWED


def aliases(tree: ast.Module) -> set[str]:
    """Return the names of an object in its own methods: ``self``, and what it is assigned to."""
    found = {"self", "cls"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and ast.unparse(node.value) == "self":
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return found


def is_of(owners: set[str], node: ast.Attribute) -> bool:
    return isinstance(node.value, ast.Name) and node.value.id in owners


def defined(tree: ast.Module) -> set[str]:
    """Return the functions, variables and attributes that a file defines itself."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(getattr(node, "ctx", None), ast.Store):
            if isinstance(node, ast.Name):
                names.add(node.id)
            elif isinstance(node, ast.Attribute) and is_of({"self", "cls"}, node):
                names.add(node.attr)
    return names


def names_in(node: ast.AST) -> Iterator[str]:
    """Yield the names of other objects that *node* uses."""
    if isinstance(node, ast.Attribute):
        yield node.attr
    elif isinstance(node, ast.ImportFrom):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.Call):
        if ast.unparse(node.func).rpartition(".")[2] in SETTERS:
            texts = [each.value for each in node.args if isinstance(each, ast.Constant)]
            for text in filter(lambda text: isinstance(text, str), texts):
                yield from text.split(".")
    elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "import " in node.value:
        yield from IN_CODE.findall(node.value)


def private_names(code: str) -> list[str]:
    """Return the private names of others that *code* uses, each with its line."""
    if not any(map(is_private, NAMES.findall(code))):
        return []  # without the time that parsing takes
    tree = ast.parse(code)
    own, owners = defined(tree), aliases(tree)
    return [
        f"line {getattr(node, 'lineno', 0)}: {name}"
        for node in ast.walk(tree)
        if not (isinstance(node, ast.Attribute) and is_of(owners, node) and node.attr in own)
        for name in filter(is_private, names_in(node))
    ]


def test_no_test_uses_a_private_name() -> None:
    here = Path(__file__)
    found = {path: private_names(path.read_text()) for path in FILES if path != here}
    assert {str(path.relative_to(ROOT)): names for path, names in found.items() if names} == {}


@pytest.mark.parametrize(
    "code",
    [
        "pool._idle",
        "pool._idle.clear()",
        "made()._idle = []",
        "class Own(Pool):\n    def size(self):\n        return len(self._idle)",
        "class Own(Pool):\n    def take(self):\n        return super()._take()",
        "from wsgigate.proxy.pool import _Lease, Pool",
        "monkeypatch.setattr(fork, '_tested', False)",
        "monkeypatch.setattr('wsgigate.runtime.fork._tested', False)",
        "run('from wsgigate import Pool\\nprint(Pool()._idle)')",
    ],
)
def test_a_private_name_is_found(code: str) -> None:
    assert len(private_names(code)) == 1


@pytest.mark.parametrize(
    "code",
    [
        "class Own:\n    def __init__(self):\n        self._idle = []\n        self._idle.sort()",
        "class Own:\n    async def _take(self):\n        await self._take()",
        "class Own:\n    def take(self):\n        own = self\n        self._idle = own._idle",
        "os._exit(record._replace(a=1)._asdict()['a'])",
        "from __future__ import annotations\nmodule.__doc__",
        "'the text of pool._idle'",
    ],
)
def test_a_name_of_its_own_is_allowed(code: str) -> None:
    assert private_names(code) == []
