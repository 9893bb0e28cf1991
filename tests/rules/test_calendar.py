"""Calendar quotas begin and end where another calendar implementation says."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from wsgigate.rules.algorithms import CalendarWindow
from wsgigate.rules.quota import CALENDAR, Quota
from wsgigate.rules.windows import span


def seconds(text: str) -> int:
    return int(datetime.fromisoformat(text + "+00:00").timestamp())


@pytest.mark.parametrize(
    ("calendar", "now", "start", "end"),
    [
        ("hour", "2026-02-28T23:59:59", "2026-02-28T23:00:00", "2026-03-01T00:00:00"),
        ("hour", "2026-03-29T02:30:00", "2026-03-29T02:00:00", "2026-03-29T03:00:00"),
        ("day", "2024-02-29T12:00:00", "2024-02-29T00:00:00", "2024-03-01T00:00:00"),
        ("day", "2016-12-31T23:59:59", "2016-12-31T00:00:00", "2017-01-01T00:00:00"),
        ("week", "2026-01-01T00:00:00", "2025-12-29T00:00:00", "2026-01-05T00:00:00"),
        ("week", "2026-01-05T00:00:00", "2026-01-05T00:00:00", "2026-01-12T00:00:00"),
        ("week", "2026-01-04T23:59:59", "2025-12-29T00:00:00", "2026-01-05T00:00:00"),
        ("month", "2025-12-31T23:59:59", "2025-12-01T00:00:00", "2026-01-01T00:00:00"),
        ("month", "2024-02-29T00:00:00", "2024-02-01T00:00:00", "2024-03-01T00:00:00"),
        ("month", "2100-02-28T23:59:59", "2100-02-01T00:00:00", "2100-03-01T00:00:00"),
        ("month", "2000-02-29T23:59:59", "2000-02-01T00:00:00", "2000-03-01T00:00:00"),
        ("month", "2026-04-30T00:00:00", "2026-04-01T00:00:00", "2026-05-01T00:00:00"),
        ("month", "1970-01-01T00:00:00", "1970-01-01T00:00:00", "1970-02-01T00:00:00"),
        ("year", "2024-12-31T23:59:59", "2024-01-01T00:00:00", "2025-01-01T00:00:00"),
        ("year", "2026-01-01T00:00:00", "2026-01-01T00:00:00", "2027-01-01T00:00:00"),
    ],
)
def test_a_span_begins_and_ends(calendar: str, now: str, start: str, end: str) -> None:
    assert span(calendar, seconds(now)) == (seconds(start), seconds(end))


def by_datetime(calendar: str, second: int) -> tuple[datetime, datetime]:
    now = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=second)
    day = now.replace(hour=0, minute=0, second=0)
    if calendar == "hour":
        start = now.replace(minute=0, second=0)
        return start, start + timedelta(hours=1)
    if calendar == "day":
        return day, day + timedelta(days=1)
    if calendar == "week":
        start = day - timedelta(days=day.weekday())
        return start, start + timedelta(days=7)
    if calendar == "month":
        start = day.replace(day=1)
        later = start + timedelta(days=31)
        return start, later.replace(day=1)
    start = day.replace(month=1, day=1)
    return start, start.replace(year=start.year + 1)


@pytest.mark.parametrize("calendar", CALENDAR)
@settings(deadline=None)
@given(st.integers(-(10**9), 200 * 10**9))
@example(951_782_400)  # 2000-02-29
@example(4_107_542_400)  # 2100-03-01
def test_a_span_is_that_of_another_calendar(calendar: str, second: int) -> None:
    start, end = (int(moment.timestamp()) for moment in by_datetime(calendar, second))
    assert span(calendar, second) == (start, end)
    assert end - start <= CALENDAR[calendar]


def test_every_month_of_four_centuries() -> None:
    end = seconds("1970-01-01T00:00:00")
    for number in range(400 * 12):
        start, end = span("month", end)
        assert datetime.fromtimestamp(start, UTC) == datetime(
            1970 + number // 12, number % 12 + 1, 1, tzinfo=UTC
        )
        assert span("month", end - 1) == (start, end)


@pytest.mark.parametrize("calendar", CALENDAR)
def test_the_quota_is_there_again_at_the_very_turn(calendar: str) -> None:
    algorithm = CalendarWindow(Quota(5, calendar=calendar))
    end = span(calendar, seconds("2028-02-29T12:34:56"))[1]
    state, _, verdict = algorithm.take(None, seconds("2028-02-29T12:34:56"), 5)
    assert verdict.reset_after == end - seconds("2028-02-29T12:34:56")
    assert not algorithm.take(state, end - 0.000001)[2].allowed
    assert algorithm.take(state, end)[2].remaining == 4


def test_a_clock_set_back_over_the_turn_takes_the_count_along() -> None:
    algorithm = CalendarWindow(Quota(5, calendar="month"))
    turn = seconds("2026-03-01T00:00:00")
    state, _, _ = algorithm.take(None, turn + 1.0, 3)
    state, _, verdict = algorithm.take(state, turn - 1.0)
    assert verdict.remaining == 1
    assert verdict.reset_after == 1.0
    assert algorithm.take(state, turn)[2].remaining == 4
