"""Which failed attempts are retried; ids such as N05 are those of the fault catalogue."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import pytest

from wsgigate.rules.retry import Attempt, Decision, RetryRules, backoff, decide

SAFE = ("GET", "HEAD", "OPTIONS", "PUT", "DELETE")
UNSAFE = ("POST", "PATCH", "get", "")


def attempt(method: str = "GET", **facts: Any) -> Attempt:
    return Attempt(
        **{
            "method": method,
            "number": 1,
            "sent": True,
            "replayable": True,
            "left": 30.0,
            **facts,
        }
    )


def answered(method: str, status: int, **facts: Any) -> Attempt:
    return attempt(method, status=status, received=True, **facts)


AGAIN = ""
TABLE: dict[str, tuple[Attempt, dict[str, Any], str]] = {
    "N02 closed after it was sent, GET": (attempt(), {}, AGAIN),
    "N03 closed after it was sent, POST": (attempt("POST"), {}, "it may have been processed"),
    "N03 closed after it was sent, PATCH": (attempt("PATCH"), {}, "it may have been processed"),
    "N04 closed after it was sent, PUT": (attempt("PUT"), {}, AGAIN),
    "N04 PUT, but the body is gone": (
        attempt("PUT", replayable=False),
        {},
        "the body cannot be sent again",
    ),
    "N05 no connection, POST": (attempt("POST", sent=False), {}, AGAIN),
    "N05 no connection, POST, but the body is gone": (
        attempt("POST", sent=False, replayable=False),
        {},
        "the body cannot be sent again",
    ),
    "N06 read timeout, POST": (attempt("POST"), {}, "it may have been processed"),
    "N06 502 to a POST": (answered("POST", 502), {}, "it may have been processed"),
    "N06 503 to a POST": (answered("POST", 503), {}, "it may have been processed"),
    "N06 503 to a POST with a key that the service may not know": (
        answered("POST", 503, keyed=True),
        {},
        "it may have been processed",
    ),
    "N06 503 to a POST with a key that the service keeps to": (
        answered("POST", 503, keyed=True),
        {"idempotency_key": True},
        AGAIN,
    ),
    "N06 a POST without a key to such a service": (
        attempt("POST"),
        {"idempotency_key": True},
        "it may have been processed",
    ),
    "502 to a GET": (answered("GET", 502), {}, AGAIN),
    "503 to a DELETE": (answered("DELETE", 503), {}, AGAIN),
    "504 to a HEAD": (answered("HEAD", 504), {}, AGAIN),
    "500 to a GET": (answered("GET", 500), {}, "the status is not retried"),
    "200 to a GET": (answered("GET", 200), {}, "the status is not retried"),
    "404 to a GET": (answered("GET", 404), {}, "the status is not retried"),
    "429 to a GET": (answered("GET", 429), {}, "the status is not retried"),
    "500, where that is a failure": (answered("GET", 500), {"statuses": (500,)}, AGAIN),
    "503, where that is an answer": (
        answered("GET", 503),
        {"statuses": ()},
        "the status is not retried",
    ),
    "N07 503 with a long Retry-After": (
        answered("GET", 503, retry_after=120.0),
        {},
        "Retry-After is too long",
    ),
    "503 with a short Retry-After": (answered("GET", 503, retry_after=1.0), {}, AGAIN),
    "a Retry-After that is longer than there is time": (
        answered("GET", 503, retry_after=1.0, left=0.9),
        {},
        "no time is left",
    ),
    "a Retry-After that is as long as there is time": (
        answered("GET", 503, retry_after=1.0, left=1.0),
        {},
        "no time is left",
    ),
    "a Retry-After that leaves a moment": (
        answered("GET", 503, retry_after=1.0, left=1.001),
        {},
        AGAIN,
    ),
    "N08 the client has the beginning": (
        answered("GET", 503, begun=True),
        {},
        "the client has the beginning of a response",
    ),
    "half a head, GET": (attempt("GET", received=True), {}, "the response is broken"),
    "half a head, POST": (attempt("POST", received=True), {}, "the response is broken"),
    "N10 the client's body broke off": (
        attempt("GET", client_failed=True),
        {},
        "the client failed",
    ),
    "the second of two attempts": (attempt(number=2), {}, "there are no attempts left"),
    "N11 the second of three attempts": (attempt(number=2, sent=False), {"attempts": 3}, AGAIN),
    "no retries at all": (attempt(sent=False), {"attempts": 1}, "there are no attempts left"),
    "no time left": (attempt(left=0.0), {}, "no time is left"),
    "a PUT where those are not repeated": (
        attempt("PUT"),
        {"methods": ("GET",)},
        "it may have been processed",
    ),
    "a PUT that was not sent where those are not repeated": (
        attempt("PUT", sent=False),
        {"methods": ("GET",)},
        AGAIN,
    ),
    "a GET where nothing is repeated": (attempt(), {"methods": ()}, "it may have been processed"),
}


@pytest.mark.parametrize(("facts", "settings", "why"), TABLE.values(), ids=TABLE)
def test_each_failed_attempt_is_retried_or_has_a_reason_against_it(
    facts: Attempt, settings: dict[str, Any], why: str
) -> None:
    decision = decide(facts, RetryRules(**settings), 0.5, lambda: True)
    assert (decision.again, decision.why) == (not why, why)


FACTS = list(
    product(
        SAFE + UNSAFE,
        (1, 2, 9),
        (False, True),  # sent
        (False, True),  # replayable
        (None, 200, 307, 404, 500, 502, 503, 504),
        (False, True),  # received
        (None, 0.0, 0.5, 1e9),
        (False, True),  # keyed
        (False, True),  # the client failed
        (False, True),  # begun
    )
)


@pytest.mark.parametrize("trusts_keys", [False, True])
def test_no_unsafe_request_that_may_have_been_processed_is_retried(
    trusts_keys: bool,
) -> None:
    rules = RetryRules(attempts=3, idempotency_key=trusts_keys)
    again = 0
    for method, number, sent, replayable, status, received, after, keyed, failed, begun in FACTS:
        facts = Attempt(
            method, number, sent, replayable, 30.0, status, received, after, keyed, failed, begun
        )
        decision = decide(facts, rules, 0.999, lambda: True)
        if not decision.again:
            assert decision.why
            continue
        again += 1
        assert replayable
        assert not begun
        assert not failed
        assert number < 3
        assert status in (None, 502, 503, 504)
        assert decision.wait >= (after or 0.0)
        assert decision.wait < 30.0
        if sent or received:
            assert method in SAFE or (keyed and trusts_keys), facts
    assert again


def test_the_retry_budget_is_charged_only_if_all_other_conditions_hold() -> None:
    asked = []

    def empty() -> bool:
        asked.append(1)
        return False

    assert decide(attempt(), RetryRules(), 0.5, empty).why == "the retry budget is used up"
    assert len(asked) == 1
    for facts, settings, why in TABLE.values():
        if why:
            decide(facts, RetryRules(**settings), 0.5, empty)
    assert len(asked) == 1


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_an_attempt_that_sent_nothing_needs_no_budget_within_the_connect_timeout(
    method: str,
) -> None:
    unsent = attempt(method, sent=False)
    empty = lambda: False  # noqa: E731
    for left, again in ((math.inf, True), (0.1, True), (0.0, False), (-1.0, False)):
        decision = decide(unsent._replace(connect_left=left), RetryRules(), 0.0, empty)
        assert decision.again is again
        assert bool(decision.why) is not again
    received = attempt(sent=False, received=True, status=503)
    assert decide(received, RetryRules(), 0.0, empty).why == "the retry budget is used up"


@pytest.mark.parametrize(
    ("number", "chance", "settings", "seconds"),
    [
        (1, 0.0, {}, 0.0),
        (1, 1.0, {}, 0.025),
        (2, 1.0, {}, 0.05),
        (3, 0.5, {}, 0.05),
        (4, 1.0, {}, 0.2),
        (5, 1.0, {}, 0.25),
        (9, 1.0, {}, 0.25),
        (2, 1.0, {"backoff": 1.0}, 2.0),
        (9, 1.0, {"backoff": 1.0}, 10.0),
        (9, 1.0, {"backoff": 1.0, "backoff_at_most": 3}, 3.0),
        (9, 1.0, {"backoff": 0}, 0.0),
    ],
)
def test_the_wait_is_drawn_from_a_range_that_doubles(
    number: int, chance: float, settings: dict[str, Any], seconds: float
) -> None:
    assert backoff(number, RetryRules(**settings), chance) == pytest.approx(seconds)


def test_the_wait_is_in_the_decision() -> None:
    decision = decide(attempt(), RetryRules(), 0.4, lambda: True)
    assert decision == Decision(True, pytest.approx(0.01))
    decision = decide(answered("GET", 503, retry_after=0.5), RetryRules(), 0.4, lambda: True)
    assert decision.wait == 0.5


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"attempts": 0}, "attempts is 1 to 10, got 0"),
        ({"attempts": 11}, "attempts is 1 to 10"),
        ({"attempts": True}, "attempts is 1 to 10"),
        ({"backoff": -1}, "backoff is a number of seconds up to an hour"),
        ({"backoff": math.nan}, "backoff is a number of seconds"),
        ({"backoff": 1, "backoff_at_most": 0.5}, "backoff_at_most is not less than backoff"),
        ({"per_try_timeout": 0}, "per_try_timeout is a number of seconds"),
        ({"retry_after_at_most": None}, "retry_after_at_most is a number of seconds"),
        ({"methods": ("POST",)}, "methods are out of GET, HEAD, OPTIONS, PUT, DELETE, got 'POST'"),
        ({"methods": ("get",)}, "methods are out of"),
        ({"statuses": (429,)}, "statuses are 500 to 599, got 429"),
        ({"buffer": -1}, "buffer is 0 to 16777216 bytes"),
    ],
)
def test_settings_out_of_range_raise(settings: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        RetryRules(**settings)
