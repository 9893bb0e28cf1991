"""Eureka's door: its REST, in JSON and XML, so that its clients need not know of another registry."""

from __future__ import annotations

import base64
import binascii
import threading
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any
from wsgiref.types import WSGIEnvironment

from wsgigate.discovery.doors.deltas import Action, Changed, History
from wsgigate.discovery.doors.door import Access, Answer, Asked, Door, Handlers, wrong
from wsgigate.discovery.doors.eureka_words import (
    applications,
    lasting_status,
    read_instance,
    read_status,
    tell_instance,
    vips,
)
from wsgigate.discovery.doors.xml import XmlError, read_xml, write_xml
from wsgigate.discovery.registry import Registry
from wsgigate.problem import Problem, Refusal, Refuse, answer_with
from wsgigate.rules.registry import Registered, Status

__all__ = ["Eureka"]


class Eureka(Door):
    """Eureka's REST over the registry, below ``/eureka`` and ``/eureka/v2``.

    A client presents the registry's token as the password of HTTP Basic, as most take it from the
    server's URL, ``http://any:TOKEN@registry:3004/eureka``, or as a bearer token.

    :param registry: What it is a door to.
    :param tokens: Who may write what.
    :param reach: Seconds that a delta reaches back: more than the clients' time between two.
    :param refuse: Turns a problem into the app that answers it.
    """

    PREFIX = "/eureka"

    def __init__(
        self,
        registry: Registry,
        tokens: Access,
        *,
        reach: float = 180.0,
        refuse: Refuse = answer_with,
    ) -> None:
        super().__init__(registry, tokens, refuse=refuse)
        self._history = History(reach=reach)
        self._lock = threading.Lock()
        self._seen: tuple[int, tuple[Registered, ...]] | None = None
        self._written: dict[bool, tuple[int, bytes]] = {}

    def resource(self, path: Sequence[str]) -> Handlers | None:
        if path[0] == "v2":
            path = path[1:]
        match path:
            case ["apps"]:
                return {"GET": self._all}
            case ["apps", "delta"]:
                return {"GET": self._delta}
            case ["apps", app]:
                return {"GET": partial(self._app, app), "POST": partial(self._register, app)}
            case ["apps", app, name]:
                return {
                    "GET": partial(self._instance, app, name),
                    "PUT": partial(self._renew, app, name),
                    "DELETE": partial(self._cancel, app, name),
                }
            case ["apps", app, name, "status"]:
                return {
                    "PUT": partial(self._override, app, name),
                    "DELETE": partial(self._end_override, app, name),
                }
            case ["apps", app, name, "metadata"]:
                return {"PUT": partial(self._metadata, app, name)}
            case ["vips", vip]:
                return {"GET": partial(self._vip, vip, False)}
            case ["svips", vip]:
                return {"GET": partial(self._vip, vip, True)}
            case ["instances", name]:
                return {"GET": partial(self._anywhere, name)}
        return None

    # what is told

    def _all(self, asked: Asked) -> Answer:
        version, entries = self._look()
        json = _wants_json(asked)
        kept = self._written.get(json)
        if kept is not None and kept[0] == version:
            return _written(kept[1], json)
        changed = [(Action.ADDED, entry) for entry in entries]
        answer = self._tell(asked, changed, entries, version)
        assert isinstance(answer.body, bytes)  # noqa: S101
        self._written[json] = version, answer.body
        return answer

    def _delta(self, asked: Asked) -> Answer:
        version, entries = self._look()
        with self._lock:
            changed = self._history.delta(self._clock())
        return self._tell(asked, changed, entries, version)

    def _vip(self, vip: str, secure: bool, asked: Asked) -> Answer:
        version, entries = self._look()
        found = [entry for entry in entries if vip in vips(entry, secure=secure)]
        return self._tell(asked, [(Action.ADDED, entry) for entry in found], found, version)

    def _app(self, app: str, asked: Asked) -> Answer:
        found = [entry for entry in self._look()[1] if entry.service.upper() == app.upper()]
        if not found:
            raise _unknown()
        told = [tell_instance(entry, self._registry.rules) for entry in found]
        return _answer(asked, "application", {"name": app.upper(), "instance": told})
