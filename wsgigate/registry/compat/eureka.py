"""Eureka compatibility API: its REST operations, in JSON and XML."""

from __future__ import annotations

import json
import threading
from base64 import b64decode
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple
from wsgiref.types import WSGIEnvironment

from wsgigate.auth.bearer import Access
from wsgigate.http.json_app import Endpoint, JsonRequest, JsonResponse
from wsgigate.http.problem import Refusal, Refuse, answer_with
from wsgigate.registry import Registry
from wsgigate.registry.compat import CompatApp
from wsgigate.registry.compat.eureka_format import (
    FIELDS,
    STATUSES,
    Action,
    Changed,
    XmlError,
    applications,
    delta,
    eureka_instance,
    hash_code,
    lasting_status,
    read_instance,
    read_status,
    read_xml,
    vips,
    with_metadata,
    write_xml,
)
from wsgigate.rules.registry import Invalid, Registered, Status
from wsgigate.runtime import fork
from wsgigate.store import StoreError

__all__ = ["EurekaApi"]


_DONE = JsonResponse(content_type="text/plain")

_ABOUT = {"lastDirtyTimestamp"}
"""Parameters that belong to the request, not to the metadata of the instance."""


class _Seen(NamedTuple):
    """All entries of the registry at a version, with their hash code."""

    version: int
    entries: Sequence[Registered]
    code: str


