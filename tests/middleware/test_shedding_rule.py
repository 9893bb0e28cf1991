"""The adaptive limit of load shedding, on a simulated server."""

from __future__ import annotations

import heapq
import math
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsgigate.middleware.shedder import Gradient, SheddingRules


def served(
    limit: Gradient | None,
    *,
    rate: float,
    seconds: float,
    capacity: int = 4,
    takes: float = 0.02,
    seed: int = 1,
) -> tuple[list[tuple[float, float]], int, int]:
    """Serve requests at *rate* by a server that does *capacity* at once, and the others in turn.

    Return when each was answered and how long that took, how many were refused, and the most that
    were under way.
    """
    chance = random.Random(seed)
    now, under_way, refused, most = 1000.0, 0, 0, 0
    free = [now] * capacity
    ends: list[tuple[float, float]] = []
    answers: list[tuple[float, float]] = []

    def settle(until: float) -> None:
        nonlocal under_way
        while ends and ends[0][0] <= until:
            end, began = heapq.heappop(ends)
            answers.append((end, end - began))
            if limit is not None:
                limit.answered(end - began, under_way, end, chance.random())
            under_way -= 1

    while now < 1000.0 + seconds:
        now += chance.expovariate(rate)
        settle(now)
        if limit is not None and under_way >= limit.limit:
            refused += 1
            continue
        under_way += 1
        most = max(most, under_way)
        start = max(now, heapq.heappop(free))
        end = start + takes * chance.uniform(0.8, 1.2)
        heapq.heappush(free, end)
        heapq.heappush(ends, (end, now))
    settle(math.inf)
    return answers, refused, most


def p99(answers: list[tuple[float, float]], after: float = 10.0) -> float:
    taken = sorted(seconds for end, seconds in answers if end > 1000.0 + after)
    return taken[int(len(taken) * 0.99)]


@pytest.mark.parametrize("rate", [250, 400, 2_000])  # the server can do 200 a second
def test_under_overload_admitted_requests_are_fast(rate: float) -> None:
    without, _, _ = served(None, rate=rate, seconds=50)
    assert p99(without) > 2
    answers, refused, _ = served(Gradient(SheddingRules()), rate=rate, seconds=50)
    assert p99(answers) < 0.1
    assert len(answers) > 0.8 * 200 * 50, "and the server is kept busy"
    assert refused


def test_without_overload_hardly_anything_is_refused() -> None:
    _, refused, _ = served(Gradient(SheddingRules()), rate=100, seconds=100)
    assert refused < 0.02 * 100 * 100


@pytest.mark.parametrize(("under_way", "grown"), [(100, 100), (10, 48), (1, 24)])
def test_the_limit_grows_while_responses_are_fast_up_to_what_is_used(
    under_way: int, grown: int
) -> None:
    limit = Gradient(SheddingRules(most=100))
    now = 1000.0
    for _ in range(3_000):
        now += 0.01
        limit.answered(0.02, under_way, now, 0.0)
    assert limit.limit == grown


def test_the_limit_adapts_to_a_server_that_stays_slower() -> None:
    limit = Gradient(SheddingRules(measure_every=30))
    served(limit, rate=100, seconds=20)
    before = limit.unloaded
    now = 1020.0
    for _ in range(10_000):
        now += 0.01
        limit.answered(0.2, 30, now, 0.5)
    assert before < 0.03
    assert limit.unloaded == pytest.approx(0.2)
    assert limit.limit > 30


def test_the_limit_is_at_its_minimum_during_a_measurement() -> None:
    rules = SheddingRules(measure_every=10, measure_requests=20, jitter=0.5, least=2)
    limit = Gradient(rules)
    limits, now = [], 1000.0
    for _ in range(2_000):
        limits.append(limit.limit)
        now += 0.01
        limit.answered(0.02, 9, now, 0.5)
    assert limits[:20] == [2] * 20
    assert limits[20] == 16
    again = next(at for at, each in enumerate(limits) if at > 20 and each == 2)
    assert again * 0.01 == pytest.approx(0.2 + 10 * 1.25, abs=0.1)
    assert limits[again : again + 20] == [2] * 20
    assert limits[again + 21] == limits[again - 1], "and then it goes on as before"


@given(
    st.lists(st.tuples(st.floats(0, 1e6), st.sampled_from([0, 0.001, 0.05, 1, 100])), max_size=300),
    st.integers(1, 5),
    st.integers(5, 50),
)
def test_the_limit_is_always_in_its_range(
    story: list[tuple[float, float]], least: int, most: int
) -> None:
    rules = SheddingRules(least=least, most=most, measure_requests=3, window_requests=2)
    limit, now = Gradient(rules), 1000.0
    for seconds, later in story:
        now += later
        limit.answered(seconds, 3, now, 0.5)
        assert least <= limit.limit <= most


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"least": 0}, "least is a whole number from 1 to 100000, got 0"),
        ({"least": 5, "most": 4}, "most is not less than least: 4 < 5"),
        ({"tolerance": -1}, "tolerance is a number from 0 to 100"),
        ({"window": 0}, "window is a number from 0.001"),
        ({"window_requests": 501}, "window_requests is a whole number from 1 to 500"),
        ({"measure_every": math.nan}, "measure_every is a number"),
    ],
)
def test_settings_out_of_range_raise(settings: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        SheddingRules(**settings)
