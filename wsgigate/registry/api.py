"""The registry's HTTP API: register, send heartbeats, deregister, discover."""

from __future__ import annotations

import random as _random
import time
from bisect import bisect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, TypeAlias
from urllib.parse import parse_qsl
from wsgiref.types import StartResponse, WSGIEnvironment

from wsgigate.auth.bearer import Access
from wsgigate.http.bodies import has_body, json_body
from wsgigate.http.problem import Problem, Refusal, Refuse, answer_with
from wsgigate.http.target import BadTarget, target_of
from wsgigate.http.wsgi import REASON
from wsgigate.registry import Full, Listing, Registry
from wsgigate.registry.documents import (
    INDEX,
    NETWORKS,
    Answer,
    ResponseCache,
    has,
    headers_of,
    instance_document,
    invalid,
    sent,
)
from wsgigate.registry.long_poll import WaitSlots
from wsgigate.rules.registry import Invalid, Registered, Status, parse, parse_status
from wsgigate.rules.routing import MethodNotAllowed, Route, Router, listing
from wsgigate.store import StoreError
from wsgigate.units import iso_time, parse_duration

__all__ = ["INDEX", "LARGEST", "Picker", "Query", "RegistryApi", "instance_document", "parse_query"]


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

_MOST_FIELDS = 32


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
        fields = parse_qsl(text, keep_blank_values=True, max_num_fields=_MOST_FIELDS)
    except ValueError:
        raise Invalid("query", f"at most {_MOST_FIELDS} fields") from None
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

LARGEST = 32 * 1024
"""The largest body of a request, in bytes."""

Reply: TypeAlias = Answer | Problem

Endpoint: TypeAlias = Callable[..., Reply]

_ABSENT = Problem(404, "Service instance not found!")

_NOBODY = Problem(404, "No healthy instances found!")


