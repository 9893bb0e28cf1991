"""The registry's HTTP API: register, send heartbeats, deregister, discover."""

from __future__ import annotations

import json
import random as _random
import time
from bisect import bisect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple
from urllib.parse import parse_qsl
from zlib import crc32

from wsgigate.auth.bearer import Access
from wsgigate.http.json_app import MOST_FIELDS, Endpoint, JsonRequest, JsonResponse
from wsgigate.http.problem import Problem, Refuse, answer_with
from wsgigate.registry import Listing, Registry
from wsgigate.registry.app import RegistryApp, WaitSlots
from wsgigate.rules.registry import Invalid, LeaseRules, Registered, Status, parse, parse_status
from wsgigate.units import iso_time, parse_duration

__all__ = [
    "INDEX",
    "Picker",
    "Query",
    "RegistryApi",
    "ResponseCache",
    "instance_document",
    "parse_query",
]


NETWORKS = "X-Registry-Networks"
"""The header field with the networks that instances may be in, for gateways that use them."""

INDEX = "X-Registry-Index"
"""The header field with the version of a listing; a client sends it back to wait for a change."""


def instance_document(entry: Registered, now: float, rules: LeaseRules) -> dict[str, Any]:
    """Return the JSON object of an instance, its health judged at *now*."""
    members: dict[str, Any] = {
        "serviceName": entry.service,
        "instanceId": entry.instance_id,
        "host": entry.host,
        "port": entry.port,
        "url": entry.url,
        "metadata": dict(entry.metadata),
        "registeredAt": iso_time(entry.registered_at),
        "lastHeartbeat": iso_time(entry.last_heartbeat),
        "healthy": entry.healthy(now, rules),
        "healthCheckPath": entry.health_check_path or "/health",
        "status": entry.state.value,
        "weight": entry.weight,
    }
    for name, value in (("version", entry.version), ("zone", entry.zone)):
        if value is not None:
            members[name] = value
    members["tags"] = list(entry.tags)
    return members


def state_of(listing: Listing) -> dict[str, object]:
    """Return the members that a document has only during self-preservation or a store failure."""
    members: dict[str, object] = {}
    if listing.preserving:
        members["preserving"] = True
    if listing.age:
        members["age"] = round(listing.age, 3)
    return members


def headers_of(listing: Listing, rules: LeaseRules) -> tuple[tuple[str, str], ...]:
    """Return the fields of a listing, with an ETag that mere heartbeats do not change."""
    # health is part of the tag, as it may change before the version does
    seen = ",".join(
        f"{entry.instance_id} {entry.healthy(listing.now, rules)}" for entry in listing.instances
    )
    tag = f'W/"{listing.version:x}-{crc32(seen.encode("ascii")):x}"'
    return (("ETag", tag), (INDEX, str(listing.version)))


# Cached response bodies.

MOST_BODIES = 500
"""The largest number of cached bodies."""

MOST_INSTANCES = 20_000
"""The largest number of instances whose unchanging JSON is cached."""

LARGEST_QUERY = 200
"""The longest query, in characters, whose response is cached."""


class _Written(NamedTuple):
    instances: tuple[Registered, ...]
    tag: str
    body: bytes


class ResponseCache:
    """A cache of the bodies of ``GET /discover/SERVICE``, by service and query.

    :param rules: The lease rules by which the health of instances is judged.
    """

    def __init__(self, rules: LeaseRules) -> None:
        self._rules = rules
        self._written: dict[tuple[str, str], _Written] = {}
        self._around: dict[bytes, tuple[str, str]] = {}

    def of(self, service: str, query: str, found: Listing, tag: str) -> bytes:
        """Return the body for the listing *found*.

        :param query: The query string of the request.
        :param tag: The ETag of the listing; it differs when the health of an instance differs.
        """
        key = (service, query)
        written = self._written.get(key)
        usual = not found.age and not found.preserving
        # most entries are the identical objects, so this comparison takes a microsecond
        if (
            usual
            and written is not None
            and written.tag == tag
            and written.instances == found.instances
        ):
            return written.body
        instances = ", ".join([self._text(entry, found.now) for entry in found.instances])
        first = json.dumps({"success": True, "serviceName": service})
        last = json.dumps({"count": len(found.instances), **state_of(found)})
        body = f'{first[:-1]}, "instances": [{instances}], {last[1:]}'.encode("ascii")
        if usual and found.version and len(query) <= LARGEST_QUERY:
            if len(self._written) >= MOST_BODIES:
                self._written.clear()
            self._written[key] = _Written(found.instances, tag, body)
        return body

    def _text(self, entry: Registered, now: float) -> str:
        """Return the JSON of an instance; for most instances only two members are new."""
        around = self._around.get(entry.written)
        if around is None:
            around = _around(instance_document(entry, now, self._rules))
            if entry.written:
                if len(self._around) >= MOST_INSTANCES:
                    self._around.clear()
                self._around[entry.written] = around
        heartbeat = iso_time(entry.last_heartbeat)
        healthy = "true" if entry.healthy(now, self._rules) else "false"
        return f'{around[0]}, "lastHeartbeat": "{heartbeat}", "healthy": {healthy}, {around[1]}'


