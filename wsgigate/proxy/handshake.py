"""The opening handshake of a WebSocket, both sides of it: text in, text out (RFC 6455, 4)."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Sequence
from wsgiref.types import WSGIEnvironment

from wsgigate.fields import HOP_BY_HOP, connection_tokens, is_field_value, is_token
from wsgigate.problem import Problem, Refusal
from wsgigate.wsgi import Headers

__all__ = ["BadHandshake", "asks_for_websocket", "check_request", "read_answer"]

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_KEPT = frozenset(("sec-websocket-accept", "sec-websocket-protocol", "sec-websocket-extensions"))
_DROPPED = HOP_BY_HOP | {"content-length"}


class BadHandshake(Exception):
    """The instance's 101 opens no WebSocket."""


def asks_for_websocket(environ: WSGIEnvironment) -> bool:
    """Return whether the request asks to become a WebSocket."""
    if "websocket" not in environ.get("HTTP_UPGRADE", "").lower():
        return False
    try:
        return "upgrade" in connection_tokens(environ.get("HTTP_CONNECTION", ""))
    except ValueError:
        return False


def check_request(environ: WSGIEnvironment) -> str:
    """Return the key of a client's handshake.

    :raises Refusal: It is none; carries the answer.
    """
    if environ["REQUEST_METHOD"] != "GET" or environ.get("SERVER_PROTOCOL") != "HTTP/1.1":
        raise Refusal.of(400, "Malformed WebSocket handshake.", "not a GET of HTTP/1.1")
    if environ["HTTP_UPGRADE"].strip().lower() != "websocket":
        raise Refusal.of(400, "Malformed WebSocket handshake.", "another protocol in Upgrade")
    if environ.get("CONTENT_LENGTH", "0") not in ("", "0") or "HTTP_TRANSFER_ENCODING" in environ:
        raise Refusal.of(400, "Malformed WebSocket handshake.", "a body")
    if environ.get("HTTP_SEC_WEBSOCKET_VERSION", "").strip() != "13":
        problem = Problem(
            426,
            "WebSocket version not supported.",
            headers=(("Sec-WebSocket-Version", "13"),),
        )
        raise Refusal(problem, "a WebSocket version other than 13")
    key: str = environ.get("HTTP_SEC_WEBSOCKET_KEY", "").strip()
    try:
        nonce = base64.b64decode(key.encode("latin-1"), validate=True)
    except (binascii.Error, ValueError):
        nonce = b""
    if len(nonce) != 16:
        raise Refusal.of(400, "Malformed WebSocket handshake.", "a malformed Sec-WebSocket-Key")
    return key


def read_answer(answer: Headers, key: str, protocols: str, extensions: str) -> Headers:
    """Return the fields for the client, of an instance's 101 that opens a WebSocket.

    :param answer: The fields of the instance's.
    :param key: The client's key, which the answer must have understood.
    :param protocols: What the client asked for in ``Sec-WebSocket-Protocol``.
    :param extensions: What it asked for in ``Sec-WebSocket-Extensions``.
    :raises BadHandshake: It opens none; says why.
    """
    fields = [(name, value.strip(" \t")) for name, value in answer]
    if not all(is_token(name) and is_field_value(value) for name, value in fields):
        raise BadHandshake("a malformed field")

    def values(wanted: str) -> list[str]:
        return [value for name, value in fields if name.lower() == wanted]

    if [value.lower() for value in values("upgrade")] != ["websocket"]:
        raise BadHandshake("an upgrade to something else")
    try:
        named = frozenset().union(*map(connection_tokens, values("connection")))
    except ValueError as error:
        raise BadHandshake(str(error)) from None
    if "upgrade" not in named:
        raise BadHandshake("no upgrade in Connection")
    digest = hashlib.sha1(key.encode("latin-1") + _GUID, usedforsecurity=False).digest()
    if values("sec-websocket-accept") != [base64.b64encode(digest).decode()]:
        raise BadHandshake("a wrong Sec-WebSocket-Accept")
    _check_chosen(values("sec-websocket-protocol"), protocols)
    if values("sec-websocket-extensions") and not extensions:
        raise BadHandshake("an extension that was not asked for")
    dropped = _DROPPED | (named - _KEPT)
    return [
        *(field for field in fields if field[0].lower() not in dropped),
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
    ]


def _check_chosen(chosen: Sequence[str], asked: str) -> None:
    offered = [each.strip() for each in asked.split(",")]
    if len(chosen) > 1 or (chosen and chosen[0] not in offered):
        raise BadHandshake("a protocol that was not asked for")
