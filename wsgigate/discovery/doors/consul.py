"""Consul's door: the part of its agent, catalog and health API that services and users need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from urllib.parse import parse_qs
from wsgiref.types import WSGIEnvironment

from wsgigate.discovery.doors.consul_told import Told
from wsgigate.discovery.doors.consul_words import (
    FIELDS,
    check_id,
    has_check,
    read_check_of,
    read_flag,
    read_service,
    read_state,
    with_any_check,
    without_check,
)
from wsgigate.discovery.doors.door import MOST_FIELDS, Answer, Asked, Door, Table
from wsgigate.discovery.registry import Registry
from wsgigate.discovery.registry_access import Access, Caller
from wsgigate.discovery.registry_wait import Places
from wsgigate.problem import Refusal, Refuse, answer_with
from wsgigate.rules.registry import Registered, Status
from wsgigate.wsgi import peer

__all__ = ["Consul"]

_DONE = Answer(content_type="text/plain")

_MOST_REMEMBERED = 10_000
"""How many checks are remembered, by whom they are."""


class Consul(Door):
    """Consul's API over the registry, below ``/v1``: one agent for all services.

    A client presents the registry's token as ``X-Consul-Token`` or as a bearer token. Whoever may
    not is told so by 403, as Consul does. The rest of Consul's API is answered with 501, as its
    clients read 404 as "there is no value".

    :param registry: What it is a door to.
    :param access: Who may change and read it.
    :param prefix: The path that it is below.
    :param datacenter: What the only one there is is called.
    :param node: What the agent is called.
    :param waiting: How many requests may wait for a change at a time; any more are answered at
        once. The registry's own API may share them.
    :param query_tokens: Whether the token may be ``?token=`` in the query, too, as older clients
        have it. Queries end up in logs of proxies and in histories.
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
        waiting: int | Places = 4,
        query_tokens: bool = False,
        refuse: Refuse = answer_with,
    ) -> None:
        places = waiting if isinstance(waiting, Places) else Places(waiting)
        told = Told(registry, datacenter, node, places)
        table: Table = {
            **told.table(),
            "PUT /agent/service/register": self._register,
            "PUT /agent/service/deregister/{name}": self._deregister,
            "PUT /agent/service/maintenance/{name}": self._maintenance,
            "PUT /agent/check/register": self._register_check,
            "PUT /agent/check/deregister/{check}": self._deregister_check,
            "PUT /agent/check/pass/{check}": self._pass,
            "PUT /agent/check/warn/{check}": self._pass,
            "PUT /agent/check/fail/{check}": self._fail,
            "PUT /agent/check/update/{check}": self._update,
        }
        super().__init__(registry, access, table, (prefix,), refuse=refuse)
        self._places = places
        self._query_tokens = query_tokens
        self._everything = told.everything
        self._remembered: dict[str, tuple[tuple[str, str], ...]] = {}

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

    def _register(self, asked: Asked) -> Answer:
        caller = self.writer(asked)
        environ = asked.environ
        address = peer(environ)
        entry = read_service(asked.json(), "" if address == "unix" else address)
        self._access.check_caller(caller, entry.service)
        for known in self._registry.discover(entry.service, status=Status.DRAINING).instances:
            if known.instance_id == entry.instance_id:  # it is in maintenance, whatever it knows
                entry = replace(entry, status=Status.DRAINING)
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
        name, check = read_check_of(asked.json())
        for entry in self._writable(asked, lambda entry: entry.instance_id == name):
            self.register(with_any_check(entry, check), FIELDS)
        return _DONE

    def _deregister_check(self, asked: Asked, check: str) -> Answer:
        for entry in self._writable(asked, lambda entry: has_check(entry, check)):
            self.register(without_check(entry, check), FIELDS)
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
        if mine and all(self._renew(service, name, status) for service, name in mine):
            return _DONE
        found = self._found(lambda entry: check_id(entry) == check)
        for entry in self._mine(caller, found):
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

    def _writable(self, asked: Asked, wanted: Callable[[Registered], bool]) -> list[Registered]:
        """Return those *wanted* that the client may change.

        :raises Refusal: It may change none of them; or there is none.
        """
        caller = self.writer(asked)
        return self._mine(caller, self._found(wanted))

    def _found(self, wanted: Callable[[Registered], bool]) -> list[Registered]:
        """Return all *wanted*: an agent has each id once, here several services may have it.

        :raises Refusal: There is none.
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
