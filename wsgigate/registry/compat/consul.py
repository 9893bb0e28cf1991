"""Consul compatibility API: the parts of its agent, catalog and health APIs that clients need."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qs
from wsgiref.types import WSGIEnvironment

from wsgigate.auth.bearer import Access, Caller
from wsgigate.http.json_app import MOST_FIELDS, Endpoint, JsonRequest, JsonResponse
from wsgigate.http.problem import Refusal, Refuse, answer_with
from wsgigate.http.wsgi import peer
from wsgigate.registry import LONGEST_WAIT, Listing, Registry
from wsgigate.registry.app import WaitSlots
from wsgigate.registry.compat import CompatApp
from wsgigate.registry.compat.consul_filter import Filter, parse_filter
from wsgigate.registry.compat.consul_format import (
    CHECK,
    FIELDS,
    STATES,
    check_id,
    has_check,
    read_check_of,
    read_duration,
    read_flag,
    read_service,
    read_state,
    with_any_check,
    without_check,
)
from wsgigate.rules.registry import Invalid, LeaseRules, Registered, Status

__all__ = [
    "ConsulApi",
    "ConsulReads",
    "catalog_document",
    "check_documents",
    "health_document",
    "node_document",
    "service_document",
]


# Entries of the registry as Consul's JSON documents.


def node_document(entry: Registered, datacenter: str, index: int) -> dict[str, Any]:
    """Return the host of *entry* as a node in Consul's JSON: every host is a node."""
    return {
        "ID": "",
        "Node": entry.host,
        "Address": entry.host,
        "Datacenter": datacenter,
        "TaggedAddresses": {},
        "Meta": {},
        "CreateIndex": index,
        "ModifyIndex": index,
    }


def service_document(entry: Registered, index: int) -> dict[str, Any]:
    """Return *entry* as a service in Consul's JSON.

    :param index: The index of the listing.
    """
    meta = {key: _as_text(value) for key, value in entry.metadata.items() if key != CHECK}
    scheme = None if entry.scheme == "http" else entry.scheme
    for key, value in (("zone", entry.zone), ("version", entry.version), ("scheme", scheme)):
        if value is not None:
            meta.setdefault(key, value)
    return {
        "ID": entry.instance_id,
        "Service": entry.service,
        "Tags": list(entry.tags),
        "Meta": meta,
        "Port": entry.port,
        "Address": entry.host,
        "TaggedAddresses": {},
        "Weights": {"Passing": entry.weight, "Warning": 1},
        "EnableTagOverride": False,
        "CreateIndex": index,
        "ModifyIndex": index,
    }


def check_documents(
    entry: Registered, now: float, rules: LeaseRules, index: int
) -> list[dict[str, Any]]:
    """Return the checks of *entry*: its own, and one more while it is in maintenance."""
    believed = replace(entry, status=Status.UP, checks=()).healthy(now, rules)
    well = believed and entry.status in (Status.UP, Status.DRAINING)
    output = f"The service says that it is {entry.status}." if believed else "TTL expired"
    common = {
        "Node": entry.host,
        "Notes": "",
        "ServiceID": entry.instance_id,
        "ServiceName": entry.service,
        "ServiceTags": list(entry.tags),
        "CreateIndex": index,
        "ModifyIndex": index,
    }
    checks = [
        {
            **common,
            "CheckID": check.check_id,
            "Name": check.name,
            "Status": check.status,
            "Output": check.output,
            "Type": check.kind,
            "Interval": f"{check.interval:g}s",
            "Timeout": f"{check.timeout:g}s",
        }
        for check in entry.checks
    ]
    if entry.reports:
        own = {
            "CheckID": check_id(entry),
            "Name": f"Service '{entry.service}' check",
            "Status": "passing" if well else "critical",
            "Output": output,
            "Type": "ttl",
        }
        checks.append({**common, **own})
    if entry.status is Status.DRAINING:
        maintenance = {
            "CheckID": f"_service_maintenance:{entry.instance_id}",
            "Name": "Service Maintenance Mode",
            "Status": "critical",
            "Output": "",
            "Type": "maintenance",
        }
        checks.append({**common, **maintenance})
    return checks


