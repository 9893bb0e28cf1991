"""A client's HTTP/1.1 connection to a GateWorker: what has arrived, what is owed, and deadlines.

Theory of operation
-------------------

A connection belongs to one thread at a time (``gunicorn_threads``), which calls :meth:`advance`
when data has arrived. That call never blocks: it reads what there is, and returns a request once
one can be served. So a slow client occupies no thread while it sends a TLS handshake, a head, or a
body of up to :data:`BUFFERED` bytes. A thread is taken

- for a request without a body, or with a short one, when all of it has arrived;
- for a longer body when its first :data:`BUFFERED` bytes have; the app then reads the rest from
  :class:`StreamedBody`, which waits for the client within the deadlines;
- for a client that expects ``100 Continue`` at once, as the app decides whether it wants the body.

Output: :meth:`send` gives the kernel what it takes without waiting. Up to :data:`BACKLOG` bytes
beyond that are kept here, and whatever thread is free sends them when the client has read enough,
also while the app is busy with the next part of the response: a slow reader of a short response
occupies no thread, and an event is not held back until the next one. Beyond it the sending thread
waits. Four rules make this safe:

- ``_owed`` is changed under ``_lock`` only, which is never held while waiting. A sender that sees
  no ``_owed_bytes`` may send without the lock: only a sender adds some, and there is one at a time.
  What is given up stays in that number: nothing may be sent in its place.
- ``flushing`` is true from when a sender has the connection watched for output until a thread finds
  that nothing is owed any longer. So at most one thread at a time is called to flush it.
- The last to let go of the connection ends it, as the lock decides: :meth:`leave` returns whether
  it is being flushed, and if so the thread that sends the last of it takes over.
- TLS: one thread may flush while another one reads a body, and OpenSSL allows no two calls for one
  connection at a time. So reading takes the lock, too.

Deadlines are times of the monotonic clock in ``timeout``, which the worker's loop enforces for a
connection that no thread has, and :meth:`advance` for one that sends drops: a head must be complete
``head_timeout`` seconds after its first byte; a body must not stall for ``idle_timeout`` seconds,
and earns one more second in all per ``body_rate`` bytes; a response of which a part is owed must
not stall for ``idle_timeout`` seconds either: in that time the client must read enough that the
system takes more. One that does not has its connection reset (``SO_LINGER`` 0), which discards what
the system has buffered.

A client must never take a response that was cut for a complete one. It cannot where the response is
chunked or has a length. The end of another one, such as to a client of HTTP/1.0, is the end of the
connection. While such a response is sent, the socket's ``SO_LINGER`` is 0: whatever ends it, an app
that fails, a slow client that is cut or a worker that is killed, resets the connection. Only
:meth:`settle`, after the last byte, takes that back. For the same reason :meth:`cut` does not end
the wait of another thread by a shutdown of the socket, which would send FIN. A Unix socket knows no
reset: a proxy that speaks HTTP/1.0 over one does not notice.

A plain socket stays in blocking mode, and each call says ``MSG_DONTWAIT``: an app that uses
``gunicorn.socket`` itself expects a blocking one. TLS knows no such flag: its sockets do not block
but while a request with ``Upgrade`` is served, and then not for the calls made here.
"""

from __future__ import annotations

import errno
import io
import os
import select
import socket
import ssl
import struct
import sys
import termios
import threading
import time
from collections import deque
from collections.abc import Callable
from fcntl import ioctl
from typing import Any, NamedTuple, cast

from wsgigate.http.problem import Problem
from wsgigate.servers.gunicorn_body import (
    ClientGone,
    ClientStalled,
    Deadlines,
    HandshakeFailed,
    StreamedBody,
)
from wsgigate.servers.gunicorn_threads import Wakeup
from wsgigate.servers.http1_request import (
    PREFACE,
    BadRequest,
    ChunkedDecoder,
    Head,
    HeadParser,
    HeadRules,
)
from wsgigate.servers.proxy_protocol import BadPreamble, ProxyProtocolMode, read_preamble

