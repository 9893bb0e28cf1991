"""Eureka's documents, read as entries of the registry and written from them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from wsgigate.registry.compat.eureka_format import (
    Action,
    applications,
    eureka_instance,
    hash_code,
    lasting_status,
    read_instance,
    read_xml,
    vips,
    write_xml,
)
from wsgigate.rules.registry import Invalid, LeaseRules, Registered, Status

RULES = LeaseRules()

INSTANCE: dict[str, Any] = {
    "instanceId": "10.0.0.5:users:8080",
    "hostName": "five.example.org",
    "app": "USERS",
    "ipAddr": "10.0.0.5",
    "status": "UP",
    "port": {"$": 8080, "@enabled": "true"},
    "securePort": {"$": 8443, "@enabled": "false"},
    "leaseInfo": {"renewalIntervalInSecs": 20, "durationInSecs": 60},
    "metadata": {"zone": "a", "version": "1.2", "team": "blue"},
    "healthCheckUrl": "http://five.example.org:8080/health?full=1",
    "vipAddress": "users",
}

ENTRY = Registered(
    "users",
    "10.0.0.5:users:8080",
    "10.0.0.5",
    8080,
    version="1.2",
    zone="a",
    metadata={"zone": "a", "version": "1.2", "team": "blue"},
    health_check_path="/health",
    lease=60.0,
)


def instance(**members: object) -> dict[str, Any]:
    """Return a registration with some members changed, or left out where they are ``...``."""
    merged = {**INSTANCE, **members}
    return {"instance": {name: value for name, value in merged.items() if value is not ...}}


def test_an_instance_is_read_as_an_entry() -> None:
    assert read_instance("USERS", instance()) == ENTRY
    assert read_instance("users", instance(app="Users")) == ENTRY


def test_xml_and_json_are_read_as_the_same_entry() -> None:
    name, document = read_xml(write_xml("instance", INSTANCE))
    assert read_instance("USERS", {name: document}) == ENTRY


@pytest.mark.parametrize(
    ("members", "changes"),
    [
        # who has no id is known by its host's name
        ({"instanceId": ...}, {"instance_id": "five.example.org"}),
        # the address is told to be connected to; a name only where there is no address
        ({"ipAddr": ""}, {"host": "five.example.org"}),
        ({"ipAddr": "five"}, {"host": "five"}),
        ({"ipAddr": "fd00::5"}, {"host": "fd00::5"}),
        # served TLS, what the certificate has
        (
            {"port": {"$": 8080, "@enabled": "false"}, "securePort": {"$": 8443, "@enabled": True}},
            {
                "host": "five.example.org",
                "port": 8443,
                "scheme": "https",
                "health_check_path": None,
            },
        ),
        (
            {
                "port": ...,
                "securePort": {"$": 443, "@enabled": "true"},
                "hostName": ...,
                "secureHealthCheckUrl": "https://10.0.0.5/up",
            },
            {"port": 443, "scheme": "https", "health_check_path": "/up"},
        ),
        # of both the plain one
        ({"securePort": {"$": 8443, "@enabled": "true"}}, {}),
        # ports in all the ways they are written
        ({"port": {"$": "8080", "@enabled": "true"}}, {}),
        ({"port": {"$": 8080}}, {}),
        ({"port": 8080}, {}),
        # statuses
        ({"status": "STARTING"}, {"status": Status.STARTING}),
        ({"status": "DOWN"}, {"status": Status.DOWN}),
        ({"status": "OUT_OF_SERVICE"}, {"status": Status.DRAINING}),
        ({"status": "UNKNOWN"}, {"status": Status.STARTING}),
        ({"status": ...}, {"status": Status.UP}),
        # leases
        ({"leaseInfo": ...}, {"lease": None}),
        ({"leaseInfo": {"durationInSecs": "90"}}, {"lease": 90.0}),
        ({"leaseInfo": {"durationInSecs": 90.75}}, {"lease": 90.75}),
        ({"leaseInfo": {"durationInSecs": 0}}, {"lease": 0.0}),
        ({"leaseInfo": {"durationInSecs": 10**8}}, {"lease": 3600.0}),
        # metadata, as empty ones are written in XML and by Java
        ({"metadata": ""}, {"metadata": {}, "zone": None, "version": None}),
        ({"metadata": {"@class": "x"}}, {"metadata": {}, "zone": None, "version": None}),
        # other names by which it is found
        (
            {"vipAddress": "users.internal", "secureVipAddress": "users.secure"},
            {
                "metadata": {
                    **ENTRY.metadata,
                    "eureka.vip": "users.internal",
                    "eureka.svip": "users.secure",
                }
            },
        ),
        # a health check elsewhere is none of this port's
        ({"healthCheckUrl": "http://10.0.0.5:8080/up"}, {"health_check_path": "/up"}),
        ({"healthCheckUrl": "http://10.0.0.5:9999/health"}, {"health_check_path": None}),
        ({"healthCheckUrl": "http://elsewhere:8080/health"}, {"health_check_path": None}),
        ({"healthCheckUrl": "https://10.0.0.5:8080/health"}, {"health_check_path": None}),
        ({"healthCheckUrl": "http://[broken:8080/health"}, {"health_check_path": None}),
        ({"healthCheckUrl": ...}, {"health_check_path": None}),
    ],
)
def test_each_member_is_read_into_the_entry(
    members: dict[str, Any], changes: dict[str, Any]
) -> None:
    assert read_instance("USERS", instance(**members)) == replace(ENTRY, **changes)


@pytest.mark.parametrize(
    ("members", "field"),
    [
        ({"app": "ORDERS"}, "app"),
        ({"app": ...}, "app"),
        ({"app": 7}, "app"),
        ({"instanceId": "a/b"}, "instanceId"),
        ({"instanceId": ["a"]}, "instanceId"),
        ({"instanceId": ..., "hostName": ...}, "instanceId"),
        ({"ipAddr": "", "hostName": ""}, "ipAddr"),
        ({"ipAddr": "", "hostName": "a b"}, "hostName"),
        ({"ipAddr": "10.0.0.5/24"}, "ipAddr"),
        ({"ipAddr": "127.1"}, "ipAddr"),
        ({"ipAddr": 5}, "ipAddr"),
        ({"port": ..., "securePort": ...}, "port"),
        ({"port": {"$": 8080, "@enabled": "false"}}, "port"),
        ({"port": {"$": "eighty", "@enabled": "true"}}, "port"),
        ({"port": {"$": "8²", "@enabled": "true"}}, "port"),
        ({"port": {"$": 70000, "@enabled": "true"}}, "port"),
        ({"port": {"$": True, "@enabled": "true"}}, "port"),
        ({"port": {"@enabled": "true"}}, "port"),
        ({"status": "up"}, "status"),
        ({"metadata": ["a"]}, "metadata"),
        ({"metadata": {"a": "\x00"}}, "metadata"),
        ({"metadata": {"a": "x" * 5000}}, "metadata"),
        ({"metadata": {"zone": " "}}, "metadata.zone"),
        ({"leaseInfo": 7}, "leaseInfo"),
        ({"leaseInfo": {"durationInSecs": -1.5}}, "leaseInfo.durationInSecs"),
        ({"leaseInfo": {"durationInSecs": "long"}}, "leaseInfo.durationInSecs"),
        ({"leaseInfo": {"durationInSecs": -1}}, "leaseInfo.durationInSecs"),
        ({"leaseInfo": {"durationInSecs": float("nan")}}, "leaseInfo.durationInSecs"),
        ({"healthCheckUrl": 7}, "healthCheckUrl"),
        ({"healthCheckUrl": "http://10.0.0.5:8080/\x7f"}, "healthCheckUrl"),
        ({"vipAddress": {}}, "vipAddress"),
    ],
)
def test_an_invalid_member_is_rejected_by_name(members: dict[str, Any], field: str) -> None:
    with pytest.raises(Invalid) as caught:
        read_instance("USERS", instance(**members))
    assert caught.value.field == field


@pytest.mark.parametrize("document", [{}, {"instance": None}, {"instance": []}])
def test_a_registration_without_an_instance_is_rejected(document: dict[str, Any]) -> None:
    with pytest.raises(Invalid) as caught:
        read_instance("USERS", document)
    assert caught.value.field == "instance"


@pytest.mark.parametrize(
    ("told", "known", "lasts"),
    [
        (Status.UP, None, Status.UP),
        (Status.UP, Status.UP, Status.UP),
        (Status.UP, Status.STARTING, Status.UP),
        (Status.UP, Status.DOWN, Status.UP),
        (Status.UP, Status.DRAINING, Status.DRAINING),
        (Status.DOWN, Status.DRAINING, Status.DOWN),
        (Status.STARTING, Status.DRAINING, Status.STARTING),
        (Status.DRAINING, Status.UP, Status.DRAINING),
    ],
)
def test_a_registration_keeps_an_override_of_the_status(
    told: Status, known: Status | None, lasts: Status
) -> None:
    assert lasting_status(told, known) is lasts


def test_an_entry_is_written_as_an_instance() -> None:
    entry = replace(ENTRY, registered_at=1000.5, last_heartbeat=1020.25)
    assert eureka_instance(entry, RULES, "MODIFIED") == {
        "instanceId": "10.0.0.5:users:8080",
        "hostName": "10.0.0.5",
        "app": "USERS",
        "ipAddr": "10.0.0.5",
        "status": "UP",
        "overriddenstatus": "UNKNOWN",
        "port": {"$": 8080, "@enabled": "true"},
        "securePort": {"$": 443, "@enabled": "false"},
        "countryId": 1,
        "dataCenterInfo": {
            "@class": "com.netflix.appinfo.InstanceInfo$DefaultDataCenterInfo",
            "name": "MyOwn",
        },
        "leaseInfo": {
            "renewalIntervalInSecs": 20,
            "durationInSecs": 60,
            "registrationTimestamp": 1000500,
            "lastRenewalTimestamp": 1020250,
            "evictionTimestamp": 0,
            "serviceUpTimestamp": 1000500,
        },
        "metadata": {"zone": "a", "version": "1.2", "team": "blue"},
        "homePageUrl": "http://10.0.0.5:8080/",
        "healthCheckUrl": "http://10.0.0.5:8080/health",
        "vipAddress": "users",
        "secureVipAddress": "users",
        "isCoordinatingDiscoveryServer": "false",
        "lastUpdatedTimestamp": "1000500",
        "lastDirtyTimestamp": "1000500",
        "actionType": "MODIFIED",
    }


@pytest.mark.parametrize(
    "entry",
    [
        ENTRY,
        replace(ENTRY, host="five.example.org", scheme="https"),
        replace(ENTRY, host="fd00::5"),
        replace(ENTRY, status=Status.DRAINING),
        replace(ENTRY, metadata={"eureka.vip": "a,b", "eureka.svip": "c"}, zone=None, version=None),
        replace(ENTRY, health_check_path=None),
    ],
)
def test_a_written_instance_can_be_registered_again(entry: Registered) -> None:
    assert read_instance("USERS", {"instance": eureka_instance(entry, RULES)}) == entry


def test_entries_of_other_apis_are_written_as_instances() -> None:
    entry = Registered("Big.Users", "u1", "10.0.0.5", 80, zone="a", version="1", tags=("x",))
    told = eureka_instance(entry, RULES)
    assert (told["app"], told["vipAddress"]) == ("BIG.USERS", "big.users")
    assert told["metadata"] == {"zone": "a", "version": "1"}
    assert told["leaseInfo"]["durationInSecs"] == RULES.unhealthy_after


@pytest.mark.parametrize(
    ("statuses", "code"),
    [
        ([], ""),
        ([Status.UP], "UP_1_"),
        ([Status.UP, Status.UP], "UP_2_"),
        ([Status.UP, Status.DRAINING, Status.DOWN, Status.UP], "DOWN_1_OUT_OF_SERVICE_1_UP_2_"),
    ],
)
def test_the_hash_code_counts_statuses(statuses: list[Status], code: str) -> None:
    assert hash_code([replace(ENTRY, status=status) for status in statuses]) == code


def test_applications_are_grouped_by_name_without_case() -> None:
    entries = [
        replace(ENTRY, service=service, instance_id=name)
        for service, name in (("users", "a"), ("orders", "b"), ("Users", "c"))
    ]
    changed = [(Action.DELETED, entries[0]), (Action.ADDED, entries[2])]
    told = applications(changed, "UP_3_", 7, RULES)
    assert (told["versions__delta"], told["apps__hashcode"]) == ("7", "UP_3_")
    [users] = told["application"]
    assert users["name"] == "USERS"
    assert [(each["instanceId"], each["actionType"]) for each in users["instance"]] == [
        ("a", "DELETED"),
        ("c", "ADDED"),
    ]


def test_virtual_addresses_are_a_list() -> None:
    assert vips(ENTRY, secure=False) == vips(ENTRY, secure=True) == ["users"]
    entry = replace(ENTRY, metadata={"eureka.vip": "a, b"})
    assert vips(entry, secure=False) == ["a", "b"]
    assert vips(entry, secure=True) == ["users"]
