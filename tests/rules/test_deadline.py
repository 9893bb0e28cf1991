"""Deadlines of requests, which a client can only shorten."""

from __future__ import annotations

import pytest

from wsgigate.rules.retry import Deadline, deadline, read_timeout, try_time, write_timeout


@pytest.mark.parametrize(
    ("timeout", "asked", "made"),
    [
        (30, None, Deadline(130.0, False)),
        (30, 5.0, Deadline(105.0, True)),
        (30, 30.0, Deadline(130.0, False)),
        (30, 31.0, Deadline(130.0, False)),
        (30, 1e6, Deadline(130.0, False)),
    ],
)
def test_a_client_can_only_shorten_the_deadline(
    timeout: float, asked: float | None, made: Deadline
) -> None:
    assert deadline(100.0, timeout, asked) == made


@pytest.mark.parametrize(
    ("now", "per_try", "seconds"),
    [(100, None, 30), (100, 5, 5), (127, 5, 3), (130, 5, 0), (131, None, 0), (129, None, 1)],
)
def test_an_attempt_has_what_is_left_or_less(
    now: float, per_try: float | None, seconds: float
) -> None:
    assert try_time(deadline(100.0, 30), now, per_try) == seconds


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2", 2.0),
        ("2s", 2.0),
        (" 0.25\t", 0.25),
        ("250ms", 0.25),
        ("999999", 999999.0),
        ("0", None),
        ("0ms", None),
        ("", None),
        ("-1", None),
        ("1e9", None),
        ("inf", None),
        ("nan", None),
        ("1, 2", None),
        ("1.", None),
        ("2m", None),
        ("١", None),
        ("9" * 100, None),
    ],
)
def test_the_timeout_field_of_the_client_is_read(text: str, seconds: float | None) -> None:
    assert read_timeout(text) == seconds


@pytest.mark.parametrize(
    ("now", "text"), [(100.0, "30.000"), (100.0004, "29.999"), (129.9995, "0.001"), (140, "0.001")]
)
def test_the_remaining_time_is_written_as_a_field(now: float, text: str) -> None:
    written = write_timeout(deadline(100.0, 30), now)
    assert written == text
    assert read_timeout(written)
