"""The rules of hedging: which requests, and after which delay."""

from __future__ import annotations

import random
from math import ceil
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.objects import kept
from wsgigate.rules.retry import Delays, HedgeRules, hedgeable


@pytest.mark.parametrize(
    ("method", "has_body", "may"),
    [
        ("GET", False, True),
        ("HEAD", False, True),
        ("OPTIONS", False, True),
        ("GET", True, False),
        ("OPTIONS", True, False),
        ("POST", False, False),
        ("PUT", False, False),
        ("DELETE", False, False),
        ("PATCH", False, False),
        ("TRACE", False, False),
        ("get", False, False),
        ("PURGE", False, False),
    ],
)
def test_only_safe_requests_without_a_body_are_hedged(
    method: str, has_body: bool, may: bool
) -> None:
    assert hedgeable(method, has_body) is may


@pytest.mark.parametrize(
    ("after", "quantile"), [(0.2, None), (60, None), ("p95", 0.95), ("p99.9", 0.999), ("p50", 0.5)]
)
def test_the_hedging_delay_is_seconds_or_a_percentile(after: Any, quantile: float | None) -> None:
    assert HedgeRules(after=after).quantile == (quantile and pytest.approx(quantile))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"after": 0}, "after"),
        ({"after": -1}, "after"),
        ({"after": 61}, "after"),
        ({"after": float("nan")}, "after"),
        ({"after": True}, "after"),
        ({"after": "p100"}, "after"),
        ({"after": "p9"}, "after"),
        ({"after": "95"}, "after"),
        ({"after": "p95.55"}, "after"),
        ({"most": 0}, "most"),
        ({"most": 6}, "most"),
        ({"most": 1.5}, "most"),
    ],
)
def test_an_invalid_setting_raises(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=f"^{said}: "):
        HedgeRules(**settings)


def test_there_is_no_hedging_delay_before_a_hundred_responses() -> None:
    delays = Delays(0.95)
    for number in range(99):
        delays.add(number / 100)
        assert delays.after() is None
    delays.add(0.99)
    assert delays.after() == pytest.approx(0.94)


def test_old_response_times_are_forgotten() -> None:
    delays = Delays(0.9, least=10, most=100)
    for number in range(500):
        delays.add(5.0 + number)
    for _ in range(100):
        delays.add(0.1)
    assert delays.after() == 0.1
    assert max(each for each in kept(delays) if isinstance(each, float)) < 5.0


@given(
    st.lists(st.floats(0, 100), min_size=1, max_size=60),
    st.sampled_from([0.1, 0.5, 0.95, 0.999]),
)
def test_the_quantile_of_the_response_times_is_exact(took: list[float], quantile: float) -> None:
    delays = Delays(quantile, least=1, most=20)
    for seconds in took:
        delays.add(seconds)
    recent = took[-20:]
    after = delays.after()
    assert after in recent
    assert sum(seconds <= after for seconds in recent) >= ceil(quantile * len(recent))


def test_about_one_in_twenty_takes_longer_than_p95() -> None:
    chance = random.Random(1)
    delays = Delays(0.95)
    longer = 0
    for _ in range(20_000):
        seconds = chance.expovariate(10)
        after = delays.after()
        longer += after is not None and seconds > after
        delays.add(seconds)
    assert 900 < longer < 1_100
