"""Stale responses: which ones a shared cache may store, and serve when the service fails.

By RFC 9111 (HTTP Caching) and RFC 5861 section 4 (``stale-if-error``); where these leave a choice,
the stricter one: a response that is stored wrongly discloses one user's data to another.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Generic, NamedTuple, TypeVar

from wsgigate.rules.dates import unix_time

__all__ = ["Keeping", "Shelf", "directives", "keeping", "may_show", "selecting", "varying"]


# An LRU cache bounded by size.

K = TypeVar("K", bound=Hashable)

V = TypeVar("V")


class Shelf(Generic[K, V]):
    """An LRU cache, bounded by the total size of its values.

    :param most: The most bytes of all values.
    :ivar used: The bytes in use.
    """

    def __init__(self, most: int) -> None:
        self.used = 0
        self._most = most
        self._kept: OrderedDict[K, tuple[V, int]] = OrderedDict()

    def get(self, key: K) -> V | None:
        """Return the value of *key*, and mark it as used last; ``None`` without one."""
        kept = self._kept.get(key)
        if kept is None:
            return None
        self._kept.move_to_end(key)
        return kept[0]

    def put(self, key: K, value: V, size: int) -> None:
        """Set the value of *key*, and remove the least recently used ones to make room."""
        self.drop(key)
        self._kept[key] = (value, size)
        self.used += size
        while self.used > self._most:
            _, (_, gone) = self._kept.popitem(last=False)
            self.used -= gone

    def drop(self, key: K) -> None:
        """Remove the value of *key*, if there is one."""
        kept = self._kept.pop(key, None)
        if kept is not None:
            self.used -= kept[1]

    def __len__(self) -> int:
        return len(self._kept)


STATUSES = frozenset((200, 203, 301, 308))
"""The statuses of responses that may be stored."""

_LONGEST = 2**31
"""A larger number of seconds counts as this one (RFC 9111 section 1.2.2)."""

_DIRECTIVE = re.compile(
    r"([!#$%&'*+.^_`|~0-9A-Za-z-]+)(?:[ \t]*=[ \t]*(\"(?:[^\"\\]|\\.)*\"|[^\s,;\"]*))?"
)

_NEVER = frozenset(("no-store", "private", "no-cache", "must-revalidate", "proxy-revalidate"))


class Keeping(NamedTuple):
    """How a response may be stored.

    :ivar fresh_for: The age in seconds up to which it is fresh.
    :ivar stale_for: Seconds after that for which it may be served when the service fails.
    :ivar age: Its age in seconds when it arrived.
    :ivar vary: The request fields that it depends on, lower case, sorted.
    :ivar shared: Whether it is marked as the same for all users, with credentials or without.
    """

    fresh_for: float
    stale_for: float
    age: float
    vary: tuple[str, ...]
    shared: bool


def directives(value: str) -> dict[str, str]:
    """Return the directives of a ``Cache-Control`` value, names in lower case, quotes removed.

    Of a repeated directive the smaller number counts; a value that is not a number counts first.
    """
    found: dict[str, str] = {}
    for name, text in _DIRECTIVE.findall(value):
        name, text = name.lower(), text.strip('"')
        before, again = _seconds(found.setdefault(name, text)), _seconds(text)
        if before is not None and (again is None or again < before):
            found[name] = text
    return found


def keeping(
    status: int,
    headers: Iterable[tuple[str, str]],
    *,
    credentials: bool,
    asked: str = "",
    now: float,
    stale_for: float,
) -> Keeping | None:
    """Return how a response to GET may be stored, ``None`` when it must not be.

    :param status: Its status.
    :param headers: Its fields.
    :param credentials: Whether the request had credentials: then only a response with ``public`` or
        ``s-maxage`` is stored (RFC 9111 section 3.5).
    :param asked: The ``Cache-Control`` of the request.
    :param now: Unix time.
    :param stale_for: Seconds for which it may be served stale, where the response does not set
        that: the operator's permission (RFC 9111 section 4.2.4).
    """
    if status not in STATUSES or "no-store" in directives(asked):
        return None
    fields = _joined(headers)
    if "set-cookie" in fields or "content-range" in fields:
        return None
    control = directives(fields.get("cache-control", ""))
    if not _NEVER.isdisjoint(control):
        return None
    if not control and "no-cache" in fields.get("pragma", "").lower():
        return None
    shared = "public" in control or "s-maxage" in control
    if credentials and not shared:
        return None
    vary = varying(fields.get("vary", ""))
    if "*" in vary:
        return None
    fresh_for = _fresh_for(control, fields, now)
    explicit = _seconds(control.get("stale-if-error"))
    if explicit is None and (fresh_for == 0 or "s-maxage" in control):
        # It is stale at once; or s-maxage forbids serving it stale (section 5.2.2.10).
        if not fresh_for:
            return None
        stale_for = 0.0
    date = _time(fields.get("date"))
    apparent = 0.0 if date is None else max(0.0, now - date)
    return Keeping(
        0.0 if fresh_for is None else fresh_for,
        stale_for if explicit is None else explicit,
        max(apparent, _seconds(fields.get("age")) or 0.0),
        vary,
        shared,
    )


def may_show(kept: Keeping, age: float, *, credentials: bool) -> bool:
    """Return whether a stored response may be served when the service fails.

    :param age: Its age in seconds.
    :param credentials: Whether the request has credentials.
    """
    if credentials and not kept.shared:
        return False
    return age <= kept.fresh_for + kept.stale_for


def varying(value: str) -> tuple[str, ...]:
    """Return the names in a ``Vary`` value, lower case and sorted."""
    return tuple(sorted({name.strip().lower() for name in value.split(",") if name.strip()}))


def selecting(names: tuple[str, ...], field: Callable[[str], str]) -> tuple[str, ...]:
    """Return the values of the fields *names*: requests with equal ones get the same response.

    White space around commas does not count (RFC 9111 section 4.1).
    """
    return tuple(",".join(part.strip() for part in field(name).split(",")) for name in names)


def _joined(headers: Iterable[tuple[str, str]]) -> Mapping[str, str]:
    fields: dict[str, str] = {}
    for name, value in headers:
        name = name.lower()
        fields[name] = f"{fields[name]}, {value}" if name in fields else value
    return fields


def _fresh_for(control: Mapping[str, str], fields: Mapping[str, str], now: float) -> float | None:
    """Return the freshness lifetime, ``None`` when the response has none (section 4.2.1)."""
    for name in ("s-maxage", "max-age"):
        if name in control:
            return _seconds(control[name]) or 0.0  # an invalid number means not fresh
    if "expires" not in fields:
        return None
    expires = _time(fields["expires"])
    if expires is None:
        return 0.0
    date = _time(fields.get("date"))
    return max(0.0, expires - (now if date is None else date))


def _seconds(text: str | None) -> float | None:
    if text is None or not (text.isascii() and text.isdigit()):
        return None
    return float(_LONGEST if len(text) > 10 else min(int(text), _LONGEST))


def _time(text: str | None) -> float | None:
    return None if text is None else unix_time(text)