class RegistryApi:
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
        if prefix and (not prefix.startswith("/") or prefix.endswith("/")):
            raise ValueError(f'prefix must be "" or a path such as "/_registry", got {prefix!r}')
        self._registry = registry
        self._access = access
        access.guard_by(registry.guard)
        self._name = name
        self._version = version
        self._slots = waiting if isinstance(waiting, WaitSlots) else WaitSlots(waiting)
        self._now = now
        self._started = now() if started is None else started
        self._refuse = refuse
        self._picker = Picker(random)
        self._bodies = ResponseCache(registry.rules)
        self._networks = (NETWORKS, ", ".join(registry.destinations.allowed_networks))
        self._router = Router(self._routes(prefix))
        self.listing = listing(self._router.routes)
        """The endpoints, for people: ``POST /register`` and so on."""

    def _routes(self, prefix: str) -> list[Route[Endpoint]]:
        one = "{service}/{instance}"
        endpoints: list[tuple[str, str, Endpoint]] = [
            ("POST", "/register", self._register),
            ("DELETE", f"/register/{one}", self._deregister),
            ("POST", f"/heartbeat/{one}", self._heartbeat),
            ("PUT", f"/status/{one}", self._status),
            ("GET", "/discover/{service}", self._discover),
            ("GET", "/instance/{service}", self._choose),
            ("GET", "/services", self._services),
            ("GET", "/health", self._health),
        ]
        return [
            Route(f"{prefix}{path}", endpoint, methods=(method,), exact=True)
            for method, path, endpoint in endpoints
        ]

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        try:
            answer = self._answer(environ)
        except Refusal as refusal:
            environ.setdefault(REASON, str(refusal))
            answer = refusal.problem
        except Invalid as error:
            answer = invalid(error)
        except Full as error:
            environ[REASON] = str(error)
            answer = Problem(507, "The registry is full.", headers=(("Retry-After", "30"),))
        except StoreError as error:
            environ[REASON] = f"the registry's store fails: {error}"
            answer = Problem(
                503, "The registry cannot be used at the moment.", headers=(("Retry-After", "5"),)
            )
        if isinstance(answer, Problem):
            environ.setdefault(REASON, answer.detail)
            return self._refuse(answer)(environ, start_response)
        return sent(answer, environ, start_response)

    def _answer(self, environ: WSGIEnvironment) -> Reply:
        try:
            target = target_of(environ)
        except BadTarget as error:
            raise Refusal.of(400, "Malformed request target.", str(error)) from None
        found = self._router.match(target.host, target.path, environ["REQUEST_METHOD"])
        if found is None:
            return Problem(404, "Route not found!", extensions={"availableRoutes": self.listing})
        if isinstance(found, MethodNotAllowed):
            return Problem(
                405, "Method not allowed.", headers=(("Allow", ", ".join(found.allowed)),)
            )
        if found.route.methods == ("GET",):
            self._access.check_read(environ)
        return found.route.endpoint(environ, **found.params)

    def _register(self, environ: WSGIEnvironment) -> Answer:
        caller = self._access.writer(environ)
        document = json_body(environ, LARGEST)
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
        return Answer({"success": True, "message": message, "instance": members}, 201)

    def _deregister(self, environ: WSGIEnvironment, service: str, instance: str) -> Reply:
        self._access.check_write(environ, service)
        if not self._registry.deregister(service, instance):
            return _ABSENT
        return Answer({"success": True, "message": "Service deregistered successfully!"})

    def _heartbeat(self, environ: WSGIEnvironment, service: str, instance: str) -> Reply:
        self._access.check_write(environ, service)
        status = _status_of(json_body(environ, LARGEST)) if has_body(environ) else None
        if self._registry.heartbeat(service, instance, status) is None:
            return _ABSENT
        return Answer({"success": True, "message": "Heartbeat updated successfully!"})

    def _status(self, environ: WSGIEnvironment, service: str, instance: str) -> Reply:
        self._access.check_write(environ, service)
        status = _status_of(json_body(environ, LARGEST))
        if status is None:
            raise Invalid("status", f"required: one of {', '.join(Status)}")
        entry = self._registry.heartbeat(service, instance, status)
        if entry is None:
            return _ABSENT
        members = instance_document(entry, entry.last_heartbeat, self._registry.rules)
        message = "Status updated successfully!"
        return Answer({"success": True, "message": message, "instance": members})

    def _discover(self, environ: WSGIEnvironment, service: str) -> Answer:
        text = environ.get("QUERY_STRING", "")
        query = parse_query(text)
        self._await(service, query)
        found = self._registry.discover(service, **query.filters)
        headers = headers_of(found, self._registry.rules)
        headers += (self._networks,)
        tag = headers[0][1]
        if has(environ, tag):
            return Answer(None, 304, headers)
        return Answer(self._bodies.of(service, text, found, tag), 200, headers)

    def _choose(self, environ: WSGIEnvironment, service: str) -> Reply:
        query = parse_query(environ.get("QUERY_STRING", ""))
        listing = self._registry.discover(service, **query.filters)
        usable = [entry for entry in listing.instances if entry.weight > 0]
        if not usable:
            return _NOBODY
        entry = self._picker.of(service, query.strategy, usable)
        members = {
            "serviceName": entry.service,
            "instanceId": entry.instance_id,
            "url": entry.url,
            "healthy": entry.healthy(listing.now, self._registry.rules),
            "lastHeartbeat": iso_time(entry.last_heartbeat),
        }
        return Answer({"success": True, "instance": members}, 200, ((INDEX, str(listing.version)),))

    def _services(self, environ: WSGIEnvironment) -> Answer:
        query = parse_query(environ.get("QUERY_STRING", ""), only_healthy=False)
        self._await(None, query)
        version = self._registry.version()
        services = {
            name: self._documents(listing)
            for name in self._registry.names()
            if (listing := self._registry.discover(name, **query.filters)).instances
        }
        document = {"success": True, "services": services, "serviceCount": len(services)}
        return Answer(document, 200, ((INDEX, str(version)),))

    def _health(self, environ: WSGIEnvironment) -> Answer:
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
        return Answer(
            {
                "service": self._name,
                "version": self._version,
                "status": "degraded" if age else "healthy",
                "timestamp": iso_time(now),
                "uptime": round(max(0.0, now - self._started), 3),
                "registry": {**members, **({"age": round(age, 3)} if age else {})},
            }
        )

    def _await(self, service: str | None, query: Query) -> None:
        """Wait for another version than the client's, if the query has ``wait`` and ``index``."""
        if query.wait and query.index is not None and self._slots.take():
            try:
                self._registry.wait(service, query.index, query.wait)
            finally:
                self._slots.release()

    def _documents(self, listing: Listing) -> list[dict[str, Any]]:
        rules = self._registry.rules
        return [instance_document(entry, listing.now, rules) for entry in listing.instances]


def _status_of(document: dict[str, Any]) -> Status | None:
    for name in document:
        if name != "status":
            raise Invalid(name[:64], "there is no such member")
    return parse_status(document["status"]) if "status" in document else None
