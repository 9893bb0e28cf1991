"""Conversion of Consul's registrations and checks to entries of the registry."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from wsgigate.rules.registry import Invalid, Registered, Status, check_host, parse
from wsgigate.rules.registry_checks import (
    CHECKS_BYTES,
    CRITICAL,
    PASSING,
    WARNING,
    RegisteredCheck,
    length_of,
)

__all__ = [
    "CHECK",
    "FIELDS",
    "STATES",
    "check_id",
    "has_check",
    "read_any_check",
    "read_check",
    "read_check_of",
    "read_duration",
    "read_flag",
    "read_service",
    "read_state",
    "with_any_check",
    "with_check",
    "without_check",
]


STATES = {"passing": Status.UP, "warning": Status.UP, "critical": Status.DOWN}
"""The states of a check. The registry has no warning state: such an instance still serves."""

LONGEST = 3600.0
"""The longest lease, in seconds; a longer TTL is shortened to it."""

CHECK = "consul.check"
"""The key in an entry's metadata for the id of its check, if that is not ``service:ID``."""

FIELDS = {
    "serviceName": "Name",
    "instanceId": "ID",
    "host": "Address",
    "port": "Port",
    "weight": "Weights.Passing",
    "tags": "Tags",
    "scheme": "Meta.scheme",
    "check": "Check",
    "metadata": "Meta",
    "metadata.zone": "Meta.zone",
    "metadata.version": "Meta.version",
    "metadata.healthCheckPath": "Meta.healthCheckPath",
}
"""Consul's names of the members that an error of the registry may name."""

_UNSUPPORTED_MEMBERS = ("kind", "proxy", "connect", "socketpath")

_UNSUPPORTED_CHECKS = (
    *("udp", "grpc", "h2ping", "args", "script", "scriptargs"),
    *("dockercontainerid", "aliasservice", "aliasnode", "osservice"),
)

_UNSUPPORTED_OPTIONS = ("body", "tlsservername", "tcpusetls", "proxyhttp")

MOST_CHECKS = 8

_SHORTEST_INTERVAL = 1.0

_LONGEST_TIMEOUT = 60.0

_LEAST_REMOVAL = 60.0

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}

_DURATION = re.compile(
    r"(?:(?:[0-9]{1,9}(?:\.[0-9]{0,9})?|\.[0-9]{1,9})(?:ns|us|µs|ms|s|m|h)){1,8}"
)

_PART = re.compile(r"([0-9.]+)(ns|us|µs|ms|s|m|h)")


def read_duration(text: object, field: str) -> float:
    """Parse a duration as Go writes it, such as ``10s``, ``1m30s`` or ``1.5h``; return seconds.

    :raises Invalid: *text* is not a duration; the error names *field*.
    """
    if not isinstance(text, str) or not _DURATION.fullmatch(text):
        raise Invalid(field, 'a duration such as "10s"')
    return sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))


def read_service(document: Mapping[str, Any], peer: str) -> Registered:
    """Return the entry for a registration with the agent.

    An instance with a TTL check is critical until its check passes for the first time, unless the
    check has another initial status.

    :param peer: The client's address, which is the default of the instance's address.
    :raises Invalid: The registration is invalid; the error names the member as Consul does.
    """
    service = _flat(document, "")
    for member in _UNSUPPORTED_MEMBERS:
        if service.get(member):
            raise Invalid(member, "not supported here, an instance has an address and a port")
    checks = service.get("checks") or []
    if not isinstance(checks, list):
        raise Invalid("Checks", "a list")
    checks = [*checks, *filter(None, [service.get("check")])]
    if len(checks) > MOST_CHECKS:
        raise Invalid("Checks", f"at most {MOST_CHECKS}")
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
        return _with_checks(parse(wanted), checks)
    except Invalid as error:
        raise Invalid(FIELDS.get(error.field, error.field), error.why) from None


def _with_checks(entry: Registered, documents: list[object]) -> Registered:
    """Return *entry* with the checks of its registration."""
    several = len(documents) > 1
    seen: set[str] = set()
    reported: tuple[str, float, Status] | None = None
    for number, document in enumerate(documents, start=1):
        named = f"service:{entry.instance_id}{f':{number}' if several else ''}"
        found = read_any_check(document, entry, named)
        if isinstance(found, RegisteredCheck):
            named = found.check_id
            entry = replace(entry, checks=(*entry.checks, found))
        elif reported is not None:
            raise Invalid("Checks", "at most one with a TTL")
        else:
            reported = found
            named = found[0] or named
            if several:
                reported = (named, *found[1:])
        if named in seen:
            raise Invalid("CheckID", "unique among the checks of an instance")
        seen.add(named)
    _check_length(entry)
    return entry if reported is None else with_check(entry, *reported)


