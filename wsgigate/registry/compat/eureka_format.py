"""Conversion between Eureka's documents, in JSON and XML, and entries of the registry."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeAlias
from urllib.parse import urlsplit
from xml.parsers import expat
from xml.sax.saxutils import escape, quoteattr

from wsgigate.registry.storage import Action, InstanceName, RecordedChanges, is_same
from wsgigate.rules.registry import Invalid, LeaseRules, Registered, Status, parse

__all__ = [
    "FIELDS",
    "MOST_DEPTH",
    "MOST_ELEMENTS",
    "STATUSES",
    "Action",
    "Changed",
    "XmlError",
    "applications",
    "delta",
    "eureka_instance",
    "hash_code",
    "lasting_status",
    "read_instance",
    "read_status",
    "read_xml",
    "vips",
    "with_metadata",
    "write_xml",
]


# Deltas, for clients that have fetched everything within the last minutes.

Changed: TypeAlias = tuple[Action, Registered]


def delta(
    entries: Iterable[Registered],
    recorded: RecordedChanges,
    removed: Callable[[list[InstanceName]], list[Registered | None]],
) -> list[Changed]:
    """Return the changes, one for each instance.

    An instance that was removed and registered again unchanged is ADDED: a client that missed the
    removal still has it, others add it. If the log may be incomplete, all other instances are ADDED
    as well. A client that has them already ignores that, or replaces them.

    :param entries: All instances, at least as new as *recorded*.
    :param recorded: The recorded changes.
    :param removed: Returns the copies of removed entries.
    """
    current = {(entry.service, entry.instance_id): entry for entry in entries}
    names = list(recorded.actions)
    gone = [name for name in names if Action.DELETED in recorded.actions[name]]
    were = dict(zip(gone, removed(gone), strict=True))
    changed: list[Changed] = []
    for name in names:
        entry, was = current.get(name), were.get(name)
        if entry is None:
            if was is not None:
                changed.append((Action.DELETED, was))
        elif Action.MODIFIED in recorded.actions[name] or (
            was is not None and not is_same(was, entry)
        ):
            changed.append((Action.MODIFIED, entry))
        else:
            changed.append((Action.ADDED, entry))
    if not recorded.complete:
        changed += [
            (Action.ADDED, current[name]) for name in current if name not in recorded.actions
        ]
    return changed


# XML: the subset that Eureka clients use, without document types and entities.
#
# An XML document is converted to and from the shape of Eureka's JSON, so that there is one mapping
# for both: an element is a string, or a mapping of its children by name, with its attributes under
# ``@name`` and its text under ``$``; ``<port enabled="true">80</port>`` is ``{"@enabled": "true",
# "$": "80"}``.

MOST_DEPTH = 8
"""The deepest nesting of elements."""

MOST_ELEMENTS = 512
"""The largest number of elements and attributes."""

XmlNode: TypeAlias = "str | dict[str, Any]"

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9._-]*")

_PLAIN = re.compile(r"[ !-%'-;=?-~]*")

_NO_CHARACTER = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that an XML document may not contain, not even escaped (XML 1.0, 2.2)."""


class XmlError(ValueError):
    """An XML document is malformed or not accepted; the message says why."""


def read_xml(data: bytes) -> tuple[str, XmlNode]:
    """Return the name of the root element of *data*, and its content.

    A document type is rejected before anything in it is parsed, and with it all entities except
    the five predefined ones. The document is decoded as UTF-8, whatever it declares.

    :param data: The whole document; the caller bounds its size.
    :raises XmlError: The document is not well-formed, has a document type, too many or too deeply
        nested elements, or an element with two children of the same name.
    """
    try:
        data.decode("utf-8")  # the parser would accept the byte order mark of another encoding
    except UnicodeDecodeError:
        raise XmlError("it is not well-formed: not UTF-8") from None
    reader = _XmlReader()
    parser = expat.ParserCreate("utf-8")
    parser.buffer_text = True
    parser.StartDoctypeDeclHandler = reader.doctype
    parser.StartElementHandler = reader.start
    parser.EndElementHandler = reader.end
    parser.CharacterDataHandler = reader.text
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        reason = expat.ErrorString(error.code)
        raise XmlError(f"it is not well-formed: {reason}, line {error.lineno}") from None
    return reader.root