def _around(document: dict[str, Any]) -> tuple[str, str]:
    """Return the JSON of *document* before and after the members that heartbeats change."""
    members = list(document.items())
    changing = list(document).index("lastHeartbeat")
    return json.dumps(dict(members[:changing]))[:-1], json.dumps(dict(members[changing + 2 :]))[1:]


# Choosing one instance.

MOST = 1_000
"""The largest number of services whose round-robin position is kept."""


class Picker:
    """Picks an instance: round-robin, at random in proportion to the weights, or the first.

    Each process has its own round-robin position, which starts at a random instance, so that
    workers do not pick in step. Concurrent requests may get the same instance.

    :param random: Returns numbers in [0, 1).
    """

    def __init__(self, random: Callable[[], float]) -> None:
        self._random = random
        self._turns: dict[str, int] = {}

    def of(self, service: str, strategy: str, usable: Sequence[Registered]) -> Registered:
        """Return one of *usable*, at least one instance, all with weights above 0.

        :param strategy: ``round-robin``, ``random`` or ``first``.
        """
        if strategy == "first":
            return usable[0]
        if strategy == "random":
            weights = list(accumulate(entry.weight for entry in usable))
            return usable[bisect(weights, self._random() * weights[-1])]
        if len(self._turns) >= MOST and service not in self._turns:
            self._turns.clear()
        turn = self._turns.get(service)
        if turn is None:
            turn = int(self._random() * len(usable))
        self._turns[service] = turn = turn + 1
        return usable[turn % len(usable)]


# Queries.


@dataclass(frozen=True)
class Query:
    """A parsed query string.

    :ivar filters: The keyword arguments of :meth:`.Registry.discover`.
    :ivar wait: Seconds to wait for a change.
    :ivar index: The version that the client has seen, ``None`` if it sent none.
    :ivar strategy: How one of the instances is picked.
    """

    filters: Mapping[str, Any]
    wait: float = 0.0
    index: int | None = None
    strategy: str = "round-robin"


def parse_query(text: str, only_healthy: bool = True) -> Query:
    """Parse the query string *text*.

    :param only_healthy: The default of ``onlyHealthy``.
    :raises Invalid: A field is unknown, given twice, or has an invalid value.
    """
    filters: dict[str, Any] = {"only_healthy": only_healthy}
    rest: dict[str, Any] = {}
    tags: list[str] = []
    metadata: dict[str, str] = {}
    seen: set[str] = set()
    try:
        fields = parse_qsl(text, keep_blank_values=True, max_num_fields=MOST_FIELDS)
    except ValueError:
        raise Invalid("query", f"at most {MOST_FIELDS} fields") from None
    for name, value in fields:
        if name == "tag":
            tags.append(value)
            continue
        if name in seen:
            raise Invalid(name[:64], "is given twice")
        seen.add(name)
        if name.startswith("meta.") and len(name) > 5:
            metadata[name[5:]] = value
        elif name in _FILTERS:
            key, read = _FILTERS[name]
            filters[key] = read(value)
        elif name in _REST:
            rest[name] = _REST[name](value)
        else:
            raise Invalid(name[:64], "there is no such filter")
    if tags:
        filters["tags"] = tuple(tags)
    if metadata:
        filters["metadata"] = metadata
    return Query(filters, **rest)