def health_document(
    entry: Registered, datacenter: str, now: float, rules: LeaseRules, index: int
) -> dict[str, Any]:
    """Return *entry* as in ``/v1/health/service``: its node, service and checks."""
    return {
        "Node": node_document(entry, datacenter, index),
        "Service": service_document(entry, index),
        "Checks": check_documents(entry, now, rules, index),
    }


def catalog_document(entry: Registered, datacenter: str, index: int) -> dict[str, Any]:
    """Return *entry* as in ``/v1/catalog/service``: node and service in one object."""
    node, service = node_document(entry, datacenter, index), service_document(entry, index)
    return {
        **{name: value for name, value in node.items() if name != "Meta"},
        "NodeMeta": node["Meta"],
        "ServiceID": service["ID"],
        "ServiceName": service["Service"],
        **{
            f"Service{name}": service[name]
            for name in ("Tags", "Address", "Port", "Meta", "Weights", "EnableTagOverride")
        },
    }


def _as_text(value: object) -> str:
    """Return *value* as a string, as all metadata of Consul are strings."""
    return value if isinstance(value, str) else json.dumps(value)


# The endpoints that read.

_UNSUPPORTED = ("node-meta", "ns", "partition", "peer", "sg")
"""Unsupported filters. They are rejected: a client would take the full list for a filtered one."""


