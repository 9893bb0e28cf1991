"""The rules of fallbacks: reasons of failures, and which requests may be repeated."""

from __future__ import annotations

from typing import Any

import pytest

from wsgigate.rules.fallback import REASONS, FallbackRules, may_ask_another, reason_of


@pytest.mark.parametrize(
    ("failure", "raised", "reason"),
    [
        (None, False, "answered"),
        ("", False, "answered"),
        ("Connection refused", False, "refused"),
        ("Circuit breaker open", False, "circuit-open"),
        ("No instance available", False, "no-instance"),
        ("Request timeout", False, "timeout"),
        ("Invalid response", False, "broken"),
        ("Too many connections", False, "busy"),
        ("Too many requests in flight", False, "busy"),
        ("Maintenance", False, "maintenance"),
        ("Something new", False, "other"),
        (None, True, "raised"),
        ("Connection refused", True, "raised"),
    ],
)
def test_each_failure_has_its_reason(failure: str | None, raised: bool, reason: str) -> None:
    assert reason_of(failure, raised) == reason
    assert reason in REASONS


@pytest.mark.parametrize(
    ("rules", "status", "reason", "replaced"),
    [
        (FallbackRules(), 502, "broken", True),
        (FallbackRules(), 503, "answered", True),
        (FallbackRules(), 504, "timeout", True),
        (FallbackRules(), 500, "answered", False),
        (FallbackRules(), 200, "answered", False),
        (FallbackRules(statuses=[500]), 500, "raised", True),
        (FallbackRules(statuses=[500]), 503, "refused", False),
        (FallbackRules(reasons=["timeout"]), 504, "timeout", True),
        (FallbackRules(reasons=["timeout"]), 503, "refused", False),
    ],
)
def test_a_response_is_replaced_by_status_and_reason(
    rules: FallbackRules, status: int, reason: str, replaced: bool
) -> None:
    assert rules.replaces(status, reason) is replaced


@pytest.mark.parametrize(
    ("method", "reason", "keyed", "body_lost", "may"),
    [
        ("GET", "timeout", False, False, True),
        ("HEAD", "answered", False, False, True),
        ("OPTIONS", "broken", True, False, True),
        ("GET", "refused", False, True, False),
        ("POST", "refused", False, False, True),
        ("POST", "circuit-open", False, False, True),
        ("POST", "no-instance", False, False, True),
        ("POST", "maintenance", False, False, True),
        ("POST", "busy", False, False, True),
        ("POST", "refused", False, True, False),
        ("POST", "refused", True, False, False),
        ("POST", "timeout", False, False, False),
        ("POST", "broken", False, False, False),
        ("POST", "answered", False, False, False),
        ("POST", "raised", False, False, False),
        ("POST", "other", False, False, False),
        ("DELETE", "refused", False, False, True),
        ("DELETE", "answered", False, False, False),
    ],
)
def test_an_unsafe_request_that_may_have_been_processed_gets_no_fallback(
    method: str, reason: str, keyed: bool, body_lost: bool, may: bool
) -> None:
    assert may_ask_another(method, reason, keyed=keyed, body_lost=body_lost) is may


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"statuses": []}, "statuses: some from 500 to 599"),
        ({"statuses": [404]}, "statuses: some from 500 to 599, not"),
        ({"reasons": ["luck"]}, "reasons: some of answered, broken, .*, not luck"),
        ({"reasons": []}, "reasons: some of"),
        ({"methods": "GET"}, "methods: a list"),
        ({"methods": []}, "methods: a list"),
        ({"methods": ["get"]}, "methods: 'get' is not a method in capitals"),
    ],
)
def test_invalid_rules_raise(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        FallbackRules(**settings)
