"""Consul's door: the part of its agent, catalog and health API that services and their users need."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any
from wsgiref.types import WSGIEnvironment

from wsgigate.discovery.doors.consul_answers import (
    tell_catalog,
    tell_checks,
    tell_health,
    tell_node,
    tell_service,
)
from wsgigate.discovery.doors.consul_words import (
    FIELDS,
    STATES,
    check_id,
    read_check_of,
    read_duration,
    read_flag,
    read_service,
    read_state,
    with_check,
    without_check,
)
from wsgigate.discovery.doors.door import Answer, Asked, Door, Table
from wsgigate.discovery.registry import LONGEST_WAIT, Listing, Registry
from wsgigate.discovery.registry_access import Access
from wsgigate.problem import Refusal, Refuse, answer_with
from wsgigate.rules.registry import Invalid, Registered, Status
from wsgigate.wsgi import CLIENT

__all__ = ["Consul"]

_DONE = Answer(content_type="text/plain")

_NOT_SPOKEN = ("filter", "node-meta", "ns", "partition", "peer", "sg")
"""Parameters that would leave something out: refused, so that nobody takes all for a part."""

_MOST_REMEMBERED = 10_000


class Consul(Door):
    """Consul's API over the registry, below ``/v1``: one agent for all services.

    A client presents the registry's token as ``X-Consul-Token`` or as a bearer token. Whoever may
    not is told so by 403, as Consul does.

    :param registry: What it is a door to.
    :param access: Who may change and read it.
    :param prefix: The path that it is below.
    :param datacenter: What the only one there is is called.
    :param node: What the agent is called.
    :param waiting: How many requests may wait for a change at a time; any more are answered at
        once.
    :param refuse: Turns a problem into the app that answers it.
    :raises ValueError: *prefix* is no path, or *waiting* is negative.
    """

    def __init__(
        self,
        registry: Registry,
        access: Access,
        *,
        prefix: str = "/v1",
        datacenter: str = "dc1",
        node: str = "wsgigate",
        waiting: int = 4,
        refuse: Refuse = answer_with,
    ) -> None:
        if waiting < 0:
            raise ValueError(f"waiting is 0 or more requests, got {waiting}")
        table: Table = {
            "GET /agent/self": self._self,
            "GET /agent/services": self._agent_services,
            "GET /agent/service/{name}": self._agent_service,
            "GET /agent/checks": self._agent_checks,
            "PUT /agent/service/register": self._register,
            "PUT /agent/service/deregister/{name}": self._deregister,
            "PUT /agent/service/maintenance/{name}": self._maintenance,
            "PUT /agent/check/register": self._register_check,
            "PUT /agent/check/deregister/{check}": self._deregister_check,
            "PUT /agent/check/pass/{check}": self._pass,
            "PUT /agent/check/warn/{check}": self._pass,
            "PUT /agent/check/fail/{check}": self._fail,
            "PUT /agent/check/update/{check}": self._update,
            "GET /catalog/datacenters": self._datacenters,
            "GET /catalog/nodes": self._nodes,
            "GET /catalog/services": self._catalog_services,
            "GET /catalog/service/{service}": self._catalog_service,
            "GET /health/service/{service}": self._health_service,
            "GET /health/checks/{service}": self._health_checks,
            "GET /health/state/{state}": self._health_state,
            "GET /status/leader": self._leader,
            "GET /status/peers": self._peers,
        }
        super().__init__(registry, access, table, (prefix,), refuse=refuse)
        self._datacenter = datacenter
        self._node = node
        self._waiting = threading.BoundedSemaphore(waiting) if waiting else None
        self._remembered: dict[str, tuple[tuple[str, str], ...]] = {}

    def token(self, environ: WSGIEnvironment) -> bytes | None:
        given: str | None = environ.get("HTTP_X_CONSUL_TOKEN")
        return None if given is None else given.strip(" ").encode("latin-1", "replace")

    def denied(self, refusal: Refusal) -> Refusal:
        return Refusal.of(403, "Permission denied: registry token required!", str(refusal))

    # the agent: what is changed

    def _register(self, asked: Asked) -> Answer:
        caller = self.writer(asked)
        environ = asked.environ
        entry = read_service(asked.json(), environ.get(CLIENT) or environ.get("REMOTE_ADDR", ""))
        self._access.check_caller(caller, entry.service)
        self.register(entry, FIELDS)
        return _DONE

    def _deregister(self, asked: Asked, name: str) -> Answer:
        for entry in self._writable(asked, lambda entry: entry.instance_id == name):
            self._registry.deregister(entry.service, entry.instance_id)
        return _DONE

    def _maintenance(self, asked: Asked, name: str) -> Answer:
        entries = self._writable(asked, lambda entry: entry.instance_id == name)
        enable = read_flag(asked.one("enable"), "enable")
        for entry in entries:
            if enable or entry.status is Status.DRAINING:
                status = Status.DRAINING if enable else Status.UP
                self._registry.heartbeat(entry.service, entry.instance_id, status)
        return _DONE

    def _register_check(self, asked: Asked) -> Answer:
        self.writer(asked)
        name, *check = read_check_of(asked.json())
        for entry in self._writable(asked, lambda entry: entry.instance_id == name):
            self.register(with_check(entry, *check), FIELDS)
        return _DONE

    def _deregister_check(self, asked: Asked, check: str) -> Answer:
        for entry in self._writable(asked, lambda entry: check_id(entry) == check):
            self.register(without_check(entry), FIELDS)
        return _DONE

    def _pass(self, asked: Asked, check: str) -> Answer:
        return self._report(asked, check, Status.UP)

    def _fail(self, asked: Asked, check: str) -> Answer:
        return self._report(asked, check, Status.DOWN)

    def _update(self, asked: Asked, check: str) -> Answer:
        self.writer(asked)
        return self._report(asked, check, read_state(asked.json()))

    def _report(self, asked: Asked, check: str, status: Status) -> Answer:
        """Renew the lease of those that have *check*, and have them be what it says.

        Who they are is remembered, as checks report often and are to be searched for.
        """
        caller = self.writer(asked)
        names = self._remembered.get(check, ())
        mine = [name for name in names if caller.may(name[0])]
        if mine and all([self._renew(service, name, status) for service, name in mine]):
            return _DONE
        found = self._writable(asked, lambda entry: check_id(entry) == check)
        for entry in found:
            self._renew(entry.service, entry.instance_id, status)
        if len(self._remembered) >= _MOST_REMEMBERED:
            self._remembered.clear()
        self._remembered[check] = tuple((entry.service, entry.instance_id) for entry in found)
        return _DONE

    def _renew(self, service: str, name: str, status: Status) -> bool:
        entry = self._registry.heartbeat(service, name)
        if entry is None:
            return False
        # who is in maintenance stays there, however well it is
        if entry.status not in (status, Status.DRAINING):
            self._registry.heartbeat(service, name, status)
        return True

    def _writable(
        self, asked: Asked, wanted: Callable[[Registered], bool]
    ) -> tuple[Registered, ...]:
        """Return those *wanted* that the client may change.

        An agent has each id once; here several services may have it, and then all are meant.

        :raises Refusal: It may change none of them; or there is none.
        """
        caller = self.writer(asked)
        found = tuple(filter(wanted, self._everything()))
        if not found:
            raise Refusal.of(404, "There is no such service or check; register it first.")
        mine = tuple(entry for entry in found if caller.may(entry.service))
        if not mine:
            self._access.check_caller(caller, found[0].service)
        return mine

    # the agent: what is told

    def _self(self, asked: Asked) -> Answer:
        config = {
            "Datacenter": self._datacenter,
            "NodeName": self._node,
            "NodeID": "",
            "Revision": "",
            "Server": True,
            "Version": "1.0.0+wsgigate",
        }
        member = {"Name": self._node, "Addr": "", "Port": 0, "Tags": {}, "Status": 1}
        return Answer({"Config": config, "DebugConfig": {}, "Member": member, "Meta": {}})

    def _agent_services(self, asked: Asked) -> Answer:
        self._check(asked)
        version = self._registry.version()
        return Answer(
            {entry.instance_id: self._service(entry, version) for entry in self._everything()}
        )

    def _agent_service(self, asked: Asked, name: str) -> Answer:
        self._check(asked)
        version = self._registry.version()
        for entry in self._everything():
            if entry.instance_id == name:
                return Answer(self._service(entry, version))
        raise Refusal.of(404, "There is no such service.")

    def _agent_checks(self, asked: Asked) -> Answer:
        return Answer({check["CheckID"]: check for check in self._all_checks(asked)})

    def _service(self, entry: Registered, version: int) -> dict[str, Any]:
        return {**tell_service(entry, _index(version)), "Datacenter": self._datacenter}

    # the catalog, and health

    def _catalog_services(self, asked: Asked) -> Answer:
        self._await(asked, None)
        version = self._registry.version()
        tags = {
            name: sorted({tag for entry in entries for tag in entry.tags})
            for name, entries in self._registry.services().items()
        }
        return _indexed(tags, version)

    def _catalog_service(self, asked: Asked, service: str) -> Answer:
        listing = self._listing(asked, service)
        index = _index(listing.version)
        told = [tell_catalog(entry, self._datacenter, index) for entry in listing.instances]
        return _indexed(told, listing.version, listing.age)

    def _health_service(self, asked: Asked, service: str) -> Answer:
        listing = self._listing(asked, service)
        rules, index = self._registry.rules, _index(listing.version)
        passing = "passing" in asked.query and read_flag(asked.one("passing") or "1", "passing")
        told = [
            tell_health(entry, self._datacenter, listing.now, rules, index)
            for entry in listing.instances
            if not passing or entry.healthy(listing.now, rules)
        ]
        return _indexed(told, listing.version, listing.age)

    def _health_checks(self, asked: Asked, service: str) -> Answer:
        listing = self._listing(asked, service)
        return _indexed(self._checks_of(listing), listing.version, listing.age)

    def _health_state(self, asked: Asked, state: str) -> Answer:
        if state not in (*STATES, "any"):
            raise Invalid("state", f"one of any, {', '.join(STATES)}")
        self._await(asked, None)
        version = self._registry.version()
        checks = [c for c in self._all_checks(asked) if state in ("any", c["Status"])]
        return _indexed(checks, version)

    def _nodes(self, asked: Asked) -> Answer:
        self._await(asked, None)
        version = self._registry.version()
        nodes = {
            entry.host: tell_node(entry, self._datacenter, _index(version))
            for entry in self._everything()
        }
        return _indexed([nodes[host] for host in sorted(nodes)], version)

    def _datacenters(self, asked: Asked) -> Answer:
        return Answer([self._datacenter])

    def _leader(self, asked: Asked) -> Answer:
        return Answer("127.0.0.1:8300")

    def _peers(self, asked: Asked) -> Answer:
        return Answer(["127.0.0.1:8300"])

    def _everything(self) -> Iterator[Registered]:
        for entries in self._registry.services().values():
            yield from entries

    def _all_checks(self, asked: Asked) -> Iterator[dict[str, Any]]:
        self._check(asked)
        for listing in self._registry.listings().values():
            yield from self._checks_of(listing)

    def _checks_of(self, listing: Listing) -> list[dict[str, Any]]:
        rules, index = self._registry.rules, _index(listing.version)
        return [
            check
            for entry in listing.instances
            for check in tell_checks(entry, listing.now, rules, index)
        ]

    def _listing(self, asked: Asked, service: str) -> Listing:
        self._await(asked, service)
        return self._registry.discover(service, tags=asked.query.get("tag", ()))

    def _await(self, asked: Asked, service: str | None) -> None:
        """Wait for another index than the one that the client has seen, if it has seen one."""
        self._check(asked)
        index, wait = asked.one("index") or "0", asked.one("wait")
        if not (index.isascii() and index.isdigit() and len(index) < 20):
            raise Invalid("index", "what X-Consul-Index has said")
        seconds = read_duration(wait, "wait") if wait else LONGEST_WAIT
        waiting = self._waiting
        if int(index) and waiting is not None and waiting.acquire(blocking=False):
            try:
                self._registry.wait(service, _version(int(index)), seconds)
            finally:
                waiting.release()

    def _check(self, asked: Asked) -> None:
        for name in _NOT_SPOKEN:
            if any(asked.query.get(name, ())):
                raise Invalid(name, "not spoken here")
        if asked.one("dc", self._datacenter) not in ("", self._datacenter):
            raise Invalid("dc", f"there is only {self._datacenter}")


def _index(version: int) -> int:
    """Return the index that stands for *version*: never 0, by which clients do not wait."""
    return max(1, version)


def _version(index: int) -> int:
    return 0 if index == 1 else index


def _indexed(document: object, version: int, age: float = 0.0) -> Answer:
    """Return *document* with the index to wait for the next one with.

    :param age: For how many seconds the store has not been read, as it fails.
    """
    fields = (
        ("X-Consul-Index", str(_index(version))),
        ("X-Consul-KnownLeader", "false" if age else "true"),
        ("X-Consul-LastContact", str(round(age * 1000))),
    )
    return Answer(document, headers=fields)
