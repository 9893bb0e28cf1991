"""Answers that are written once and sent until what they tell changes."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from wsgigate.discovery.registry_answers import instance_document, state_of
from wsgigate.discovery.registry_listing import Listing
from wsgigate.discovery.status import iso_time
from wsgigate.rules.registry import LeaseRules, Registered

__all__ = ["Bodies"]

MOST = 500
"""How many answers are kept."""

MOST_INSTANCES = 20_000
"""Of how many instances it is kept what is told of them whenever they were heard of."""

LARGEST_QUERY = 200
"""How long the query of one may be that is kept."""


class _Written(NamedTuple):
    instances: tuple[Registered, ...]
    tag: str
    body: bytes


class Bodies:
    """The bodies of what ``GET /discover/SERVICE`` answers, by service and query.

    :param rules: By which instances are judged.
    """

    def __init__(self, rules: LeaseRules) -> None:
        self._rules = rules
        self._written: dict[tuple[str, str], _Written] = {}
        self._around: dict[bytes, tuple[str, str]] = {}

    def of(self, service: str, query: str, found: Listing, tag: str) -> bytes:
        """Return the body that tells *found*.

        :param query: What was asked for.
        :param tag: The ETag, which is another one when somebody is judged otherwise.
        """
        key = (service, query)
        written = self._written.get(key)
        usual = not found.age and not found.preserving
        # most of what is compared is the very same object, so that this takes a microsecond
        if (
            usual
            and written is not None
            and written.tag == tag
            and written.instances == found.instances
        ):
            return written.body
        instances = ", ".join([self._text(entry, found.now) for entry in found.instances])
        first = json.dumps({"success": True, "serviceName": service})
        last = json.dumps({"count": len(found.instances), **state_of(found)})
        body = f'{first[:-1]}, "instances": [{instances}], {last[1:]}'.encode("ascii")
        if usual and found.version and len(query) <= LARGEST_QUERY:
            if len(self._written) >= MOST:
                self._written.clear()
            self._written[key] = _Written(found.instances, tag, body)
        return body

    def _text(self, entry: Registered, now: float) -> str:
        """Return the JSON of an instance's document; of most only two members are new."""
        around = self._around.get(entry.written)
        if around is None:
            around = _around(instance_document(entry, now, self._rules))
            if entry.written:
                if len(self._around) >= MOST_INSTANCES:
                    self._around.clear()
                self._around[entry.written] = around
        heartbeat = iso_time(entry.last_heartbeat)
        healthy = "true" if entry.healthy(now, self._rules) else "false"
        return f'{around[0]}, "lastHeartbeat": "{heartbeat}", "healthy": {healthy}, {around[1]}'


def _around(document: dict[str, Any]) -> tuple[str, str]:
    """Return the JSON of an instance's *document* before what its heartbeats change, and after."""
    members = list(document.items())
    changing = list(document).index("lastHeartbeat")
    return json.dumps(dict(members[:changing]))[:-1], json.dumps(dict(members[changing + 2 :]))[1:]
