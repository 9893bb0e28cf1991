"""How the registry answers: documents, and the fields by which a change is told from none."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, NamedTuple
from wsgiref.types import StartResponse, WSGIEnvironment
from zlib import crc32

from wsgigate.discovery.registry_listing import Listing
from wsgigate.discovery.status import iso_time
from wsgigate.problem import Problem, status_line
from wsgigate.rules.registry import Invalid, LeaseRules, Registered
from wsgigate.wsgi import Headers

__all__ = [
    "INDEX",
    "NETWORKS",
    "Answer",
    "has",
    "headers_of",
    "instance_document",
    "invalid",
    "sent",
    "state_of",
]

NETWORKS = "X-Registry-Networks"
"""The field that names the networks instances may be in, for gateways that connect to them."""

INDEX = "X-Registry-Index"
"""The field that tells the version of what was discovered, to wait for the next one with."""


class Answer(NamedTuple):
    """A JSON document on its way out, or one that is written already; with the status 304, none."""

    document: object
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()


def instance_document(entry: Registered, now: float, rules: LeaseRules) -> dict[str, Any]:
    """Return what is told of an instance, judged at *now*."""
    told: dict[str, Any] = {
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
            told[name] = value
    told["tags"] = list(entry.tags)
    return told


def state_of(listing: Listing) -> dict[str, object]:
    """Return what is unusual of a listing, as members of the document."""
    told: dict[str, object] = {}
    if listing.preserving:
        told["preserving"] = True
    if listing.age:
        told["age"] = round(listing.age, 3)
    return told


def headers_of(listing: Listing, rules: LeaseRules) -> tuple[tuple[str, str], ...]:
    """Return an ETag that is the same for as long as nothing changes but heartbeats."""
    # of those judged differently before the version says so, the tag differs
    seen = ",".join(
        f"{entry.instance_id} {entry.healthy(listing.now, rules)}" for entry in listing.instances
    )
    tag = f'W/"{listing.version:x}-{crc32(seen.encode("ascii")):x}"'
    return (("ETag", tag), (INDEX, str(listing.version)))


def has(environ: WSGIEnvironment, tag: str) -> bool:
    """Tell whether the client has what *tag* is of: RFC 9110 section 13.1.2, weak comparison."""
    given = environ.get("HTTP_IF_NONE_MATCH", "")
    opaque = tag.removeprefix("W/")
    return given.strip() == "*" or opaque in (
        each.strip().removeprefix("W/") for each in given.split(",")
    )


def invalid(error: Invalid) -> Problem:
    """Return the problem that names what is wrong."""
    told = error.why if error.why.endswith("!") else f"{error.field}: {error.why}."
    return Problem(400, told, extensions={"field": error.field})


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
