"""References to environment variables."""

from __future__ import annotations

import pytest

from wsgigate.config.errors import MISSING, Errors, FromEnvironment, substitute

ENVIRON = {
    "HOST": "orders",
    "PORT": "8000",
    "EMPTY": "",
    "MONEY": "$5 ${HOST}",
    "A_SECRET": "hush!",
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("${HOST}", "orders"),
        ("http://${HOST}:${PORT}/", "http://orders:8000/"),
        ("${NOPE:-fallback}", "fallback"),
        ("${NOPE:-}", ""),
        ("${NOPE:-http://127.0.0.1:3001}", "http://127.0.0.1:3001"),
        ("${NOPE:-a:-b}", "a:-b"),
        ("${EMPTY}", ""),
        ("${EMPTY:-fallback}", "fallback"),
        ("${HOST:-fallback}", "orders"),
        ("$$", "$"),
        ("$${HOST}", "${HOST}"),
        ("$$${HOST}", "$orders"),
        ("a $HOST costs $5", "a $HOST costs $5"),
        ("${NOPE:-$$5}", "$5"),
        ("${MONEY}", "$5 ${HOST}"),
        ("{HOST}", "{HOST}"),
    ],
)
def test_a_reference_is_replaced_by_the_variable(text: str, expected: str) -> None:
    errors = Errors()
    assert substitute(text, ENVIRON, errors) == expected
    assert list(errors) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("${NOPE}", "the environment variable NOPE is not set, and ${NOPE} has no default"),
        ("${HOST", '"${" without a closing "}"'),
        ("${}", 'a variable reference is "${NAME}"'),
        ("${1ST}", 'a variable reference is "${NAME}"'),
        ("${HOST:+x}", 'a variable reference is "${NAME}"'),
        ("${HOST-x}", 'a variable reference is "${NAME}"'),
        ("${NOPE:-${HOST}}", "cannot contain another one"),
    ],
)
def test_a_reference_without_a_value_is_an_error(text: str, said: str) -> None:
    errors = Errors()
    assert substitute({"a": [text]}, ENVIRON, errors) == {"a": [MISSING]}
    ((path, found),) = errors
    assert path == "a[0]"
    assert said in found


def test_keys_and_values_that_are_no_text_are_not_substituted() -> None:
    data = {"${HOST}": [1, True, 2.5, None, {"b": "${PORT}"}]}
    assert substitute(data, ENVIRON, Errors()) == {"${HOST}": [1, True, 2.5, None, {"b": "8000"}]}


def test_only_substituted_text_is_read_as_a_number() -> None:
    assert type(substitute("${PORT}", ENVIRON, Errors())) is FromEnvironment
    assert type(substitute("$$5", ENVIRON, Errors())) is str


def test_the_value_of_a_variable_named_like_a_secret_is_masked_in_errors() -> None:
    errors = Errors()
    errors.add("bind", f"expected an address, got {substitute('${A_SECRET}', ENVIRON, errors)}")
    assert list(errors) == [("bind", "expected an address, got ***")]
