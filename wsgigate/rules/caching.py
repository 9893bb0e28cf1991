"""Which answers may be kept by a shared cache, and shown again when the service fails.

After RFC 9111 (HTTP Caching) and RFC 5861 section 4 (``stale-if-error``); where there is a choice,
the stricter one: an answer that is kept wrongly shows one user what is another's.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Generic, NamedTuple, TypeVar

from wsgigate.rules.dates import unix_time

__all__ = ["Keeping", "Shelf", "directives", "keeping", "may_show", "selecting", "varying"]


# Values under keys, as many as there is room for: those that were used last stay.

K = TypeVar("K", bound=Hashable)

V = TypeVar("V")


class Shelf(Generic[K, V]):
    """Values under keys, bounded by their size together.

    :param most: The size of all of them together, in bytes.
    :ivar used: How much of that is used.
    """

    def __init__(self, most: int) -> None:
        self.used = 0
        self._most = most
        self._kept: OrderedDict[K, tuple[V, int]] = OrderedDict()

    def get(self, key: K) -> V | None:
        """Return the value of *key*, which now was used last; ``None`` without one."""
        kept = self._kept.get(key)
        if kept is None:
            return None
        self._kept.move_to_end(key)
        return kept[0]

    def put(self, key: K, value: V, size: int) -> None:
        """Put *value* in the place of what *key* had, and drop what there is no room for."""
        self.drop(key)
        self._kept[key] = (value, size)
        self.used += size
        while self.used > self._most:
            _, (_, gone) = self._kept.popitem(last=False)
            self.used -= gone

    def drop(self, key: K) -> None:
        """Forget the value of *key*, if there is one."""
        kept = self._kept.pop(key, None)
        if kept is not None:
            self.used -= kept[1]

    def __len__(self) -> int:
        return len(self._kept)


STATUSES = frozenset((200, 203, 301, 308))
"""The statuses of answers that are worth showing again."""

_LONGEST = 2**31
"""A larger number of seconds is as good as this one (RFC 9111 section 1.2.2)."""

_DIRECTIVE = re.compile(
    r"([!#$%&'*+.^_`|~0-9A-Za-z-]+)(?:[ \t]*=[ \t]*(\"(?:[^\"\\]|\\.)*\"|[^\s,;\"]*))?"
)

_NEVER = frozenset(("no-store", "private", "no-cache", "must-revalidate", "proxy-revalidate"))


class Keeping(NamedTuple):
    """How an answer may be kept.

    :ivar fresh_for: Seconds for which it is fresh, of its age.
    :ivar stale_for: Seconds after those for which it may be shown when the service fails.
    :ivar age: Its age in seconds when it came.
    :ivar vary: The request fields that it depends on, lower case, sorted.
    :ivar shared: Whether it is said to be for everybody, with credentials or without.
    """

    fresh_for: float
    stale_for: float
    age: float
    vary: tuple[str, ...]
    shared: bool


def directives(value: str) -> dict[str, str]:
    """Return the directives of a ``Cache-Control`` value, names in lower case, quotes removed.

    Of one that is given twice the smaller number counts; what is no number, before any that is.
    """
    found: dict[str, str] = {}
    for name, said in _DIRECTIVE.findall(value):
        name, said = name.lower(), said.strip('"')
        before, again = _seconds(found.setdefault(name, said)), _seconds(said)
        if before is not None and (again is None or again < before):
            found[name] = said
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
    """Return how an answer to GET may be kept, ``None`` when it may not.

    :param status: Its status.
    :param headers: Its fields.
    :param credentials: Whether the request told who its caller is: then only what is said to be
        for everybody is kept (``public`` or ``s-maxage``, RFC 9111 section 3.5).
    :param asked: The ``Cache-Control`` of the request.
    :param now: Unix time.
    :param stale_for: Seconds for which it may be shown after it was fresh, where the answer does
        not say: the operator's leave (RFC 9111 section 4.2.4).
    """
    if status not in STATUSES or "no-store" in directives(asked):
        return None
    fields = _joined(headers)
    if "set-cookie" in fields or "content-range" in fields:
        return None
    said = directives(fields.get("cache-control", ""))
    if not _NEVER.isdisjoint(said):
        return None
    if not said and "no-cache" in fields.get("pragma", "").lower():
        return None
    shared = "public" in said or "s-maxage" in said
    if credentials and not shared:
        return None
    vary = varying(fields.get("vary", ""))
    if "*" in vary:
        return None
    fresh_for = _fresh_for(said, fields, now)
    explicit = _seconds(said.get("stale-if-error"))
    if explicit is None and (fresh_for == 0 or "s-maxage" in said):
        # said to be used up at once; or, by s-maxage, not to be shown stale (section 5.2.2.10)
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
    """Return whether a kept answer may be shown when the service fails.

    :param age: Its age in seconds.
    :param credentials: Whether the request tells who its caller is.
    """
    if credentials and not kept.shared:
        return False
    return age <= kept.fresh_for + kept.stale_for


def varying(value: str) -> tuple[str, ...]:
    """Return the names in a ``Vary`` value, lower case and sorted."""
    return tuple(sorted({name.strip().lower() for name in value.split(",") if name.strip()}))


def selecting(names: tuple[str, ...], field: Callable[[str], str]) -> tuple[str, ...]:
    """Return what *field* says of each of *names*: requests with the same get the same answer.

    White space around commas does not count (RFC 9111 section 4.1).
    """
    return tuple(",".join(part.strip() for part in field(name).split(",")) for name in names)


def _joined(headers: Iterable[tuple[str, str]]) -> Mapping[str, str]:
    fields: dict[str, str] = {}
    for name, value in headers:
        name = name.lower()
        fields[name] = f"{fields[name]}, {value}" if name in fields else value
    return fields


def _fresh_for(said: Mapping[str, str], fields: Mapping[str, str], now: float) -> float | None:
    """Return the freshness lifetime, ``None`` when nothing is said of it (section 4.2.1)."""
    for name in ("s-maxage", "max-age"):
        if name in said:
            return _seconds(said[name]) or 0.0  # what is no number is not fresh at all
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