def read_any_check(
    document: object, entry: Registered, named: str
) -> RegisteredCheck | tuple[str, float, Status]:
    """Return a check that the registry carries out, or a TTL check as :func:`read_check` does.

    :param named: The default of its id.
    :raises Invalid: The check is invalid or unsupported.
    """
    if not isinstance(document, Mapping):
        raise Invalid("Check", "an object")
    check = _flat(document, "Check.")
    if not (check.get("http") or check.get("tcp")):
        return read_check(document)
    for name in (*_UNSUPPORTED_CHECKS, *_UNSUPPORTED_OPTIONS, "ttl"):
        if check.get(name):
            raise Invalid("Check", f"{name} is not supported beside HTTP or TCP")
    if check.get("http") and check.get("tcp"):
        raise Invalid("Check", "either HTTP or TCP")
    url, path = _http(check["http"]) if check.get("http") else (_tcp(check["tcp"]), None)
    interval = read_duration(check.get("interval"), "Interval")
    timeout = read_duration(check["timeout"], "Timeout") if check.get("timeout") else 10.0
    removal = check.get("deregistercriticalserviceafter")
    status = check.get("status") or CRITICAL
    if status not in (PASSING, WARNING, CRITICAL):
        raise Invalid("Status", f"one of {', '.join(STATES)}")
    fields, host = _fields(check.get("header"))
    made = RegisteredCheck(
        check_id=_check_name(check) or named,
        name=_label(check.get("name")) or f"Service '{entry.service}' check",
        url=_reachable(url, entry.host),
        path=path,
        interval=min(max(interval, _SHORTEST_INTERVAL), LONGEST),
        timeout=min(max(timeout, 0.001), _LONGEST_TIMEOUT),
        method=_method(check.get("method")),
        host=host,
        fields=fields,
        verify=not check.get("tlsskipverify"),
        good_after=_count(check.get("successbeforepassing"), "SuccessBeforePassing"),
        bad_after=_count(check.get("failuresbeforecritical"), "FailuresBeforeCritical"),
        remove_after=max(_LEAST_REMOVAL, read_duration(removal, "DeregisterCriticalServiceAfter"))
        if removal
        else None,
        status=status,
    )
    try:
        made.health_check()
    except ValueError as error:
        raise Invalid("Check", str(error)) from None
    return made


def _http(url: object) -> tuple[str, str]:
    """Return the origin and the request target of an HTTP check."""
    wrong = Invalid("HTTP", 'a URL such as "http://10.0.0.5:8080/health"')
    if not isinstance(url, str) or len(url) > 1024 or not url.isascii() or not url.isprintable():
        raise wrong
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise wrong from None
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        raise wrong
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    default = 443 if parts.scheme == "https" else 80
    return _place(parts.scheme, parts.hostname, default if port is None else port, "HTTP"), target


def _tcp(text: object) -> str:
    """Return the address of a TCP check, as a URL."""
    host, colon, port = text.rpartition(":") if isinstance(text, str) else ("", "", "")
    if not colon or not host or not (port.isascii() and port.isdigit() and len(port) <= 5):
        raise Invalid("TCP", 'a host and a port such as "10.0.0.5:8080"')
    return _place("http", host.removeprefix("[").removesuffix("]"), int(port), "TCP")


def _place(scheme: str, host: str, port: int, field: str) -> str:
    try:
        host = check_host(host)
    except Invalid as error:
        raise Invalid(field, f"with a host that is {error.why}") from None
    if not 0 < port < 65536:
        raise Invalid(field, "with a port from 1 to 65535")
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def _reachable(url: str, host: str) -> str:
    """Return *url* with a loopback host replaced by the instance's *host*.

    Consul's agent runs beside the instance, so clients register checks of loopback addresses. The
    registry probes from elsewhere and needs the instance's own address.
    """
    parts = urlsplit(url)
    if _is_loopback(parts.hostname or "") and not _is_loopback(host):
        return f"{parts.scheme}://{f'[{host}]' if ':' in host else host}:{parts.port}"
    return url


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _fields(header: object) -> tuple[tuple[tuple[str, str], ...], str]:
    """Return the header fields of a check without ``Host``, and the value of ``Host``, if any."""
    if header is None:
        return (), ""
    if not isinstance(header, Mapping):
        raise Invalid("Header", "an object, each value a list of texts")
    fields, host = [], ""
    for name, values in header.items():
        listed = values if isinstance(values, list) else [values]
        if not all(isinstance(value, str) for value in listed):
            raise Invalid("Header", "an object, each value a list of texts")
        value = ", ".join(listed)
        if name.lower() == "host":
            host = value
        else:
            fields.append((name, value))
    return tuple(fields), host


def _method(value: object) -> str:
    if value is None or value == "":
        return "GET"
    if not isinstance(value, str):
        raise Invalid("Method", "a text")
    return value.upper()


def _count(value: object, field: str) -> int:
    if value is None:
        return 1
    if type(value) is not int or not 0 <= value <= 1_000:
        raise Invalid(field, "a whole number from 0 to 1000")
    return max(1, value)


