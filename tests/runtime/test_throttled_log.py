"""Bounds on repeated messages, changes of state and lasting failures in the log."""

from __future__ import annotations

import logging

import pytest

from tests.support.objects import texts_kept
from wsgigate.runtime.logs import ChangeLog, FailureLog, one_line
from wsgigate.testing import FakeClock

LOG = logging.getLogger("wsgigate.of_a_test")


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_a_subject_that_flaps_is_bounded_and_its_last_change_is_logged_in_the_end(
    clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    changes = ChangeLog(LOG, burst=3, period=60, clock=clock)
    for number in range(9):
        changes.log(logging.INFO, "a", "a is %d", number)
    changes.log(logging.INFO, "b", "b is %s", "well")
    assert told(caplog) == ["a is 0", "a is 1", "a is 2", "b is well"]
    changes.flush()
    assert len(told(caplog)) == 4
    clock.advance(20)
    changes.flush()
    changes.flush()
    assert told(caplog)[4:] == ["a is 8 (5 earlier changes were not logged)"]
    clock.advance(600)
    changes.log(logging.INFO, "a", "a is %d", 9)
    assert told(caplog)[5:] == ["a is 9"]


def test_the_next_line_counts_the_suppressed_ones(
    clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    changes = ChangeLog(LOG, burst=1, period=10, clock=clock)
    for number in range(4):
        changes.log(logging.WARNING, "a", "a is %d", number)
    clock.advance(10)
    changes.log(logging.WARNING, "a", "a is %d", 4)
    assert told(caplog) == ["a is 0", "a is 4 (3 earlier changes were not logged)"]


def test_subjects_that_come_and_go_are_forgotten(clock: FakeClock) -> None:
    changes = ChangeLog(LOG, max_subjects=10, clock=clock)
    logging.getLogger("wsgigate.of_a_test").setLevel(logging.CRITICAL)
    for number in range(100):
        changes.log(logging.CRITICAL, f"subject {number}", "it is")
    remembered = [text for text in texts_kept(changes) if text.startswith("subject")]
    assert len(remembered) == 10
    LOG.setLevel(logging.NOTSET)


def test_a_failure_is_logged_at_its_beginning_each_minute_and_at_its_end(
    clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    trouble = FailureLog(LOG, "%s answers again after %.0f s", "it", clock=clock)
    trouble.ended()
    for _ in range(7):
        trouble.failed("it fails: %s", "no")
        clock.advance(10)
    trouble.ended()
    trouble.ended()
    assert told(caplog) == ["it fails: no", "it fails: no", "it answers again after 70 s"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, as it is", "plain, as it is"),
        ("a\nb\r[INFO] c\x1b[2J\u2028", "a\\nb\\r[INFO] c\\x1b[2J\\u2028"),
        ("naïve", "naïve"),
        ("x" * 1000, "x" * 297 + "..."),
    ],
)
def test_one_line_escapes_line_breaks_and_control_characters(text: str, shown: str) -> None:
    assert one_line(text) == shown
