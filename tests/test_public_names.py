"""What the package promises: its public names, and how a reader sees that a name is not public."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.support.django_project import configure

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "wsgigate"
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
configure()  # Django's modules are imported in a project only

LAZY = ["wsgigate", "wsgigate.django", "wsgigate.testing"]
"""The packages whose names are imported at their first use."""


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.parametrize("package", LAZY)
def test_each_public_name_is_there_and_listed_by_dir(package: str) -> None:
    module: Any = import_module(package)
    names = module.__all__
    assert names == sorted(set(names))
    assert set(names) <= set(dir(module))
    for name in names:
        assert getattr(module, name) is not None
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'Nothing'"):
        _ = module.Nothing


@pytest.mark.parametrize("package", LAZY)
def test_a_star_import_imports_the_public_names_and_no_other(package: str) -> None:
    names: dict[str, object] = {}
    exec(f"from {package} import *", names)  # a function cannot import a star
    names.pop("__builtins__")
    assert sorted(names) == import_module(package).__all__


@pytest.mark.parametrize("package", LAZY)
def test_each_name_is_exported_in_the_form_that_type_checkers_take_for_public(
    package: str,
) -> None:
    tree = ast.parse(MODULES[package].read_text())
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        assert all(alias.asname == alias.name for alias in node.names), ast.unparse(node)


@pytest.mark.parametrize("package", LAZY)
def test_without_its_source_a_package_has_the_same_names(package: str, tmp_path: Path) -> None:
    compiled = tmp_path / "package.pyc"
    code = f"""
import importlib.util, py_compile, sys
path, package = {str(MODULES[package])!r}, {package!r}
py_compile.compile(path, {str(compiled)!r}, doraise=True)
spec = importlib.util.spec_from_file_location(
    package, {str(compiled)!r}, submodule_search_locations=[{str(MODULES[package].parent)!r}])
module = sys.modules[package] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
print(*sorted(name for name in vars(module)))
"""
    assert set(import_module(package).__all__) < set(run(code).split())


@pytest.mark.parametrize(
    "name",
    [
        *("Limiter", "RequestId", "Logger", "Cors", "BodyLimit", "Breaker", "Guard", "Shedder"),
        *("Registration", "MemoryStore"),
    ],
)
def test_one_middleware_loads_nothing_of_the_proxy(name: str) -> None:
    code = f"""
import sys
from wsgigate import {name}
heavy = {{"requests", "urllib3", "jwt", "cryptography", "werkzeug", "gunicorn", "tomllib"}}
print(sorted(heavy & set(sys.modules)))
"""
    assert run(code) == "[]"


# The rule of CONTRIBUTING.rst: a module's ``__all__`` lists what others may import from it.


def exports(name: str) -> set[str]:
    """Return the names that other modules may import from the module *name*."""
    module: Any = import_module(name)
    return {"__version__", *getattr(module, "__all__", ())}


def imports(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Yield the module and the name of each use of another module of the package in *tree*."""
    modules: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in MODULES:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                if inner in MODULES:
                    modules[alias.asname or alias.name] = inner
                else:
                    yield node.module, alias.name
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module = modules.get(node.value.id)
            if module is not None and f"{module}.{node.attr}" not in MODULES:
                yield module, node.attr


EXPORTS: dict[str, set[str]] = {}


def private_uses(tree: ast.AST) -> list[str]:
    uses = []
    for module, name in imports(tree):
        if module not in EXPORTS:
            EXPORTS[module] = exports(module)
        if name not in EXPORTS[module]:
            uses.append(f"{module}.{name}")
    return uses


@pytest.mark.parametrize("name", MODULES)
def test_a_module_uses_only_names_that_another_exports(name: str) -> None:
    assert not private_uses(ast.parse(MODULES[name].read_text()))


@pytest.mark.parametrize("name", MODULES)
def test_each_exported_name_exists(name: str) -> None:
    if name.endswith("__main__"):
        return  # importing it runs the command line
    module: ModuleType = import_module(name)
    for exported in getattr(module, "__all__", ()):
        assert not exported.startswith("_")
        assert hasattr(module, exported), exported


DOCUMENTS = [*ROOT.glob("*.rst"), *sorted((ROOT / "docs").glob("*.rst"))]
EXAMPLES = sorted((ROOT / "examples").rglob("*.py"))


@pytest.mark.parametrize("path", [*DOCUMENTS, *EXAMPLES], ids=lambda path: path.name)
def test_documentation_and_examples_use_only_exported_names(path: Path) -> None:
    text = path.read_text()
    if path.suffix == ".rst":
        lines = re.findall(r"^ +(from wsgigate[\w.]* import [\w, ]+)$", text, re.MULTILINE)
        text = "\n".join(lines)
    assert not private_uses(ast.parse(text))
