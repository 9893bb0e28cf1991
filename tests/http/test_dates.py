"""HTTP dates and ``Retry-After`` fields, read in a time zone other than UTC."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsgigate.http.fields import read_retry_after, unix_time

MOMENT = 784111777.0


@pytest.fixture(autouse=True)
def elsewhere() -> Iterator[None]:
    """Set the time zone of the process to five hours behind UTC."""
    before = os.environ.get("TZ")
    os.environ["TZ"] = "EST+5"
    time.tzset()
    yield
    if before is None:
        del os.environ["TZ"]
    else:
        os.environ["TZ"] = before
    time.tzset()


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("Sun, 06 Nov 1994 08:49:37 GMT", MOMENT),
        ("Sunday, 06-Nov-94 08:49:37 GMT", MOMENT),
        ("Sun Nov  6 08:49:37 1994", MOMENT),
        ("Sun, 06 Nov 1994 08:49:37", MOMENT),
        ("Sun, 06 Nov 1994 08:49:37 -0000", MOMENT),
        ("Sun, 06 Nov 1994 09:49:37 +0100", MOMENT),
        ("", None),
        ("0", None),
        ("tomorrow", None),
        ("Sun, 06 Nov 99999 08:49:37 GMT", None),
        ("Sun, 31 Feb 1994 08:49:37 GMT", None),
    ],
)
def test_a_date_without_a_time_zone_is_utc(text: str, moment: float | None) -> None:
    assert unix_time(text) == moment


@given(st.text(max_size=40))
def test_any_text_as_a_date_returns_a_number_or_none(text: str) -> None:
    found = unix_time(text)
    assert found is None or isinstance(found, float)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0.0),
        ("120", 120.0),
        (" 7\t", 7.0),
        ("9" * 400, math.inf),
        ("Fri, 31 Dec 1999 23:59:59 GMT", 0.0),
        ("Tue, 14 Nov 2023 22:13:50 GMT", 30.0),
        ("Tuesday, 14-Nov-23 22:13:50 GMT", 30.0),
        ("Tue Nov 14 22:13:50 2023", 30.0),
        ("", None),
        ("-1", None),
        ("1.5", None),
        ("soon", None),
        ("١", None),
        ("Fri, 99 Dec 1999 23:59:59 GMT", None),
    ],
)
def test_retry_after_is_read(text: str, seconds: float | None) -> None:
    assert read_retry_after(text, 1_700_000_000.0) == seconds


@given(st.text(max_size=40))
def test_any_text_as_a_retry_after_returns_a_number_or_none(text: str) -> None:
    seconds = read_retry_after(text, 1_700_000_000.0)
    assert seconds is None or seconds >= 0
