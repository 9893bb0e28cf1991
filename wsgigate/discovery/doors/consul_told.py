"""What Consul's door tells: its agent's, its catalog's and its health's answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from wsgigate.discovery.doors.consul_answers import (
    tell_catalog,
    tell_checks,
    tell_health,
    tell_node,
    tell_service,
)
from wsgigate.discovery.doors.consul_filter import Filter, parse_filter
from wsgigate.discovery.doors.consul_words import STATES, read_duration, read_flag
from wsgigate.discovery.doors.door import Answer, Asked, Table
from wsgigate.discovery.registry import LONGEST_WAIT, Listing, Registry
from wsgigate.discovery.registry_wait import Places
from wsgigate.problem import Refusal
from wsgigate.rules.registry import Invalid, LeaseRules, Registered

__all__ = ["Told"]

_NOT_SPOKEN = ("node-meta", "ns", "partition", "peer", "sg")
"""Parameters that would leave something out: refused, so that nobody takes all for a part."""


class Told:
    """The part of the door that changes nothing.

    :param datacenter: What the only one there is is called.
    :param node: What the agent is called.
    :param places: How many requests may wait for a change at a time.
    """

    def __init__(self, registry: Registry, datacenter: str, node: str, places: Places) -> None:
        self._registry = registry
        self._datacenter = datacenter
        self._node = node
        self._places = places

    def table(self) -> Table:
        """Return the endpoints."""
        return {
            "GET /agent/self": self._self,
            "GET /agent/services": self._agent_services,
            "GET /agent/service/{name}": self._agent_service,
            "GET /agent/checks": self._agent_checks,
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
        self._check(asked, filtered=True)
        version, wanted = self._registry.version(), self._filter(asked, _SERVICE)
        told = [self._service(entry, version) for entry in self.everything()]
        return Answer({each["ID"]: each for each in told if wanted(each)})

    def _agent_service(self, asked: Asked, name: str) -> Answer:
        self._check(asked)
        version = self._registry.version()
        for entry in self.everything():
            if entry.instance_id == name:
                return Answer(self._service(entry, version))
        raise Refusal.of(404, "There is no such service.")

    def _agent_checks(self, asked: Asked) -> Answer:
        return Answer({check["CheckID"]: check for check in self._all_checks(asked)})

    def _service(self, entry: Registered, version: int) -> dict[str, Any]:
        return {**tell_service(entry, _index(version)), "Datacenter": self._datacenter}

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
        wanted = self._filter(asked, _CATALOG)
        told = [tell_catalog(entry, self._datacenter, index) for entry in listing.instances]
        return _indexed(list(filter(wanted, told)), listing.version, listing.age)

    def _health_service(self, asked: Asked, service: str) -> Answer:
        listing = self._listing(asked, service)
        rules, index = self._registry.rules, _index(listing.version)
        passing = "passing" in asked.query and read_flag(asked.one("passing") or "1", "passing")
        told = [
            tell_health(entry, self._datacenter, listing.now, rules, index)
            for entry in listing.instances
            if not passing or entry.healthy(listing.now, rules)
        ]
        told = list(filter(self._filter(asked, _HEALTH), told))
        return _indexed(told, listing.version, listing.age)

    def _health_checks(self, asked: Asked, service: str) -> Answer:
        listing = self._listing(asked, service)
        checks = list(filter(self._filter(asked, _CHECK), self._checks_of(listing)))
        return _indexed(checks, listing.version, listing.age)

    def _health_state(self, asked: Asked, state: str) -> Answer:
        if state not in (*STATES, "any"):
            raise Invalid("state", f"one of any, {', '.join(STATES)}")
        self._await(asked, None, filtered=True)
        version = self._registry.version()
        checks = [c for c in self._all_checks(asked) if state in ("any", c["Status"])]
        return _indexed(checks, version)

    def _nodes(self, asked: Asked) -> Answer:
        self._await(asked, None, filtered=True)
        version, wanted = self._registry.version(), self._filter(asked, _NODE)
        nodes = {
            entry.host: tell_node(entry, self._datacenter, _index(version))
            for entry in self.everything()
        }
        return _indexed([nodes[host] for host in sorted(nodes) if wanted(nodes[host])], version)

    def _datacenters(self, asked: Asked) -> Answer:
        return Answer([self._datacenter])

    def _leader(self, asked: Asked) -> Answer:
        return Answer("127.0.0.1:8300")

    def _peers(self, asked: Asked) -> Answer:
        return Answer(["127.0.0.1:8300"])

    def everything(self) -> Iterator[Registered]:
        """Return the instances of all services."""
        for entries in self._registry.services().values():
            yield from entries

    def _all_checks(self, asked: Asked) -> Iterator[dict[str, Any]]:
        self._check(asked, filtered=True)
        wanted = self._filter(asked, _CHECK)
        for listing in self._registry.listings().values():
            yield from filter(wanted, self._checks_of(listing))

    def _checks_of(self, listing: Listing) -> list[dict[str, Any]]:
        rules, index = self._registry.rules, _index(listing.version)
        return [
            check
            for entry in listing.instances
            for check in tell_checks(entry, listing.now, rules, index)
        ]

    def _listing(self, asked: Asked, service: str) -> Listing:
        self._await(asked, service, filtered=True)
        return self._registry.discover(service, tags=asked.query.get("tag", ()))

    def _await(self, asked: Asked, service: str | None, *, filtered: bool = False) -> None:
        """Wait for another index than the one that the client has seen, if it has seen one.

        :param filtered: Whether the endpoint takes a filter.
        """
        self._check(asked, filtered=filtered)
        index, wait = asked.one("index") or "0", asked.one("wait")
        if not (index.isascii() and index.isdigit() and len(index) < 20):
            raise Invalid("index", "what X-Consul-Index has said")
        seconds = read_duration(wait, "wait") if wait else LONGEST_WAIT
        if int(index) and self._places.take():
            try:
                self._registry.wait(service, _version(int(index)), seconds)
            finally:
                self._places.leave()

    @staticmethod
    def _filter(asked: Asked, sample: Mapping[str, Any]) -> Filter:
        """Return what tells whether the client wants a document that is like *sample*."""
        text = asked.one("filter")
        return parse_filter(text, sample) if text.strip() else _everything

    def _check(self, asked: Asked, *, filtered: bool = False) -> None:
        for name in _NOT_SPOKEN if filtered else (*_NOT_SPOKEN, "filter"):
            if any(asked.query.get(name, ())):
                raise Invalid(name, "not spoken here")
        if asked.one("dc", self._datacenter) not in ("", self._datacenter):
            raise Invalid("dc", f"there is only {self._datacenter}")


def _everything(document: object) -> bool:
    return True


_ENTRY = Registered("sample", "sample", "10.0.0.1", 80)
_NODE = tell_node(_ENTRY, "dc1", 1)
_SERVICE = {**tell_service(_ENTRY, 1), "Kind": "", "Datacenter": "dc1"}
_CATALOG = {**tell_catalog(_ENTRY, "dc1", 1), "ServiceKind": ""}
_CHECK = tell_checks(_ENTRY, 0.0, LeaseRules(), 1)[0]
_HEALTH = {"Node": _NODE, "Service": _SERVICE, "Checks": [_CHECK]}


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
