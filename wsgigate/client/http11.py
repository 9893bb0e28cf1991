"""One request over one connection, until the head of its response is in."""

from __future__ import annotations

import http.client
import re
import ssl
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

import requests
from requests.exceptions import InvalidHeader, InvalidURL

from wsgigate.client.connections import Connection
from wsgigate.client.response_reader import BLOCK, ResponseReader

__all__ = ["Deadline", "Fields", "Upload", "exchange", "request_head", "upload_of"]


# A request onto the wire: its head as it was made, its body framed in exactly one way.

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


_HEAD_BLOCK = 16384

_SINGLE = 16384
"""Up to this many bytes go out in one piece: every socket's buffer takes them at once."""


class Deadline:
    """Until when the head of the response has to be in, and how long one step may take.

    The time that a body takes on its way is not part of it: once it has been sent, the whole of
    the time is there for the response again.

    :param step: Seconds for each step; no more than for all.
    :param total: Seconds for all of them together.
    """

    __slots__ = ("_clock", "_total", "step", "until")

    def __init__(
        self, step: float, total: float, now: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.step = min(step, total)
        self._total = total
        self._clock = clock
        self.until = now + total

    def left(self) -> float:
        """Return the seconds that the next step has.

        :raises TimeoutError: There are none.
        """
        left = self.until - self._clock()
        if left <= 0:
            raise TimeoutError("the response did not begin in time")
        return min(left, self.step)

    def restart(self) -> None:
        """Count anew, as the body has been sent."""
        self.until = self._clock() + self._total


def exchange(
    connection: Connection,
    head: bytes,
    upload: Upload | None,
    reader: ResponseReader,
    deadline: Deadline,
) -> None:
    """Send a request and read the head of its response into *reader*.

    :raises requests.RequestException: There is none; the connection is to be closed.
    """
    try:
        hung_up = False
        try:
            answered = _send(connection, head, upload, reader, deadline)
        except (BrokenPipeError, ConnectionResetError):
            answered, hung_up = False, True  # it may have answered before it did
        if not answered:
            _read_head(connection, reader, deadline, fresh=_at_once(connection, upload))
        if hung_up:
            reader.keep = False  # whatever the head says
    except TimeoutError as error:
        raise requests.ReadTimeout(error) from error
    except ssl.SSLError as error:
        raise requests.exceptions.SSLError(error) from error
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, requests.RequestException):
            raise
        raise requests.ConnectionError(error) from error


def _at_once(connection: Connection, upload: Upload | None) -> bool:
    """Return whether nothing took any of the time so far: no connecting, and no body."""
    return upload is None and connection.reused


def _read_head(
    connection: Connection, reader: ResponseReader, deadline: Deadline, *, fresh: bool
) -> None:
    """Read until the head is in.

    :param fresh: Whether a step's time is set already and as good as all there: the usual case, in
        which the clock need not be asked.
    """
    while True:
        if not fresh:
            connection.set_timeout(deadline.left())
        fresh = False
        try:
            data = connection.recv(_HEAD_BLOCK)
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
            data = b""
        if not data:
            if reader.begun:
                reader.feed_end()
            raise http.client.RemoteDisconnected("Remote end closed connection without response")
        if reader.feed_head(data):
            return


def _send(
    connection: Connection,
    head: bytes,
    upload: Upload | None,
    reader: ResponseReader,
    deadline: Deadline,
) -> bool:
    """Send it all; tell whether the response was there before the end of that."""
    connection.set_timeout(deadline.step if _at_once(connection, upload) else deadline.left())
    if upload is None:
        connection.send_all(head)
        return False
    block = upload.first
    if len(head) + len(block) <= _SINGLE:
        connection.send_all(head + block)
    else:
        connection.send_all(head)
        if _push(connection, block, reader, deadline):
            return True
    if upload.ended:
        return False
    for block in upload.rest():
        if _push(connection, block, reader, deadline):
            return True
    deadline.restart()
    return False


def _push(connection: Connection, block: bytes, reader: ResponseReader, deadline: Deadline) -> bool:
    """Send a block; stop at a response, which then is the last on this connection."""
    view = memoryview(block)
    while view:
        answered, writable = connection.wait(deadline.step)
        if answered:
            data = connection.recv_now(BLOCK)
            if data is not None:
                if not data:
                    if reader.begun:
                        reader.feed_end()
                    raise http.client.RemoteDisconnected("closed while the body was being sent")
                if reader.feed_head(data):
                    reader.keep = False
                    return True
        elif not writable:
            raise TimeoutError("the body was not taken in time")
        if writable:
            view = view[connection.send_now(view, deadline.step) :]
    return False
