"""Which fields of a client's request go along, found out once for each set of environ keys.

Not those that concern only its own connection, nor what only a proxy or the gateway may say. What
is left out is an environ key, not a name: no other spelling of the field survives.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from operator import itemgetter
from typing import Any, NamedTuple
from wsgiref.types import WSGIEnvironment

from wsgigate.fields import HOP_BY_HOP, connection_tokens, is_token
from wsgigate.forwarding import CLIENT_FORGED, FAMILY
from wsgigate.problem import Refusal
from wsgigate.proxy.sending import Fields
from wsgigate.wsgi import REQUEST_ID, environ_key

__all__ = ["PROTECTED", "FieldCopier"]

PROTECTED = frozenset(
    (
        *("authorization", "cdn-loop", "content-length", "content-type", "cookie", "host"),
        "x-request-id",
    )
)
"""What a client can not have dropped by naming it in ``Connection``."""

_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_SET_ANEW = frozenset(("HTTP_EXPECT", "HTTP_HOST", "HTTP_HTTP2_SETTINGS", "HTTP_VIA"))
_FRAMING = frozenset(("HTTP_CONTENT_LENGTH", "HTTP_CONTENT_TYPE"))
_MOST_SHAPES = 512
_LONGEST_SHAPE = 8192
"""Characters of all keys together: what costs more to remember is found out again."""


class _Shape(NamedTuple):
    """What goes along of an environ that has certain keys."""

    names: tuple[str, ...]
    values: Callable[[WSGIEnvironment], tuple[str, ...]]
    nameless: bool
    """Whether there is a request field without a name among them."""


class FieldCopier:
    """Copies what goes along of a request's fields.

    :param identity: Names of the fields that only the gateway may set.
    """

    def __init__(self, identity: Iterable[str] = ()) -> None:
        self._dropped = (
            frozenset(environ_key(name) for name in HOP_BY_HOP)
            | frozenset(environ_key(name) for name in identity)
            | CLIENT_FORGED
            | _SET_ANEW
            | _FRAMING
        )
        self._shapes: dict[tuple[str, ...], _Shape] = {}  # bounded

    def copied(self, environ: WSGIEnvironment) -> Fields:
        """Return the fields of *environ* that go along.

        :raises Refusal: One of them is malformed.
        """
        keys = tuple(environ)
        shape = self._shapes.get(keys) or self._learn(keys)
        if shape.nameless:
            raise Refusal.of(400, "Malformed request field.", "a request field without a name")
        values = shape.values(environ)
        if _CONTROL.search("".join(values)):
            raise Refusal.of(
                400, "Malformed request field.", "a control character in a request field"
            )
        fields = Fields(zip(shape.names, values, strict=True))
        content_type = environ.get("CONTENT_TYPE")
        if content_type:
            if _CONTROL.search(content_type):
                raise Refusal.of(
                    400, "Malformed request field.", "a control character in a request field"
                )
            fields["Content-Type"] = content_type
        connection = environ.get("HTTP_CONNECTION")
        if connection and connection.lower() not in ("keep-alive", "close"):
            _drop_named(connection, fields, environ.get(REQUEST_ID))
        return fields

    def _learn(self, keys: tuple[str, ...]) -> _Shape:
        copied = [
            key
            for key in keys
            if key[:5] == "HTTP_" and key not in self._dropped and not key.startswith(FAMILY)
        ]
        names = tuple(map(_field_name, copied))
        shape = _Shape(names, _getter(copied), "" in names)
        if sum(map(len, keys)) <= _LONGEST_SHAPE:
            if len(self._shapes) >= _MOST_SHAPES:
                self._shapes = {}  # somebody makes them up
            self._shapes[keys] = shape
        return shape


def _getter(keys: list[str]) -> Callable[[WSGIEnvironment], tuple[str, ...]]:
    if len(keys) < 2:
        return lambda environ: tuple([environ[key] for key in keys])
    getter: Any = itemgetter(*keys)
    return getter  # type: ignore[no-any-return]


def _field_name(key: str) -> str:
    """Return the field name of an environ key, ``X-Api-Key``; empty when it is no field name."""
    name = key[5:].replace("_", "-").title()
    return name if is_token(name) else ""


def _drop_named(connection: str, fields: Fields, request_id: str | None) -> None:
    """Remove what the client's ``Connection`` names, but for what is not its to take away."""
    try:
        named = connection_tokens(connection) - PROTECTED
    except ValueError as error:
        raise Refusal.of(400, "Malformed Connection field.", str(error)) from None
    for name in [name for name in fields if name.lower() in named]:
        if request_id is None or fields[name] != request_id:
            del fields[name]
