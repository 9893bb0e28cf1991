"""A request onto the wire: its head as it was made, its body framed in exactly one way."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

import requests
from requests.exceptions import InvalidHeader, InvalidURL

from wsgigate.proxy.wire import BLOCK

__all__ = ["Fields", "Upload", "request_head", "upload_of"]

_METHOD = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


Holds: TypeAlias = Callable[[Any], object]


class Fields(dict[str, str]):
    """Request fields on their way to the wire, with the exact request target they go with.

    :ivar holds: Told which socket the request goes by, and ``None`` before that may serve another;
        there when somebody wants to know.
    """

    __slots__ = ("holds", "target")

    target: str
    holds: Holds

    @classmethod
    def joined(cls, fields: Iterable[tuple[str, str]]) -> Fields:
        """Return *fields*, those of one name joined as RFC 9110 section 5.2 says; cookies by ``;``.

        A field that is added must not take the place of the client's.
        """
        made = cls()
        names: dict[str, str] = {}
        for name, value in fields:
            known = names.setdefault(name.lower(), name)
            if known in made:
                made[known] += ("; " if known.lower() == "cookie" else ", ") + value
            else:
                made[known] = value
        return made

    def copy(self) -> Fields:
        copied = Fields(self)
        copied.target = self.target
        holds = getattr(self, "holds", None)
        if holds is not None:
            copied.holds = holds
        return copied


def request_head(request: requests.PreparedRequest, upload: Upload | None, origin: str) -> bytes:
    """Return the bytes of the request's head, target and fields as they are.

    :raises ValueError: It can not be told from something else on the wire.
    """
    fields: Any = request.headers
    method = request.method or "GET"
    if type(fields) is Fields:
        target = fields.target
    else:
        target = request.path_url
        fields = {_text(name): _text(value) for name, value in (fields or {}).items()}
        names = {name.lower(): name for name in fields}
        if "expect" in names:
            del fields[names["expect"]]  # to wait for leave to send costs more than it saves
        if "host" not in names:
            scheme, _, host = origin.partition("://")
            fields = {"Host": "localhost" if scheme == "http+unix" else host, **fields}
    if upload is not None and upload.field is not None:
        fields = {**fields, upload.field[0]: upload.field[1]}
    lines = [f"{method} {target} HTTP/1.1", *map(": ".join, fields.items()), "\r\n"]
    text = "\r\n".join(lines)
    ends = len(lines)  # exactly as many as were put there, or a value brought one of its own
    if text.count("\n") != ends or text.count("\r") != ends or "\0" in text:
        raise InvalidHeader("a line end or NUL in a request field")
    if lines[0].count(" ") != 2 or not _METHOD.fullmatch(method):
        raise InvalidURL("the request has no valid method or target")
    return text.encode("latin-1")


def _text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value


def upload_of(request: requests.PreparedRequest) -> Upload | None:
    """Return the request's body as it is to be sent, None when it has none.

    :raises ValueError: Its framing contradicts it.
    """
    body: Any = request.body
    headers: Any = request.headers or {}
    stated = _text(headers.get("Content-Length") or "")
    chunked = bool(headers.get("Transfer-Encoding"))
    if chunked and stated:
        raise InvalidHeader("a request with both framings")
    if body is None or (isinstance(body, (str, bytes)) and not body):
        if chunked or stated not in ("", "0"):
            raise InvalidHeader("a request without the body that its fields announce")
        return None
    if stated and not (stated.isascii() and stated.isdigit()):
        raise InvalidHeader("a malformed Content-Length")
    length = int(stated) if stated else None
    field = None
    if isinstance(body, str):
        body = body.encode()
    if isinstance(body, (bytes, bytearray, memoryview)):
        if chunked:
            blocks: Iterator[bytes] = iter((bytes(body),))
        elif length not in (None, len(body)):
            raise InvalidHeader("a Content-Length that is not the body's")
        else:
            return Upload(iter((bytes(body),)), len(body), field=_length_field(len(body), length))
    elif hasattr(body, "read"):
        read: Callable[[int], bytes] = body.read
        known = getattr(body, "length", None)
        if not chunked and length is None and isinstance(known, int):
            length, field = known, ("Content-Length", str(known))
        blocks = iter(lambda: read(BLOCK), b"")
    else:
        whole: Iterable[bytes | str] = body
        blocks = (_bytes(block) for block in whole)
    if length is None and not chunked:
        field = ("Transfer-Encoding", "chunked")
    return Upload(blocks, length, field=field)


def _length_field(length: int, stated: int | None) -> tuple[str, str] | None:
    return ("Content-Length", str(length)) if stated is None else None


def _bytes(block: bytes | str) -> bytes:
    return block.encode() if isinstance(block, str) else block


class Upload:
    """A request body, in blocks that are framed already.

    The first block is read before a connection is taken: one small enough goes out together with
    the head, and a client that is slow to begin holds nothing up.

    :param blocks: Bytes in parts.
    :param length: How many there are; None for a chunked body.
    :param field: The framing field that the request lacks.
    :ivar first: The first block as it goes out.
    :ivar replayable: Whether all that was read so far is still there to be sent once more.
    """

    __slots__ = ("_blocks", "_ended", "_left", "field", "first", "replayable")

    def __init__(
        self,
        blocks: Iterator[bytes],
        length: int | None,
        *,
        field: tuple[str, str] | None = None,
    ) -> None:
        self._blocks = blocks
        self._left = length
        self._ended = length == 0
        self.field = field
        self.first = self._next()
        self.replayable = True

    @property
    def ended(self) -> bool:
        """Whether there is nothing left to read."""
        return self._ended

    def rest(self) -> Iterator[bytes]:
        """Yield what comes after the first block."""
        while not self._ended:
            self.replayable = False
            yield self._next()

    def _next(self) -> bytes:
        if self._ended:
            return b""
        block = next(self._blocks, b"")
        while not block and self._left is None:
            again = next(self._blocks, None)  # an empty block must not look like the last chunk
            if again is None:
                self._ended = True
                return b"0\r\n\r\n"
            block = again
        if self._left is None:
            return b"%x\r\n%b\r\n" % (len(block), block)
        if not block or len(block) > self._left:
            raise InvalidHeader("the body is not as long as its Content-Length")
        self._left -= len(block)
        self._ended = self._left == 0
        return block
