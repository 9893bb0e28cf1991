"""Eureka's documents and the registry's entries: what the one is in the words of the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from wsgigate.discovery.doors.deltas import Changed
from wsgigate.rules.registry import Invalid, LeaseRules, Registered, Status, parse

__all__ = [
    "FIELDS",
    "STATUSES",
    "applications",
    "hash_code",
    "lasting_status",
    "read_instance",
    "read_status",
    "tell_instance",
    "vips",
    "with_metadata",
]

STATUSES = {
    Status.UP: "UP",
    Status.STARTING: "STARTING",
    Status.DRAINING: "OUT_OF_SERVICE",
    Status.DOWN: "DOWN",
}

_MEANT = {**{word: status for status, word in STATUSES.items()}, "UNKNOWN": Status.STARTING}

FIELDS = {
    "serviceName": "app",
    "host": "ipAddr",
    "healthCheckPath": "healthCheckUrl",
}
"""What the client calls the members that the registry's rules name in an error."""

VIP, SECURE_VIP = "eureka.vip", "eureka.svip"
"""Where in an entry's metadata is what only Eureka's clients ask for."""

LONGEST = 3600.0
"""The longest lease that is given, in seconds, whatever a client asks for."""


def read_instance(app: str, document: Mapping[str, Any]) -> Registered:
    """Return the entry that a registration under the name *app* asks for.

    A service's name is the application's in lower case, as Eureka's are upper case whatever they
    were. Of its addresses it has one: ``ipAddr`` with ``port``, or the ``hostName``, which is in
    its certificate, with a ``securePort`` that alone is enabled.

    :raises Invalid: It is none; names the member in Eureka's words.
    """
    instance = document.get("instance")
    if not isinstance(instance, Mapping):
        raise Invalid("instance", "an object")
    named = _text(instance, "app")
    if named.upper() != app.upper():
        raise Invalid("app", f"{app.upper()[:64]!a}, as in the path")
    host_name, address = _text(instance, "hostName"), _text(instance, "ipAddr")
    secure, port = _port(instance)
    host = (host_name or address) if secure else (address or host_name)
    metadata = dict(_mapping(instance, "metadata"))
    metadata.pop("@class", None)  # what Java calls the empty one
    for key, member in ((VIP, "vipAddress"), (SECURE_VIP, "secureVipAddress")):
        vip = _text(instance, member)
        if vip and vip != app.lower():
            metadata[key] = vip
    wanted = {
        "serviceName": app.lower(),
        "instanceId": _text(instance, "instanceId") or host_name,
        "host": host,
        "port": port,
        "scheme": "https" if secure else "http",
        "status": read_status(_text(instance, "status") or "UP", "status"),
        "metadata": metadata,
        "healthCheckPath": _health_path(instance, {host_name, address}, secure, port),
    }
    lease = _lease(_mapping(instance, "leaseInfo"))
    try:
        return replace(parse(wanted), lease=lease)
    except Invalid as error:
        field = FIELDS.get(error.field, error.field)
        if field == "ipAddr" and host != address:
            field = "hostName"
        raise Invalid(field, error.why) from None


def read_status(word: str, field: str) -> Status:
    """Return what *word* means here.

    :raises Invalid: It is no status of Eureka's; names *field*.
    """
    status = _MEANT.get(word)
    if status is None:
        raise Invalid(field, f"one of {', '.join(_MEANT)}")
    return status


def lasting_status(told: Status, known: Status | None) -> Status:
    """Return the status of an instance that registers as *told* while it is *known*.

    One that was taken out of service stays so, whatever it believes of itself, until somebody says
    otherwise; but that it starts or is down nobody knows better than itself. That is Eureka's rule.
    """
    return known if told is Status.UP and known is Status.DRAINING else told


def with_metadata(entry: Registered, more: Mapping[str, str]) -> Registered:
    """Return *entry* with *more* metadata.

    :raises Invalid: That is too much, or no metadata.
    """
    metadata = {**entry.metadata, **more}
    read = parse(
        {
            "serviceName": entry.service,
            "instanceId": entry.instance_id,
            "host": entry.host,
            "port": entry.port,
            "metadata": metadata,
        }
    )
    zone, version = read.zone or entry.zone, read.version or entry.version
    return replace(entry, metadata=metadata, zone=zone, version=version)