__all__ = [
    "BUFFERED",
    "ClientConnection",
    "Http2Preface",
    "Request",
    "TlsConnection",
]


BUFFERED = 65536
"""Bytes of a body that are read before a thread is taken."""

BACKLOG = 262144
"""Bytes of a response that may be kept for a client that does not read them."""

SLICE = 65536
"""The most bytes of one read or write, and of a longer response that are kept."""

GRACE = 1.0
"""Seconds for which an idle connection is kept beyond the ``Keep-Alive`` timeout it announced."""

ABANDONED = struct.pack("ii", 1, 0)
"""``SO_LINGER`` for a connection that is reset instead of closed."""

ORDERLY = struct.pack("ii", 0, 0)
"""``SO_LINGER`` for a connection that is closed once all has been sent: the system's default."""

_DONTWAIT = socket.MSG_DONTWAIT

_TOO_LONG_LINE = Problem(414, "The request target is too long.")

_TOO_LONG = Problem(431, "The request has too many fields or too long ones.")

_BAD_BODY = Problem(400, "Malformed request body.")

_BAD_HEAD = Problem(400, "Malformed request head.")

_FORBIDDEN = Problem(403, "Request forbidden.")


class _Thread(threading.local):
    """What a thread that waits for clients has of its own."""

    def __init__(self) -> None:
        self.wakeup = Wakeup()


_thread = _Thread()


class Http2Preface(Exception):
    """The client speaks HTTP/2; what it has sent is in ``connection.buffer``."""


class Request(NamedTuple):
    """A request that can be served.

    :ivar head: What its environ does not say.
    :ivar streamed: Its body, where that was not read before; None for one that is in the environ.
    """

    head: Head
    environ: dict[str, Any]
    streamed: StreamedBody | None


