"""Quotas are parsed from text and written as text."""

import dataclasses
import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from wsgigate.rules.quota import CALENDAR, Quota


@pytest.mark.parametrize(
    ("text", "limit", "period"),
    [
        ("100 per 15 minutes", 100, 900),
        ("100/15m", 100, 900),
        ("100 / 15 min", 100, 900),
        ("10/s", 10, 1),
        ("10 per second", 10, 1),
        ("10/sec", 10, 1),
        ("1 per 1 seconds", 1, 1),
        ("5 requests per minute", 5, 60),
        ("1 request per minute", 1, 60),
        ("1000 per hour", 1000, 3600),
        ("1_000 per 2 hours", 1000, 7200),
        ("7 PER H", 7, 3600),
        ("3/day", 3, 86400),
        ("3/2d", 3, 172800),
        ("  9 per week ", 9, 604800),
        ("9/2w", 9, 1209600),
        ("1/0.5s", 1, 0.5),
        ("1 per 1.5 h", 1, 5400),
    ],
)
def test_a_quota_is_read_as_people_write_it(text, limit, period):
    assert Quota.parse(text) == Quota(limit, period)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", 'a quota is written "100 per 15 minutes" or "100/15m", not \'\''),
        ("100", 'a quota is written "100 per 15 minutes"'),
        ("100 15m", "a quota is written"),
        ("per minute", "a quota is written"),
        ("-1 per minute", "a quota is written"),
        ("1.5 per minute", "a quota is written"),
        ("100 per 15", "a quota is written"),
        ("100 per minute and 10 per second", "a quota is written"),
        ("1,000 per hour", "a quota is written"),
        ("١ per hour", "a quota is written"),
        (100, "a quota is written .* not 100"),
        ("1 per fortnight", "'1 per fortnight' counts in 'fortnight', which is not one of s, m, h"),
        ("1 per month", "counts in 'month', .* as its length varies: write \"per calendar month\""),
        ("1 per 2 years", "counts in 'years', .* write \"per calendar year\" .* or count days"),
        ("1 per monthly", "counts in 'monthly', which is not one of s, m, h, d, w or their names$"),
        (
            "1 per calendar minute",
            "is for a calendar 'minute', which is not one of hour, day, week",
        ),
        ("1 per 2 calendar months", "a quota is written"),
        ("1 per calendar 2 months", "a quota is written"),
        ("0 per calendar day", "'0 per calendar day' cannot be had: a quota's limit is"),
        ("0 per minute", "'0 per minute' cannot be had: a quota's limit is 1 to 1_000_000_000"),
        ("9999999999/s", "a quota's limit is 1 to 1_000_000_000, not 9999999999"),
        ("1/0s", "a quota's period is 0.001 s to ten years, not 0 s"),
        ("1/0.0001s", "a quota's period is 0.001 s to ten years"),
        ("1 per 9999 weeks", "a quota's period is 0.001 s to ten years"),
        ("1__0 per minute", "has a number that cannot be read"),
        (f"{'9' * 9000} per minute", "has a number that cannot be read"),
    ],
)
def test_a_malformed_quota_raises_an_error_that_explains_it(text, words):
    with pytest.raises(ValueError, match=words):
        Quota.parse(text)


@pytest.mark.parametrize(
    ("limit", "period", "words"),
    [
        (1.5, 60, "limit is a whole number, not 1.5"),
        ("10", 60, "limit is a whole number, not '10'"),
        (True, 60, "limit is a whole number, not True"),
        (0, 60, "limit is 1 to"),
        (-5, 60, "limit is 1 to"),
        (10, "60", "period is a number of seconds, not '60'"),
        (10, 0, "period is 0.001 s to ten years, not 0 s"),
        (10, -1, "period is 0.001 s to ten years"),
        (10, math.nan, "period is 0.001 s to ten years, not nan s"),
        (10, math.inf, "period is 0.001 s to ten years, not inf s"),
    ],
)
def test_a_quota_out_of_range_is_refused(limit, period, words):
    with pytest.raises(ValueError, match=words):
        Quota(limit, period)


@given(st.integers(1, 10**9), st.integers(1, 10**6))
@example(100, 900)
def test_the_text_of_a_quota_parses_to_the_same_quota(limit, period):
    quota = Quota(limit, period)
    assert Quota.parse(str(quota)) == quota


@pytest.mark.parametrize(
    ("quota", "text"),
    [
        (Quota(100, 900), "100 per 15 minutes"),
        (Quota(10, 1), "10 per second"),
        (Quota(1, 3600), "1 per hour"),
        (Quota(5, 0.25), "5 per 0.25 seconds"),
        (Quota(5, 1209600), "5 per 2 weeks"),
    ],
)
def test_the_text_of_a_quota_uses_the_largest_unit(quota, text):
    assert str(quota) == text


@pytest.mark.parametrize("span", CALENDAR)
@pytest.mark.parametrize("text", ["1000 per calendar {}", "1_000 requests / CALENDAR  {}"])
def test_a_quota_for_a_span_of_the_calendar(text, span):
    quota = Quota.parse(text.format(span))
    assert quota == Quota(1000, calendar=span) == Quota(1000, CALENDAR[span], calendar=span)
    assert str(quota) == f"1000 per calendar {span}"
    assert Quota.parse(str(quota)) == quota
    assert quota != Quota(1000, CALENDAR[span])


def test_a_span_of_the_calendar_is_one_that_there_is():
    with pytest.raises(ValueError, match="calendar is one of hour, day, week, month, year, not"):
        Quota(1, calendar="fortnight")
    with pytest.raises(ValueError, match="a period or a span of the calendar, not both"):
        Quota(1, 60, calendar="month")
    with pytest.raises(ValueError, match="not 0 s"):
        Quota(1)


def test_the_name_of_a_quota_fits_into_a_field():
    assert Quota(1, 60, name="per-minute").name == "per-minute"
    for name in ("a b", "é", 'x"', "x" * 65, None):
        with pytest.raises(ValueError, match="name is up to 64 letters"):
            Quota(1, 60, name=name)


def test_a_quota_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Quota(1, 1).limit = 2