class _XmlReader:
    """Builds nodes from the events of the parser."""

    def __init__(self) -> None:
        self.root: tuple[str, XmlNode] = "", ""
        self._open: list[tuple[str, dict[str, Any], list[str]]] = []
        self._count = 0

    def doctype(self, *_: object) -> None:
        raise XmlError("it has a document type")

    def start(self, name: str, attributes: dict[str, str]) -> None:
        self._count += 1 + len(attributes)
        if self._count > MOST_ELEMENTS:
            raise XmlError(f"it has more than {MOST_ELEMENTS} elements")
        if len(self._open) == MOST_DEPTH:
            raise XmlError(f"its elements are more than {MOST_DEPTH} deep")
        self._open.append((name, {f"@{key}": value for key, value in attributes.items()}, []))

    def text(self, text: str) -> None:
        self._open[-1][2].append(text)

    def end(self, name: str) -> None:
        _, members, texts = self._open.pop()
        text = "".join(texts).strip()
        node: XmlNode = members
        if not members:
            node = text
        elif text:
            members["$"] = text
        if not self._open:
            self.root = name, node
            return
        siblings = self._open[-1][1]
        if name in siblings:
            raise XmlError(f"it has two elements {name[:64]!a} where one is allowed")
        siblings[name] = node


def write_xml(name: str, node: object) -> bytes:
    """Return the document whose root element *name* has the content *node*.

    A list becomes several elements of the same name. Members whose name is not a valid element name
    are left out, and so are characters that a document may not contain.
    """
    parts = ['<?xml version="1.0" encoding="UTF-8"?>']
    _write(name, node, parts.append)
    return "".join(parts).encode("utf-8", "replace")


def _write(name: str, node: object, put: Callable[[str], None]) -> None:
    if isinstance(node, list):
        for each in node:
            _write(name, each, put)
        return
    if not isinstance(node, Mapping):
        put(f"<{name}>{_escaped(node)}</{name}>")
        return
    attributes = [
        f" {key[1:]}={quoteattr(_NO_CHARACTER.sub('', str(value)))}"
        for key, value in node.items()
        if key[:1] == "@"
    ]
    put(f"<{name}{''.join(attributes)}>")
    for key, value in node.items():
        if key == "$":
            put(_escaped(value))
        elif _NAME.fullmatch(key):
            if type(value) is str:  # nearly all are; saves a call for each
                put(f"<{key}>{_escaped(value)}</{key}>")
            else:
                _write(key, value, put)
    put(f"</{name}>")


def _escaped(value: object) -> str:
    text = str(value)
    return text if _PLAIN.fullmatch(text) else escape(_NO_CHARACTER.sub("", text))


STATUSES = {
    Status.UP: "UP",
    Status.STARTING: "STARTING",
    Status.DRAINING: "OUT_OF_SERVICE",
    Status.DOWN: "DOWN",
}

_STATUS_OF = {**{word: status for status, word in STATUSES.items()}, "UNKNOWN": Status.STARTING}

FIELDS = {
    "serviceName": "app",
    "host": "ipAddr",
    "healthCheckPath": "healthCheckUrl",
}
"""Eureka's names of the members that an error of the registry may name."""

VIP, SECURE_VIP = "eureka.vip", "eureka.svip"
"""Keys in an entry's metadata for the virtual addresses, which only Eureka clients use."""

LONGEST = 3600.0
"""The longest lease, in seconds; a longer one is shortened to it."""


