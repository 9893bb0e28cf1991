"""The names the package promises, and what taking one of them loads."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import wsgigate

SOURCE = ast.parse(Path(wsgigate.__file__).read_text())


def test_the_public_names_are_sorted_and_all_there() -> None:
    assert wsgigate.__all__ == sorted(wsgigate.__all__)
    for name in wsgigate.__all__:
        assert getattr(wsgigate, name) is not None


def test_type_checkers_see_the_same_names_as_the_program() -> None:
    [block] = [node for node in SOURCE.body if isinstance(node, ast.If)]
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    seen = {alias.asname or alias.name for node in imports for alias in node.names}
    assert seen == set(wsgigate.__all__) == set(wsgigate._HOMES)
    for node in imports:
        for alias in node.names:
            home = f"{node.module}:{alias.name}" if alias.asname else node.module
            assert f"wsgigate.{wsgigate._HOMES[alias.asname or alias.name]}" == home


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        wsgigate.Nothing  # noqa: B018


@pytest.mark.parametrize(
    "name",
    [
        *("Limiter", "RequestId", "Logger", "Cors", "BodyLimit", "Breaker", "Guard", "Shedder"),
        "Registration",
    ],
)
def test_one_middleware_loads_nothing_of_the_proxy(name: str) -> None:
    code = f"""
import sys
from wsgigate import {name}
heavy = {{"requests", "urllib3", "jwt", "cryptography", "werkzeug", "gunicorn", "tomllib"}}
print(sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
