"""The moments that HTTP fields tell, wherever the gateway is."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsgigate.rules.dates import unix_time

MOMENT = 784111777.0


@pytest.fixture(autouse=True)
def elsewhere() -> Iterator[None]:
    """Be five hours behind UTC, and have the system know."""
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
def test_a_date_means_the_same_everywhere(text: str, moment: float | None) -> None:
    assert unix_time(text) == moment


@given(st.text(max_size=40))
def test_no_text_raises(text: str) -> None:
    found = unix_time(text)
    assert found is None or isinstance(found, float)
