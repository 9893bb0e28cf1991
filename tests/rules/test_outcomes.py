"""The outcome of a call by its status."""

from __future__ import annotations

import pytest

from wsgigate.rules.circuit import Outcome, check_failures, outcome_of


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (101, Outcome.OK),
        (200, Outcome.OK),
        (304, Outcome.OK),
        (400, Outcome.REFUSED),
        (401, Outcome.REFUSED),
        (404, Outcome.REFUSED),
        (408, Outcome.IGNORED),
        (429, Outcome.IGNORED),
        (499, Outcome.IGNORED),
        (500, Outcome.FAILED),
        (501, Outcome.OK),
        (502, Outcome.FAILED),
        (503, Outcome.FAILED),
        (504, Outcome.FAILED),
        (505, Outcome.OK),
    ],
)
def test_each_status_has_its_outcome(status: int, outcome: Outcome) -> None:
    assert outcome_of(status) is outcome


def test_the_statuses_that_count_as_failures_are_configurable() -> None:
    assert outcome_of(501, check_failures([501])) is Outcome.FAILED
    assert outcome_of(500, check_failures([501])) is Outcome.OK
    assert outcome_of(503, check_failures([])) is Outcome.OK


@pytest.mark.parametrize("status", [200, 404, 429, 600, "500", 500.0, True])
def test_a_status_that_cannot_be_a_failure_raises(status: object) -> None:
    with pytest.raises(ValueError, match="statuses are 500 to 599: others are no failures"):
        check_failures([status])  # type: ignore[list-item]
