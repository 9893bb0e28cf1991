"""Outlier detection: failing instances are ejected for a time, up to a share."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsgigate.rules.balance import InstanceState, available
from wsgigate.rules.circuit import Outcome
from wsgigate.rules.outlier import Ejection, OutlierRules, Outliers, low_success

LETTERS = {
    "+": Outcome.OK,
    "-": Outcome.FAILED,
    "x": Outcome.UNREACHABLE,
    "4": Outcome.REFUSED,
    "?": Outcome.IGNORED,
}


def pool(count: int, **settings: Any) -> Outliers:
    outliers = Outliers(OutlierRules(**settings))
    outliers.set_instances([chr(ord("a") + at) for at in range(count)])
    return outliers


def report(outliers: Outliers, name: str, calls: str, now: float = 0.0) -> list[Ejection | None]:
    return [outliers.report(name, LETTERS[letter], now) for letter in calls]


# calls, which of them ejects
@pytest.mark.parametrize(
    ("calls", "at"),
    [
        ("-----", 4),
        ("----", None),
        ("----+----", None),
        ("----+-----", 9),
        ("xx-x-", 4),
        ("--4?4?---", 8),
        ("4444444444", None),
        ("??????????", None),
        ("-----+++++-----", 4),  # it is left out already: these began before
    ],
)
def test_consecutive_failures_eject_an_instance(calls: str, at: int | None) -> None:
    outliers = pool(2)
    told = report(outliers, "a", calls)
    assert [place for place, each in enumerate(told) if each] == ([] if at is None else [at])
    assert outliers.ejected(0.0) == (frozenset() if at is None else {"a"})


def test_the_rule_can_be_turned_off() -> None:
    assert not any(report(pool(2, consecutive_failures=None), "a", "-" * 500))


def test_each_ejection_is_longer_up_to_the_maximum() -> None:
    outliers, now, lengths = pool(2), 0.0, []
    for _ in range(12):
        ejection = report(outliers, "a", "-----", now)[-1]
        assert ejection is not None
        lengths.append(ejection.until - now)
        now = ejection.until
    assert lengths == [30, 60, 90, 120, 150, 180, 210, 240, 270, 300, 300, 300]


@pytest.mark.parametrize(
    ("well", "length"), [(0, 120), (29.9, 120), (30, 90), (60, 60), (90, 30), (1e9, 30)]
)
def test_the_next_ejection_is_shorter_after_time_without_failures(
    well: float, length: float
) -> None:
    ejection = Ejection(1000.0, 3).again(1000.0 + well, OutlierRules())
    assert ejection.until - 1000.0 - well == pytest.approx(length)


@pytest.mark.parametrize(
    ("instances", "share", "most"),
    [
        (0, 0.5, 0),
        (1, 0.5, 0),
        (1, 1.0, 0),
        (2, 0.5, 1),
        (3, 0.5, 1),
        (4, 0.5, 2),
        (5, 0.5, 2),
        (10, 0.5, 5),
        (10, 0.1, 1),
        (10, 0.01, 1),
        (3, 1.0, 3),
        (10, 0.0, 0),
    ],
)
def test_at_most_the_configured_share_is_ejected(instances: int, share: float, most: int) -> None:
    outliers = pool(instances, most_ejected=share)
    for at in range(instances):
        report(outliers, chr(ord("a") + at), "-" * 20)
    assert len(outliers.ejected(0.0)) == most


def test_an_instance_kept_by_the_share_is_ejected_when_another_returns() -> None:
    outliers = pool(2)
    report(outliers, "a", "-----", 0.0)
    report(outliers, "b", "-----", 0.0)
    assert outliers.ejected(29.9) == {"a"}
    report(outliers, "b", "-", 30.0)
    assert outliers.ejected(30.0) == {"b"}


def test_requests_that_began_before_the_ejection_do_not_prolong_it() -> None:
    outliers = pool(6)
    told = report(outliers, "a", "-" * 30)
    assert [each for each in told if each] == [Ejection(30.0, 1, 0.0, "5 failures in a row")]
    assert outliers.ejected(30.0) == frozenset()


def test_returns_is_the_end_of_the_next_ejection() -> None:
    outliers = pool(6)
    assert outliers.returns == math.inf
    report(outliers, "a", "-----", 0.0)
    report(outliers, "b", "-----", 10.0)
    assert outliers.returns == 30.0
    assert outliers.ejected(30.0) == {"b"}
    assert outliers.returns == 40.0
    assert outliers.ejected(40.0) == frozenset()
    assert outliers.returns == math.inf


def test_a_restored_instance_returns_at_once_and_its_next_ejection_is_longer() -> None:
    outliers = pool(2)
    report(outliers, "a", "-----", 0.0)
    outliers.restore("a", 5.0)
    assert outliers.returns <= 5.0
    assert outliers.ejected(5.0) == frozenset()
    report(outliers, "a", "-----", 6.0)
    assert outliers.ejected(65.9) == {"a"}
    outliers.restore("b", 6.0)
    outliers.restore("nobody", 6.0)


def test_removed_instances_are_forgotten() -> None:
    outliers = pool(3)
    report(outliers, "a", "-----", 0.0)
    outliers.set_instances(["b", "c"])
    assert outliers.ejected(1.0) == frozenset()
    assert outliers.report("a", Outcome.FAILED, 1.0) is None
    outliers.set_instances(["a", "b", "c"])
    assert outliers.ejected(1.0) == frozenset()


def test_the_count_of_failures_outlives_new_instances() -> None:
    outliers = pool(2)
    report(outliers, "a", "----")
    outliers.set_instances(["a", "b", "c"])
    assert report(outliers, "a", "-")[-1] is not None


@given(
    st.integers(1, 7),
    st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    st.lists(
        st.tuples(st.integers(0, 6), st.sampled_from("+---x4?"), st.sampled_from([0, 0, 0, 5, 40])),
        max_size=200,
    ),
)
def test_the_share_is_never_exceeded_and_every_ejection_ends(
    count: int, share: float, story: list[tuple[int, str, float]]
) -> None:
    rules = OutlierRules(consecutive_failures=2, most_ejected=share)
    outliers = Outliers(rules)
    names = [f"n{at}" for at in range(count)]
    outliers.set_instances(names)
    now = 0.0
    for at, letter, seconds in story:
        now += seconds
        outliers.report(names[at % count], LETTERS[letter], now)
        left_out = outliers.ejected(now)
        assert len(left_out) <= rules.most(count)
        assert len(left_out) < count or share == 1.0
        assert outliers.returns > now
        assert bool(left_out) == (outliers.returns < math.inf)
    assert outliers.ejected(now + rules.eject_at_most) == frozenset()


# -- success rates ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rates", "settings", "low"),
    [
        ((1, 1, 1, 1, 0.5), {}, ["e"]),
        ((1, 1, 1, 1, 1), {}, []),
        ((0.5, 0.5, 0.5, 0.5, 0.5), {}, []),
        ((1, 1, 1, 0.5), {}, []),  # too few to judge by
        ((1, 1, 1, 0.5), {"least_instances": 3, "deviations": 1.5}, ["d"]),
        ((0.99, 0.98, 1, 0.97, 0.99, 0.98, 0.4), {}, ["g"]),
        ((0.9, 0.8, 0.7, 0.6, 0.5), {}, []),
        ((1, 1, 1, 1, 1, 1, 0.2, 0.1), {"deviations": 1.0}, ["h", "g"]),
    ],
)
def test_instances_with_a_markedly_lower_success_rate_are_found(
    rates: tuple[float, ...], settings: dict[str, Any], low: list[str]
) -> None:
    counts = {chr(ord("a") + at): (1000, round(1000 * rate)) for at, rate in enumerate(rates)}
    assert low_success(counts, OutlierRules(**settings)) == low


def test_instances_with_too_few_requests_are_not_judged() -> None:
    counts = dict.fromkeys("abcde", (100, 100)) | {"f": (99, 0)}
    assert low_success(counts, OutlierRules()) == []
    counts["f"] = (100, 0)
    assert low_success(counts, OutlierRules()) == ["f"]


@pytest.mark.parametrize("judged", [False, True])
def test_a_sweep_judges_each_interval_by_itself(judged: bool) -> None:
    outliers = pool(6, success_rate=judged, consecutive_failures=None)
    for name in "abcdef":
        report(outliers, name, "+-" * 60 if name == "f" else "+" * 120)
    assert outliers.sweep(10.0) == (["f"] if judged else [])
    assert outliers.ejected(10.0) == ({"f"} if judged else frozenset())
    assert outliers.sweep(60.0) == []


# -- together with health checks -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("healthy", "failing", "taken", "panic"),
    [
        ("abcd", "", "abcd", False),
        ("abcd", "a", "bcd", False),
        ("bcd", "", "bcd", False),
        ("bcd", "b", "cd", False),  # one is ill, one is left out: half of them are there
        ("cd", "c", "abcd", True),
        ("abcd", "abcd", "cd", False),  # at most half of them are left out
        ("", "", "abcd", True),
    ],
)
def test_ejections_and_health_checks_are_combined(
    healthy: str, failing: str, taken: str, panic: bool
) -> None:
    outliers = pool(4)
    for name in failing:
        report(outliers, name, "-----")
    left_out = outliers.ejected(0.0)
    [level] = available(
        [InstanceState(name in healthy and name not in left_out) for name in "abcd"]
    )
    assert ("".join("abcd"[at] for at in level.places), level.panic) == (taken, panic)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"consecutive_failures": 0}, "consecutive_failures is a whole number from 1"),
        ({"least_instances": None}, "least_instances is a whole number"),
        ({"eject_for": 0}, "eject_for is a number from 0.001 to 86400, got 0"),
        ({"eject_for": 60, "eject_at_most": 30}, "eject_at_most is not less than eject_for"),
        ({"most_ejected": 1.5}, "most_ejected is a number from 0 to 1"),
        ({"most_ejected": math.nan}, "most_ejected is a number"),
        ({"deviations": 0}, "deviations is a number"),
    ],
)
def test_settings_out_of_range_raise(settings: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        OutlierRules(**settings)
