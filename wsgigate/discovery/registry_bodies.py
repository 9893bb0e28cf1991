"""Answers that are written once and sent until what they tell changes."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from wsgigate.discovery.registry_answers import instance_document, state_of
from wsgigate.discovery.registry_listing import Listing
from wsgigate.rules.registry import LeaseRules, Registered

__all__ = ["Bodies"]

MOST = 500
"""How many answers are kept."""

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
        instances = [instance_document(entry, found.now, self._rules) for entry in found.instances]
        document: dict[str, Any] = {
            "success": True,
            "serviceName": service,
            "instances": instances,
            "count": len(instances),
            **state_of(found),
        }
        body = json.dumps(document).encode("ascii")
        if usual and found.version and len(query) <= LARGEST_QUERY:
            if len(self._written) >= MOST:
                self._written.clear()
            self._written[key] = _Written(found.instances, tag, body)
        return body