class ClientConnection:
    """A client's connection.

    :param sock: Its socket; for TLS wrapped, the handshake not done.
    :param template: The environ of its requests: what they have in common.
    :param parser: Reads heads.
    :param rules: The limits of a head.
    :param deadlines: The worker's.
    :param waits: Since when each thread waits for its client; shared by all connections.
    :param proxied: The versions of the PROXY protocol that the peer may begin with.
    :param may_proxy: Whether the peer is one that may do so; another one is refused.
    :param http2: Whether a client may begin with the preface of HTTP/2.
    :param watch: Has a thread call :meth:`flush` once the socket is writable.
    :ivar buffer: Bytes that were read and belong to the next request.
    :ivar timeout: When the connection is closed, unless something arrives or leaves before.
    :ivar initialized: Whether anything was read; see ``gunicorn_threads``.
    :ivar serving: Whether a thread is in the app with one of its requests.
    :ivar keeps: Whether it stays open after the response; None while that is not decided.
    :ivar client_certificate: What the environ has of the client's certificate, as Apache's mod_ssl
        calls it; empty without TLS.
    :ivar counted: The client's address as its connections are counted; empty if they are not.
    :ivar flushing: Whether a thread is, or will be, called to send what is owed.
    :ivar incomplete: Whether a response whose end only that of the connection shows is incomplete.
    """

    def __init__(
        self,
        sock: socket.socket,
        address: Any,
        template: dict[str, Any],
        parser: HeadParser,
        rules: HeadRules,
        deadlines: Deadlines,
        *,
        waits: dict[ClientConnection, float],
        watch: Callable[[ClientConnection], object],
        http2: bool = False,
        proxied: ProxyProtocolMode = "off",
        may_proxy: bool = True,
    ) -> None:
        self.sock = sock
        self.client = address
        self.buffer = b""
        self.initialized = False
        self.serving = False
        self.keeps: bool | None = None
        self.flushing = False
        self.served = 0
        self.timeout = time.monotonic() + deadlines.head
        self._template = template
        self._parser = parser
        self._rules = rules
        self._deadlines = deadlines
        self._http2 = http2
        self._waits = waits
        self._watch = watch
        self._proxied: ProxyProtocolMode = proxied
        self._may_proxy = may_proxy
        self._skipped = False  # an empty line before the request
        self._partial: bytearray | None = None  # a head, or a body, that is incomplete
        self._scanned = 0
        self._head: Head | None = None
        self._environ: dict[str, Any] = {}
        self._decoder: ChunkedDecoder | None = None
        self._body_began = 0.0
        self._received = 0
        self._lock = threading.Lock()
        self._owed: deque[memoryview] = deque()
        self._owed_bytes = 0
        self._response_bytes = 0
        self._broken = False
        self._resets = False
        self._wakeup: Wakeup | None = None  # of the thread that waits
        self.incomplete = False
        self.server: Any = None
        self.client_certificate: dict[str, str] = {}
        self.counted = ""
        self.http2: Any = None

    # Input.

    def advance(self) -> Request | None:
        """Read what has arrived; return the next request, None until more has arrived.

        :raises BadRequest: The client must get that response, and the connection be closed.
        :raises OSError: The connection is broken, closed, or its deadline has passed.
        :raises Http2Preface: The client speaks HTTP/2.
        """
        self.initialized = True
        if self.buffer and self._partial is None:
            request = self._take_in(self.buffer)
            if request is not None:
                return request
        while True:
            data = self.receive()
            if data is None:
                break
            if not data:
                if self._head is not None:
                    raise BadRequest(_BAD_BODY, "the client has closed the connection in the body")
                raise ClientGone()
            request = self._take_in(data)
            if request is not None:
                return request
            if len(data) < SLICE:
                break
        if self._partial is not None and time.monotonic() > self.timeout:
            raise ClientStalled("the request came too slowly")
        return None

    def receive(self) -> bytes | None:
        """Return what has arrived; None if nothing has, an empty string at the end."""
        try:
            return self.sock.recv(SLICE, _DONTWAIT)
        except BlockingIOError:
            return None
        except OSError as error:
            raise ClientGone(str(error)) from None

    def _take_in(self, data: bytes) -> Request | None:
        if self._head is not None:
            return self._take_in_body(data)
        partial = self._partial
        if partial is None:
            end = data.find(b"\r\n\r\n")
            if end > 0 and self._proxied == "off":
                return self._begin(data, end)
            self.timeout = time.monotonic() + self._deadlines.head
            self._partial = partial = bytearray()
            self._scanned = 0
        partial += data
        if self._proxied != "off" and not self._read_preamble(partial):
            return None
        if self._http2 and not self.served and PREFACE.startswith(partial[: len(PREFACE)]):
            if len(partial) >= len(PREFACE):
                self.buffer, self._partial = bytes(partial), None
                raise Http2Preface
            return None
        if partial[:2] == b"\r\n" and not self._skipped:
            del partial[:2]  # RFC 9112 section 2.2: one empty line before a request is ignored
            self._skipped = True
        end = partial.find(b"\r\n\r\n", max(0, self._scanned - 3))
        if end > 0:
            self._partial = None
            return self._begin(bytes(partial), end)
        self._check_partial(partial)
        return None

    def _read_preamble(self, partial: bytearray) -> bool:
        """Read the preamble of the PROXY protocol; return whether it is complete."""
        try:
            preamble = read_preamble(bytes(partial), self._proxied)
        except BadPreamble as error:
            raise BadRequest(_BAD_HEAD, f"the PROXY protocol: {error}") from None
        if preamble is None:
            return False
        self._proxied = "off"
        if preamble.size:
            if not self._may_proxy:
                raise BadRequest(_FORBIDDEN, "the peer may not use the PROXY protocol")
            del partial[: preamble.size]
            self._template["PROXY_PROTOCOL"] = preamble.protocol
            if preamble.client and preamble.server:
                (address, port), (proxy, proxy_port) = preamble.client, preamble.server
                self.client = preamble.client
                self._template["REMOTE_ADDR"], self._template["REMOTE_PORT"] = address, str(port)
                self._template["PROXY_ADDR"], self._template["PROXY_PORT"] = proxy, str(proxy_port)
        return True

    def _check_partial(self, partial: bytearray) -> None:
        """Check the beginning of a head as far as it can be judged."""
        seen, self._scanned = self._scanned, len(partial)
        new = partial[max(0, seen - 1) :]
        counted = 1 if seen and new.startswith(b"\n") else 0
        if partial[:2] == b"\r\n" or new.count(b"\n") - counted != new.count(b"\r\n"):
            raise BadRequest(_BAD_HEAD, "a bare LF in the head")
        limit = self._rules.request_line
        if len(partial) > limit > 0 and partial.find(b"\r\n", 0, limit + 2) < 0:
            raise BadRequest(_TOO_LONG_LINE, f"a request line of more than {limit} bytes")
        if len(partial) > self._rules.longest:
            raise BadRequest(_TOO_LONG, f"a head of more than {self._rules.longest} bytes")

    def _begin(self, data: bytes, end: int) -> Request | None:
        """Parse the head that ends at *end*."""
        environ = self._template.copy()
        start = 2 if data.startswith(b"\r\n") and not self._skipped else 0
        self._skipped = False
        if self._http2 and not self.served and data.startswith(b"PRI "):
            self.buffer = data
            raise Http2Preface
        head = self._parser.parse(data[start:end], environ)
        self.buffer = data[end + 4 :]
        self._partial = None
        if not head.length:
            environ["wsgi.input"] = io.BytesIO()
            return Request(head, environ, None)
        environ["wsgi.input_terminated"] = True
        rest, self.buffer = self.buffer, b""
        self._head, self._environ = head, environ
        self._body_began = time.monotonic()
        self._received = 0
        self._partial = bytearray()
        self._decoder = ChunkedDecoder(self._rules) if head.length < 0 else None
        return self._take_in_body(rest)

    def _take_in_body(self, data: bytes) -> Request | None:
        """Collect a body until all of it has arrived, or enough to begin with."""
        head, environ, partial, decoder = self._head, self._environ, self._partial, self._decoder
        if head is None or partial is None:
            raise RuntimeError("no body is being read")
        self._received += len(data)
        if decoder is not None:
            partial += decoder.feed(data)
            complete = decoder.complete
            if complete:
                self.buffer = decoder.rest
        else:
            partial += data
            complete = len(partial) >= head.length
            if complete:
                self.buffer = bytes(partial[head.length :])
                del partial[head.length :]
        if complete or head.expects or self._received >= BUFFERED:
            body = bytes(partial)
            self._head = self._decoder = self._partial = None
            self._environ = {}
            if complete:
                environ["wsgi.input"] = io.BytesIO(body)
                return Request(head, environ, None)
            streamed = StreamedBody(self, self._deadlines, head, body, decoder, self._received)
            environ["wsgi.input"] = streamed
            return Request(head, environ, streamed)
        now = time.monotonic()
        idle, rate = self._deadlines.idle, self._deadlines.rate
        self.timeout = min(now + idle, self._body_began + idle + self._received / rate)
        return None

    def rest(self) -> None:
        """Begin to wait for the next request."""
        self._response_bytes = 0
        self.served += 1
        self.keeps = None
        # a pipelined request waits until its client has read the response
        patience = self._deadlines.idle if self.buffer else self._deadlines.keep_alive + GRACE
        self.timeout = time.monotonic() + patience

    def has_read_ahead(self) -> bool:
        """Return whether data of a further request was read already."""
        return bool(self.buffer)

    @property
    def is_idle(self) -> bool:
        """Whether no part of a request has arrived, and no part of a response is owed."""
        return self._partial is None and not self.flushing

    def wait(self, events: int, seconds: float) -> bool:
        """Wait until the socket is ready; return whether it is within *seconds*.

        :returns: False also for a connection that is reset, or is being reset by :meth:`cut`.
        """
        wakeup = self._wakeup = _thread.wakeup
        poll = select.poll()
        poll.register(self.sock, events)
        poll.register(wakeup.fileno(), select.POLLIN)
        began = self._waits[self] = time.monotonic()
        try:
            while not self._broken:
                left = began + seconds - time.monotonic()
                ready = {descriptor for descriptor, _ in poll.poll(max(0.0, left) * 1000)}
                if wakeup.fileno() not in ready:
                    return bool(ready)
                wakeup.clear()  # set for this wait, or too late for the one before
            return False
        finally:
            self._wakeup = None
            self._waits.pop(self, None)

    def progress(self) -> int:
        """Return a number that changes while the client reads what was sent."""
        try:
            ioctl(self.sock.fileno(), termios.TIOCOUTQ, queued := bytearray(4))
        except (OSError, ValueError):
            return 0
        return int.from_bytes(queued, sys.byteorder)

    # Output.

    def send(self, data: bytes) -> None:
        """Send *data*; what the kernel does not take is kept, for another thread to send.

        Of a short response up to :data:`BACKLOG` bytes are kept: its thread is done with it. The
        thread of a longer one has to wait anyway, and :data:`SLICE` bytes keep the client busy.

        :raises OSError: The connection is broken, or the client does not read.
        """
        if self._broken:
            raise ClientStalled("the client did not read the response in time")
        rest = memoryview(data)
        self._response_bytes += len(data)
        if not self._owed_bytes:
            sent = self.send_now(data)
            if sent == len(data):
                return
            rest = rest[sent:]
        with self._lock:
            if not self._owed:
                self.timeout = time.monotonic() + self._deadlines.idle
            self._owed.append(rest)
            self._owed_bytes += len(rest)
        self._reduce(BACKLOG if self._response_bytes <= BACKLOG else SLICE)
        with self._lock:
            if not self._owed_bytes or self.flushing:
                return
            self.flushing = True
        self._watch(self)

    def drain(self) -> None:
        """Wait until the client has taken all that is owed.

        :raises OSError: The connection is broken, or the client does not read.
        """
        self._reduce(0)

    def _reduce(self, most: int) -> None:
        """Send until *most* bytes are owed."""
        while True:
            with self._lock:
                self._flush()
                if self._owed_bytes <= most:
                    return
                left = self.timeout - time.monotonic()
            if left <= 0:
                self.abandon()
                raise ClientStalled("the client did not read the response in time")
            self.wait(select.POLLOUT, left)

    def send_now(self, data: bytes | memoryview) -> int:
        """Send what the kernel takes without waiting; return how many bytes that were."""
        try:
            return self.sock.send(data, _DONTWAIT)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise ClientGone(str(error)) from None

    def flush(self) -> bool | None:
        """Send what is owed, as the socket is writable; never waits.

        :returns: Whether nothing is owed any longer, and the caller must do what follows: see
            :attr:`keeps`. None if nothing is owed, and a thread is still serving the request.
        :raises OSError: The connection is broken, or was given up.
        """
        with self._lock:
            self._flush()
            if self._owed_bytes:
                return False
            self.flushing = False
            return None if self.keeps is None else True

    def _flush(self) -> None:
        if self._broken:
            raise ClientStalled("the client did not read the response in time")
        owed = self._owed
        before = self._owed_bytes
        while owed:
            first = owed[0]
            sent = self.send_now(first[:SLICE])
            if not sent:
                break
            self._owed_bytes -= sent
            if sent == len(first):
                owed.popleft()
            else:
                owed[0] = first[sent:]
        if self._owed_bytes < before:
            self.timeout = time.monotonic() + self._deadlines.idle

    def leave(self, keep: bool) -> bool:
        """Let the connection go after a response; return whether it is still being flushed.

        If so, the thread that sends the last of what is owed reads :attr:`keeps`.
        """
        with self._lock:
            self.serving = False
            self.keeps = keep
            return self.flushing

    def give_up(self) -> bool:
        """Discard what is owed; return whether a thread serves a request, and will end it."""
        with self._lock:
            if self._owed:  # a response that was cut must not look like a complete one
                self.abandon()
            self._broken = True
            self._owed.clear()  # but not _owed_bytes
            self.flushing = False
            return self.serving

    def send_file(self, file: Any, offset: int, count: int) -> None:
        """Send *count* bytes of *file*, from its *offset*.

        :raises OSError: The connection is broken, or the client does not read.
        """
        self.drain()
        self.sock.setblocking(False)
        try:
            while count:
                try:
                    sent = os.sendfile(self.sock.fileno(), file.fileno(), offset, min(count, SLICE))
                except BlockingIOError:
                    if not self.wait(select.POLLOUT, self._deadlines.idle):
                        self.abandon()
                        raise ClientStalled(
                            "the client did not read the response in time"
                        ) from None
                    continue
                except ConnectionError as error:
                    raise ClientGone(str(error)) from None
                if not sent:
                    raise OSError(errno.EIO, "the file is shorter than the response")
                offset += sent
                count -= sent
        finally:
            self.sock.setblocking(True)

    # Ending.

    def begin_unframed(self) -> None:
        """Reset the connection whenever it ends before :attr:`incomplete` is set to False."""
        self.incomplete = True
        self._reset_on_close(True)

    def abandon(self) -> None:
        """Make the close of the socket a reset, which discards what the system has buffered."""
        self._broken = True
        self._reset_on_close(True)

    @property
    def abandoned(self) -> bool:
        """Whether the connection is to be reset."""
        return self._broken or self.incomplete

    def settle(self) -> None:
        """Let the close of the socket be an orderly one: all of the response has been sent."""
        if self._resets:
            self._reset_on_close(False)

    def _reset_on_close(self, reset: bool) -> None:
        self._resets = reset
        try:
            self.sock.setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, ABANDONED if reset else ORDERLY
            )
        except OSError:
            pass

    def cut(self) -> None:
        """Reset the connection: end the wait of the thread that serves it, which closes it."""
        self.abandon()  # first: a thread that begins to wait now sees it
        wakeup = self._wakeup
        if wakeup is not None:
            wakeup.set()

    def close(self) -> None:
        """Close the socket."""
        try:
            self.sock.close()
        except OSError:
            pass


