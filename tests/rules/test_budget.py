"""The retry budget: its share, its floor and its period."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsgigate.rules.retry import RetryBudget


def made(budget: RetryBudget, rate: float, seconds: float, start: float = 1000.0) -> list[float]:
    """Return when retries were made, with requests at *rate* all of which fail."""
    retries = []
    for at in range(int(rate * seconds)):
        now = start + at / rate
        budget.request(now)
        if budget.withdraw(now):
            retries.append(now)
    return retries


@pytest.mark.parametrize(
    ("rate", "least", "most"),
    [(1000, 0.19, 0.205), (100, 0.19, 0.21), (20, 0.19, 0.22), (5, 0.5, 0.62), (1, 1.0, 1.0)],
)
def test_when_all_requests_fail_retries_are_the_configured_share(
    rate: float, least: float, most: float
) -> None:
    retries = made(RetryBudget(), rate, 60)
    assert least <= len(retries) / (rate * 60) <= most


def test_a_service_with_little_traffic_has_its_floor_and_no_more() -> None:
    budget = RetryBudget()
    assert [budget.withdraw(1000.0 + at * 0.01) for at in range(5)] == [
        True,
        True,
        True,
        False,
        False,
    ]
    assert budget.withdraw(1001.0)


def test_a_floor_below_one_is_one_in_several_seconds() -> None:
    budget = RetryBudget(floor=0.25)
    taken = [at for at in range(16) if budget.withdraw(1000.0 + at)]
    assert taken == [0, 4, 8, 12]


def test_without_floor_and_share_there_are_none() -> None:
    assert made(RetryBudget(share=0.0, floor=0), 100, 5) == []
    assert len(made(RetryBudget(share=0.1, floor=0), 100, 20)) == pytest.approx(200, abs=25)


def test_retries_do_not_pay_for_retries() -> None:
    budget = RetryBudget(share=1.0, floor=0)
    for _ in range(10):
        budget.request(1000.0)
    assert sum(budget.withdraw(1000.0) for _ in range(100)) == 10


def test_requests_older_than_the_period_do_not_count() -> None:
    budget = RetryBudget(floor=0)
    for _ in range(1000):
        budget.request(1000.0)
    assert budget.withdraw(1005.0)
    assert not budget.withdraw(1011.0)


@given(
    st.lists(
        st.tuples(st.sampled_from([0.0, 0.01, 0.3, 2.0, 11.0]), st.integers(0, 20), st.booleans()),
        max_size=80,
    )
)
def test_no_ten_seconds_have_more_than_their_share_and_the_floor(
    story: list[tuple[float, int, bool]],
) -> None:
    budget, now = RetryBudget(share=0.2, floor=3), 1024.0
    requests: list[float] = []
    retries: list[float] = []
    for seconds, count, retry in story:
        now += seconds
        for _ in range(count):
            budget.request(now)
            requests.append(now)
        while retry and budget.withdraw(now):
            retries.append(now)
    for end in retries:
        within = sum(end - 9 < at <= end for at in retries)
        asked = sum(end - 20 < at <= end for at in requests)
        assert within <= max(0.2 * asked + 30, 30)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"share": 1.1}, "share is a number from 0 to 1, got 1.1"),
        ({"share": math.nan}, "share is a number"),
        ({"floor": -1}, "floor is a number from 0 to 10000"),
        ({"period": 0}, "period is a number of seconds above 0"),
    ],
)
def test_settings_out_of_range_raise(settings: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        RetryBudget(**settings)