def read_instance(app: str, document: Mapping[str, Any]) -> Registered:
    """Return the entry for a registration under the name *app*.

    The name of the service is that of the application in lower case, as Eureka converts all names
    to upper case. The entry has one address: ``ipAddr`` with ``port``; or, if only ``securePort``
    is enabled, ``hostName``, which the certificate contains.

    :raises Invalid: The registration is invalid; the error names the member as Eureka does.
    """
    instance = document.get("instance")
    if not isinstance(instance, Mapping):
        raise Invalid("instance", "an object")
    named = _text_member(instance, "app")
    if named.upper() != app.upper():
        raise Invalid("app", f"{app.upper()[:64]!a}, as in the path")
    host_name, address = _text_member(instance, "hostName"), _text_member(instance, "ipAddr")
    secure, port = _port(instance)
    host = (host_name or address) if secure else (address or host_name)
    metadata = dict(_mapping(instance, "metadata"))
    metadata.pop("@class", None)  # Java clients send it with empty metadata
    for key, member in ((VIP, "vipAddress"), (SECURE_VIP, "secureVipAddress")):
        vip = _text_member(instance, member)
        if vip and vip != app.lower():
            metadata[key] = vip
    wanted = {
        "serviceName": app.lower(),
        "instanceId": _text_member(instance, "instanceId") or host_name,
        "host": host,
        "port": port,
        "scheme": "https" if secure else "http",
        "status": read_status(_text_member(instance, "status") or "UP", "status"),
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
    """Return the status for Eureka's *word*.

    :raises Invalid: *word* is not a status of Eureka; the error names *field*.
    """
    status = _STATUS_OF.get(word)
    if status is None:
        raise Invalid(field, f"one of {', '.join(_STATUS_OF)}")
    return status


def lasting_status(new: Status, known: Status | None) -> Status:
    """Return the status of an instance that registers as *new* while its entry is *known*.

    As in Eureka, an instance that was taken out of service stays so when it registers as UP, until
    the override is removed; a registration as STARTING or DOWN takes effect.
    """
    return known if new is Status.UP and known is Status.DRAINING else new


def with_metadata(entry: Registered, more: Mapping[str, str]) -> Registered:
    """Return *entry* with *more* metadata.

    :raises Invalid: The metadata is too large or malformed.
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


def eureka_instance(entry: Registered, rules: LeaseRules, action: str = "ADDED") -> dict[str, Any]:
    """Return *entry* as an instance in Eureka's JSON."""
    secure = entry.scheme == "https"
    metadata = dict(entry.metadata)
    app = entry.service.lower()
    vip, secure_vip = metadata.pop(VIP, app), metadata.pop(SECURE_VIP, app)
    for key, value in (("zone", entry.zone), ("version", entry.version)):
        if value is not None:
            metadata.setdefault(key, value)
    duration = entry.unhealthy_after(rules)
    registered, renewed = str(int(entry.registered_at * 1000)), int(entry.last_heartbeat * 1000)
    instance = {
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
        instance[_health_member(secure)] = entry.url + entry.health_check_path
    return instance


def applications(
    changed: Iterable[Changed], code: str, version: int, rules: LeaseRules
) -> dict[str, Any]:
    """Return *changed* as applications in Eureka's JSON.

    :param code: The hash code of all instances, which a client compares with its own after the
        changes.
    :param version: The version of the registry.
    """
    instances: dict[str, list[dict[str, Any]]] = {}
    for action, entry in changed:
        instance = eureka_instance(entry, rules, action)
        instances.setdefault(instance["app"], []).append(instance)
    return {
        "versions__delta": str(version),
        "apps__hashcode": code,
        "application": [{"name": app, "instance": listed} for app, listed in instances.items()],
    }


def hash_code(entries: Iterable[Registered]) -> str:
    """Return the number of instances in each status, such as ``DOWN_1_UP_2_``.

    A client that has applied a delta counts its instances, and fetches everything if the result
    differs.
    """
    counts = Counter(STATUSES[entry.state] for entry in entries)
    return "".join(f"{status}_{counts[status]}_" for status in sorted(counts))


def vips(entry: Registered, *, secure: bool) -> list[str]:
    """Return the virtual addresses of *entry*."""
    text = entry.metadata.get(SECURE_VIP if secure else VIP, entry.service.lower())
    return [vip.strip() for vip in str(text).split(",")]


def _mapping(document: Mapping[str, Any], field: str) -> Mapping[str, Any]:
    found = document.get(field)
    if found is None or found == "":  # an empty element of XML
        return {}
    if not isinstance(found, Mapping):
        raise Invalid(field, "an object")
    return found


def _text_member(document: Mapping[str, Any], field: str) -> str:
    found = document.get(field)
    if found is None:
        return ""
    if not isinstance(found, str):
        raise Invalid(field, "a text")
    return found


def _port(instance: Mapping[str, Any]) -> tuple[bool, int]:
    """Return whether the port uses TLS, and the port: the plain one if both are enabled."""
    for field, default in (("port", True), ("securePort", False)):
        given = instance.get(field)
        if given is None:
            continue
        if not isinstance(given, Mapping):
            given = {"$": given}
        enabled = given.get("@enabled", default)
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
    """Return the path of the health check, if it is on the instance's own host and port."""
    url = _text_member(instance, _health_member(secure))
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
