"""Consul's documents, read as entries of the registry and written from them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from wsgigate.registry.compat.consul import check_documents, service_document
from wsgigate.registry.compat.consul_format import (
    check_id,
    read_check,
    read_duration,
    read_service,
    with_any_check,
    with_check,
    without_check,
)
from wsgigate.rules.registry import Invalid, LeaseRules, Registered, Status
from wsgigate.rules.registry_checks import RegisteredCheck

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
def test_a_service_is_read_as_an_entry(document: dict[str, Any]) -> None:
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
def test_each_member_is_read_into_the_entry(
    members: dict[str, Any], changes: dict[str, Any]
) -> None:
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
        ({"Check": {"HTTP": "http://10.0.0.5/"}}, "Interval"),
        ({"Check": {"HTTP": "10.0.0.5/", "Interval": "10s"}}, "HTTP"),
        ({"Check": {"HTTP": "ftp://10.0.0.5/", "Interval": "10s"}}, "HTTP"),
        ({"Check": {"HTTP": "http://a:b@10.0.0.5/", "Interval": "10s"}}, "HTTP"),
        ({"Check": {"HTTP": "http://0x7f.1/", "Interval": "10s"}}, "HTTP"),
        ({"Check": {"HTTP": "http://10.0.0.5:0/", "Interval": "10s"}}, "HTTP"),
        ({"Check": {"HTTP": "http://10.0.0.5/a\r\nb", "Interval": "10s"}}, "HTTP"),
        ({"Check": {"HTTP": "http://10.0.0.5/../x", "Interval": "10s"}}, "Check"),
        ({"Check": {"HTTP": 7, "Interval": "10s"}}, "HTTP"),
        ({"Check": {"TCP": "10.0.0.5", "Interval": "10s"}}, "TCP"),
        ({"Check": {"TCP": "10.0.0.5:99999", "Interval": "10s"}}, "TCP"),
        ({"Check": {"TCP": "10.0.0.5:80", "TTL": "10s", "Interval": "10s"}}, "Check"),
        ({"Check": {"TCP": "a:80", "HTTP": "http://a", "Interval": "10s"}}, "Check"),
        ({"Check": {"TCP": "a:80", "TCPUseTLS": True, "Interval": "10s"}}, "Check"),
        ({"Check": {"HTTP": "http://a", "Body": "x", "Interval": "10s"}}, "Check"),
        ({"Check": {"HTTP": "http://a", "Interval": "often"}}, "Interval"),
        ({"Check": {"HTTP": "http://a", "Interval": "1s", "Timeout": "x"}}, "Timeout"),
        ({"Check": {"HTTP": "http://a", "Interval": "1s", "Method": "TRACE"}}, "Check"),
        ({"Check": {"HTTP": "http://a", "Interval": "1s", "Header": "a"}}, "Header"),
        ({"Check": {"HTTP": "http://a", "Interval": "1s", "Header": {"A": [1]}}}, "Header"),
        (
            {"Check": {"HTTP": "http://a", "Interval": "1s", "Header": {"A": ["a\r\nB: b"]}}},
            "Check",
        ),
        ({"Check": {"HTTP": "http://a", "Interval": "1s", "Status": "fine"}}, "Status"),
        (
            {"Check": {"HTTP": "http://a", "Interval": "1s", "FailuresBeforeCritical": -1}},
            "FailuresBeforeCritical",
        ),
        ({"Check": {"GRPC": "10.0.0.5:80", "Interval": "10s"}}, "Check"),
        (
            {
                "Check": ...,
                "Checks": [{"TCP": "a:1", "Interval": "9s", "CheckID": "x"} for _ in range(2)],
            },
            "CheckID",
        ),
        (
            {"Check": ..., "Checks": [{"TCP": "a:1", "Interval": "9s"} for _ in range(9)]},
            "Checks",
        ),
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
def test_an_invalid_member_is_rejected_by_name(members: dict[str, Any], field: str) -> None:
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
def test_a_malformed_duration_is_rejected(text: object) -> None:
    with pytest.raises(Invalid):
        read_duration(text, "TTL")


def test_a_check_can_be_registered_later_under_another_name() -> None:
    entry = replace(ENTRY, lease=None)
    named, ttl, status = read_check({"id": "alive", "ttl": "20s"})
    checked = with_check(entry, named, ttl, status)
    assert with_any_check(entry, {"id": "alive", "ttl": "20s"}) == checked
    assert (checked.lease, checked.status, check_id(checked)) == (20.0, Status.STARTING, "alive")
    again = with_check(checked, "", 5.0, Status.UP)
    assert (again.lease, check_id(again)) == (5.0, "service:users-1")
    assert again.metadata == ENTRY.metadata


def test_an_entry_is_written_as_a_service() -> None:
    assert service_document(ENTRY, 7) == {
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


def test_entries_of_other_apis_are_written_as_services() -> None:
    entry = replace(
        ENTRY, metadata={"list": [1], "consul.check": "alive"}, zone="a", scheme="https"
    )
    told = service_document(entry, 1)
    assert told["Meta"] == {"list": "[1]", "zone": "a", "version": "1.2", "scheme": "https"}


@pytest.mark.parametrize(
    "entry",
    [ENTRY, replace(ENTRY, scheme="https", metadata={**ENTRY.metadata, "scheme": "https"})],
)
def test_a_written_service_can_be_registered_again(entry: Registered) -> None:
    told = service_document(entry, 7)
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
def test_a_ttl_check_sets_the_lease(status: Status, silence: float, states: list[str]) -> None:
    entry = replace(ENTRY, status=status, last_heartbeat=100.0)
    checks = check_documents(entry, 100.0 + silence, RULES, 7)
    assert [check["Status"] for check in checks] == states
    assert [check["CheckID"] for check in checks] == [
        "service:users-1",
        "_service_maintenance:users-1",
    ][: len(states)]
    for check in checks:
        assert (check["ServiceID"], check["ServiceName"]) == ("users-1", "users")
        assert check["ServiceTags"] == ["v1", "primary"]


CHECK = RegisteredCheck(
    "service:users-1",
    "Service 'users' check",
    "http://10.0.0.5:8080",
    "/actuator/health",
    10.0,
)


@pytest.mark.parametrize(
    ("document", "changes"),
    [
        # what Spring Cloud Consul registers
        (
            {
                "HTTP": "http://10.0.0.5:8080/actuator/health",
                "Interval": "10s",
                "Header": {},
                "TTL": "",
                "Timeout": "",
            },
            {},
        ),
        ({"http": "http://10.0.0.5:8080/actuator/health", "interval": "10s"}, {}),
        (
            {"HTTP": "https://users.internal/up?deep=1", "Interval": "1m", "Timeout": "3s"},
            {
                "url": "https://users.internal:443",
                "path": "/up?deep=1",
                "interval": 60.0,
                "timeout": 3.0,
            },
        ),
        (
            {"HTTP": "http://10.0.0.5", "Interval": "10s"},
            {"url": "http://10.0.0.5:80", "path": "/"},
        ),
        (
            {"HTTP": "http://[fd00::1]:81/", "Interval": "10s"},
            {"url": "http://[fd00::1]:81", "path": "/"},
        ),
        # the agent is beside the instance, the registry is not
        (
            {"HTTP": "http://localhost:9000/", "Interval": "10s"},
            {"url": "http://10.0.0.5:9000", "path": "/"},
        ),
        (
            {"TCP": "127.0.0.1:9000", "Interval": "10s"},
            {"url": "http://10.0.0.5:9000", "path": None},
        ),
        (
            {"TCP": "10.0.0.6:9000", "Interval": "10s"},
            {"url": "http://10.0.0.6:9000", "path": None},
        ),
        (
            {"TCP": "[fd00::1]:9000", "Interval": "10s"},
            {"url": "http://[fd00::1]:9000", "path": None},
        ),
        # not more often than every second
        (
            {"TCP": "10.0.0.6:1", "Interval": "10ms"},
            {"url": "http://10.0.0.6:1", "path": None, "interval": 1.0},
        ),
        (
            {
                "HTTP": "http://10.0.0.5:8080/actuator/health",
                "Interval": "10s",
                "CheckID": "alive",
                "Name": "Alive",
                "Method": "post",
                "Header": {"Host": ["users.example"], "X-A": ["1", "2"]},
                "TLSSkipVerify": True,
                "SuccessBeforePassing": 2,
                "FailuresBeforeCritical": 3,
                "DeregisterCriticalServiceAfter": "90m",
                "Status": "passing",
            },
            {
                "check_id": "alive",
                "name": "Alive",
                "method": "POST",
                "host": "users.example",
                "fields": (("X-A", "1, 2"),),
                "verify": False,
                "good_after": 2,
                "bad_after": 3,
                "remove_after": 5400.0,
                "status": "passing",
            },
        ),
        (
            {
                "HTTP": "http://10.0.0.5:8080/actuator/health",
                "Interval": "10s",
                "DeregisterCriticalServiceAfter": "1s",
            },
            {"remove_after": 60.0},
        ),
    ],
)
def test_a_check_is_carried_out_as_it_was_registered(
    document: dict[str, Any], changes: dict[str, Any]
) -> None:
    entry = read_service(service(Check=document), "10.0.0.9")
    assert entry.checks == (replace(CHECK, **changes),)
    assert (entry.status, entry.lease, entry.reports) == (Status.UP, None, False)
    assert check_id(entry) is None
    assert Registered.from_bytes(entry.to_bytes()) == entry


def test_several_checks_are_numbered_and_one_may_have_a_ttl() -> None:
    checks = [
        {"TTL": "45s", "Status": "passing"},
        {"TCP": "10.0.0.5:8080", "Interval": "5s"},
        {"HTTP": "http://10.0.0.5:8080/", "Interval": "5s", "CheckID": "web"},
    ]
    entry = read_service(service(Check=..., Checks=checks), "10.0.0.9")
    assert [check.check_id for check in entry.checks] == ["service:users-1:2", "web"]
    assert (check_id(entry), entry.lease, entry.reports) == ("service:users-1:1", 45.0, True)
    with pytest.raises(Invalid, match="at most one with a TTL"):
        read_service(service(Check=..., Checks=checks[:1] * 2), "10.0.0.9")


def test_a_check_can_be_added_and_removed_later() -> None:
    tcp = {"id": "port", "tcp": "10.0.0.5:80", "interval": "5s"}
    entry = with_any_check(ENTRY, tcp)
    assert (entry.lease, [check.check_id for check in entry.checks]) == (45.0, ["port"])
    entry = with_any_check(entry, {**tcp, "interval": "9s"})
    assert [check.interval for check in entry.checks] == [9.0]
    assert without_check(entry, "port") == ENTRY
    for number in range(7):
        entry = with_any_check(entry, {**tcp, "id": f"port-{number}"})
    with pytest.raises(Invalid, match="at most 8"):
        with_any_check(entry, {**tcp, "id": "port-8"})


def test_all_checks_are_written_without_their_fields() -> None:
    document = {
        "HTTP": "http://10.0.0.5:8080/",
        "Interval": "10s",
        "Header": {"Authorization": ["Bearer secret"]},
    }
    entry = read_service(service(Check=document), "10.0.0.9").heard(100.0)
    assert "secret" not in repr(entry)
    [told] = check_documents(entry, 100.0, RULES, 7)
    assert (told["CheckID"], told["Status"], told["Type"]) == (
        "service:users-1",
        "critical",
        "http",
    )
    assert (told["Interval"], told["Timeout"], told["Output"]) == ("10s", "10s", "")
    assert "secret" not in str(
        [check_documents(entry, 100.0, RULES, 7), service_document(entry, 7)]
    )
