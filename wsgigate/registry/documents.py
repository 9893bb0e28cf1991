"""Responses of the registry's HTTP API: JSON documents, entity tags and a cache of bodies."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, NamedTuple
from wsgiref.types import StartResponse, WSGIEnvironment
from zlib import crc32

from wsgigate.http.problem import Problem, status_line
from wsgigate.http.wsgi import Headers
from wsgigate.registry.listing import Listing
from wsgigate.rules.registry import Invalid, LeaseRules, Registered
from wsgigate.units import iso_time

__all__ = [
    "INDEX",
    "NETWORKS",
    "Answer",
    "ResponseCache",
    "has",
    "headers_of",
    "instance_document",
    "invalid",
    "sent",
    "state_of",
]


NETWORKS = "X-Registry-Networks"
"""The header field with the networks that instances may be in, for gateways that use them."""

INDEX = "X-Registry-Index"
"""The header field with the version of a listing; a client sends it back to wait for a change."""


class Answer(NamedTuple):
    """A response: a JSON document, or encoded JSON as bytes; ignored with the status 304."""

    document: object
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()


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


def has(environ: WSGIEnvironment, tag: str) -> bool:
    """Return whether ``If-None-Match`` contains *tag*: RFC 9110 section 13.1.2, weak comparison."""
    given = environ.get("HTTP_IF_NONE_MATCH", "")
    opaque = tag.removeprefix("W/")
    return given.strip() == "*" or opaque in (
        each.strip().removeprefix("W/") for each in given.split(",")
    )


def invalid(error: Invalid) -> Problem:
    """Return the 400 problem for *error*, with the name of the field."""
    detail = error.why if error.why.endswith("!") else f"{error.field}: {error.why}."
    return Problem(400, detail, extensions={"field": error.field})


def sent(
    answer: Answer, environ: WSGIEnvironment, start_response: StartResponse
) -> Iterable[bytes]:
    """Send *answer*."""
    if answer.status == 304:
        start_response(status_line(304), [("Cache-Control", "no-cache"), *answer.headers])
        return []
    body = answer.document
    if not isinstance(body, bytes):
        body = json.dumps(body).encode("ascii")
    headers: Headers = [
        ("Content-Type", "application/json; charset=utf-8"),
        ("Content-Length", str(len(body))),
        ("Cache-Control", "no-cache" if answer.headers else "no-store"),
        ("X-Content-Type-Options", "nosniff"),
        *answer.headers,
    ]
    start_response(status_line(answer.status), headers)
    return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]


# Cached response bodies.

MOST = 500
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
            if len(self._written) >= MOST:
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
