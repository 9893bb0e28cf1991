"""How the threads of a worker are shared: what a service leaves to others, what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsgigate.proxy.bulkhead import Admission, ThreadShareRules

ENTER, WAIT, REFUSE = Admission.ENTER, Admission.WAIT, Admission.REFUSE


@pytest.mark.parametrize(
    ("threads", "services", "most"),
    [
        (1, 2, 1),
        (2, 2, 1),
        (3, 2, 2),
        (4, 2, 3),
        (4, 3, 2),
        (4, 8, 2),
        (16, 2, 12),
        (16, 3, 12),
        (16, 8, 9),
        (16, 50, 8),
        (64, 3, 48),
    ],
)
def test_one_service_leaves_a_thread_to_each_other_one_a_quarter_at_least_half_at_most(
    threads: int, services: int, most: int
) -> None:
    assert ThreadShareRules(threads=threads, services=services).most == most


def filled(rules: ThreadShareRules, held: list[int], service: int) -> int:
    """Return how many threads a service gets that never gives one back."""
    while rules.admits(held[service], sum(held)):
        held[service] += 1
    return held[service]


@pytest.mark.parametrize(
    ("threads", "services", "shares"),
    [
        (16, 2, [12, 3]),
        (16, 3, [12, 3, 1]),
        (16, 8, [9, 4, 2, 1]),
        (4, 2, [3, 1]),
        (4, 3, [2, 1, 1]),
        (4, 8, [2, 1, 1]),
        (2, 2, [1, 1]),
        (1, 2, [1]),
    ],
)
def test_each_that_hangs_leaves_something_to_the_next(
    threads: int, services: int, shares: list[int]
) -> None:
    rules = ThreadShareRules(threads=threads, services=services)
    held = [0] * services
    assert [filled(rules, held, number) for number in range(len(shares))] == shares
    assert sum(held) <= threads


@given(st.integers(1, 200), st.integers(1, 50), st.integers(0, 200))
def test_one_that_has_nothing_gets_a_thread_as_long_as_there_is_one(
    threads: int, services: int, in_flight: int
) -> None:
    rules = ThreadShareRules(threads=threads, services=services)
    assert rules.admits(0, in_flight) is (in_flight < threads)


@given(st.integers(2, 200), st.integers(2, 50))
def test_one_alone_gets_exactly_its_share_and_never_the_last_thread(
    threads: int, services: int
) -> None:
    rules = ThreadShareRules(threads=threads, services=services)
    assert filled(rules, [0], 0) == rules.most < threads
    assert rules.most >= threads // 2


@pytest.mark.parametrize(
    ("usual", "patience"),
    [(None, 1.0), (0.001, 1.0), (0.3, 1.0), (0.5, 1.5), (1.5, 4.5), (2.0, 5.0), (60.0, 5.0)],
)
def test_what_is_slow_depends_on_what_is_usual_within_bounds(
    usual: float | None, patience: float
) -> None:
    rules = ThreadShareRules(threads=16, services=2)
    assert rules.patience_for(usual) == pytest.approx(patience)


@pytest.mark.parametrize(
    ("began", "slow"),
    [
        ([], False),
        ([99.5], False),
        ([98.9], True),
        ([99.0], False),  # a second exactly
        ([90, 99.9], False),  # one slow request among others
        ([90, 91, 99.9], True),
        ([90, 91, 99.8, 99.9], False),  # half of them
        ([90, 91, 92, 99.9], True),
    ],
)
def test_a_service_is_slow_when_more_than_half_of_its_requests_are(
    began: list[float], slow: bool
) -> None:
    rules = ThreadShareRules(threads=16, services=2)
    assert rules.is_slow(began, len(began), 100.0, None) is slow


@pytest.mark.parametrize(
    ("held", "in_flight", "waiting", "waited", "slow", "admission"),
    [
        (0, 0, 1, 0.0, False, ENTER),
        (11, 11, 1, 0.0, True, ENTER),  # a slow service has its share
        (12, 12, 1, 0.0, False, WAIT),
        (12, 12, 4, 4.9, False, WAIT),  # a burst
        (12, 12, 3, 0.0, True, WAIT),  # slow, but another thread is free
        (12, 12, 4, 0.0, True, REFUSE),
        (12, 15, 1, 0.0, True, REFUSE),
        (12, 12, 1, 5.0, False, REFUSE),
        (3, 15, 1, 0.0, False, WAIT),
        (0, 16, 1, 0.0, False, WAIT),
    ],
)
def test_refused_is_only_what_waits_for_a_slow_service_while_no_other_thread_is_free(
    held: int, in_flight: int, waiting: int, waited: float, slow: bool, admission: Admission
) -> None:
    rules = ThreadShareRules(threads=16, services=2)
    decided = rules.decide(held, in_flight, waiting, queued=1, waited=waited, slow=slow)
    assert decided is admission


@pytest.mark.parametrize(
    ("services", "held", "queued", "admission"),
    [
        (2, 7, 1, WAIT),  # 8 of 16 threads are an equal share
        (2, 7, 2, REFUSE),
        (2, 8, 1, REFUSE),
        (4, 3, 1, WAIT),
        (4, 3, 2, REFUSE),
        (8, 1, 1, WAIT),
        (8, 2, 1, REFUSE),
        (100, 0, 1, WAIT),  # one at least
        (100, 1, 1, REFUSE),
    ],
)
def test_a_slow_service_below_an_equal_share_waits_while_others_hold_all_threads(
    services: int, held: int, queued: int, admission: Admission
) -> None:
    rules = ThreadShareRules(threads=16, services=services)
    assert rules.decide(held, 16, 1, queued=queued, waited=0.0, slow=True) is admission
    assert rules.decide(held, 16, 1, queued=queued, waited=5.0, slow=True) is REFUSE


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"threads": 0}, "threads is a whole number of at least 1"),
        ({"services": True}, "services is a whole number of at least 1"),
        ({"patience": 0}, "patience is a number of seconds above 0"),
        ({"longest_wait": math.inf}, "longest_wait is a number of seconds above 0"),
        ({"longest_patience": 0.5}, "longest_patience is at least patience"),
    ],
)
def test_a_setting_out_of_range_is_named(given: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        ThreadShareRules(**{"threads": 16, "services": 2} | given)
