"""A client's HTTP/2 connection to a GateWorker, whose requests are served concurrently.

Theory of operation
-------------------

gunicorn gives each connection a thread for its whole life and serves its requests one after the
other; the request that reads a body or waits for window space also reads the connection. So a
request that waits for anything else blocks all other requests of its client, and a cancellation is
not noticed. This module works differently:

- The worker's loop, one thread, reads all HTTP/2 connections (:meth:`Http2Connection.receive`). It
  never blocks: sockets are non-blocking, and data that a client does not read stays in a bounded
  buffer, for which the loop watches the socket.
- Each request is served by a free thread of the worker, like one of HTTP/1.1. Such a thread waits
  for a body, or for room to send, on the connection's condition, which the loop notifies.
- The state machine of h2, its output buffer and the TLS socket are used only with that condition's
  lock held: none of them is thread-safe. No lock is held across a call of the application, or of a
  callback of :meth:`Stream.watch`, except where ``_lose_and_notify`` calls these; such a callback
  must not wait for this lock.
- RST_STREAM, GOAWAY with an error and the end of the connection end its requests at once: threads
  that wait for the client are woken, and the callbacks of :meth:`Stream.watch` are called. The
  proxy then shuts down its connection to the instance.

Bounds per client:

- A connection has at most three quarters of the threads, and at most half of them for requests
  whose bodies are incomplete. Connections take turns, so that a client with many requests does not
  delay one with few.
- A body and a response have the same deadlines as over HTTP/1.1.
- RST_STREAM and frames that carry no request are counted; too many end the connection.
- A connection whose client does not read its responses is not read either.

A body that contradicts its ``Content-Length`` (RFC 9113 section 8.1.1) never reaches an app as a
complete request: the last bytes of a body with a length are handed over only after END_STREAM.
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

__all__ = ["Http2Connection", "RefusedRequest", "Stream"]


SLICE = 65536
"""Bytes of a response that the client must read within the patience."""

OWED = 65536
"""Buffered output bytes above which a thread that sends a response waits."""

MOST_OWED = 262144
"""Buffered output bytes above which the client is not read: its frames may cause more output."""

_READS = 16  # reads of 64 KiB before other connections have their turn

_LATER = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)

_ANY_STREAM = (1 << 31) - 1

_GOAWAY = struct.Struct(">HBBBIII")


class Stream:
    """One request of a connection.

    It implements the stream interface of gunicorn's ``HTTP2Request`` and ``HTTP2Body``.

    :ivar length: The request's ``Content-Length``; None without one.
    :ivar complete: Whether the whole request has arrived.
    :ivar gone: Why the stream has ended for the client; empty while it is open.
    """

    priority_weight = 16
    priority_depends_on = 0

    def __init__(
        self, connection: Http2Connection, number: int, fields: list[tuple[str, str]]
    ) -> None:
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
        self._since: float | None = None  # when the present wait for more of the body began
        self._seen = 0  # bytes that had arrived at that moment
        self._watching: list[Callable[[], object]] = []

    # the interface of HTTP2Request and HTTP2Body

    def get_pseudo_headers(self) -> dict[str, str]:
        """Return the pseudo-header fields, which correspond to the request line."""
        return {name: value for name, value in self.fields if name.startswith(":")}

    def get_regular_headers(self) -> list[tuple[str, str]]:
        """Return the fields."""
        return [field for field in self.fields if not field[0].startswith(":")]

    @property
    def state(self) -> StreamState:
        """``CLOSED`` once the client has left."""
        return StreamState.CLOSED if self.gone else StreamState.OPEN

    @property
    def body_complete(self) -> bool:
        """Whether all of the request has arrived."""
        return self.complete

    @property
    def trailers(self) -> list[tuple[str, str]]:
        """An empty list: trailers are discarded."""
        return []

    def pop_chunk(self) -> bytes | None:
        """Wait for the next part of the body and return it, None at the end.

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
        """Wait until the whole request has arrived.

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
            self.expect_continue = False  # 100 Continue, as the app reads the body now
            connection.inform(self, 100, [])
        connection.changed.wait(left)
        self._waited += time.monotonic() - now

    # disconnection of the client

    def watch(self, callback: Callable[[], object]) -> None:
        """Call *callback* once the client has left; immediately if it already has."""
        with self.connection.changed:
            if not self.gone:
                self._watching.append(callback)
                return
        callback()

    def forget(self, callback: Callable[[], object]) -> None:
        """Remove *callback* again."""
        with self.connection.changed:
            if callback in self._watching:
                self._watching.remove(callback)

    def leave(self, reason: str) -> list[Callable[[], object]]:
        """Record that the client has left; return the callbacks, to be called without the lock."""
        if self.gone:
            return []
        self.gone = reason
        self.chunks.clear()
        watching, self._watching = self._watching, []
        return watching


class RefusedRequest:
    """A request whose head gunicorn rejects.

    :ivar error: The reason.
    """

    def __init__(self, stream: Stream, error: Exception) -> None:
        self.stream = stream
        self.error = error if isinstance(error, ParseException) else ParseException(str(error))
        pseudo = stream.get_pseudo_headers()
        self.method = pseudo.get(":method", "")
        self.uri = pseudo.get(":path", "")


class _Rate:
    """Counts events within a sliding period."""

    def __init__(self, most: int, seconds: float) -> None:
        self._most = most
        self._seconds = seconds
        self._times: deque[float] = deque()

    def exceeded(self) -> bool:
        """Count one event; return whether there were more than *most* within *seconds*."""
        now = time.monotonic()
        self._times.append(now)
        while now - self._times[0] > self._seconds:
            self._times.popleft()
        return len(self._times) > self._most


class Http2Connection:
    """An HTTP/2 connection of a client: its streams, its output buffer, its limits.

    :param connection: gunicorn's connection object, whose preface has been sent.
    :param patience: Seconds for the client to send more of a body or read more of a response.
    :param rate: Bytes of a body that earn one more second in all.
    :param idle: Seconds from the end of a request to the next one.
    :param first: Seconds for the first request.
    :param threads: The number of threads of the worker.
    :param wake: Makes the loop check this connection; may be called with the lock held.
    :ivar changed: Notified of every change that a thread may wait for; its lock guards all state.
    :ivar listed: Whether a thread is about to call :meth:`take`.
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
        self._moved = 0.0  # when the client last read from the output buffer
        self._credit = 0
        self._last = 0  # the last stream that was accepted
        self._peer_last = _ANY_STREAM
        self._until = float("inf")  # when the connection is closed once it is idle
        self._owes_goaway = False
        self._refuses = False
        self._resets = _Rate(RST_STREAM_RATE_LIMIT, RST_STREAM_RATE_WINDOW)
        self._controls = _Rate(CONTROL_FRAME_RATE_LIMIT, CONTROL_FRAME_RATE_WINDOW)

    @property
    def in_flight(self) -> int:
        """The number of requests that are being served."""
        return len(self._serving)

    # called by the loop

    def watch(self) -> tuple[int, int]:
        """Return the events that the loop watches the socket for, and those to watch from now on.

        Both change with the lock held: a thread that changes them earlier is taken into account
        here, and one that changes them later wakes the loop. No change is lost.
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
        """Read and process what has arrived, and write what the socket accepts; never blocks.

        :returns: Whether there may be more to read: TLS may hold data that the poller cannot see.
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

    def receive_first(self, data: bytes) -> None:
        """Process *data*, which was read before it was known that the client speaks HTTP/2."""
        if not data:
            return
        with self.changed:
            left = self._take_in(data)
            self._flush()
        for callback in left:
            callback()

    def expired(self, now: float) -> bool:
        """Return whether the connection is closed, or must be closed now.

        It must when its client does not read, or when its idle time is over.
        """
        with self.changed:
            if not self.is_closed and self._out and now > self._moved + self.patience:
                self.broken = True
                self._lose_and_notify("the client does not read its responses")
            idle = not self.streams and now >= min(self.idle_from + self._idle, self._until)
            return self.is_closed or idle

    @property
    def silent_since(self) -> float | None:
        """Since when the connection is idle; None while a request is in flight."""
        return None if self.streams or self._serving else self.idle_from

    def drain(self, until: float) -> None:
        """Send GOAWAY once the connection is idle; serve requests that arrive before *until*."""
        with self.changed:
            self._until = min(self._until, until)
            self._owes_goaway = True
            self._goaway_when_idle()
            self._flush()

    def refuse_more(self) -> None:
        """Finish the accepted requests, and reject all others."""
        with self.changed:
            self._refuses = True

    def close(self) -> None:
        """Send GOAWAY with the last accepted stream (RFC 9113 section 6.8); end all requests."""
        with self.changed:
            if not self.is_closed:
                self._goaway(self._last)
                self._flush()
                self._lose_and_notify("the connection is closed")

    # called by the threads that serve requests

    def wants(self) -> bool:
        """Return whether a thread must call :meth:`take`; True once, until one has called it."""
        with self.changed:
            if self.listed or self._next() is None:
                return False
            self.listed = True
            return True

    def take(self) -> tuple[Any, bool]:
        """Return a request to serve, or None, and whether another thread must call this, too."""
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
        """End a request; a stream whose response is incomplete is reset."""
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
                    self._goaway_when_idle()
                self._flush()
            stream.leave("the request has ended")

    def respond(
        self, stream: Stream, status: int, fields: list[tuple[str, str]], *, end: bool
    ) -> None:
        """Send the head of a response; field values keep the bytes that the app gave.

        :raises HTTP2Error: The client has left.
        """
        encoded = [
            (name.lower(), value if value.isascii() else _text(value)) for name, value in fields
        ]
        with self.changed:
            self.check(stream)
            self._send_head(stream, [(":status", str(status)), *encoded], end=end)
            stream.response_headers_sent = True
            stream.ended = end
            self._flush()

    def inform(self, stream: Stream, status: int, fields: list[tuple[str, str]]) -> None:
        """Send an interim response.

        :raises HTTP2Error: The client has left, or the final response was sent.
        """
        with self.changed:
            self.check(stream)
            if stream.response_headers_sent:
                raise HTTP2Error("an interim response after the final one")
            encoded = [(name.lower(), str(value)) for name, value in fields]
            self._send_head(stream, [(":status", str(status)), *encoded], end=False)
            self._flush()

    def send(self, stream: Stream, data: bytes, *, end: bool) -> None:
        """Send a part of a response as fast as the client reads it.

        :raises HTTP2Error: The client has left, or is too slow.
        """
        for at in range(0, len(data) - SLICE, SLICE):
            self._send_slice(stream, data[at : at + SLICE], end=False)
            time.sleep(0)  # yields to the loop and to other requests of the connection
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
        """Respond with an empty 500, unless a response has begun; :meth:`finish` then resets it."""
        if not stream.response_headers_sent:
            self.respond(stream, 500, [("content-length", "0")], end=True)

    # called with the lock held

    def check(self, stream: Stream) -> None:
        """Check that the stream is open.

        :raises HTTP2Error: The client has left.
        """
        if stream.gone:
            raise HTTP2StreamError(stream.stream_id, stream.gone)
        if self.is_closed:
            raise HTTP2ConnectionError("the connection is closed")

    def cut(self, stream: Stream, code: int) -> None:
        """Reset a stream whose client is too slow."""
        self._reset(stream.stream_id, code)
        stream.leave("the client was too slow")
        self._flush()

    def credit(self, stream: Stream, size: int) -> None:
        """Extend the stream's flow-control window by *size* bytes."""
        if self.is_closed or stream.complete or stream.gone or not size:
            return
        try:
            self._state.increment_flow_control_window(size, stream_id=stream.stream_id)
        except (ValueError, KeyError, _protocol_error()):
            return
        self._flush()

    def _next(self) -> HTTP2Request | RefusedRequest | None:
        """Return the request to serve next, None when there is none within the limits."""
        if self.is_closed or len(self._serving) >= self._most:
            return None
        incomplete = sum(not stream.complete for stream in self._serving)
        for request in self._waiting:
            if request.stream.complete or incomplete < self._most_incomplete:
                return request
        return None

    def _send_head(self, stream: Stream, fields: list[tuple[str, str]], *, end: bool) -> None:
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
        # Written directly: h2's state machine would accept no further frame of the open streams.
        self._out += self._state.data_to_send()
        self._out += _GOAWAY.pack(0, 8, 7, 0, 0, last, int(code))

    def _goaway_when_idle(self) -> None:
        """Send a GOAWAY that is owed, once no request is in flight.

        Requests that cross it are served. Clients that treat any GOAWAY as the end of all requests
        in flight, such as Python's h2, lose none.
        """
        if self._owes_goaway and not self.streams and not self.is_closed:
            self._owes_goaway = False
            self._goaway(_ANY_STREAM)

    def _flush(self) -> None:
        """Write as much of the output buffer as the socket accepts."""
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
                self._lose_and_notify(f"the connection broke: {error}")
                return
            full = len(out) > OWED
            del out[:sent]
            self._moved = time.monotonic()
            if full and len(out) <= OWED:
                self.changed.notify_all()  # any thread may flush: wake all that wait for room
        if self._interest() != self._watched and not self._woken:
            self._woken = True
            self._wake()

    def _lose(self, reason: str) -> list[Callable[[], object]]:
        """End all requests; return the callbacks, to be called without the lock."""
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

    def _lose_and_notify(self, reason: str) -> None:
        # The lock is held here. The callbacks take another lock, and none of them waits for this.
        for callback in self._lose(reason):
            callback()

    def _take_in(self, data: bytes) -> list[Callable[[], object]]:
        try:
            events = self._state.receive_data(data)
        except _protocol_error() as error:
            self._flush()  # sends h2's GOAWAY with the error code
            return self._lose(f"the client broke the protocol: {error}")
        left: list[Callable[[], object]] = []
        for event in events:
            left += self._handle_event(event)
        if self._credit and not self.is_closed:
            # At once: a body that waits for a free thread must not use up the connection's window.
            self._state.increment_flow_control_window(self._credit)
        self._credit = 0
        return left

    def _handle_event(self, event: Any) -> list[Callable[[], object]]:
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
            # after a GOAWAY without an error gunicorn's state machine continues (section 6.8)
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
            self._goaway_when_idle()
        return stream.leave("the client has cancelled the request")

    def _too_much(self) -> list[Callable[[], object]]:
        self._goaway(self._last, HTTP2ErrorCode.ENHANCE_YOUR_CALM)
        self._flush()
        return self._lose("the client sends too many frames without requests")


def _protocol_error() -> type[Exception]:
    """Return the base class of h2's errors; h2 is imported only where HTTP/2 is enabled."""
    from h2.exceptions import ProtocolError

    return ProtocolError


def _text(value: str) -> str:
    """Return the latin-1 string *value* decoded as UTF-8; *value* itself where that fails."""
    try:
        return value.encode("latin-1").decode()
    except UnicodeError:
        return value
