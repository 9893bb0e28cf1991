"""HTTP/1.1 responses as a server writes them: what PEP 3333 asks of a server. No sockets.

The head is kept until the first bytes of the body, and both are sent in one piece. What an app may
get wrong (a line break in a field, a body longer than its length) is found before anything is sent,
or ends the connection: a client must not take a cut response for a complete one.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from email.utils import formatdate
from typing import Any

from wsgigate.http.fields import is_field_value, is_token
from wsgigate.http.wsgi import ExcInfo

__all__ = ["Response", "ShortResponse", "http_date"]


_STATUS = re.compile(r"[0-9]{3}(?: [ \t\x21-\x7e\x80-\xff]*)?")

_CONTROLS = bytes([*range(0, 9), 11, 12, *range(14, 32), 127])

_LENGTH, _CONNECTION, _UPGRADE, _DROPPED, _USUAL = range(5)

_KINDS = {
    "content-length": _LENGTH,
    "connection": _CONNECTION,
    "upgrade": _UPGRADE,
    **dict.fromkeys(
        [
            "keep-alive",
            "proxy-authenticate",
            "proxy-authorization",
            "te",
            "trailers",
            "transfer-encoding",
            "server",
            "date",
        ],
        _DROPPED,
    ),
}
"""What the server does with a field of the app; hop-by-hop fields are the server's own."""

_seen: dict[str, int] = {}

_MOST_SEEN = 2000

_date = (0, "")


class ShortResponse(Exception):
    """The body has fewer bytes than its ``Content-Length``: the connection must be cut."""


def http_date() -> str:
    """Return the value of a Date field, made once a second."""
    global _date
    now = int(time.time())
    second, text = _date
    if second != now:
        text = formatdate(now, usegmt=True)
        _date = (now, text)
    return text