def _flag(text: str) -> bool:
    if text not in ("true", "false"):
        raise Invalid("onlyHealthy", "true or false")
    return text == "true"


def _status(text: str) -> Status:
    return parse_status(text.upper())


def _wait(text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError:
        raise Invalid("wait", "seconds, such as 25") from None


def _index(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 19):
        raise Invalid("index", "the value of X-Registry-Index in an earlier response") from None
    return int(text)


STRATEGIES = ("round-robin", "random", "first")


def _strategy(text: str) -> str:
    if text not in STRATEGIES:
        raise Invalid("strategy", f"one of {', '.join(STRATEGIES)}")
    return text


_FILTERS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "onlyHealthy": ("only_healthy", _flag),
    "status": ("status", _status),
    "zone": ("zone", str),
    "version": ("version", str),
}

_REST: dict[str, Callable[[str], Any]] = {"wait": _wait, "index": _index, "strategy": _strategy}

_ABSENT = Problem(404, "Service instance not found!")

_NO_HEALTHY_INSTANCE = Problem(404, "No healthy instances found!")


class RegistryApi(RegistryApp):
    """The HTTP API of a :class:`.Registry`, as a WSGI application.

    :param registry: The registry.
    :param access: Authenticates and authorizes clients.
    :param prefix: The path prefix, such as ``/_registry``. Default: none.
    :param name: The name of the registry in ``/health``.
    :param version: Its version in ``/health``.
    :param waiting: The largest number of requests that wait for a change at a time; further ones
        are answered at once. Compatibility APIs of the same registry may share the slots.
    :param started: Since when the registry serves, in Unix time. Default: now.
    :param now: Returns the Unix time.
    :param random: Returns numbers in [0, 1).
    :param refuse: Turns a problem into the app that sends it.
    :raises ValueError: *prefix* is not a path, or *waiting* is negative.
    """

    def __init__(
        self,
        registry: Registry,
        access: Access,
        *,
        prefix: str = "",
        name: str = "service-discovery",
        version: str = "1.0.0",
        waiting: int | WaitSlots = 4,
        started: float | None = None,
        now: Callable[[], float] = time.time,
        random: Callable[[], float] = _random.random,
        refuse: Refuse = answer_with,
    ) -> None:
        table = [
            Endpoint("POST /register", self._register),
            Endpoint("DELETE /register/{service}/{instance}", self._deregister),
            Endpoint("POST /heartbeat/{service}/{instance}", self._heartbeat),
            Endpoint("PUT /status/{service}/{instance}", self._status),
            Endpoint("GET /discover/{service}", self._discover),
            Endpoint("GET /instance/{service}", self._choose),
            Endpoint("GET /services", self._services),
            Endpoint("GET /health", self._health),
        ]
        super().__init__(registry, access, table, prefixes=(prefix,), refuse=refuse)
        self._name = name
        self._version = version
        self._slots = waiting if isinstance(waiting, WaitSlots) else WaitSlots(waiting)
        self._now = now
        self._started = now() if started is None else started
        self._picker = Picker(random)
        self._bodies = ResponseCache(registry.rules)
        self._networks = (NETWORKS, ", ".join(registry.destinations.allowed_networks))

    def _register(self, request: JsonRequest) -> JsonResponse:
        caller = self._access.writer(request.environ)
        document = request.json()
        if document.get("serviceName"):  # without one, parse() reports that it is missing
            self._access.check_caller(caller, document["serviceName"])
        entry = self._registry.register(parse(document))
        members = {
            "serviceName": entry.service,
            "instanceId": entry.instance_id,
            "url": entry.url,
            "registeredAt": iso_time(entry.registered_at),
            "heartbeatInterval": self._registry.rules.heartbeat,
        }
        message = "Service registered successfully!"
        return JsonResponse({"success": True, "message": message, "instance": members}, 201)

    def _deregister(self, request: JsonRequest, service: str, instance: str) -> object:
        self._access.check_write(request.environ, service)
        if not self.remove(request.environ, service, instance):
            return _ABSENT
        return {"success": True, "message": "Service deregistered successfully!"}

    def _heartbeat(self, request: JsonRequest, service: str, instance: str) -> object:
        self._access.check_write(request.environ, service)
        status = _status_of(request.json()) if request.has_body() else None
        if self._registry.heartbeat(service, instance, status) is None:
            return _ABSENT
        return {"success": True, "message": "Heartbeat updated successfully!"}

    def _status(self, request: JsonRequest, service: str, instance: str) -> object:
        self._access.check_write(request.environ, service)
        status = _status_of(request.json())
        if status is None:
            raise Invalid("status", f"required: one of {', '.join(Status)}")
        entry = self._registry.heartbeat(service, instance, status)
        if entry is None:
            return _ABSENT
        members = instance_document(entry, entry.last_heartbeat, self._registry.rules)
        message = "Status updated successfully!"
        return {"success": True, "message": message, "instance": members}

    def _discover(self, request: JsonRequest, service: str) -> JsonResponse:
        text = request.environ.get("QUERY_STRING", "")
        query = parse_query(text)
        self._await(service, query)
        found = self._registry.discover(service, **query.filters)
        headers = headers_of(found, self._registry.rules)
        headers += (self._networks,)
        tag = headers[0][1]
        if request.has_tag(tag):
            return JsonResponse(None, 304, headers, "no-cache")
        return JsonResponse(self._bodies.of(service, text, found, tag), 200, headers, "no-cache")

    def _choose(self, request: JsonRequest, service: str) -> object:
        query = parse_query(request.environ.get("QUERY_STRING", ""))
        listing = self._registry.discover(service, **query.filters)
        usable = [entry for entry in listing.instances if entry.weight > 0]
        if not usable:
            return _NO_HEALTHY_INSTANCE
        entry = self._picker.of(service, query.strategy, usable)
        members = {
            "serviceName": entry.service,
            "instanceId": entry.instance_id,
            "url": entry.url,
            "healthy": entry.healthy(listing.now, self._registry.rules),
            "lastHeartbeat": iso_time(entry.last_heartbeat),
        }
        return _indexed({"success": True, "instance": members}, listing.version)

    def _services(self, request: JsonRequest) -> JsonResponse:
        query = parse_query(request.environ.get("QUERY_STRING", ""), only_healthy=False)
        self._await(None, query)
        version = self._registry.version()
        services = {
            name: self._documents(listing)
            for name in self._registry.names()
            if (listing := self._registry.discover(name, **query.filters)).instances
        }
        document = {"success": True, "services": services, "serviceCount": len(services)}
        return _indexed(document, version)

    def _health(self, request: JsonRequest) -> object:
        rules, now = self._registry.rules, self._now()
        listings = self._registry.listings()
        total = sum(len(each.instances) for each in listings.values())
        healthy = sum(
            entry.healthy(each.now, rules) for each in listings.values() for entry in each.instances
        )
        members = {
            "totalServices": len(listings),
            "totalInstances": total,
            "healthyInstances": healthy,
            "healthPercentage": f"{100 * healthy / total:.2f}" if total else 0,
        }
        if any(each.preserving for each in listings.values()):
            members["preserving"] = True
        age = max((each.age for each in listings.values()), default=0.0)
        return {
            "service": self._name,
            "version": self._version,
            "status": "degraded" if age else "healthy",
            "timestamp": iso_time(now),
            "uptime": round(max(0.0, now - self._started), 3),
            "registry": {**members, **({"age": round(age, 3)} if age else {})},
        }

    def _await(self, service: str | None, query: Query) -> None:
        """Wait for another version than the client's, if the query has ``wait`` and ``index``."""
        if query.wait and query.index is not None:
            self._slots.wait(self._registry, service, query.index, query.wait)

    def _documents(self, listing: Listing) -> list[dict[str, Any]]:
        rules = self._registry.rules
        return [instance_document(entry, listing.now, rules) for entry in listing.instances]


def _indexed(document: object, version: int) -> JsonResponse:
    """Return *document* with the version that a client sends back to wait for a change."""
    return JsonResponse(document, 200, ((INDEX, str(version)),), "no-cache")


def _status_of(document: dict[str, Any]) -> Status | None:
    for name in document:
        if name != "status":
            raise Invalid(name[:64], "there is no such member")
    return parse_status(document["status"]) if "status" in document else None
