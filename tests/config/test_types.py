"""The kinds of values: valid and invalid values of each."""

from __future__ import annotations

from typing import Any

import pytest
from jsonschema import Draft202012Validator

from wsgigate.config.errors import MISSING, Errors, FromEnvironment
from wsgigate.config.tables import ListOf, MapOf, UnionOf
from wsgigate.config.types import (
    Bind,
    Boolean,
    Duration,
    Enumeration,
    HiddenText,
    ImportPath,
    Integer,
    Kind,
    Number,
    PathPattern,
    QuotaText,
    Size,
    Text,
    Url,
)
from wsgigate.rules.quota import Quota


def read(kind: Kind[Any], value: object) -> tuple[Any, list[str]]:
    errors = Errors()
    found = kind.read(value, "key", errors)
    return found, [f"{path}: {text}" for path, text in errors]


RIGHT: list[tuple[Kind[Any], object, object]] = [
    (Text(), "a\nb", "a\nb"),
    (Text(), "", ""),
    (Text("letters", pattern="[a-z]+"), "abc", "abc"),
    (HiddenText(), "hush", "hush"),
    (Number(0, 1), 0.5, 0.5),
    (Number(0), 3, 3.0),
    (Number(0), FromEnvironment("0.25"), 0.25),
    (Integer(1), 7, 7),
    (Integer(1), FromEnvironment("7"), 7),
    (Boolean(), False, False),
    (Boolean(), FromEnvironment("True"), True),
    (Enumeration("a", "b"), "b", "b"),
    (Duration(), "1m30s", 90.0),
    (Duration(), 5, 5.0),
    (Duration(zero=True), "0s", 0.0),
    (Size(), "64KiB", 65536),
    (Size(), 12, 12),
    (QuotaText(), "100 per 15 minutes", Quota(100, 900)),
    (Url(), "http://Orders:80", "http://orders"),
    (PathPattern(), "/api/{id}/*", "/api/{id}/*"),
    (PathPattern(), "/caf\N{LATIN SMALL LETTER E WITH ACUTE}", "/caf%C3%A9"),
    (ImportPath("an app"), "shop.wsgi:app.inner", "shop.wsgi:app.inner"),
    (Bind(), "0.0.0.0:80", "0.0.0.0:80"),
    (Bind(), "[::1]:3000", "[::1]:3000"),
    (Bind(), "unix:/run/gateway.sock", "unix:/run/gateway.sock"),
    (ListOf(Text()), [], ()),
    (ListOf(Integer(1)), [1, 2], (1, 2)),
    (ListOf(Text()), FromEnvironment("a, b,"), ("a", "b")),
    (MapOf(Integer(1)), {"a": 1}, {"a": 1}),
    (UnionOf(lambda value: isinstance(value, bool), Boolean(), Text()), True, True),
    (UnionOf(lambda value: isinstance(value, bool), Boolean(), Text()), "x", "x"),
]


@pytest.mark.parametrize(("kind", "value", "expected"), RIGHT)
def test_a_valid_value_is_read(kind: Kind[Any], value: object, expected: object) -> None:
    found, errors = read(kind, value)
    assert errors == []
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(("kind", "value", "_expected"), RIGHT)
def test_the_schema_accepts_valid_values(kind: Kind[Any], value: object, _expected: object) -> None:
    plain = "${NAME}" if isinstance(value, FromEnvironment) else value
    Draft202012Validator(kind.schema({})).validate(plain)


