"""The one response to a request that all of several authenticators have rejected."""

from __future__ import annotations

import pytest

from wsgigate import Problem
from wsgigate.auth.challenge import CredentialsMissing
from wsgigate.auth.combining import is_final, joined_reasons, merged


def challenge(text: str) -> tuple[tuple[str, str], ...]:
    return (("WWW-Authenticate", text),)


NO_TOKEN = CredentialsMissing(401, "no token", headers=challenge('Bearer realm="api"'))
NO_KEY = CredentialsMissing(401, "no key", headers=challenge('ApiKey realm="api"'))
BAD_TOKEN = Problem(
    401, "bad token", headers=challenge('Bearer realm="api", error="invalid_token"')
)
BAD_KEY = Problem(401, "bad key", headers=challenge('ApiKey realm="api", error="invalid_token"'))
POOR_KEY = Problem(
    403, "poor key", headers=challenge('ApiKey realm="api", error="insufficient_scope"')
)
WAIT = Problem(429, "wait", headers=(("Retry-After", "7"),), extensions={"retryAfter": 7})
UNKNOWN = Problem(503, "unknown", headers=(("Retry-After", "5"),))


@pytest.mark.parametrize(
    ("refusals", "status", "detail", "challenges"),
    [
        ([NO_TOKEN], 401, "no token", ['Bearer realm="api"']),
        (
            [NO_TOKEN, NO_KEY],
            401,
            "Authentication required!",
            ['Bearer realm="api"', 'ApiKey realm="api"'],
        ),
        (
            [NO_TOKEN, BAD_KEY],
            401,
            "bad key",
            ['Bearer realm="api"', 'ApiKey realm="api", error="invalid_token"'],
        ),
        (
            [BAD_TOKEN, NO_KEY],
            401,
            "bad token",
            ['Bearer realm="api", error="invalid_token"', 'ApiKey realm="api"'],
        ),
        ([BAD_KEY, NO_KEY], 401, "bad key", ['ApiKey realm="api", error="invalid_token"']),
        ([NO_KEY, BAD_KEY], 401, "bad key", ['ApiKey realm="api", error="invalid_token"']),
        ([NO_KEY, NO_KEY], 401, "Authentication required!", ['ApiKey realm="api"']),
        (
            [BAD_TOKEN, POOR_KEY],
            403,
            "poor key",
            ['ApiKey realm="api", error="insufficient_scope"'],
        ),
        ([POOR_KEY, WAIT], 429, "wait", []),
        ([WAIT, UNKNOWN], 503, "unknown", []),
        ([UNKNOWN, BAD_KEY], 503, "unknown", []),
        ([NO_TOKEN, UNKNOWN], 503, "unknown", []),
    ],
)
def test_the_most_useful_rejection_is_reported(
    refusals: list[Problem], status: int, detail: str, challenges: list[str]
) -> None:
    problem = merged(refusals)
    assert (problem.status, problem.detail) == (status, detail)
    assert [value for name, value in problem.headers if name == "WWW-Authenticate"] == challenges
    assert isinstance(problem, CredentialsMissing) == all(
        isinstance(each, CredentialsMissing) for each in refusals
    )


def test_the_other_fields_and_members_of_the_reported_one_are_kept() -> None:
    assert merged([BAD_KEY, WAIT]) is WAIT
    odd = Problem(401, "odd", "urn:odd", "Odd", {"hint": 1}, (*challenge("Odd"), ("X-Odd", "1")))
    problem = merged([odd, NO_KEY])
    assert (problem.type, problem.title, problem.extensions) == ("urn:odd", "Odd", {"hint": 1})
    assert ("X-Odd", "1") in problem.headers


NO_SIGNATURE = CredentialsMissing(
    401, "no signature", headers=(*challenge("Signature"), ("Accept-Signature", "sig=()"))
)
NO_NONCE = Problem(
    401,
    "no nonce",
    headers=(
        *challenge('DPoP realm="api", error="use_dpop_nonce"'),
        ("DPoP-Nonce", "7"),
        ("Cache-Control", "no-store"),
    ),
)


@pytest.mark.parametrize("reverse", [False, True])
def test_a_401_has_what_each_authenticator_names_as_missing(reverse: bool) -> None:
    step = -1 if reverse else 1
    problem = merged([NO_TOKEN, NO_SIGNATURE][::step])
    assert isinstance(problem, CredentialsMissing)
    assert dict(problem.headers)["Accept-Signature"] == "sig=()"
    problem = merged([BAD_TOKEN, NO_NONCE, NO_SIGNATURE][::step])
    assert problem.detail == "no nonce", "the token is valid for one of them"
    fields = [field for field in problem.headers if field[0] != "WWW-Authenticate"]
    expected = {("DPoP-Nonce", "7"), ("Cache-Control", "no-store"), ("Accept-Signature", "sig=()")}
    assert len(fields) == len(expected)
    assert set(fields) == expected
    other = Problem(401, "other nonce", headers=(("DPoP-Nonce", "8"),))
    found = [value for name, value in merged([NO_NONCE, other]).headers if name == "DPoP-Nonce"]
    assert found == ["7"], "a client sends one nonce"


@pytest.mark.parametrize(
    ("status", "final"),
    [(400, True), (401, False), (403, False), (413, True), (429, False), (500, False)],
)
def test_a_rejection_of_the_request_itself_is_final(status: int, final: bool) -> None:
    assert is_final(Problem(status)) is final


def test_reasons_are_joined_within_a_bound() -> None:
    assert joined_reasons(["no token", None, "no key"]) == "no token; no key"
    assert joined_reasons(["x" * 1000, "y"]) == "x" * 160 + "...; y"