def tell_instance(entry: Registered, rules: LeaseRules, action: str = "ADDED") -> dict[str, Any]:
    """Return *entry* as Eureka's JSON has an instance."""
    secure = entry.scheme == "https"
    metadata = dict(entry.metadata)
    app = entry.service.lower()
    vip, secure_vip = metadata.pop(VIP, app), metadata.pop(SECURE_VIP, app)
    for key, value in (("zone", entry.zone), ("version", entry.version)):
        if value is not None:
            metadata.setdefault(key, value)
    duration = entry.unhealthy_after(rules)
    registered, renewed = str(int(entry.registered_at * 1000)), int(entry.last_heartbeat * 1000)
    told = {
        "instanceId": entry.instance_id,
        "hostName": entry.host,
        "app": entry.service.upper(),
        "ipAddr": entry.host,
        "status": STATUSES[entry.state],
        "overriddenstatus": "OUT_OF_SERVICE" if entry.status is Status.DRAINING else "UNKNOWN",
        "port": {"$": 80 if secure else entry.port, "@enabled": _bool(not secure)},
        "securePort": {"$": entry.port if secure else 443, "@enabled": _bool(secure)},
        "countryId": 1,
        "dataCenterInfo": {
            "@class": "com.netflix.appinfo.InstanceInfo$DefaultDataCenterInfo",
            "name": "MyOwn",
        },
        "leaseInfo": {
            "renewalIntervalInSecs": max(1, round(duration / 3)),
            "durationInSecs": max(1, round(duration)),
            "registrationTimestamp": int(registered),
            "lastRenewalTimestamp": renewed,
            "evictionTimestamp": 0,
            "serviceUpTimestamp": int(registered),
        },
        "metadata": metadata,
        "homePageUrl": f"{entry.url}/",
        "vipAddress": vip,
        "secureVipAddress": secure_vip,
        "isCoordinatingDiscoveryServer": "false",
        "lastUpdatedTimestamp": registered,
        "lastDirtyTimestamp": registered,
        "actionType": action,
    }
    if entry.health_check_path:
        told[_health_member(secure)] = entry.url + entry.health_check_path
    return told


def applications(
    changed: Iterable[Changed], code: str, version: int, rules: LeaseRules
) -> dict[str, Any]:
    """Return what *changed* as Eureka's JSON has applications.

    :param code: The hash code of what a client knows then, if it knew what there was before.
    :param version: Of the registry, when it was read.
    """
    instances: dict[str, list[dict[str, Any]]] = {}
    for action, entry in changed:
        told = tell_instance(entry, rules, action)
        instances.setdefault(told["app"], []).append(told)
    return {
        "versions__delta": str(version),
        "apps__hashcode": code,
        "application": [{"name": app, "instance": told} for app, told in instances.items()],
    }


def hash_code(entries: Iterable[Registered]) -> str:
    """Return how many there are in each status, ``DOWN_1_UP_2_``.

    A client that has applied a delta counts what it knows, and asks for everything when it comes to
    something else.
    """
    counts = Counter(STATUSES[entry.state] for entry in entries)
    return "".join(f"{status}_{counts[status]}_" for status in sorted(counts))


def vips(entry: Registered, *, secure: bool) -> list[str]:
    """Return the virtual addresses that *entry* is found under."""
    told = entry.metadata.get(SECURE_VIP if secure else VIP, entry.service.lower())
    return [vip.strip() for vip in str(told).split(",")]


def _mapping(document: Mapping[str, Any], field: str) -> Mapping[str, Any]:
    found = document.get(field)
    if found is None or found == "":  # an empty element of XML
        return {}
    if not isinstance(found, Mapping):
        raise Invalid(field, "an object")
    return found


def _text(document: Mapping[str, Any], field: str) -> str:
    found = document.get(field)
    if found is None:
        return ""
    if not isinstance(found, str):
        raise Invalid(field, "a text")
    return found


def _port(instance: Mapping[str, Any]) -> tuple[bool, int]:
    """Return whether the port is one for TLS, and the port: the plain one where both are on."""
    for field, unless_said in (("port", True), ("securePort", False)):
        given = instance.get(field)
        if given is None:
            continue
        if not isinstance(given, Mapping):
            given = {"$": given}
        enabled = given.get("@enabled", unless_said)
        if enabled in (True, "true"):
            return field == "securePort", _number(given.get("$"), field)
    raise Invalid("port", "required, unless securePort is enabled")


def _number(given: object, field: str) -> int:
    if isinstance(given, str) and given.isascii() and given.isdigit() and len(given) <= 9:
        return int(given)
    if isinstance(given, int) and not isinstance(given, bool):
        return given
    raise Invalid(field, "a number")


def _lease(info: Mapping[str, Any]) -> float | None:
    given = info.get("durationInSecs")
    if given is None:
        return None
    if not isinstance(given, float):
        given = float(_number(given, "leaseInfo.durationInSecs"))
    if not given >= 0:
        raise Invalid("leaseInfo.durationInSecs", "0 or more")
    return min(given, LONGEST)


def _health_path(
    instance: Mapping[str, Any], hosts: set[str], secure: bool, port: int
) -> str | None:
    """Return the path of the health check, if it is one of this very port's."""
    url = _text(instance, _health_member(secure))
    try:
        parts = urlsplit(url)
        there = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        return None
    same = parts.hostname in hosts and there == port and secure == (parts.scheme == "https")
    return parts.path if same and parts.path else None


def _health_member(secure: bool) -> str:
    return "secureHealthCheckUrl" if secure else "healthCheckUrl"


def _bool(value: bool) -> str:
    return "true" if value else "false"
