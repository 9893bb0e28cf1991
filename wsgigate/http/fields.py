"""HTTP header fields: syntax, hop-by-hop fields, cookies, field rules, dates and ``Retry-After``.

Pure functions of text. The module :mod:`wsgigate.http.forwarded` has those for the ``Forwarded``
and ``X-Forwarded-*`` fields, :mod:`wsgigate.proxy.response` those for ``Location`` and
``Set-Cookie``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC
from email.utils import parsedate_to_datetime
from types import MappingProxyType

from wsgigate.rules.arguments import checked

__all__ = [
    "CONTROLS",
    "HOP_BY_HOP",
    "KNOWN_METHODS",
    "FieldRules",
    "connection_tokens",
    "cookie_name",
    "cookie_values",
    "is_field_value",
    "is_token",
    "one_cookie_field",
    "read_retry_after",
    "retry_after",
    "unix_time",
    "whole",
    "without_cookies",
]


def cookie_values(field: str, name: str, most: int = 4) -> list[str]:
    """Return the values of the cookies called *name*, in their order.

    There may be several, of different paths, and not all of them are the gateway's own.

    :param field: The ``Cookie`` field.
    :param most: Maximum number of values.
    """
    begins = name + "="
    if begins not in field:
        return []
    pairs = [pair.strip(" \t") for pair in field.split(";")]
    return [pair[len(begins) :] for pair in pairs if pair.startswith(begins)][:most]


def without_cookies(field: str, names: Collection[str]) -> str:
    """Return the ``Cookie`` field *field* without the cookies called *names*.

    The other cookies are unchanged, byte for byte; the result is empty without any.
    """
    kept = [pair for pair in field.split(";") if cookie_name(pair) not in names]
    return ";".join(kept).lstrip(" \t")


def cookie_name(pair: str) -> str:
    """Return the name of a cookie as the most lenient framework reads it.

    Django and releases of werkzeug decode the name from UTF-8 and remove all white space of
    Unicode around it, which browsers keep: a cookie with a no-break space before its name would
    otherwise be another one here, and the same one there.

    :param pair: ``NAME=VALUE``, in latin-1 as in WSGI.
    """
    name = pair.partition("=")[0]
    if not name.isascii():
        with suppress(UnicodeError):
            name = name.encode("latin-1").decode()
    return name.strip()


def one_cookie_field(fields: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return *fields* with several ``COOKIE`` fields joined by semicolons (RFC 9113 section 8.2.3).

    gunicorn would join them by a comma, which can be part of a cookie's value.
    """
    cookies = [value for name, value in fields if name == "COOKIE"]
    if len(cookies) < 2:
        return fields
    return [*(field for field in fields if field[0] != "COOKIE"), ("COOKIE", "; ".join(cookies))]


