"""What is done with each field of a response head: found out once for each set of names.

An instance sends the same names over and over; only their values change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from operator import itemgetter
from typing import Any, NamedTuple

from wsgigate.fields import HOP_BY_HOP, connection_tokens, is_token
from wsgigate.wsgi import Headers

__all__ = ["BadResponse", "Plan", "content_length", "plan_for", "without_named"]

MOST_LEARNT = 64
LONGEST_LEARNT = 2048
"""Names, and characters of all of them together, whose meaning is remembered."""

_KEPT = frozenset(("cache-control", "content-length", "content-type", "set-cookie"))


class BadResponse(Exception):
    """The instance answered with something that is not a valid response."""


class Plan(NamedTuple):
    """What is done with a head of certain field names."""

    kept: Callable[[Sequence[tuple[str, str]]], Iterable[tuple[str, str]]]
    """Returns the fields that are meant for the client, apart from the framing."""
    lengths: tuple[int, ...]
    codings: tuple[int, ...]
    connections: tuple[int, ...]
    own: bool
    """Whether any of them is the instance's own view of where it is."""
    malformed: bool


def plan_for(names: tuple[str, ...]) -> Plan:
    """Return what is done with the fields of a head that has these *names*, in this order.

    An instance sends the same names over and over: what they mean is found out once. Names that
    take more memory than those are found out about each time.
    """
    if len(names) > MOST_LEARNT or len("".join(names)) > LONGEST_LEARNT:
        return _plan_of.__wrapped__(names)
    return _plan_of(names)


@lru_cache(maxsize=1024)
def _plan_of(names: tuple[str, ...]) -> Plan:
    kinds = [_kind(name) for name in names]

    def places(*wanted: str) -> tuple[int, ...]:
        return tuple(at for at, kind in enumerate(kinds) if kind in wanted)

    kept = places("end-to-end", "own")
    if len(kept) > 1:
        pick: Callable[[Any], Any] = itemgetter(*kept)
    else:
        pick = lambda fields: [fields[at] for at in kept]  # noqa: E731
    return Plan(
        pick,
        places("content-length"),
        places("transfer-encoding"),
        places("connection"),
        "own" in kinds,
        "malformed" in kinds,
    )


def _kind(name: str) -> str:
    """Return what is done with the response fields of that name."""
    lower = name.lower()
    if lower in ("content-length", "transfer-encoding", "connection"):
        return lower
    if not is_token(name):
        return "malformed"
    if lower in ("location", "content-location", "refresh", "set-cookie"):
        return "own"
    return "hop-by-hop" if lower in HOP_BY_HOP else "end-to-end"


def without_named(headers: Headers, connections: list[str]) -> Headers:
    """Return *headers* without those that the values of ``Connection`` name."""
    try:
        named = frozenset().union(*map(_named_by, connections))
    except ValueError as error:
        raise BadResponse(str(error)) from None
    return [field for field in headers if field[0].lower() not in named] if named else headers


def _named_by(connection: str) -> frozenset[str]:
    """Return the fields that a ``Connection`` value names and that would not be dropped anyway."""
    return (_named if len(connection) <= LONGEST_LEARNT else _named.__wrapped__)(connection)


@lru_cache(maxsize=256)
def _named(connection: str) -> frozenset[str]:
    return connection_tokens(connection) - _KEPT - HOP_BY_HOP - {"close", "keep-alive"}


def content_length(values: list[str]) -> int | None:
    """Return the length that the *values* of ``Content-Length`` say, None when there are none.

    :raises BadResponse: They say none.
    """
    if not values:
        return None
    value = values[0].strip(" \t")
    if len(values) > 1 or not (value.isascii() and value.isdigit()) or len(value) > 18:
        raise BadResponse(f"Content-Length {', '.join(values)!r}")
    return int(value)
