"""Eureka's door: its REST in JSON and XML, for clients that know of no other registry."""

from __future__ import annotations

import binascii
import threading
import time
from base64 import b64decode
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from wsgiref.types import WSGIEnvironment

from wsgigate.discovery.doors.deltas import Action, Changed, History
from wsgigate.discovery.doors.door import Answer, Asked, Door
from wsgigate.discovery.doors.eureka_words import (
    STATUSES,
    applications,
    lasting_status,
    read_instance,
    read_metadata,
    read_status,
    tell_instance,
    vips,
)
from wsgigate.discovery.doors.xml import XmlError, read_xml, write_xml
from wsgigate.discovery.registry import Registry
from wsgigate.discovery.registry_access import Access
from wsgigate.problem import Problem, Refusal, Refuse, answer_with
from wsgigate.rules.registry import Invalid, Registered, Status
from wsgigate.store import StoreError

__all__ = ["Eureka"]

_DONE = Answer(content_type="text/plain")


class Eureka(Door):
    """Eureka's REST over the registry, below ``/eureka`` and ``/eureka/v2``.

    A client presents the registry's token as the password of HTTP Basic, as most of them take it
    out of the server's URL, ``http://any:TOKEN@registry:3004/eureka``; or as a bearer token.

    :param registry: What it is a door to.
    :param access: Who may change and read it.
    :param prefix: The path that it is below, besides the same followed by ``/v2``.
    :param reach: Seconds that a delta reaches back: more than clients let pass between two.
    :param clock: Tells seconds that only go forward.
    :param refuse: Turns a problem into the app that answers it.
    :raises ValueError: *prefix* is no path.
    """

    def __init__(
        self,
        registry: Registry,
        access: Access,
        *,
        prefix: str = "/eureka",
        reach: float = 180.0,
        clock: Callable[[], float] = time.monotonic,
        refuse: Refuse = answer_with,
    ) -> None:
        table = {
            "GET /apps": self._all,
            "GET /apps/delta": self._delta,
            "GET /apps/{app}": self._app,
            "POST /apps/{app}": self._register,
            "GET /apps/{app}/{name}": self._instance,
            "PUT /apps/{app}/{name}": self._renew,
            "DELETE /apps/{app}/{name}": self._cancel,
            "PUT /apps/{app}/{name}/status": self._override,
            "DELETE /apps/{app}/{name}/status": self._end_override,
            "PUT /apps/{app}/{name}/metadata": self._add_metadata,
            "GET /vips/{vip}": self._vip,
            "GET /svips/{vip}": self._secure_vip,
            "GET /instances/{name}": self._anywhere,
        }
        super().__init__(registry, access, table, (prefix, f"{prefix}/v2"), refuse=refuse)
        self._clock = clock
        self._history = History(reach=reach)
        self._lock = threading.Lock()
        self._seen: tuple[int, Sequence[Registered]] | None = None
        self._written: dict[bool, tuple[int, Answer]] = {}

    def token(self, environ: WSGIEnvironment) -> bytes | None:
        scheme, _, value = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
        if scheme.lower() != "basic":
            return None
        try:
            return b64decode(value.strip(" "), validate=True).partition(b":")[2]
        except (ValueError, binascii.Error):
            return b""

    def denied(self, refusal: Refusal) -> Refusal:
        challenge = (("WWW-Authenticate", 'Basic realm="registry"'),)
        return Refusal(replace(refusal.problem, headers=challenge), str(refusal))

    # what is told

    def _all(self, asked: Asked) -> Answer:
        version, entries = self._look()
        json = _wants_json(asked)
        written = self._written.get(json)
        if written is None or written[0] != version:
            answer = self._tell(asked, _as_added(entries), entries, version)
            self._written[json] = written = version, answer
        return written[1]

    def _delta(self, asked: Asked) -> Answer:
        with self._lock:
            version, entries = self._look()
            changed = self._history.delta(self._clock())
        return self._tell(asked, changed, entries, version)