class ConsulReads:
    """The endpoints that read.

    :param datacenter: The name of the only datacenter.
    :param node: The name of the agent.
    :param slots: The slots for requests that wait for a change.
    """

    def __init__(self, registry: Registry, datacenter: str, node: str, slots: WaitSlots) -> None:
        self._registry = registry
        self._datacenter = datacenter
        self._node = node
        self._slots = slots

    def table(self) -> list[Endpoint]:
        """Return the endpoints."""
        return [
            Endpoint("GET /agent/self", self._self),
            Endpoint("GET /agent/services", self._agent_services),
            Endpoint("GET /agent/service/{name}", self._agent_service),
            Endpoint("GET /agent/checks", self._agent_checks),
            Endpoint("GET /catalog/datacenters", self._datacenters),
            Endpoint("GET /catalog/nodes", self._nodes),
            Endpoint("GET /catalog/services", self._catalog_services),
            Endpoint("GET /catalog/service/{service}", self._catalog_service),
            Endpoint("GET /health/service/{service}", self._health_service),
            Endpoint("GET /health/checks/{service}", self._health_checks),
            Endpoint("GET /health/state/{state}", self._health_state),
            Endpoint("GET /status/leader", self._leader),
            Endpoint("GET /status/peers", self._peers),
        ]

    def _self(self, request: JsonRequest) -> object:
        config = {
            "Datacenter": self._datacenter,
            "NodeName": self._node,
            "NodeID": "",
            "Revision": "",
            "Server": True,
            "Version": "1.0.0+wsgigate",
        }
        member = {"Name": self._node, "Addr": "", "Port": 0, "Tags": {}, "Status": 1}
        return {"Config": config, "DebugConfig": {}, "Member": member, "Meta": {}}

    def _agent_services(self, request: JsonRequest) -> object:
        self._check(request, filtered=True)
        version, wanted = self._registry.version(), self._filter(request, _SERVICE)
        documents = [self._service(entry, version) for entry in self.everything()]
        return {each["ID"]: each for each in documents if wanted(each)}

    def _agent_service(self, request: JsonRequest, name: str) -> object:
        self._check(request)
        version = self._registry.version()
        for entry in self.everything():
            if entry.instance_id == name:
                return self._service(entry, version)
        raise Refusal.of(404, "There is no such service.")

    def _agent_checks(self, request: JsonRequest) -> object:
        return {check["CheckID"]: check for check in self._all_checks(request)}

    def _service(self, entry: Registered, version: int) -> dict[str, Any]:
        return {**service_document(entry, _index(version)), "Datacenter": self._datacenter}

    def _catalog_services(self, request: JsonRequest) -> JsonResponse:
        self._await(request, None)
        version = self._registry.version()
        tags = {
            name: sorted({tag for entry in entries for tag in entry.tags})
            for name, entries in self._registry.services().items()
        }
        return _indexed(tags, version)

    def _catalog_service(self, request: JsonRequest, service: str) -> JsonResponse:
        listing = self._listing(request, service)
        index = _index(listing.version)
        wanted = self._filter(request, _CATALOG)
        found = [catalog_document(entry, self._datacenter, index) for entry in listing.instances]
        return _indexed(list(filter(wanted, found)), listing.version, listing.age)

    def _health_service(self, request: JsonRequest, service: str) -> JsonResponse:
        listing = self._listing(request, service)
        rules, index = self._registry.rules, _index(listing.version)
        passing = "passing" in request.query and read_flag(request.one("passing") or "1", "passing")
        documents = [
            health_document(entry, self._datacenter, listing.now, rules, index)
            for entry in listing.instances
            if not passing or entry.healthy(listing.now, rules)
        ]
        documents = list(filter(self._filter(request, _HEALTH), documents))
        return _indexed(documents, listing.version, listing.age)

    def _health_checks(self, request: JsonRequest, service: str) -> JsonResponse:
        listing = self._listing(request, service)
        checks = list(filter(self._filter(request, _CHECK), self._checks_of(listing)))
        return _indexed(checks, listing.version, listing.age)

    def _health_state(self, request: JsonRequest, state: str) -> JsonResponse:
        if state not in (*STATES, "any"):
            raise Invalid("state", f"one of any, {', '.join(STATES)}")
        self._await(request, None, filtered=True)
        version = self._registry.version()
        checks = [c for c in self._all_checks(request) if state in ("any", c["Status"])]
        return _indexed(checks, version)

    def _nodes(self, request: JsonRequest) -> JsonResponse:
        self._await(request, None, filtered=True)
        version, wanted = self._registry.version(), self._filter(request, _NODE)
        nodes = {
            entry.host: node_document(entry, self._datacenter, _index(version))
            for entry in self.everything()
        }
        return _indexed([nodes[host] for host in sorted(nodes) if wanted(nodes[host])], version)

    def _datacenters(self, request: JsonRequest) -> object:
        return [self._datacenter]

    def _leader(self, request: JsonRequest) -> object:
        return "127.0.0.1:8300"

    def _peers(self, request: JsonRequest) -> object:
        return ["127.0.0.1:8300"]

    def everything(self) -> Iterator[Registered]:
        """Return the instances of all services."""
        for entries in self._registry.services().values():
            yield from entries

    def _all_checks(self, request: JsonRequest) -> Iterator[dict[str, Any]]:
        self._check(request, filtered=True)
        wanted = self._filter(request, _CHECK)
        for listing in self._registry.listings().values():
            yield from filter(wanted, self._checks_of(listing))

    def _checks_of(self, listing: Listing) -> list[dict[str, Any]]:
        rules, index = self._registry.rules, _index(listing.version)
        return [
            check
            for entry in listing.instances
            for check in check_documents(entry, listing.now, rules, index)
        ]

    def _listing(self, request: JsonRequest, service: str) -> Listing:
        self._await(request, service, filtered=True)
        return self._registry.discover(service, tags=request.query.get("tag", ()))

    def _await(self, request: JsonRequest, service: str | None, *, filtered: bool = False) -> None:
        """Wait for another index than the client's, if it sent one.

        :param filtered: Whether the endpoint supports ``filter``.
        """
        self._check(request, filtered=filtered)
        index, wait = request.one("index") or "0", request.one("wait")
        if not (index.isascii() and index.isdigit() and len(index) < 20):
            raise Invalid("index", "the value of X-Consul-Index in an earlier response")
        seconds = read_duration(wait, "wait") if wait else LONGEST_WAIT
        if int(index):
            self._slots.wait(self._registry, service, _version(int(index)), seconds)

    @staticmethod
    def _filter(request: JsonRequest, sample: Mapping[str, Any]) -> Filter:
        """Return the predicate of the query's ``filter``, for documents like *sample*."""
        text = request.one("filter")
        return parse_filter(text, sample) if text.strip() else _match_all

    def _check(self, request: JsonRequest, *, filtered: bool = False) -> None:
        for name in _UNSUPPORTED if filtered else (*_UNSUPPORTED, "filter"):
            if any(request.query.get(name, ())):
                raise Invalid(name, "not supported here")
        if request.one("dc", self._datacenter) not in ("", self._datacenter):
            raise Invalid("dc", f"there is only {self._datacenter}")


def _match_all(document: object) -> bool:
    return True


_ENTRY = Registered("sample", "sample", "10.0.0.1", 80)

