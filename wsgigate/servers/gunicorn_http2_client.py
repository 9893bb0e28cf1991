"""A client's HTTP/2 connection to a GateWorker, whose requests are served beside each other.

gunicorn gives each connection a thread for as long as it lasts, and serves its requests one after
the other: whoever reads a body or waits for room in a window reads the connection meanwhile. So a
request that waits for anything else holds up all others of its client, and nothing sees that the
client has cancelled it. Here

- The worker's loop, one thread, reads all HTTP/2 connections (:meth:`Http2Client.receive`). It
  never waits: sockets are non-blocking, and what a client does not take stays in a bounded buffer,
  for which the loop watches the socket.
- Each request is served by a free thread of the worker, like one of HTTP/1.1. Such a thread waits
  for a body, or for room to send, at the connection's condition, which the loop notifies.
- The state machine of h2, its output, and the TLS socket are touched only with that condition's
  lock held. No lock is held across a call of the application, or of what was told that a client
  left.
- RST_STREAM, GOAWAY with an error and the end of a connection end its requests at once: what waits
  for the client is woken, and what :meth:`Stream.watch` was given is called. A proxy shuts its
  connection to the instance down then.

What bounds a client:

- A connection has at most three quarters of the threads, and half of them for requests whose bodies
  have not arrived yet. Connections take turns, so that one of many requests delays none of few.
- A body and a response have the deadlines that they have over HTTP/1.1.
- RST_STREAM and frames that carry no request are counted; too many end the connection.
- A connection whose client does not take what it is owed is not read either.

What is malformed by its length (RFC 9113 section 8.1.1) never reaches an app as a whole request:
the last bytes of a body with a length are handed on once the stream has ended there.
"""

from __future__ import annotations

import ssl
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from selectors import EVENT_READ, EVENT_WRITE
from typing import Any

from gunicorn.http.errors import ParseException
from gunicorn.http2.connection import (
    CONTROL_FRAME_RATE_LIMIT,
    CONTROL_FRAME_RATE_WINDOW,
    RST_STREAM_RATE_LIMIT,
    RST_STREAM_RATE_WINDOW,
)
from gunicorn.http2.errors import (
    HTTP2ConnectionError,
    HTTP2Error,
    HTTP2ErrorCode,
    HTTP2StreamError,
)
from gunicorn.http2.request import HTTP2Request
from gunicorn.http2.stream import StreamState

__all__ = ["Http2Client", "RefusedRequest", "Stream"]


SLICE = 65536
"""Bytes of a response that must be taken within the patience."""

OWED = 65536
"""Bytes that may wait for a client to take them before whoever has more for it waits, too."""

MOST_OWED = 262144
"""Bytes owed, from which on the client is not read either: what it sends may add to them."""

_READS = 16  # of 64 KiB, before other connections have their turn

_LATER = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)

_ANY_STREAM = (1 << 31) - 1

_GOAWAY = struct.Struct(">HBBBIII")