HOP_BY_HOP = frozenset(
    {
        "connection",
        "http2-settings",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authentication-info",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
"""Fields of one connection (RFC 9110 section 7.6.1), in lower case."""

KNOWN_METHODS = frozenset(
    ("CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE")
)
"""Methods by their names in metrics and traces; any other counts as ``_OTHER`` there."""

MAX_CONNECTION_TOKENS = 100

_UNSETTABLE = HOP_BY_HOP | {"content-length", "host"}

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")

_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")

CONTROLS = bytes([*range(9), *range(10, 32), 127])
"""The characters that no field value may contain.

``bytes.translate`` deletes them in half the time in which a pattern finds that there is none.
"""

_LARGEST = 999_999_999_999_999


def is_token(name: str) -> bool:
    """Return whether *name* is a valid field name or method (RFC 9110 section 5.6.2)."""
    return _TOKEN.fullmatch(name) is not None


def is_field_value(value: str) -> bool:
    """Return whether *value* is a valid field value: latin-1, no control characters except tab.

    (RFC 9110 section 5.5.)
    """
    return _VALUE.fullmatch(value) is not None


def connection_tokens(value: str) -> frozenset[str]:
    """Return the field names in a ``Connection`` value, in lower case, without malformed ones.

    (RFC 9110 section 7.6.1.)

    :raises ValueError: It lists more than 100.
    """
    if value.count(",") >= MAX_CONNECTION_TOKENS:
        raise ValueError(f"Connection lists more than {MAX_CONNECTION_TOKENS} names")
    names = (part.strip(" \t") for part in value.split(","))
    return frozenset(name.lower() for name in names if is_token(name))


def _folded(name: str) -> str:
    # Behind CGI, WSGI and their like "X_User" and "X-User" are the same field.
    return name.lower().replace("_", "-")


@checked
@dataclass(frozen=True)
class FieldRules:
    """Rules that remove, replace and add header fields of a message.

    Names are compared case-insensitively, and ``_`` equals ``-``, as in the ``environ`` of a WSGI
    application. Hop-by-hop fields, ``Content-Length`` and ``Host`` cannot be changed.

    :param set: Fields to set, replacing existing values.
    :param add: Fields to add beside existing values.
    :param remove: Names of fields to remove.
    :raises ValueError: A name or a value is invalid, or the field cannot be changed; the message
        names it.
    """

    set: Mapping[str, str] = field(default_factory=dict)
    add: Mapping[str, str] = field(default_factory=dict)
    remove: Sequence[str] = ()
    _dropped: frozenset[str] = field(init=False, repr=False, compare=False)
    _added: tuple[tuple[str, str], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if isinstance(self.remove, str):
            raise ValueError(f"remove: expected a list of field names, not {self.remove!r}")
        removed = frozenset(_settable("remove", name) for name in self.remove)
        replaced = _checked("set", self.set)
        added = _checked("add", self.add)
        both = removed & replaced.keys()
        if both:
            raise ValueError(f"set and remove both name {', '.join(sorted(both))}")
        for name, value in (
            ("set", MappingProxyType(dict(self.set))),
            ("add", MappingProxyType(dict(self.add))),
            ("remove", tuple(self.remove)),
            ("_dropped", removed | replaced.keys()),
            ("_added", (*replaced.values(), *added.values())),
        ):
            object.__setattr__(self, name, value)

    def __bool__(self) -> bool:
        return bool(self._dropped or self._added)

    def apply(self, headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """Return *headers* without removed and replaced fields, then *set*, then *add*."""
        dropped = self._dropped
        if not dropped:
            return [*headers, *self._added]
        return [item for item in headers if _folded(item[0]) not in dropped] + [*self._added]


def _settable(rule: str, name: object) -> str:
    if not isinstance(name, str) or not is_token(name):
        raise ValueError(f"{rule}: {name!r} is not a valid field name")
    if _folded(name) in _UNSETTABLE:
        raise ValueError(
            f"{rule}: {name} cannot be changed: it names the host, frames the body or is hop-by-hop"
        )
    return _folded(name)


def _checked(rule: str, fields: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    if not isinstance(fields, Mapping):
        raise ValueError(f"{rule}: expected field names with their values, not {fields!r}")
    checked: dict[str, tuple[str, str]] = {}
    for name, value in fields.items():
        folded = _settable(rule, name)
        if folded in checked:
            raise ValueError(f"{rule}: {checked[folded][0]} and {name} are the same field")
        if not isinstance(value, str) or not is_field_value(value):
            raise ValueError(f"{rule}: {name} cannot have the value {value!r}")
        checked[folded] = (name, value.strip(" \t"))
    return checked


def whole(number: float) -> int:
    """Return *number* rounded up, within the integers of a structured field (RFC 9651 3.3.1)."""
    return min(max(0, math.ceil(number)), _LARGEST)


def retry_after(seconds: float) -> str:
    """Return a ``Retry-After`` value in whole seconds: rounded up, at least 1 (RFC 9110 10.2.3)."""
    return str(max(1, whole(seconds)))


def read_retry_after(text: str, now: float) -> float | None:
    """Return the seconds of a ``Retry-After`` field (RFC 9110 section 10.2.3), at least 0.

    :param now: The Unix time.
    :returns: ``None`` when it is malformed.
    """
    text = text.strip(" \t")
    if text.isascii() and text.isdigit():
        return float(text) if len(text) <= 15 else math.inf
    moment = unix_time(text)
    return None if moment is None else max(0.0, moment - now)


def unix_time(text: str) -> float | None:
    """Return the Unix time of an HTTP date (RFC 9110 section 5.6.7).

    The obsolete formats have no time zone, and mean UTC as well; so does ``-0000``.

    :returns: ``None`` when it is malformed.
    """
    try:
        moment = parsedate_to_datetime(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        return moment.timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