class TlsConnection(ClientConnection):
    """A connection over TLS, whose handshake is done as it arrives."""

    blocks = False
    """Whether the app may use the socket itself, and expects a blocking one."""

    _shaken = False

    def advance(self) -> Request | None:
        if not self._shaken:
            tls = cast("ssl.SSLSocket", self.sock)
            self.initialized = True
            try:
                tls.do_handshake()
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                if time.monotonic() > self.timeout:
                    raise ClientStalled("the TLS handshake came too slowly") from None
                return None
            except ssl.SSLEOFError:  # a client that connects and leaves, as port scanners do
                raise ClientGone("the client left during the TLS handshake") from None
            except ssl.SSLError as error:
                raise HandshakeFailed(error.reason or str(error)) from None
            except OSError as error:
                raise ClientGone(f"TLS failed: {error}") from None
            self._shaken = True
            certificate = tls.getpeercert(binary_form=True)  # a verified one, if it was asked for
            self.client_certificate["SSL_CLIENT_VERIFY"] = "SUCCESS" if certificate else "NONE"
            if certificate:
                pem = ssl.DER_cert_to_PEM_cert(certificate)
                self.client_certificate["SSL_CLIENT_CERT"] = pem
            self._template |= self.client_certificate
            if tls.selected_alpn_protocol() == "h2":
                raise Http2Preface
        return super().advance()

    def receive(self) -> bytes | None:
        with self._lock:  # another thread may be sending what is owed
            try:
                if self.blocks:
                    self.sock.setblocking(False)
                return self.sock.recv(SLICE)
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return None
            except ssl.SSLEOFError:
                return b""
            except OSError as error:
                raise ClientGone(str(error)) from None
            finally:
                self._restore()

    def send_now(self, data: bytes | memoryview) -> int:
        try:
            if self.blocks:
                self.sock.setblocking(False)
            return self.sock.send(data[:SLICE])
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return 0
        except OSError as error:
            raise ClientGone(str(error)) from None
        finally:
            self._restore()

    def _restore(self) -> None:
        if self.blocks:
            try:
                self.sock.setblocking(True)
            except OSError:  # the app has closed it
                pass

    def has_read_ahead(self) -> bool:
        if self.buffer:
            return True
        return isinstance(self.sock, ssl.SSLSocket) and self.sock.pending() > 0