class Stream:
    """One request of a connection.

    It is what gunicorn's ``HTTP2Request`` and ``HTTP2Body`` ask of a stream of their own.

    :ivar length: The body's length, as the client says; None when it does not.
    :ivar complete: Whether all of the request has arrived.
    :ivar gone: Why there is nobody to answer any more; empty while there is.
    """

    priority_weight = 16
    priority_depends_on = 0

    def __init__(self, connection: Http2Client, number: int, fields: list[tuple[str, str]]) -> None:
        self.connection = connection
        self.stream_id = number
        self.fields = fields
        self.length: int | None = None
        self.complete = False
        self.gone = ""
        self.expect_continue = False
        self.response_headers_sent = False
        self.ended = False  # whether the response is complete
        self.size = 0  # bytes of the body that have arrived
        self.chunks: deque[bytes] = deque()
        self._taken = 0
        self._waited = 0.0
        self._since: float | None = None  # when it began to wait for what it waits for
        self._seen = 0  # what had arrived by then
        self._watching: list[Callable[[], object]] = []

    # what HTTP2Request and HTTP2Body ask for

    def get_pseudo_headers(self) -> dict[str, str]:
        """Return what stands for the request line."""
        return {name: value for name, value in self.fields if name.startswith(":")}

    def get_regular_headers(self) -> list[tuple[str, str]]:
        """Return the fields."""
        return [field for field in self.fields if not field[0].startswith(":")]

    @property
    def state(self) -> StreamState:
        """``CLOSED`` when there is nobody to answer."""
        return StreamState.CLOSED if self.gone else StreamState.OPEN

    @property
    def body_complete(self) -> bool:
        """Whether all of the request has arrived."""
        return self.complete

    @property
    def trailers(self) -> list[tuple[str, str]]:
        """Nothing: trailers are not handed on."""
        return []

    def pop_chunk(self) -> bytes | None:
        """Return the next part of the body, None at its end; waits for it.

        :raises HTTP2Error: The client has left, or is too slow.
        """
        connection = self.connection
        with connection.changed:
            while True:
                chunk = self.chunks[0] if self.chunks else None
                if chunk is not None and (
                    self.complete or self.length is None or self._taken + len(chunk) < self.length
                ):
                    self.chunks.popleft()
                    self._taken += len(chunk)
                    self._since = None
                    connection.credit(self, len(chunk))
                    return chunk
                if chunk is None and self.complete:
                    return None
                self._wait_for_more()

    def await_end(self) -> None:
        """Wait until all of the request has arrived.

        :raises HTTP2Error: The client has left, or is too slow.
        """
        with self.connection.changed:
            while not self.complete:
                self._wait_for_more()

    def _wait_for_more(self) -> None:
        connection = self.connection
        connection.check(self)
        now = time.monotonic()
        if self._since is None or self.size != self._seen:
            self._since, self._seen = now, self.size
        left = connection.patience + min(
            self._since - now, self.size / connection.rate - self._waited
        )
        if left <= 0:
            connection.cut(self, HTTP2ErrorCode.CANCEL)
            raise HTTP2StreamError(self.stream_id, "the request body came too slowly")
        if self.expect_continue and not self.response_headers_sent:
            self.expect_continue = False  # now that the body is wanted
            connection.inform(self, 100, [])
        connection.changed.wait(left)
        self._waited += time.monotonic() - now

    # whether the client has left

    def watch(self, callback: Callable[[], object]) -> None:
        """Have *callback* called once the client has left; at once, if it has."""
        with self.connection.changed:
            if not self.gone:
                self._watching.append(callback)
                return
        callback()

    def forget(self, callback: Callable[[], object]) -> None:
        """Call *callback* no more."""
        with self.connection.changed:
            if callback in self._watching:
                self._watching.remove(callback)

    def leave(self, reason: str) -> list[Callable[[], object]]:
        """Take note that the client has left; return what is to be called without the lock."""
        if self.gone:
            return []
        self.gone = reason
        self.chunks.clear()
        watching, self._watching = self._watching, []
        return watching


class RefusedRequest:
    """A request whose head is not one that gunicorn takes.

    :ivar error: Why.
    """

    def __init__(self, stream: Stream, error: Exception) -> None:
        self.stream = stream
        self.error = error if isinstance(error, ParseException) else ParseException(str(error))
        pseudo = stream.get_pseudo_headers()
        self.method = pseudo.get(":method", "")
        self.uri = pseudo.get(":path", "")


class _Rate:
    """Counts what happens in a while."""

    def __init__(self, most: int, seconds: float) -> None:
        self._most = most
        self._seconds = seconds
        self._times: deque[float] = deque()

    def exceeded(self) -> bool:
        """Count one more; return whether there were too many."""
        now = time.monotonic()
        self._times.append(now)
        while now - self._times[0] > self._seconds:
            self._times.popleft()
        return len(self._times) > self._most


