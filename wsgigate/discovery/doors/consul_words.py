"""What Consul's clients say, in the registry's words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from wsgigate.rules.registry import Invalid, Registered, Status, parse

__all__ = [
    "CHECK",
    "FIELDS",
    "STATES",
    "check_id",
    "read_check",
    "read_check_of",
    "read_duration",
    "read_flag",
    "read_service",
    "read_state",
    "with_check",
    "without_check",
]

STATES = {"passing": Status.UP, "warning": Status.UP, "critical": Status.DOWN}
"""What a check may say of an instance. There is no warning here: such an instance still serves."""

LONGEST = 3600.0
"""The longest lease that is given, in seconds, whatever TTL a client asks for."""

CHECK = "consul.check"
"""Where in an entry's metadata its check's id is, when it is not ``service:ID``."""

FIELDS = {
    "serviceName": "Name",
    "instanceId": "ID",
    "host": "Address",
    "port": "Port",
    "weight": "Weights.Passing",
    "tags": "Tags",
    "scheme": "Meta.scheme",
    "metadata": "Meta",
    "metadata.zone": "Meta.zone",
    "metadata.version": "Meta.version",
    "metadata.healthCheckPath": "Meta.healthCheckPath",
}
"""What the client calls the members that the registry's rules name in an error."""

_CAN_NOT = ("kind", "proxy", "connect", "socketpath")
_OTHER_CHECKS = (
    *("http", "tcp", "udp", "grpc", "h2ping", "args", "script", "interval"),
    *("dockercontainerid", "aliasservice", "aliasnode", "osservice"),
)

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(
    r"(?:(?:[0-9]{1,9}(?:\.[0-9]{0,9})?|\.[0-9]{1,9})(?:ns|us|µs|ms|s|m|h)){1,8}"
)
_PART = re.compile(r"([0-9.]+)(ns|us|µs|ms|s|m|h)")


def read_duration(text: object, field: str) -> float:
    """Return the seconds of a duration as Go writes them: ``10s``, ``1m30s``, ``1.5h``.

    :raises Invalid: It is none; names *field*.
    """
    if not isinstance(text, str) or not _DURATION.fullmatch(text):
        raise Invalid(field, 'a duration such as "10s"')
    return sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))


def read_service(document: Mapping[str, Any], peer: str) -> Registered:
    """Return the entry that a registration with the agent asks for.

    An instance whose check is a TTL is critical until that has passed for the first time, if the
    check says nothing else.

    :param peer: The client's address, which is the instance's as well when it names none.
    :raises Invalid: It is none; names the member in Consul's words.
    """
    service = _flat(document, "")
    for member in _CAN_NOT:
        if service.get(member):
            raise Invalid(member, "not spoken here, an instance has an address and a port")
    checks = service.get("checks") or []
    if not isinstance(checks, list):
        raise Invalid("Checks", "a list")
    checks = [*checks, *filter(None, [service.get("check")])]
    if len(checks) > 1:
        raise Invalid("Checks", "at most one")
    name = service.get("name")
    meta = _mapping(service, "meta", "Meta")
    weights = _flat(_mapping(service, "weights", "Weights"), "Weights.")
    wanted = {
        "serviceName": name,
        "instanceId": service.get("id") or name,
        "host": service.get("address") or peer,
        "port": service.get("port"),
        "scheme": meta.get("scheme") or None,
        "weight": weights.get("passing"),
        "tags": _tags(service.get("tags")),
        "metadata": dict(meta),
    }
    try:
        entry = parse(wanted)
        return with_check(entry, *read_check(checks[0])) if checks else entry
    except Invalid as error:
        raise Invalid(FIELDS.get(error.field, error.field), error.why) from None


def read_check(document: object) -> tuple[str, float, Status]:
    """Return the id of a check, or nothing when it names none, its TTL in seconds, and its status.

    :raises Invalid: It is none, or not one with a TTL.
    """
    if not isinstance(document, Mapping):
        raise Invalid("Check", "an object")
    check = _flat(document, "Check.")
    for name in _OTHER_CHECKS:
        if check.get(name):
            raise Invalid("Check", f"only one with a TTL is spoken here, not {name}")
    ttl = read_duration(check.get("ttl"), "TTL")
    named = check.get("checkid") or check.get("id") or ""
    if not isinstance(named, str) or len(named) > 256 or not named.isprintable():
        raise Invalid("CheckID", "a text of at most 256 printable characters")
    status = read_state(check) if check.get("status") else Status.STARTING
    return named, min(ttl, LONGEST), Status.STARTING if status is Status.DOWN else status


def read_check_of(document: Mapping[str, Any]) -> tuple[str, str, float, Status]:
    """Return the id of the instance that a check registered by itself is of, and the check.

    :raises Invalid: It is none, or one of a node.
    """
    flat = _flat(document, "")
    of = flat.get("serviceid")
    if not of or not isinstance(of, str):
        raise Invalid("ServiceID", "required, as a check is always an instance's here")
    named = flat.get("checkid") or flat.get("id") or flat.get("name")
    return of, *read_check({**flat, "checkid": named})


def read_state(document: Mapping[str, Any]) -> Status:
    """Return what the ``Status`` in *document* says of an instance.

    :raises Invalid: It is none that a check has.
    """
    state = _flat(document, "").get("status")
    if not isinstance(state, str) or state not in STATES:
        raise Invalid("Status", f"one of {', '.join(STATES)}")
    return STATES[state]


def read_flag(text: str, field: str) -> bool:
    """Return whether *text* says yes, in the words that Go takes.

    :raises Invalid: It says neither yes nor no; names *field*.
    """
    if text in ("1", "t", "T", "true", "TRUE", "True"):
        return True
    if text in ("0", "f", "F", "false", "FALSE", "False"):
        return False
    raise Invalid(field, "true or false")


def with_check(entry: Registered, named: str, ttl: float, status: Status) -> Registered:
    """Return *entry* under a lease of *ttl* seconds that the check *named* renews.

    One shorter than the registry's own is as long as that.
    """
    metadata = {key: value for key, value in entry.metadata.items() if key != CHECK}
    if named and named != f"service:{entry.instance_id}":
        metadata[CHECK] = named
    if entry.status is Status.DRAINING:
        status = entry.status  # in maintenance, whatever its check says
    return replace(entry, metadata=metadata, lease=ttl, status=status)


def without_check(entry: Registered) -> Registered:
    """Return *entry* as it is when no check was ever registered for it."""
    metadata = {key: value for key, value in entry.metadata.items() if key != CHECK}
    status = Status.UP if entry.status in (Status.STARTING, Status.DOWN) else entry.status
    return replace(entry, metadata=metadata, lease=None, status=status)


def check_id(entry: Registered) -> str:
    """Return the id of the check that *entry* has."""
    return str(entry.metadata.get(CHECK, f"service:{entry.instance_id}"))


def _tags(tags: object) -> object:
    """Return *tags* without empty ones, which say nothing."""
    return [tag for tag in tags if tag != ""] if isinstance(tags, list) else tags


def _flat(document: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return *document* with its names in lower case and without ``_``, as Consul takes them."""
    flat: dict[str, Any] = {}
    for name, value in document.items():
        plain = name.replace("_", "").lower()
        if plain in flat:
            raise Invalid(f"{where}{name[:64]}", "given twice")
        flat[plain] = value
    return flat


def _mapping(document: Mapping[str, Any], key: str, field: str) -> Mapping[str, Any]:
    found = document.get(key)
    if found is None:
        return {}
    if not isinstance(found, Mapping):
        raise Invalid(field, "an object")
    return found
