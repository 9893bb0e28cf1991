"""The rule of injected faults, as a table."""

from __future__ import annotations

from typing import Any

import pytest

from wsgigate.middleware.faults import Fault, FaultRules

BOTH = FaultRules(delay=2, delay_percent=10, abort_status=500, abort_percent=5)


@pytest.mark.parametrize(
    ("rules", "first", "second", "fault"),
    [
        (BOTH, 0.0999, 0.05, Fault(2, None)),
        (BOTH, 0.1, 0.0499, Fault(0, 500)),
        (BOTH, 0.0, 0.0, Fault(2, 500)),
        (BOTH, 0.1, 0.05, Fault()),
        (FaultRules(abort_percent=100), 0.999, 0.999, Fault(0, 503)),
        (FaultRules(delay=1, delay_percent=100), 0.999, 0.0, Fault(1, None)),
    ],
)
def test_two_random_numbers_choose_the_fault(
    rules: FaultRules, first: float, second: float, fault: Fault
) -> None:
    assert rules.draw(first, second) == fault


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "abort_percent: no fault would be injected"),
        ({"delay": 61, "delay_percent": 1}, "delay: 0 to 60 seconds"),
        ({"delay": 1}, "delay_percent: requires delay"),
        ({"delay_percent": 1}, "delay_percent: requires delay"),
        ({"delay": 1, "delay_percent": 101}, "delay_percent: a number from 0 to 100"),
        ({"abort_percent": -1}, "abort_percent: a number from 0 to 100"),
        ({"abort_percent": 1, "abort_status": 200}, "abort_status: a status from 400 to 599"),
    ],
)
def test_invalid_rules_raise(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        FaultRules(**settings)