_NODE = node_document(_ENTRY, "dc1", 1)

_SERVICE = {**service_document(_ENTRY, 1), "Kind": "", "Datacenter": "dc1"}

_CATALOG = {**catalog_document(_ENTRY, "dc1", 1), "ServiceKind": ""}

_CHECK = check_documents(_ENTRY, 0.0, LeaseRules(), 1)[0]

_HEALTH = {"Node": _NODE, "Service": _SERVICE, "Checks": [_CHECK]}


def _index(version: int) -> int:
    """Return the index for *version*: never 0, with which clients do not wait."""
    return max(1, version)


def _version(index: int) -> int:
    return 0 if index == 1 else index


def _indexed(document: object, version: int, age: float = 0.0) -> JsonResponse:
    """Return *document* with the index that a client sends back to wait for a change.

    :param age: Seconds since the store was last read, while it fails.
    """
    fields = (
        ("X-Consul-Index", str(_index(version))),
        ("X-Consul-KnownLeader", "false" if age else "true"),
        ("X-Consul-LastContact", str(round(age * 1000))),
    )
    return JsonResponse(document, headers=fields)


_DONE = JsonResponse(content_type="text/plain")

MOST_CACHED = 10_000
"""The largest number of checks whose instances are cached."""


class ConsulApi(CompatApp):
    """Consul's API over the registry, below ``/v1``: one agent for all services.

    A client sends the registry's token as ``X-Consul-Token`` or as a bearer token. Callers without
    permission get a 403, as from Consul. The rest of Consul's API returns 501, as clients read 404
    as "there is no value".

    :param registry: The registry.
    :param access: Authenticates and authorizes clients.
    :param prefix: The path prefix.
    :param datacenter: The name of the only datacenter.
    :param node: The name of the agent.
    :param waiting: The largest number of requests that wait for a change at a time; further ones
        are answered at once. The registry's own API may share the slots.
    :param query_tokens: Whether the token is also read from ``?token=`` in the query, as older
        clients send it. Queries end up in the logs of proxies and in histories.
    :param refuse: Turns a problem into the app that sends it.
    :raises ValueError: *prefix* is not a path, or *waiting* is negative.
    """

    def __init__(
        self,
        registry: Registry,
        access: Access,
        *,
        prefix: str = "/v1",
        datacenter: str = "dc1",
        node: str = "wsgigate",
        waiting: int | WaitSlots = 4,
        query_tokens: bool = False,
        refuse: Refuse = answer_with,
    ) -> None:
        slots = waiting if isinstance(waiting, WaitSlots) else WaitSlots(waiting)
        reads = ConsulReads(registry, datacenter, node, slots)
        table = [
            *reads.table(),
            Endpoint("PUT /agent/service/register", self._register),
            Endpoint("PUT /agent/service/deregister/{name}", self._deregister),
            Endpoint("PUT /agent/service/maintenance/{name}", self._maintenance),
            Endpoint("PUT /agent/check/register", self._register_check),
            Endpoint("PUT /agent/check/deregister/{check}", self._deregister_check),
            Endpoint("PUT /agent/check/pass/{check}", self._pass),
            Endpoint("PUT /agent/check/warn/{check}", self._pass),
            Endpoint("PUT /agent/check/fail/{check}", self._fail),
            Endpoint("PUT /agent/check/update/{check}", self._update),
        ]
        super().__init__(registry, access, table, (prefix,), refuse)
        self._query_tokens = query_tokens
        self._everything = reads.everything
        self._instances_of: dict[str, tuple[tuple[str, str], ...]] = {}

    def token(self, environ: WSGIEnvironment) -> bytes | None:
        given: str | None = environ.get("HTTP_X_CONSUL_TOKEN")
        if given is not None:
            return given.strip(" ").encode("latin-1", "replace")
        if not self._query_tokens or environ.get("HTTP_AUTHORIZATION"):
            return None
        found = parse_qs(environ.get("QUERY_STRING", ""), max_num_fields=MOST_FIELDS)
        return found["token"][0].encode("utf-8", "replace") if "token" in found else None

    def denied(self, refusal: Refusal) -> Refusal:
        return Refusal.of(
            403, "Permission denied: registry token required, as X-Consul-Token!", str(refusal)
        )

    def absent(self) -> Refusal:
        return Refusal.of(
            501,
            "Not implemented: of Consul's API, this registry has services, checks, health and the "
            "catalog.",
        )

    def _register(self, request: JsonRequest) -> JsonResponse:
        caller = self.writer(request)
        environ = request.environ
        address = peer(environ)
        entry = read_service(request.json(), "" if address == "unix" else address)
        self._access.check_caller(caller, entry.service)
        for known in self._registry.discover(entry.service, status=Status.DRAINING).instances:
            if known.instance_id == entry.instance_id:  # maintenance survives a registration
                entry = replace(entry, status=Status.DRAINING)
        self.register(entry, FIELDS)
        return _DONE

    def _deregister(self, request: JsonRequest, name: str) -> JsonResponse:
        for entry in self._writable(request, lambda entry: entry.instance_id == name):
            self.remove(request.environ, entry.service, entry.instance_id)
        return _DONE

    def _maintenance(self, request: JsonRequest, name: str) -> JsonResponse:
        entries = self._writable(request, lambda entry: entry.instance_id == name)
        enable = read_flag(request.one("enable"), "enable")
        for entry in entries:
            if enable or entry.status is Status.DRAINING:
                status = Status.DRAINING if enable else Status.UP
                self._registry.heartbeat(entry.service, entry.instance_id, status)
        return _DONE

    def _register_check(self, request: JsonRequest) -> JsonResponse:
        self.writer(request)
        name, check = read_check_of(request.json())
        for entry in self._writable(request, lambda entry: entry.instance_id == name):
            self.register(with_any_check(entry, check), FIELDS)
        return _DONE

    def _deregister_check(self, request: JsonRequest, check: str) -> JsonResponse:
        for entry in self._writable(request, lambda entry: has_check(entry, check)):
            self.register(without_check(entry, check), FIELDS)
        return _DONE

    def _pass(self, request: JsonRequest, check: str) -> JsonResponse:
        return self._report(request, check, Status.UP)

    def _fail(self, request: JsonRequest, check: str) -> JsonResponse:
        return self._report(request, check, Status.DOWN)

    def _update(self, request: JsonRequest, check: str) -> JsonResponse:
        self.writer(request)
        return self._report(request, check, read_state(request.json()))

    def _report(self, request: JsonRequest, check: str, status: Status) -> JsonResponse:
        """Renew the lease of the instances that have *check*, and set their status.

        The instances of a check are cached: checks report often, and finding them takes a search.
        """
        caller = self.writer(request)
        names = self._instances_of.get(check, ())
        mine = [name for name in names if caller.may(name[0])]
        if mine and all(self._renew(service, name, status) for service, name in mine):
            return _DONE
        found = self._found(lambda entry: check_id(entry) == check)
        for entry in self._mine(caller, found):
            self._renew(entry.service, entry.instance_id, status)
        if len(self._instances_of) >= MOST_CACHED:
            self._instances_of.clear()
        self._instances_of[check] = tuple((entry.service, entry.instance_id) for entry in found)
        return _DONE

    def _renew(self, service: str, name: str, status: Status) -> bool:
        entry = self._registry.heartbeat(service, name)
        if entry is None:
            return False
        # an instance in maintenance stays so, whatever its check reports
        if entry.status not in (status, Status.DRAINING):
            self._registry.heartbeat(service, name, status)
        return True

    def _writable(
        self, request: JsonRequest, wanted: Callable[[Registered], bool]
    ) -> list[Registered]:
        """Return the instances that match *wanted* and that the client may change.

        :raises Refusal: None matches, or the client may change none of them.
        """
        caller = self.writer(request)
        return self._mine(caller, self._found(wanted))

    def _found(self, wanted: Callable[[Registered], bool]) -> list[Registered]:
        """Return all instances that match *wanted*.

        An agent of Consul has each id once; here several services may have the same id.

        :raises Refusal: None matches.
        """
        found = list(filter(wanted, self._everything()))
        if not found:
            raise Refusal.of(404, "There is no such service or check; register it first.")
        return found

    def _mine(self, caller: Caller, found: list[Registered]) -> list[Registered]:
        mine = [entry for entry in found if caller.may(entry.service)]
        if not mine:
            self._access.check_caller(caller, found[0].service)
        return mine
