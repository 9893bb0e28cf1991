"""Files in YAML."""

from __future__ import annotations

import sys

import pytest

from wsgigate.config.errors import ConfigError
from wsgigate.config.load import parse

SHOP = """\
gateway: {name: shop, workers: "${WORKERS:-2}"}
services:
  orders: {instances: ["http://127.0.0.1:8000"], timeout: 5s}
routes:
  - {path: /orders, service: orders, strip_prefix: true}
"""


def test_a_file_may_be_yaml() -> None:
    config = parse(SHOP, "gateway.yaml", environ={})
    assert config.gateway.workers == 2
    assert config.services["orders"].timeout == 5.0
    assert config.routes[0].strip_prefix is True


def test_an_empty_file_is_empty_in_yaml_too() -> None:
    assert parse("# nothing\n", "gateway.yml") == parse("")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [1\nb: 2\n", "line 2, column 2: "),
        (
            "gateway: {name: a}\ngateway: {name: b}\n",
            "line 2, column 1: duplicate key 'gateway'",
        ),
        ("a: &a [x]\nb: *a\n", "line 2, column 4: YAML aliases are not supported"),
        ("a: !!python/object:os.system {}\n", "could not determine a constructor"),
        ("a: b\n---\nc: d\n", "line 2, column 1: "),
        ("[1, 2]\n", "expected a table, got a list"),
        ("? [a]\n: b\n", "line 1, column 3: a key must be text"),
        ("gateway: {workers: yes}\n", "gateway.workers: expected a whole number"),
        ("a: \x00\n", "special characters are not allowed"),
        ("a: " + "[" * 3000, "is nested too deeply"),
    ],
)
def test_yaml_is_restricted_to_what_toml_can_express(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, "gateway.yml", environ={})
    assert said in str(caught.value)


def test_an_error_of_syntax_does_not_show_the_line() -> None:
    with pytest.raises(ConfigError) as caught:
        parse("secret: 'hunter2\n", "gateway.yml", environ={})
    assert "hunter2" not in str(caught.value)


def test_without_pyyaml_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(ConfigError, match=r'pip install "wsgigate\[yaml\]"'):
        parse(SHOP, "gateway.yaml", environ={})