def _label(value: object) -> str:
    return value if isinstance(value, str) and len(value) <= 256 and value.isprintable() else ""


def _check_name(check: Mapping[str, Any]) -> str:
    named = check.get("checkid") or check.get("id") or ""
    if not isinstance(named, str) or len(named) > 256 or not named.isprintable():
        raise Invalid("CheckID", "a text of at most 256 printable characters")
    return named


def _check_length(entry: Registered) -> None:
    if length_of(entry.checks) > CHECKS_BYTES:
        raise Invalid("Checks", f"at most {CHECKS_BYTES} bytes of JSON for all of them together")


def read_check(document: object) -> tuple[str, float, Status]:
    """Return the id of a TTL check, empty if it has none, its TTL in seconds, and its status.

    :raises Invalid: The check is invalid, or not a TTL check.
    """
    if not isinstance(document, Mapping):
        raise Invalid("Check", "an object")
    check = _flat(document, "Check.")
    for name in _UNSUPPORTED_CHECKS:
        if check.get(name):
            raise Invalid("Check", f"only HTTP, TCP and TTL are supported, not {name}")
    ttl = read_duration(check.get("ttl"), "TTL")
    named = _check_name(check)
    status = read_state(check) if check.get("status") else Status.STARTING
    return named, min(ttl, LONGEST), Status.STARTING if status is Status.DOWN else status


def read_check_of(document: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the instance's id and the definition of a check that is registered separately.

    :raises Invalid: The check has no service id: checks of nodes are not supported.
    """
    flat = _flat(document, "")
    of = flat.get("serviceid")
    if not of or not isinstance(of, str):
        raise Invalid("ServiceID", "required, as a check always belongs to an instance here")
    named = flat.get("checkid") or flat.get("id") or flat.get("name")
    return of, {**flat, "checkid": named}


def with_any_check(entry: Registered, document: Mapping[str, Any]) -> Registered:
    """Return *entry* with a check added, or replaced if it has one with the same id.

    :raises Invalid: The check is invalid, or there are too many.
    """
    found = read_any_check(document, entry, f"service:{entry.instance_id}")
    if not isinstance(found, RegisteredCheck):
        return with_check(entry, *found)
    others = tuple(check for check in entry.checks if check.check_id != found.check_id)
    if len(others) >= MOST_CHECKS:
        raise Invalid("Checks", f"at most {MOST_CHECKS}")
    entry = replace(entry, checks=(*others, found))
    _check_length(entry)
    return entry


def read_state(document: Mapping[str, Any]) -> Status:
    """Return the status of an instance for the ``Status`` of its check in *document*.

    :raises Invalid: The value is not a status of a check.
    """
    state = _flat(document, "").get("status")
    if not isinstance(state, str) or state not in STATES:
        raise Invalid("Status", f"one of {', '.join(STATES)}")
    return STATES[state]


def read_flag(text: str, field: str) -> bool:
    """Parse a boolean in the spellings that Go accepts.

    :raises Invalid: *text* is not a boolean; the error names *field*.
    """
    if text in ("1", "t", "T", "true", "TRUE", "True"):
        return True
    if text in ("0", "f", "F", "false", "FALSE", "False"):
        return False
    raise Invalid(field, "true or false")


def with_check(entry: Registered, named: str, ttl: float, status: Status) -> Registered:
    """Return *entry* with a lease of *ttl* seconds that the check *named* renews.

    The registry's own lease time is the minimum.
    """
    metadata = {key: value for key, value in entry.metadata.items() if key != CHECK}
    if named and named != f"service:{entry.instance_id}":
        metadata[CHECK] = named
    if entry.status is Status.DRAINING:
        status = entry.status  # maintenance takes precedence over the check
    return replace(entry, metadata=metadata, lease=ttl, status=status)


def without_check(entry: Registered, named: str) -> Registered:
    """Return *entry* without the check *named*, as if it had never been registered."""
    left = tuple(check for check in entry.checks if check.check_id != named)
    if len(left) < len(entry.checks):
        return replace(entry, checks=left)
    metadata = {key: value for key, value in entry.metadata.items() if key != CHECK}
    status = Status.UP if entry.status in (Status.STARTING, Status.DOWN) else entry.status
    return replace(entry, metadata=metadata, lease=None, status=status)


def has_check(entry: Registered, named: str) -> bool:
    """Return whether *entry* has a check with the id *named*, of any kind."""
    return named == check_id(entry) or any(check.check_id == named for check in entry.checks)


def check_id(entry: Registered) -> str | None:
    """Return the id of the TTL check of *entry*; ``None`` without one."""
    if not entry.reports:
        return None
    return str(entry.metadata.get(CHECK, f"service:{entry.instance_id}"))


def _tags(tags: object) -> object:
    """Return *tags* without empty strings."""
    return [tag for tag in tags if tag != ""] if isinstance(tags, list) else tags


def _flat(document: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return *document* with its names in lower case and without ``_``, as Consul compares them."""
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
