"""The base of the registry's HTTP APIs: access, error mapping, and waiting for changes."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from wsgiref.types import WSGIEnvironment

from wsgigate.auth.bearer import Access
from wsgigate.http.bodies import wrong
from wsgigate.http.json_app import LARGEST, Endpoint, ErrorResponses, JsonApp
from wsgigate.http.problem import Problem, Refusal, Refuse, answer_with
from wsgigate.http.wsgi import peer
from wsgigate.registry import Registry, RegistryFull
from wsgigate.rules.registry import Invalid
from wsgigate.runtime import fork
from wsgigate.store import StoreError
from wsgigate.telemetry.audit import audited, requester

__all__ = ["RegistryApp", "WaitSlots"]


class WaitSlots:
    """A bound on the number of requests that wait at a time, over all APIs of a registry.

    :param most: The largest number of waiting requests; further ones are answered at once.
    :raises ValueError: *most* is negative.
    """

    def __init__(self, most: int) -> None:
        if most < 0:
            raise ValueError(f"waiting must be 0 or more requests, got {most}")
        self._most = most
        self.after_fork()
        fork.renew_at_fork(self)

    def after_fork(self) -> None:
        """Free all slots: the requests that wait in the parent do not exist in the child."""
        self._free = threading.BoundedSemaphore(self._most)

    def wait(self, registry: Registry, service: str | None, version: int, seconds: float) -> None:
        """Wait for another version than *version*, as :meth:`.Registry.wait`, if a slot is free."""
        free = self._free
        if free.acquire(blocking=False):
            try:
                registry.wait(service, version, seconds)
            finally:
                free.release()


def _invalid(error: Invalid) -> Refusal:
    return wrong(error.why if error.why.endswith("!") else f"{error}.", error.field)


def _full(error: RegistryFull) -> Refusal:
    problem = Problem(507, "The registry is full.", headers=(("Retry-After", "30"),))
    return Refusal(problem, str(error))


def _unavailable(error: StoreError) -> Refusal:
    problem = Problem(
        503, "The registry cannot be used at the moment.", headers=(("Retry-After", "5"),)
    )
    return Refusal(problem, f"the registry's store fails: {error}")


ERRORS: ErrorResponses = {Invalid: _invalid, RegistryFull: _full, StoreError: _unavailable}
"""The responses to the errors of a registry."""


def _is_of(host: str, client: str) -> bool:
    """Return whether an instance at *host* may be the *client*; a host name is not resolved."""
    if host.lower() == "localhost":
        return client in ("127.0.0.1", "::1", "unix")
    return host.strip("[]").lower() == client.lower()


class RegistryApp(JsonApp):
    """An HTTP API of a :class:`.Registry`; the endpoints that change something check the caller.

    :param registry: The registry.
    :param access: Authenticates and authorizes clients.
    :param table: The endpoints.
    :param prefixes: The path prefixes; each endpoint exists below each of them.
    :param largest: The largest body of a request, in bytes.
    :param refuse: Turns a problem into the app that sends it.
    :raises ValueError: A prefix is not a path.
    """

    def __init__(
        self,
        registry: Registry,
        access: Access,
        table: Iterable[Endpoint],
        *,
        prefixes: Iterable[str],
        largest: int = LARGEST,
        refuse: Refuse = answer_with,
    ) -> None:
        super().__init__(table, prefixes=prefixes, errors=ERRORS, largest=largest, refuse=refuse)
        self._registry = registry
        self._access = access
        access.guard_by(registry.guard)

    def remove(self, environ: WSGIEnvironment, service: str, instance_id: str) -> bool:
        """Remove an instance for the client of a request; return whether it existed.

        It is an administrative change, with a record in the audit log, unless the instance itself
        may have sent the request: from its own address.

        :raises StoreError: The store failed; the instance may be removed or not.
        """
        known = self._registry.discover(service).instances
        entry = next((each for each in known if each.instance_id == instance_id), None)
        if entry is None or _is_of(entry.host, peer(environ)):
            return self._registry.deregister(service, instance_id)
        by = requester(environ, "registry client")
        with audited("instance.remove", f"{instance_id} of {service}", by=by) as change:
            change.before = {"host": entry.host, "port": entry.port, "status": entry.status.value}
            removed = self._registry.deregister(service, instance_id)
            if not removed:
                change.failed = "it was removed at the same time"
        return removed

    def authorize(self, environ: WSGIEnvironment, *, reads: bool) -> WSGIEnvironment:
        if reads:
            self._access.check_read(environ)
        return environ