WRONG: list[tuple[Kind[Any], object, str]] = [
    (Text(), 3, "expected text, got the number 3"),
    (Text(), True, "expected text, got true"),
    (Text(), None, "expected text, got nothing"),
    (Text(), [], "expected text, got a list"),
    (Text(), {}, "expected text, got a table"),
    (Text("letters", pattern="[a-z]+"), "abc\n", 'expected letters, got "abc\\n"'),
    (HiddenText(), "", "a secret must not be empty"),
    (HiddenText(), 1234567, "expected text (a secret), got something else"),
    (Number(0, 1), 1.5, "expected a number from 0 to 1, got the number 1.5"),
    (Number(0), float("nan"), "expected a number, at least 0, got the number nan"),
    (Number(0), float("inf"), "expected a number, at least 0, got the number inf"),
    (Number(0), True, "expected a number, at least 0, got true"),
    (Integer(1), 0, "expected a whole number, at least 1, got the number 0"),
    (Integer(1), 1.0, "expected a whole number, at least 1, got the number 1.0"),
    (Integer(1), "4", 'expected a whole number, at least 1, got "4"'),
    (Integer(1), FromEnvironment("x"), 'expected a whole number, at least 1, got "x"'),
    (Integer(1), True, "expected a whole number, at least 1, got true"),
    (Boolean(), "true", 'expected true or false, got "true"'),
    (Boolean(), 1, "expected true or false, got the number 1"),
    (Enumeration("a", "b", "c"), "d", 'expected "a", "b" or "c", got "d"'),
    (Enumeration("a"), [], 'expected "a", got a list'),
    (Duration(), "30 parsecs", 'expected a duration such as "30s", got "30 parsecs"'),
    (Duration(), "0s", 'expected a duration such as "30s", got "0s"'),
    (Duration(), -1, 'expected a duration such as "30s", got the number -1'),
    (Duration(), True, 'expected a duration such as "30s", got true'),
    (Size(), "64 kilo", 'expected a size such as "64KiB", got "64 kilo"'),
    (Bind(), "localhost", 'expected an address such as "127.0.0.1:3000"'),
    (Bind(), "a:65536", 'got "a:65536"'),
    (ImportPath("an app"), "shop.wsgi", 'expected an app such as "package.module:name"'),
    (ImportPath("an app"), "shop:wsgi()", 'got "shop:wsgi()"'),
    (PathPattern(), "api", "a route's path starts with /, got 'api'"),
    (Url(), "orders:80", "must start with http:// or https://"),
    (ListOf(Text()), "GET", 'expected a list, got "GET"; give ["GET"]'),
    (ListOf(Text()), "read, write", 'got "read, write"; give ["read", "write"]'),
    (ListOf(HiddenText()), 7, "expected a list, got the number 7"),
    (ListOf(Text(), least=1), [], "expected a list with at least one item, got an empty list"),
    (MapOf(Text()), [], "expected a table, got a list"),
    (MapOf(Text(), key="[a-z]+", called="a word"), {"A": ""}, '"A" is not a word'),
]


@pytest.mark.parametrize(("kind", "value", "said"), WRONG)
def test_an_invalid_value_is_reported_with_what_is_expected(
    kind: Kind[Any], value: object, said: str
) -> None:
    _, errors = read(kind, value)
    assert len(errors) == 1
    assert said in errors[0]


def test_the_error_of_an_item_has_its_position() -> None:
    _, errors = read(ListOf(Integer(1)), [1, "x", 0])
    assert [error.partition(":")[0] for error in errors] == ["key[1]", "key[2]"]


def test_a_long_value_is_truncated_in_errors() -> None:
    _, (error,) = read(Integer(1), "x" * 10_000)
    assert len(error) < 150


def test_an_unset_variable_causes_no_second_error() -> None:
    for kind in (Text(), Integer(1), ListOf(Text()), MapOf(Text())):
        assert read(kind, MISSING) == (None, [])


def test_a_secret_is_masked_in_errors_in_any_quoting() -> None:
    errors = Errors()
    secret = 'top "secret"\n-----KEY-----'
    HiddenText().read(secret, "token", errors)
    errors.add("url", f"can not use {secret!r} and {secret}")
    ((_, text),) = errors
    assert "secret" not in text
    assert "KEY" not in text


def test_credentials_in_a_url_are_masked() -> None:
    _, (error,) = read(Url(), "ftp://user:hunter2@orders")
    assert "hunter2" not in error