class Http2Client:
    """A client's end of an HTTP/2 connection.

    :param connection: gunicorn's, whose preface has been sent.
    :param patience: Seconds for its client to send more of a body or take more of a response.
    :param rate: Bytes of a body that earn one more second in all.
    :param idle: Seconds from the end of a request to the next one.
    :param first: Seconds for the first request.
    :param threads: How many threads the worker has.
    :param wake: Has the loop look at this connection; may be called with its lock held.
    :ivar changed: Notified of all that anybody waits for; its lock guards everything in here.
    :ivar listed: Whether a thread is going to ask for a request.
    """

    def __init__(
        self,
        connection: Any,
        *,
        patience: float,
        rate: float,
        idle: float,
        first: float,
        threads: int,
        wake: Callable[[], object],
    ) -> None:
        self.sock = connection.sock
        self.cfg = connection.cfg
        self.patience = patience
        self.rate = rate
        self.changed = threading.Condition(threading.RLock())
        self.streams: dict[int, Stream] = {}
        self.is_closed = False
        self.broken = False
        self._watched = 0
        self._woken = False
        self.listed = False
        self.idle_from = time.monotonic() + first - idle
        self._idle = idle
        self._client = connection.client_addr
        self._state = connection.h2_conn
        self._state.config.header_encoding = "latin-1"  # as PEP 3333 has it
        self._most = max(1, threads - threads // 4)
        self._most_incomplete = max(1, threads // 2)
        self._wake = wake
        self._waiting: deque[HTTP2Request | RefusedRequest] = deque()
        self._serving: set[Stream] = set()
        self._out = bytearray()
        self._moved = 0.0  # when the client last took something that was owed
        self._credit = 0
        self._last = 0  # the last stream that was accepted
        self._peer_last = _ANY_STREAM
        self._until = float("inf")  # when an idle connection ends, whatever it may be asked
        self._says_goodbye = False
        self._refuses = False
        self._resets = _Rate(RST_STREAM_RATE_LIMIT, RST_STREAM_RATE_WINDOW)
        self._controls = _Rate(CONTROL_FRAME_RATE_LIMIT, CONTROL_FRAME_RATE_WINDOW)

    @property
    def in_flight(self) -> int:
        """How many requests are being served."""
        return len(self._serving)

    # the loop's

    def watch(self) -> tuple[int, int]:
        """Return what of the socket the loop watches, and what it is to watch from now on.

        A thread that changes that later has the loop woken. So what is watched changes with the
        lock held: a change that comes just before it is seen, or wakes the loop.
        """
        with self.changed:
            self._woken = False
            before, self._watched = self._watched, self._interest()
            return before, self._watched

    def _interest(self) -> int:
        if self.is_closed:
            return 0
        reads = EVENT_READ if len(self._out) <= MOST_OWED else 0
        return reads | (EVENT_WRITE if self._out else 0)

    def receive(self) -> bool:
        """Take in what has arrived, and send what can be sent; never waits.

        :returns: Whether there is more to be read, which the socket may not show.
        """
        left: list[Callable[[], object]] = []
        more = False
        with self.changed:
            self._flush()
            for _ in range(_READS):
                more = not self.is_closed and len(self._out) <= MOST_OWED
                if not more:
                    break
                try:
                    data = self.sock.recv(65536)
                except _LATER:
                    more = False
                    break
                except OSError as error:
                    left += self._lose(f"the connection broke: {error}")
                    break
                if not data:
                    left += self._lose("the client has closed the connection")
                    break
                left += self._take_in(data)
            self._flush()
            self.changed.notify_all()
        for callback in left:
            callback()
        return more

    def expired(self, now: float) -> bool:
        """Return whether the connection has ended, or is to end now: its client is too slow."""
        with self.changed:
            if not self.is_closed and self._out and now > self._moved + self.patience:
                self.broken = True
                self._lose_and_tell("the client takes nothing")
            idle = not self.streams and now >= min(self.idle_from + self._idle, self._until)
            return self.is_closed or idle

    @property
    def silent_since(self) -> float | None:
        """Since when nothing is asked; None while something is."""
        return None if self.streams or self._serving else self.idle_from

    def drain(self, until: float) -> None:
        """Have the client make its next requests elsewhere; those before *until* are served."""
        with self.changed:
            self._until = min(self._until, until)
            self._says_goodbye = True
            self._say_when_idle()
            self._flush()

    def refuse_more(self) -> None:
        """Serve what was accepted, and nothing else."""
        with self.changed:
            self._refuses = True

    def close(self) -> None:
        """Say which request was the last one (RFC 9113 section 6.8), and end all of them."""
        with self.changed:
            if not self.is_closed:
                self._goaway(self._last)
                self._flush()
                self._lose_and_tell("the connection is closed")

    # the threads', which serve

    def wants(self) -> bool:
        """Return whether a thread is to ask for a request, which nobody was told of yet."""
        with self.changed:
            if self.listed or self._next() is None:
                return False
            self.listed = True
            return True

    def take(self) -> tuple[Any, bool]:
        """Return a request to serve, or None, and whether another thread is to ask as well."""
        with self.changed:
            request = self._next()
            if request is None:
                self.listed = False
                return None, False
            self._waiting.remove(request)
            self._serving.add(request.stream)
            self.listed = self._next() is not None
            return request, self.listed

    def finish(self, stream: Stream) -> None:
        """End a request: what it has not said will not be said."""
        with self.changed:
            self._serving.discard(stream)
            self.streams.pop(stream.stream_id, None)
            if not stream.gone and not self.is_closed:
                if not stream.ended:
                    self._reset(stream.stream_id, HTTP2ErrorCode.INTERNAL_ERROR)
                elif not stream.complete:
                    self._reset(stream.stream_id, HTTP2ErrorCode.NO_ERROR)
                if not self.streams:
                    self.idle_from = time.monotonic()
                    self._say_when_idle()
                self._flush()
            stream.leave("the request has ended")

    def respond(
        self, stream: Stream, status: int, fields: list[tuple[str, str]], *, end: bool
    ) -> None:
        """Send the head of a response, its bytes as the app gave them.

        :raises HTTP2Error: The client has left.
        """
        told = [
            (name.lower(), value if value.isascii() else _text(value)) for name, value in fields
        ]
        with self.changed:
            self.check(stream)
            self._say(stream, [(":status", str(status)), *told], end=end)
            stream.response_headers_sent = True
            stream.ended = end
            self._flush()

    def inform(self, stream: Stream, status: int, fields: list[tuple[str, str]]) -> None:
        """Send an interim response.

        :raises HTTP2Error: The client has left, or has its response already.
        """
        with self.changed:
            self.check(stream)
            if stream.response_headers_sent:
                raise HTTP2Error("an interim response after the final one")
            told = [(name.lower(), str(value)) for name, value in fields]
            self._say(stream, [(":status", str(status)), *told], end=False)
            self._flush()

    def send(self, stream: Stream, data: bytes, *, end: bool) -> None:
        """Send a part of a response as fast as the client takes it.

        :raises HTTP2Error: The client has left, or is too slow.
        """
        for at in range(0, len(data) - SLICE, SLICE):
            self._send_slice(stream, data[at : at + SLICE], end=False)
            time.sleep(0)  # the loop and other requests of the connection have their turn
        rest = data if len(data) <= SLICE else data[(len(data) - 1) // SLICE * SLICE :]
        self._send_slice(stream, rest, end=end)

    def _send_slice(self, stream: Stream, data: bytes, *, end: bool) -> None:
        at = 0
        until = time.monotonic() + self.patience
        with self.changed:
            while True:
                self.check(stream)
                if len(self._out) > OWED:
                    self._flush()
                room = (
                    OWED
                    if at == len(data)
                    else self._state.local_flow_control_window(stream.stream_id)
                )
                if room <= 0 or len(self._out) > OWED:
                    self._flush()
                    left = until - time.monotonic()
                    if left <= 0:
                        self.cut(stream, HTTP2ErrorCode.CANCEL)
                        raise HTTP2StreamError(stream.stream_id, "the response was not taken")
                    self.changed.wait(left)
                    continue
                size = min(room, self._state.max_outbound_frame_size, len(data) - at)
                last = end and at + size == len(data)
                if size or last:
                    self._guarded(
                        stream,
                        self._state.send_data,
                        stream.stream_id,
                        data[at : at + size],
                        end_stream=last,
                    )
                    self._out += self._state.data_to_send()
                at += size
                if at == len(data):
                    stream.ended = stream.ended or last
                    self._flush()
                    return

    def fail(self, stream: Stream) -> None:
        """Answer a request with a bare 500, or cut what has begun to be sent of its response."""
        if not stream.response_headers_sent:
            self.respond(stream, 500, [("content-length", "0")], end=True)

    # with the lock held

    def check(self, stream: Stream) -> None:
        """Return while there is somebody to answer.

        :raises HTTP2Error: There is not.
        """
        if stream.gone:
            raise HTTP2StreamError(stream.stream_id, stream.gone)
        if self.is_closed:
            raise HTTP2ConnectionError("the connection is closed")

    def cut(self, stream: Stream, code: int) -> None:
        """End a stream whose client is too slow."""
        self._reset(stream.stream_id, code)
        stream.leave("the client was too slow")
        self._flush()

    def credit(self, stream: Stream, size: int) -> None:
        """Make room for *size* more bytes of a body."""
        if self.is_closed or stream.complete or stream.gone or not size:
            return
        try:
            self._state.increment_flow_control_window(size, stream_id=stream.stream_id)
        except (ValueError, KeyError, _protocol_error()):
            return
        self._flush()

    def _next(self) -> HTTP2Request | RefusedRequest | None:
        """Return the request that is to be served next, if one may be."""
        if self.is_closed or len(self._serving) >= self._most:
            return None
        incomplete = sum(not stream.complete for stream in self._serving)
        for request in self._waiting:
            if request.stream.complete or incomplete < self._most_incomplete:
                return request
        return None

    def _say(self, stream: Stream, fields: list[tuple[str, str]], *, end: bool) -> None:
        self._guarded(stream, self._state.send_headers, stream.stream_id, fields, end_stream=end)

    def _guarded(
        self, stream: Stream, call: Callable[..., object], *args: Any, **more: Any
    ) -> None:
        try:
            call(*args, **more)
        except _protocol_error() as error:  # the state machine has closed the stream
            raise HTTP2StreamError(stream.stream_id, str(error)) from error

    def _reset(self, number: int, code: int) -> None:
        try:
            self._state.reset_stream(number, error_code=code)
        except _protocol_error():
            pass

    def _goaway(self, last: int, code: int = HTTP2ErrorCode.NO_ERROR) -> None:
        # Not by the state machine, which would take no more of the streams that go on.
        self._out += self._state.data_to_send()
        self._out += _GOAWAY.pack(0, 8, 7, 0, 0, last, int(code))

    def _say_when_idle(self) -> None:
        """Tell the client to go elsewhere once nothing is under way.

        Requests that cross this are served. Clients that take any GOAWAY for the end of all that is
        under way, such as Python's h2, lose nothing.
        """
        if self._says_goodbye and not self.streams and not self.is_closed:
            self._says_goodbye = False
            self._goaway(_ANY_STREAM)

    def _flush(self) -> None:
        """Send what the client takes at once."""
        if self.is_closed:
            return
        out = self._out
        if not out:
            self._moved = time.monotonic()
        out += self._state.data_to_send()
        while out:
            try:
                sent = self.sock.send(out[:65536])
            except _LATER:
                break
            except OSError as error:
                self._lose_and_tell(f"the connection broke: {error}")
                return
            full = len(out) > OWED
            del out[:sent]
            self._moved = time.monotonic()
            if full and len(out) <= OWED:
                self.changed.notify_all()  # whoever waits for this, whichever thread has sent it
        if self._interest() != self._watched and not self._woken:
            self._woken = True
            self._wake()

    def _lose(self, reason: str) -> list[Callable[[], object]]:
        """End all that is under way; return what is to be called without the lock."""
        if self.is_closed:
            return []
        self.is_closed = True
        left = [call for stream in self.streams.values() for call in stream.leave(reason)]
        for request in self._waiting:
            self.streams.pop(request.stream.stream_id, None)
        self._waiting.clear()
        self.changed.notify_all()
        self._wake()
        return left

    def _lose_and_tell(self, reason: str) -> None:
        # Departures take a lock of their own, and none of them waits for this one.
        for callback in self._lose(reason):
            callback()

    def _take_in(self, data: bytes) -> list[Callable[[], object]]:
        try:
            events = self._state.receive_data(data)
        except _protocol_error() as error:
            self._flush()  # which says why
            return self._lose(f"the client broke the protocol: {error}")
        left: list[Callable[[], object]] = []
        for event in events:
            left += self._happened(event)
        if self._credit and not self.is_closed:
            # At once, so that a stream that waits for its turn starves none that is served.
            self._state.increment_flow_control_window(self._credit)
        self._credit = 0
        return left

    def _happened(self, event: Any) -> list[Callable[[], object]]:
        kind = type(event).__name__
        stream = self.streams.get(getattr(event, "stream_id", None) or 0)
        if kind == "RequestReceived":
            self._accept(event.stream_id, event.headers)
        elif kind == "DataReceived":
            self._credit += event.flow_controlled_length
            if not event.data and event.stream_ended is None and self._controls.exceeded():
                return self._too_much()
            if stream is not None:
                self._data(stream, event)
        elif kind == "StreamEnded" and stream is not None:
            stream.complete = True
        elif kind == "StreamReset":
            if self._resets.exceeded():
                return self._too_much()
            if stream is not None:
                return self._cancelled(stream)
        elif kind in ("PingReceived", "RemoteSettingsChanged"):
            if self._controls.exceeded():
                return self._too_much()
        elif kind == "ConnectionTerminated":
            # gunicorn's state machine goes on after one without an error (section 6.8)
            if event.error_code or self._state.peer_goaway_last_stream_id is None:
                return self._lose("the client has ended the connection")
            self._peer_last = event.last_stream_id
            self._until = float("-inf")
        return []

    def _accept(self, number: int, fields: list[tuple[str, str]]) -> None:
        if self._refuses or number > self._peer_last:
            self._reset(number, HTTP2ErrorCode.REFUSED_STREAM)
            if self._refuses:
                self._goaway(self._last)
            return
        self._last = number
        stream = Stream(self, number, fields)
        try:
            request = HTTP2Request(stream, self.cfg, self._client)
        except (ParseException, ValueError) as error:
            request = RefusedRequest(stream, error)
        else:
            stream.length = request.content_length
        self.streams[number] = stream
        self._waiting.append(request)

    def _data(self, stream: Stream, event: Any) -> None:
        if stream.gone:
            return
        if event.data:
            stream.chunks.append(event.data)
            stream.size += len(event.data)
        padding = event.flow_controlled_length - len(event.data)
        if padding and event.stream_ended is None:
            try:
                self._state.increment_flow_control_window(padding, stream_id=stream.stream_id)
            except _protocol_error():
                pass

    def _cancelled(self, stream: Stream) -> list[Callable[[], object]]:
        for request in self._waiting:
            if request.stream is stream:
                self._waiting.remove(request)
                break
        self.streams.pop(stream.stream_id, None)
        if not self.streams:
            self.idle_from = time.monotonic()
            self._say_when_idle()
        return stream.leave("the client has cancelled the request")

    def _too_much(self) -> list[Callable[[], object]]:
        self._goaway(self._last, HTTP2ErrorCode.ENHANCE_YOUR_CALM)
        self._flush()
        return self._lose("the client sends too much that asks for nothing")


def _protocol_error() -> type[Exception]:
    """Return the base of h2's errors, which is loaded where HTTP/2 is spoken."""
    from h2.exceptions import ProtocolError

    return ProtocolError


def _text(value: str) -> str:
    """Return the text whose UTF-8 is the bytes that *value* stands for, or else *value*."""
    try:
        return value.encode("latin-1").decode()
    except UnicodeError:
        return value