class EurekaApi(CompatApp):
    """Eureka's REST API over the registry, below ``/eureka`` and ``/eureka/v2``.

    A client sends the registry's token as the password of HTTP Basic authentication, which most
    clients read from the server's URL, ``http://any:TOKEN@registry:3004/eureka``; or as a bearer
    token.

    :param registry: The registry.
    :param access: Authenticates and authorizes clients.
    :param prefix: The path prefix; the API is also below *prefix* followed by ``/v2``.
    :param refuse: Turns a problem into the app that sends it.
    :raises ValueError: *prefix* is not a path.
    """

    def __init__(
        self,
        registry: Registry,
        access: Access,
        *,
        prefix: str = "/eureka",
        refuse: Refuse = answer_with,
    ) -> None:
        table = [
            Endpoint("GET /apps", self._all),
            Endpoint("GET /apps/delta", self._delta),
            Endpoint("GET /apps/{app}", self._app),
            Endpoint("POST /apps/{app}", self._register),
            Endpoint("GET /apps/{app}/{name}", self._instance),
            Endpoint("PUT /apps/{app}/{name}", self._renew),
            Endpoint("DELETE /apps/{app}/{name}", self._cancel),
            Endpoint("PUT /apps/{app}/{name}/status", self._override),
            Endpoint("DELETE /apps/{app}/{name}/status", self._end_override),
            Endpoint("PUT /apps/{app}/{name}/metadata", self._add_metadata),
            Endpoint("GET /vips/{vip}", self._vip),
            Endpoint("GET /svips/{vip}", self._secure_vip),
            Endpoint("GET /instances/{name}", self._anywhere),
        ]
        super().__init__(registry, access, table, (prefix, f"{prefix}/v2"), refuse)
        self._writing: threading.Lock
        fork.renewed(self, _writing="Lock")
        self._seen: _Seen | None = None
        self._written: dict[bool, tuple[int, JsonResponse]] = {}
        self._deltas: dict[bool, tuple[tuple[int, int], JsonResponse]] = {}

    def token(self, environ: WSGIEnvironment) -> bytes | None:
        scheme, _, value = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
        if scheme.lower() != "basic":
            return None
        try:
            return b64decode(value.strip(" "), validate=True).partition(b":")[2]
        except ValueError:
            return b""

    def denied(self, refusal: Refusal) -> Refusal:
        challenge = (("WWW-Authenticate", 'Basic realm="registry"'),)
        return Refusal(replace(refusal.problem, headers=challenge), str(refusal))

    # operations that read

    def _all(self, request: JsonRequest) -> JsonResponse:
        seen, kind = self._look(), _wants_json(request)
        with self._writing:  # one thread encodes for all: thousands of instances take a moment
            written = self._written.get(kind)
            if written is None or written[0] != seen.version:
                answer = self._applications(request, _as_added(seen.entries), seen)
                self._written[kind] = written = seen.version, answer
        return written[1]

    def _delta(self, request: JsonRequest) -> JsonResponse:
        kind, changes = _wants_json(request), self._registry.changes
        try:
            known = self._look().version, changes.bucket()
            with self._writing:  # one thread encodes for all
                written = self._deltas.get(kind)
                if written is None or written[0] != known:
                    recorded = changes.read()  # first: entries must be at least as new as the log
                    seen = self._look()
                    changed = delta(seen.entries, recorded, changes.removed)
                    written = known, self._applications(request, changed, seen)
                    if seen.version == known[0]:  # after a change in between, do not cache it
                        self._deltas[kind] = written
            return written[1]
        except StoreError:  # the log cannot be read: send everything that is cached
            return self._all(request)

    def _vip(self, request: JsonRequest, vip: str, *, secure: bool = False) -> JsonResponse:
        seen = self._look()
        found = [entry for entry in seen.entries if vip in vips(entry, secure=secure)]
        return self._applications(
            request, _as_added(found), _Seen(seen.version, found, hash_code(found))
        )

    def _secure_vip(self, request: JsonRequest, vip: str) -> JsonResponse:
        return self._vip(request, vip, secure=True)

    def _app(self, request: JsonRequest, app: str) -> JsonResponse:
        found = [entry for entry in self._look().entries if entry.service.upper() == app.upper()]
        if not found:
            raise _unknown()
        document = [eureka_instance(entry, self._registry.rules) for entry in found]
        return _written(request, "application", {"name": app.upper(), "instance": document})

    def _instance(self, request: JsonRequest, app: str, name: str) -> JsonResponse:
        return self._one_document(request, self._known(app, name))

    def _anywhere(self, request: JsonRequest, name: str) -> JsonResponse:
        found = (entry for entry in self._look().entries if entry.instance_id == name)
        return self._one_document(request, next(found, None))

    def _one_document(self, request: JsonRequest, entry: Registered | None) -> JsonResponse:
        if entry is None:
            raise _unknown()
        return _written(request, "instance", eureka_instance(entry, self._registry.rules))

    def _applications(
        self, request: JsonRequest, changed: Iterable[Changed], seen: _Seen
    ) -> JsonResponse:
        document = applications(changed, seen.code, seen.version, self._registry.rules)
        return _written(request, "applications", document)

    def _look(self) -> _Seen:
        """Return all entries, and a version of the registry that they are no older than.

        They are read again when the version changes. With the same version, only heartbeat times
        have changed, which Eureka clients do not use.
        """
        seen = self._seen
        try:
            version = self._registry.version()
        except StoreError:
            if seen is None:
                raise
            return seen
        if seen is None or seen.version != version:
            entries = [entry for each in self._registry.services().values() for entry in each]
            seen = _Seen(version, entries, hash_code(entries))
            self._seen = seen
        return seen

    # operations that write

    def _register(self, request: JsonRequest, app: str) -> JsonResponse:
        self.writer(request, app.lower())
        entry = read_instance(app, _registration(request))
        known = self._of(entry.service, entry.instance_id)
        status = lasting_status(entry.status, None if known is None else known.status)
        self.register(replace(entry, status=status), FIELDS)
        return JsonResponse(status=204)

    def _renew(self, request: JsonRequest, app: str, name: str) -> JsonResponse:
        self.writer(request, app.lower())
        if self._registry.heartbeat(app.lower(), name) is None:
            entry = self._writable(request, app, name)
            if self._registry.heartbeat(entry.service, name) is None:
                raise _unknown()
        return _DONE

    def _cancel(self, request: JsonRequest, app: str, name: str) -> JsonResponse:
        entry = self._writable(request, app, name)
        if not self.remove(request.environ, entry.service, name):
            raise _unknown()
        return _DONE

    def _override(self, request: JsonRequest, app: str, name: str) -> JsonResponse:
        entry = self._writable(request, app, name)
        value = request.one("value")
        if value not in STATUSES.values():
            raise Invalid("value", f"one of {', '.join(STATUSES.values())}")
        return self._set(entry, read_status(value, "value"))

    def _end_override(self, request: JsonRequest, app: str, name: str) -> JsonResponse:
        entry = self._writable(request, app, name)
        value = request.one("value", "UNKNOWN")
        if value != "UNKNOWN":
            return self._set(entry, read_status(value, "value"))
        return self._set(entry, Status.UP) if entry.status is Status.DRAINING else _DONE

    def _set(self, entry: Registered, status: Status) -> JsonResponse:
        if self._registry.heartbeat(entry.service, entry.instance_id, status) is None:
            raise _unknown()
        return _DONE

    def _add_metadata(self, request: JsonRequest, app: str, name: str) -> JsonResponse:
        entry = self._writable(request, app, name)
        more = {key: values[0] for key, values in request.query.items() if key not in _ABOUT}
        self.register(with_metadata(entry, more), FIELDS)
        return _DONE

    def _writable(self, request: JsonRequest, app: str, name: str) -> Registered:
        """Return an instance that the client may change.

        :raises Refusal: The client may not change it, or it does not exist.
        """
        self.writer(request)
        entry = self._known(app, name)
        self.writer(request, app.lower() if entry is None else entry.service)
        if entry is None:
            raise _unknown()
        return entry

    def _known(self, app: str, name: str) -> Registered | None:
        """Return an instance of *app*; the service may be registered in another case."""
        entry = self._of(app.lower(), name)
        if entry is None:
            services = {each.service for each in self._look().entries} - {app.lower()}
            for service in sorted(each for each in services if each.upper() == app.upper()):
                entry = entry or self._of(service, name)
        return entry

    def _of(self, service: str, name: str) -> Registered | None:
        entries = self._registry.discover(service).instances
        return next((entry for entry in entries if entry.instance_id == name), None)


def _as_added(entries: Iterable[Registered]) -> list[Changed]:
    return [(Action.ADDED, entry) for entry in entries]


def _unknown() -> Refusal:
    return Refusal.of(404, "There is no such instance; register it first.")


def _wants_json(request: JsonRequest) -> bool:
    """Return whether the client accepts JSON; Eureka's default is XML."""
    return "json" in request.environ.get("HTTP_ACCEPT", "").lower()


def _written(request: JsonRequest, name: str, node: object) -> JsonResponse:
    if _wants_json(request):
        return JsonResponse(json.dumps({name: node}).encode("ascii"))
    return JsonResponse(write_xml(name, node), content_type="application/xml")


def _registration(request: JsonRequest) -> dict[str, object]:
    if "xml" not in request.environ.get("CONTENT_TYPE", "").lower():
        return request.json()
    try:
        name, node = read_xml(request.body())
    except XmlError as error:
        raise Refusal.of(400, f"The body is not valid XML: {error}.") from None
    return {name: node}