class Response:
    """The response to one request; its method :meth:`start` is the app's ``start_response``.

    :param send: Sends bytes.
    :param method: The request's method.
    :param version: The client's version of HTTP/1.
    :param keep: Whether the connection may stay open.
    :param keep_alive: The ``Keep-Alive`` timeout to announce, in seconds.
    :param begins: Called before the head is sent; returns whether the connection may stay open.
    :param unframed: Called before the head is sent where only the end of the connection shows the
        end of the response.
    :ivar status: As the app gave it; empty before it did.
    :ivar sent: Bytes of the body.
    :ivar head_sent: Whether the head has left.
    """

    __slots__ = (
        "_begins",
        "_keep_alive",
        "_method",
        "_send",
        "_unframed",
        "_version",
        "body_forbidden",
        "chunked",
        "head_sent",
        "headers",
        "keep",
        "length",
        "sent",
        "status",
        "status_code",
        "upgrade",
    )

    def __init__(
        self,
        send: Callable[[bytes], object],
        method: str,
        version: tuple[int, int],
        *,
        keep: bool,
        keep_alive: int,
        begins: Callable[[], bool] | None = None,
        unframed: Callable[[], object] | None = None,
    ) -> None:
        self._begins = begins
        self._unframed = unframed
        self._send = send
        self._method = method
        self._version = version
        self._keep_alive = keep_alive
        self.body_forbidden = False
        self.keep = keep
        self.status = ""
        self.status_code = 0
        self.headers: list[tuple[str, str]] = []
        self.length: int | None = None
        self.chunked = False
        self.upgrade = False
        self.head_sent = False
        self.sent = 0

    def start(
        self, status: str, headers: list[tuple[str, str]], exc_info: ExcInfo | None = None
    ) -> Callable[[bytes], object]:
        """Take the head of the response (PEP 3333, ``start_response``).

        :raises ValueError: The status or a field is malformed.
        """
        if exc_info and exc_info[1]:
            try:
                if self.head_sent:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None
        elif self.status:
            raise AssertionError("start_response was called twice, without exc_info")
        if not isinstance(status, str):
            raise TypeError(f"the status {status!r} is no string")
        if not _STATUS.fullmatch(status):
            raise ValueError(f"malformed status {status!r}")
        code = int(status[:3])
        length: int | None = None
        upgrade = False
        fields: list[tuple[str, str]] = []
        for name, value in headers:
            kind = _seen.get(name)
            if kind is None:
                kind = _kind_of(name)
            if not isinstance(value, str):
                raise TypeError(f"the value of {name} is no string: {value!r}")
            if kind == _USUAL:
                fields.append((name, value))
            elif kind == _LENGTH:
                if length is not None:
                    if length != _length_of(value):
                        raise ValueError("two different Content-Length fields")
                    continue
                length = _length_of(value)
                fields.append((name, value))
            elif kind == _CONNECTION:
                upgrade = value.strip(" \t").lower() == "upgrade"
            elif kind == _UPGRADE and value.strip(" \t").lower() == "websocket":
                fields.append((name, value))
        forbidden = code < 200 or code == 204
        if forbidden and length is not None:
            fields = [field for field in fields if field[0].lower() != "content-length"]
            length = None
        self.body_forbidden = forbidden or code == 304 or self._method == "HEAD"
        self.status, self.status_code, self.headers = status, code, fields
        self.length, self.upgrade = length, upgrade
        self.chunked = length is None and not self.body_forbidden and self._version >= (1, 1)
        return self.write

    def run(self, body: Iterable[bytes]) -> None:
        """Send the chunks of *body*, then end the response.

        :raises ShortResponse: The body is shorter than its ``Content-Length``.
        """
        if type(body) is list and len(body) == 1 and self.length is None:
            self._set_length(body[0])
        for chunk in body:
            self.write(chunk)
        self.finish()

    def _set_length(self, chunk: bytes) -> None:
        # a body whose length is known needs no chunks, and no end of the connection
        if self.status and not (self.head_sent or self.body_forbidden) and isinstance(chunk, bytes):
            self.set_length(len(chunk))

    def write(self, data: bytes) -> None:
        """Send a part of the body, and before the first one the head."""
        if type(data) is not bytes and not isinstance(data, bytes):
            raise TypeError(f"a chunk of the body is no bytes: {type(data).__name__}")
        if not self.status:
            raise AssertionError("the body began before start_response was called")
        length = self.length
        if self.body_forbidden:
            if not self.head_sent:
                self._send(self._head())
            return
        if length is not None:
            left = length - self.sent
            if len(data) > left:
                data = data[:left]  # bytes beyond the length would be read as the next response
            self.sent += len(data)
            if self.head_sent:
                if data:
                    self._send(data)
            else:
                self._send(self._head() + data)
            return
        self.sent += len(data)
        framed = b"%x\r\n%b\r\n" % (len(data), data) if self.chunked and data else data
        if not self.head_sent:
            framed = self._head() + framed
        if framed:
            self._send(framed)

    def finish(self) -> None:
        """End the response.

        :raises ShortResponse: The body is shorter than its ``Content-Length``.
        """
        if not self.status:
            raise AssertionError("the app has returned, and start_response was not called")
        rest = b"" if self.head_sent else self._head()
        if self.chunked:
            rest += b"0\r\n\r\n"
        elif not self.body_forbidden:
            if self.length is None:
                self.keep = False
            elif self.sent < self.length:
                if rest:
                    self._send(rest)
                raise ShortResponse("the body is shorter than its Content-Length")
        if rest:
            self._send(rest)

    def hint(self, headers: list[tuple[str, str]]) -> None:
        """Send a 103 Early Hints response with *headers*, before the final one (RFC 8297).

        :raises ValueError: A field is malformed.
        """
        if self.head_sent or self._version < (1, 1):
            return
        lines = []
        for name, value in headers:
            if not is_token(name) or not is_field_value(value):
                raise ValueError(f"malformed field {name!r}")
            lines.append(f"{name}: {value}\r\n")
        text = f"HTTP/1.1 103 Early Hints\r\n{''.join(lines)}\r\n"
        self._send(text.encode("latin-1"))

    def set_length(self, length: int) -> None:
        """Set the length of the body, which is known by now."""
        if self.length is None:
            self.headers = [*self.headers, ("Content-Length", str(length))]
        self.length, self.chunked = length, False

    def begin(self) -> None:
        """Send the head; the body follows by other means (``sendfile``)."""
        if not self.head_sent:
            self._send(self._head())

    def _head(self) -> bytes:
        """Return the head, which is now final.

        :raises ValueError: A field has a control character.
        """
        framed = self.length is not None or self.chunked or self.body_forbidden
        keep = self.keep and framed
        if self._begins is not None:
            keep = self._begins() and keep
        self.keep = keep = keep and self.status_code != 101  # what follows is no HTTP
        if self.upgrade:
            connection = "upgrade"
        elif not keep:
            connection = "close"
        elif self._keep_alive:
            connection = f"keep-alive\r\nKeep-Alive: timeout={self._keep_alive}"
        else:
            connection = "keep-alive"
        coding = "Transfer-Encoding: chunked\r\n" if self.chunked else ""
        lines = [f"{name}: {value}\r\n" for name, value in self.headers]
        head = (
            f"HTTP/1.{self._version[1] and 1} {self.status}\r\n"
            f"Server: gunicorn\r\nDate: {http_date()}\r\nConnection: {connection}\r\n"
            f"{coding}{''.join(lines)}\r\n"
        )
        data = head.encode("latin-1")
        breaks = len(lines) + 5 + bool(coding) + ("\r" in connection)
        if (
            data.count(b"\n") != breaks
            or data.count(b"\r") != breaks
            or len(data.translate(None, _CONTROLS)) != len(data)
        ):
            raise ValueError(f"malformed field {_culprit(self.headers)}")
        if not framed and self._unframed is not None:
            self._unframed()
        self.head_sent = True
        return data


def _kind_of(name: Any) -> int:
    if not isinstance(name, str):
        raise TypeError(f"the field name {name!r} is no string")
    if not is_token(name):
        raise ValueError(f"malformed field name {name!r}")
    kind = _KINDS.get(name.lower(), _USUAL)
    if len(_seen) < _MOST_SEEN:
        _seen[name] = kind
    return kind


def _length_of(value: str) -> int:
    value = value.strip(" \t")
    if not (value.isascii() and value.isdigit()):
        raise ValueError(f"malformed Content-Length {value!r}")
    return int(value)


def _culprit(fields: list[tuple[str, str]]) -> str:
    """Return the name of the malformed field; its value may be a secret."""
    for name, value in fields:
        if not value.isprintable() and re.search(r"[\x00-\x08\x0a-\x1f\x7f]", value):
            return repr(name)
    return "in the response"
