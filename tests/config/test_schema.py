"""The JSON Schema of the file."""

from __future__ import annotations

import dataclasses
import inspect
import json
import tomllib
from pathlib import Path
from typing import Any, get_args

import pytest
from jsonschema import Draft202012Validator

from wsgigate.config.middlewares import MIDDLEWARES
from wsgigate.config.model import schema
from wsgigate.rules.arguments import types_of

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").rglob("*.toml"))

NOT_IN_FILES = {"namespace", "app", "keys", "refuse", "clock", "now", "mint", "store"}
NOT_IN_FILES |= {
    "exceptions",
    "sleep",
    "random",
    "sync_interval",
    "key_sources",
    "endpoints",
    "timer",
}
ONLY_IN_FILES = {"secret_file", "public_key_file"}
ONLY_IN_FILES |= {"client_secret_file", "bearer_token_file"}


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    return Draft202012Validator(schema())


def errors_of(validator: Draft202012Validator, text: str) -> list[str]:
    return [error.json_path for error in validator.iter_errors(tomllib.loads(text))]


def test_the_schema_is_a_valid_json_schema() -> None:
    Draft202012Validator.check_schema(schema())
    json.dumps(schema())


def test_every_key_has_a_description() -> None:
    def properties(node: Any, path: str) -> list[str]:
        if isinstance(node, list):
            return [bare for item in node for bare in properties(item, path)]
        if not isinstance(node, dict):
            return []
        found = []
        for name, shape in (node.get("properties") or {}).items():
            if "description" not in shape and "const" not in shape and name != "use":
                found.append(f"{path}.{name}")
        return found + [bare for key in node for bare in properties(node[key], f"{path}.{key}")]

    assert properties(schema(), "") == []


def test_a_file_with_every_key_is_valid(validator: Draft202012Validator, full: Path) -> None:
    data = tomllib.loads(full.read_text())
    assert list(validator.iter_errors(data)) == []


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_the_examples_are_valid(validator: Draft202012Validator, path: Path) -> None:
    assert [error.message for error in validator.iter_errors(tomllib.loads(path.read_text()))] == []


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("gatewy = {}", "$"),
        ("[gateway]\nworkers = 'two'", "$.gateway.workers"),
        ("[gateway]\nworkers = 0", "$.gateway.workers"),
        ("[services.a]", "$.services.a"),
        ("[services.a]\ninstances = []", "$.services.a.instances"),
        ("[services.a]\ninstances = ['http://a']\ntimeout = 'soon'", "$.services.a.timeout"),
        ("[services.a]\ninstances = ['http://a']\ndiscover = 'dns:a'", "$.services.a"),
        ("[[middleware]]\nuse = 'limitr'", "$.middleware[0]"),
        ("[[middleware]]\nuse = 'limiter'", "$.middleware[0]"),
        ("[[middleware]]\nuse = 'logger'\nquota = '1/s'", "$.middleware[0]"),
        ("[[routes]]\npath = 'api'", "$.routes[0].path"),
    ],
)
def test_an_invalid_file_is_rejected_at_its_path(
    validator: Draft202012Validator, text: str, path: str
) -> None:
    assert errors_of(validator, text) == [path]


@pytest.mark.parametrize("use", sorted(MIDDLEWARES))
def test_a_file_can_give_every_argument_of_a_middleware_but_functions(use: str) -> None:
    table = MIDDLEWARES[use].table
    parameters = table.parameters
    hints = types_of(table.make)
    rules = rules_of(hints.get("rules"))
    if rules is not None:
        parameters = parameters - {"rules"} | set(inspect.signature(rules).parameters)
    assert set(table.keys) - ONLY_IN_FILES == parameters - NOT_IN_FILES


def rules_of(hint: Any) -> Any:
    return next((each for each in (*get_args(hint), hint) if dataclasses.is_dataclass(each)), None)
