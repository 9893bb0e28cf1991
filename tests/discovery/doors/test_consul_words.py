"""Consul's documents and entries: what becomes of the one in the other."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from wsgigate.discovery.doors.consul_answers import tell_checks, tell_service
from wsgigate.discovery.doors.consul_words import (
    check_id,
    read_check,
    read_duration,
    read_service,
    with_check,
)
from wsgigate.rules.registry import Invalid, LeaseRules, Registered, Status

RULES = LeaseRules()

SERVICE: dict[str, Any] = {
    "Name": "users",
    "ID": "users-1",
    "Address": "10.0.0.5",
    "Port": 8080,
    "Tags": ["v1", "primary"],
    "Meta": {"version": "1.2", "team": "blue"},
    "Weights": {"Passing": 5, "Warning": 1},
    "Check": {"TTL": "45s", "Status": "passing"},
}

ENTRY = Registered(
    "users",
    "users-1",
    "10.0.0.5",
    8080,
    weight=5,
    version="1.2",
    tags=("v1", "primary"),
    metadata={"version": "1.2", "team": "blue"},
    lease=45.0,
)


def service(**members: object) -> dict[str, Any]:
    """Return a registration with some members changed, or left out where they are ``...``."""
    merged = {**SERVICE, **members}
    return {name: value for name, value in merged.items() if value is not ...}


def lower(document: object) -> object:
    """Return *document* with its names as many clients write them."""
    if isinstance(document, dict):
        return {name.lower(): lower(value) for name, value in document.items()}
    return document


@pytest.mark.parametrize("document", [service(), lower(service())])
def test_a_service_is_an_entry(document: dict[str, Any]) -> None:
    assert read_service(document, "10.0.0.9") == ENTRY


@pytest.mark.parametrize(
    ("members", "changes"),
    [
        ({"ID": ...}, {"instance_id": "users"}),
        ({"Address": ...}, {"host": "10.0.0.9"}),
        ({"Address": ""}, {"host": "10.0.0.9"}),
        ({"Tags": ...}, {"tags": ()}),
        ({"Tags": None}, {"tags": ()}),
        ({"Weights": ...}, {"weight": 1}),
        ({"Meta": ...}, {"metadata": {}, "version": None}),
        ({"Meta": {"zone": "a"}}, {"metadata": {"zone": "a"}, "version": None, "zone": "a"}),
        (
            {"Meta": {"scheme": "https"}},
            {"metadata": {"scheme": "https"}, "version": None, "scheme": "https"},
        ),
        # without a check it has the registry's own lease
        ({"Check": ...}, {"lease": None}),
        ({"Check": {}}, {"lease": None}),
        ({"Check": ..., "Checks": []}, {"lease": None}),
        # a check has not passed before it has
        ({"Check": {"TTL": "45s"}}, {"status": Status.STARTING}),
        ({"Check": {"TTL": "45s", "Status": "critical"}}, {"status": Status.STARTING}),
        ({"Check": {"TTL": "45s", "Status": "warning"}}, {}),
        ({"Check": ..., "Checks": [{"ttl": "45s", "status": "passing"}]}, {}),
        ({"Check": {"TTL": "1h30m", "Status": "passing"}}, {"lease": 3600.0}),
        ({"Check": {"TTL": "5ms", "Status": "passing"}}, {"lease": 0.005}),
        (
            {
                "Check": {
                    "TTL": "45s",
                    "Status": "passing",
                    "DeregisterCriticalServiceAfter": "90m",
                    "HTTP": "",
                    "Interval": "",
                }
            },
            {},
        ),
        (
            {"Check": {"TTL": "45s", "Status": "passing", "CheckID": "alive"}},
            {"metadata": {**ENTRY.metadata, "consul.check": "alive"}},
        ),
        ({"Check": {"TTL": "45s", "Status": "passing", "CheckID": "service:users-1"}}, {}),
        # what does not matter here
        ({"EnableTagOverride": True, "TaggedAddresses": {}, "Connect": None, "Kind": ""}, {}),
    ],
)
def test_what_changes_the_entry(members: dict[str, Any], changes: dict[str, Any]) -> None:
    assert read_service(service(**members), "10.0.0.9") == replace(ENTRY, **changes)


@pytest.mark.parametrize(
    ("members", "field"),
    [
        ({"Name": ...}, "Name"),
        ({"Name": "a/b"}, "Name"),
        ({"name": "users"}, "name"),
        ({"ID": "a b"}, "ID"),
        ({"ID": ["a"]}, "ID"),
        ({"Address": "10.0.0.5:80"}, "Address"),
        ({"Port": ...}, "Port"),
        ({"Port": "8080"}, "Port"),
        ({"Port": 70000}, "Port"),
        ({"Tags": "a"}, "Tags"),
        ({"Tags": [1]}, "Tags"),
        ({"Meta": []}, "Meta"),
        ({"Meta": {"version": " "}}, "Meta.version"),
        ({"Meta": {"scheme": "ftp"}}, "Meta.scheme"),
        ({"Weights": []}, "Weights"),
        ({"Weights": {"Passing": -1}}, "Weights.Passing"),
        ({"Weights": {"Passing": 1, "passing": 1}}, "Weights.passing"),
        ({"Kind": "connect-proxy"}, "kind"),
        ({"Connect": {"SidecarService": {}}}, "connect"),
        ({"SocketPath": "/run/x"}, "socketpath"),
        ({"Check": "ttl"}, "Check"),
        ({"Check": {"HTTP": "http://10.0.0.5/", "Interval": "10s"}}, "Check"),
        ({"Check": {"TCP": "10.0.0.5:80", "Interval": "10s"}}, "Check"),
        ({"Check": {"Args": ["true"], "Interval": "10s"}}, "Check"),
        ({"Check": {"Status": "passing"}}, "TTL"),
        ({"Check": {"TTL": 15}}, "TTL"),
        ({"Check": {"TTL": "15"}}, "TTL"),
        ({"Check": {"TTL": "45s", "Status": "fine"}}, "Status"),
        ({"Check": {"TTL": "45s", "Status": ["passing"]}}, "Status"),
        ({"Check": {"TTL": "45s", "CheckID": "x" * 257}}, "CheckID"),
        ({"Check": {"TTL": "45s", "CheckID": "a\n"}}, "CheckID"),
        ({"Check": {"TTL": "45s", "ttl": "16s"}}, "Check.ttl"),
        ({"Checks": {"TTL": "45s"}}, "Checks"),
        ({"Checks": [{"TTL": "45s"}]}, "Checks"),
        ({"Check": ..., "Checks": [{"TTL": "45s"}, {"TTL": "45s"}]}, "Checks"),
    ],
)
def test_what_is_wrong_is_named(members: dict[str, Any], field: str) -> None:
    with pytest.raises(Invalid) as caught:
        read_service(service(**members), "10.0.0.9")
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("10s", 10),
        ("1m30s", 90),
        ("1.5h", 5400),
        ("250ms", 0.25),
        ("1h2m3s4ms", 3723.004),
        (".5s", 0.5),
        ("1.s", 1),
        ("5us", 5e-6),
        ("5µs", 5e-6),
        ("5ns", 5e-9),
    ],
)
def test_durations_are_as_in_go(text: str, seconds: float) -> None:
    assert read_duration(text, "TTL") == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", "10", "s", ".s", "-10s", "10 s", "10d", "10s ", "1e3s", "١s", "9" * 10 + "s", None]
)
def test_what_is_no_duration_is_refused(text: object) -> None:
    with pytest.raises(Invalid):
        read_duration(text, "TTL")


def test_a_check_can_be_given_later_and_under_another_name() -> None:
    entry = replace(ENTRY, lease=None)
    named, ttl, status = read_check({"id": "alive", "ttl": "20s"})
    checked = with_check(entry, named, ttl, status)
    assert (checked.lease, checked.status, check_id(checked)) == (20.0, Status.STARTING, "alive")
    again = with_check(checked, "", 5.0, Status.UP)
    assert (again.lease, check_id(again)) == (5.0, "service:users-1")
    assert again.metadata == ENTRY.metadata


def test_an_entry_is_told_as_a_service() -> None:
    assert tell_service(ENTRY, 7) == {
        "ID": "users-1",
        "Service": "users",
        "Tags": ["v1", "primary"],
        "Meta": {"version": "1.2", "team": "blue"},
        "Port": 8080,
        "Address": "10.0.0.5",
        "TaggedAddresses": {},
        "Weights": {"Passing": 5, "Warning": 1},
        "EnableTagOverride": False,
        "CreateIndex": 7,
        "ModifyIndex": 7,
    }


def test_entries_of_other_doors_are_told_too() -> None:
    entry = replace(
        ENTRY, metadata={"list": [1], "consul.check": "alive"}, zone="a", scheme="https"
    )
    told = tell_service(entry, 1)
    assert told["Meta"] == {"list": "[1]", "zone": "a", "version": "1.2", "scheme": "https"}


@pytest.mark.parametrize(
    "entry",
    [ENTRY, replace(ENTRY, scheme="https", metadata={**ENTRY.metadata, "scheme": "https"})],
)
def test_what_is_told_can_be_registered_again(entry: Registered) -> None:
    told = tell_service(entry, 7)
    told["Name"] = told.pop("Service")
    told["Check"] = {"TTL": "45s", "Status": "passing"}
    assert read_service(told, "") == entry


@pytest.mark.parametrize(
    ("status", "silence", "states"),
    [
        (Status.UP, 0.0, ["passing"]),
        (Status.UP, 45.0, ["passing"]),
        (Status.UP, 45.5, ["critical"]),
        (Status.STARTING, 0.0, ["critical"]),
        (Status.DOWN, 0.0, ["critical"]),
        (Status.DRAINING, 0.0, ["passing", "critical"]),
        (Status.DRAINING, 46.0, ["critical", "critical"]),
    ],
)
def test_a_check_is_the_lease(status: Status, silence: float, states: list[str]) -> None:
    entry = replace(ENTRY, status=status, last_heartbeat=100.0)
    checks = tell_checks(entry, 100.0 + silence, RULES, 7)
    assert [check["Status"] for check in checks] == states
    assert [check["CheckID"] for check in checks] == [
        "service:users-1",
        "_service_maintenance:users-1",
    ][: len(states)]
    for check in checks:
        assert (check["ServiceID"], check["ServiceName"]) == ("users-1", "users")
        assert check["ServiceTags"] == ["v1", "primary"]
