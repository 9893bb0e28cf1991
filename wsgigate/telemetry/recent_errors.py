"""Recent errors: what operators see of the last failed and rejected requests of all workers.

Each worker keeps its last records in its part of the file of the metrics, so the records of a
worker that was killed can still be read. A record has names of the configuration, identifiers and
reasons: no path, query or header field of the client.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Annotated, TypedDict

from wsgigate.telemetry.access_log import TimeText

__all__ = ["RecentError", "encoded_error", "matching_errors", "recent_errors"]

LONGEST_RECORD = 1000
"""Bytes of a record; the file cuts what is longer."""

_LONGEST_TEXT = 64

_LONGEST_REASON = 200


class RecentError(TypedDict):
    """A request that failed or that the gateway rejected."""

    time: str
    request_id: str
    trace_id: str
    method: str
    route: str
    service: str
    instance: Annotated[str, "The last instance that was tried; empty without one."]
    status: int
    reason: Annotated[str, "What rejected the request or why it failed."]
    error: Annotated[str, "The type of the exception of the app; empty without one."]


_TEXTS = (
    *("request_id", "trace_id", "method", "route", "service", "instance"),
    *("reason", "error"),
)


def encoded_error(status: int, texts: dict[str, str]) -> bytes:
    """Return the record of a request, of at most 1000 bytes.

    :param status: The status of its response.
    :param texts: The texts of the record, by key; long ones are cut.
    """
    most = _LONGEST_REASON
    while True:
        cut = {
            key: texts.get(key, "")[: most if key == "reason" else min(most, _LONGEST_TEXT)]
            for key in _TEXTS
        }
        data = json.dumps({**cut, "status": status}, separators=(",", ":")).encode("ascii")
        if len(data) <= LONGEST_RECORD:
            return data
        most //= 2  # characters that JSON escapes take up to 12 bytes each


def recent_errors(events: Callable[[int], Iterable[tuple[float, bytes]]]) -> list[RecentError]:
    """Return the recent errors of all workers, newest first, at most 100.

    :param events: Returns the last events of all workers, newest first, each with its Unix time.
    """
    found: list[RecentError] = []
    time_text = TimeText()
    for when, data in events(_MOST):
        try:
            read = json.loads(data)
            texts = {key: str(read[key]) for key in _TEXTS}
            status = int(read["status"])
        except (ValueError, TypeError, KeyError):  # of another version of the package
            continue
        found.append(
            {"time": time_text(when), "status": status, **texts}  # type: ignore[typeddict-item]
        )
    return found


_MOST = 100


def matching_errors(errors: Iterable[RecentError], request_id: str) -> list[RecentError]:
    """Return the records of the request with *request_id*; all of them if it is empty."""
    return [each for each in errors if not request_id or each["request_id"] == request_id]
