"""The status documents of health, member by member."""

from __future__ import annotations

from typing import Any

import pytest

from wsgigate.discovery.health_results import (
    instance_status,
    not_checked,
    not_monitored,
    service_status,
)
from wsgigate.rules.health import CheckResult, Health
from wsgigate.units import iso_time

OK = CheckResult(True, 200, "1.53ms")
REFUSED = CheckResult(False, None, error="Connection refused")
BROKEN = CheckResult(False, 503, "2.00ms", "Status 503")

NEW_YEAR = 1_735_689_600.0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (NEW_YEAR, "2025-01-01T00:00:00.000Z"),
        (NEW_YEAR + 0.0079, "2025-01-01T00:00:00.007Z"),
        (NEW_YEAR + 0.9999, "2025-01-01T00:00:00.999Z"),
    ],
)
def test_a_moment_is_iso_8601_in_utc_with_milliseconds(seconds: float, text: str) -> None:
    assert iso_time(seconds) == text


@pytest.mark.parametrize(
    ("health", "told"),
    [
        (None, {"healthy": False, "error": "Not checked yet"}),
        (
            Health(True, 0.0, 1, NEW_YEAR, OK),
            {
                "healthy": True,
                "lastCheck": "2025-01-01T00:00:00.000Z",
                "responseTime": "1.53ms",
                "status": 200,
            },
        ),
        (
            Health(False, 0.0, 1, NEW_YEAR, REFUSED),
            {
                "healthy": False,
                "lastCheck": "2025-01-01T00:00:00.000Z",
                "error": "Connection refused",
                "status": "N/A",
            },
        ),
        (
            Health(False, 0.0, 1, NEW_YEAR, BROKEN),
            {
                "healthy": False,
                "lastCheck": "2025-01-01T00:00:00.000Z",
                "error": "Status 503",
                "status": 503,
            },
        ),
        (
            Health(True, 0.0, 2, NEW_YEAR, BROKEN),
            {
                "healthy": True,
                "lastCheck": "2025-01-01T00:00:00.000Z",
                "responseTime": "2.00ms",
                "error": "Status 503",
                "status": 503,
            },
        ),
        (
            Health(False, 0.0, 1, NEW_YEAR, OK),
            {
                "healthy": False,
                "lastCheck": "2025-01-01T00:00:00.000Z",
                "error": "Recovering",
                "status": 200,
            },
        ),
    ],
)
def test_an_instance_has_its_verdict_and_its_last_check(
    health: Health | None, told: dict[str, Any]
) -> None:
    assert instance_status(health) == told
    assert list(instance_status(health)) == list(told)


def test_a_service_of_one_instance_has_the_members_of_that_instance() -> None:
    health = Health(True, 0.0, 1, NEW_YEAR, OK)
    assert service_status({"http://a": health}) == instance_status(health)
    assert service_status({"http://a": None}) == not_checked()


def test_a_service_without_instances_is_not_healthy() -> None:
    assert service_status({}) == {"healthy": False, "error": "No instances"}


def test_the_status_of_several_instances_is_that_of_a_healthy_one() -> None:
    well = Health(True, 0.0, 1, NEW_YEAR, OK)
    down = Health(False, 0.0, 3, NEW_YEAR + 5, REFUSED)
    assert service_status({"http://a": down, "http://b": well, "http://c": None}) == {
        "healthy": True,
        "lastCheck": "2025-01-01T00:00:05.000Z",
        "responseTime": "1.53ms",
        "status": 200,
        "instances": {
            "http://a": instance_status(down),
            "http://b": instance_status(well),
            "http://c": not_checked(),
        },
    }


def test_the_status_of_unhealthy_instances_is_that_of_the_last_one_checked() -> None:
    first = Health(False, 0.0, 1, NEW_YEAR, BROKEN)
    later = Health(False, 0.0, 1, NEW_YEAR + 1, REFUSED)
    told = service_status({"http://a": later, "http://b": first})
    assert (told["healthy"], told["error"], told["lastCheck"]) == (
        False,
        "Connection refused",
        "2025-01-01T00:00:01.000Z",
    )


def test_a_service_without_any_checked_instance_is_not_checked_yet() -> None:
    told = service_status({"http://a": None, "http://b": None})
    assert told == {
        **not_checked(),
        "instances": {"http://a": not_checked(), "http://b": not_checked()},
    }


def test_a_service_without_a_check_is_reported_healthy_with_the_reason() -> None:
    assert not_monitored() == {"healthy": True, "status": "No health check"}
