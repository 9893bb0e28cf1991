"""HTTP/2 under GateWorker, and lingering close: the loop reads connections, threads serve requests.

Theory of operation
-------------------

HTTP/2 connections

- The loop (the worker's main thread) owns the table of HTTP/2 connections, ``_http2``, and their
  registration in the poller. Methods marked "runs in the loop" must run nowhere else; a pool
  thread reaches them by ``method_queue.defer``.
- ``_read_http2`` reads a connection until the socket would block, then ``_look_at_http2`` decides
  what happens next: watch other events, offer a request to the next free thread, or close. Every
  change of a connection's state must be followed by ``_look_at_http2``, or the poller keeps
  watching for the wrong events and the connection hangs.
- Requests are offered one at a time per connection: ``_serve_http2`` takes one and, if there is
  another, offers the connection again, behind those of other clients. A client with many requests
  so delays none with few.
- A closed connection is forgotten once its last request has left its thread (``in_flight`` is 0);
  ``nr_conns`` counts it until then. Forgetting it earlier would let the worker exit, or accept
  above its limit, while threads still serve it.
- A stopping worker sends GOAWAY as soon as a connection is idle, serves requests that cross it
  until the deadline, then refuses new streams and closes idle connections.

See :mod:`wsgigate.servers.gunicorn_http2_connection` for the connection, its lock and its bounds.

Lingering close

A connection whose last response was sent is half-closed, and what the client still sends is read
and discarded (RFC 9112 section 9.6): closing at once would reset the connection, and the client
would lose the response. Here the poller does this, as a waiting accept loop would block the worker.
``_lingering`` is ordered by deadline, so that expiry stops at the first one that is not due.
"""

from __future__ import annotations

import socket
import ssl
import time
from functools import partial
from typing import Any

from gunicorn import util
from gunicorn.http import wsgi
from gunicorn.http2.errors import (
    HTTP2Error,
    HTTP2StreamError,
)
from gunicorn.http2.response import HTTP2Response
from gunicorn.workers import gthread

from wsgigate.http.wsgi import CLIENT_STREAM, close_body
from wsgigate.servers.gunicorn_http2_connection import Http2Connection, RefusedRequest, Stream

__all__ = ["Http2Connection", "Http2Worker", "LingeringWorker"]


# Lingering close.

MOST_DRAINED = 64 << 20
"""Bytes read and discarded from a client that goes on sending a rejected body.

Most clients send the whole body before they read the response. Closing earlier resets the
connection, and the response is lost: the client sees a broken pipe instead of the 413.
"""

LONGEST = 30.0
"""Seconds for which a client may go on sending, in all."""


class LingeringWorker(gthread.ThreadWorker):  # type: ignore[misc]
    """gunicorn's threaded worker with a lingering close that does not block the accept loop.

    :cvar linger_timeout: Seconds for a client to close a half-closed connection, or to send more
        data, which is discarded.
    """

    alive: bool
    linger_timeout = 2.0

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        # By socket: the deadline for more data, the deadline in all, the bytes discarded. Ordered
        # by the first, as each that is renewed is moved to the end.
        self._lingering: dict[socket.socket, tuple[float, float, int]] = {}

    def linger(self, client: socket.socket) -> None:
        """Close *client* in steps (RFC 9112 section 9.6), without blocking.

        It counts as a connection until then: a stopping worker that exited earlier could lose the
        end of the response.
        """
        try:
            client.setblocking(False)
            if isinstance(client, ssl.SSLSocket):
                _send_close_notify(client)
            client.shutdown(socket.SHUT_WR)
            self.poller.register(client, gthread.selectors.EVENT_READ, partial(self._drain, client))
        except (OSError, ValueError, KeyError):
            util.close(client)
            return
        self.nr_conns += 1
        now = time.monotonic()
        longest = LONGEST if self.alive else self.linger_timeout
        self._lingering[client] = (now + self.linger_timeout, now + longest, 0)

    def _drain(self, client: socket.socket, _fileobj: object) -> None:
        if client not in self._lingering:
            return
        try:
            data = socket.socket.recv(client, 65536)  # raw bytes of TLS, too: nothing decrypts them
        except BlockingIOError:
            return
        except OSError:
            data = b""
        _, longest, drained = self._lingering.pop(client)
        now = time.monotonic()
        drained += len(data)
        # re-inserted at the end, which keeps the table ordered by deadline
        self._lingering[client] = (min(now + self.linger_timeout, longest), longest, drained)
        if not data or drained > MOST_DRAINED or now >= longest:
            self._end(client)

    def _end(self, client: socket.socket) -> None:
        del self._lingering[client]
        self.nr_conns -= 1
        try:
            self.poller.unregister(client)
        except (OSError, KeyError, ValueError):
            pass
        util.close(client)

    def end_lingering(self, now: float) -> None:
        """Close the lingering connections that are due."""
        for client, (until, *_) in list(self._lingering.items()):
            if until > now:
                break
            self._end(client)

    def hurry_lingering(self, deadline: float) -> None:
        """Move the deadlines of all lingering connections to *deadline* at the latest."""
        for client, (until, longest, drained) in self._lingering.items():
            self._lingering[client] = (min(until, deadline), min(longest, deadline), drained)

    def end_oldest_lingering(self) -> bool:
        """Close the lingering connection that is due first; return whether there was one."""
        for client in self._lingering:
            self._end(client)
            return True
        return False


def _send_close_notify(client: ssl.SSLSocket) -> None:
    """Send the TLS close_notify alert (RFC 8446 section 6.1) without blocking."""
    try:
        client.unwrap()
    except (OSError, ValueError):
        pass


class Http2Worker(LingeringWorker):
    """gunicorn's threaded worker whose threads serve HTTP/2 requests instead of connections."""

    alive: bool
    idle_timeout: float
    head_timeout: float
    body_rate: float

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._http2: dict[Any, None] = {}  # connections; only the loop touches it

    def handle_http2(self, conn: Any) -> bool:
        """Hand *conn* to the loop, which reads it from now on; return True: it stays open."""
        self.method_queue.defer(self._begin_http2, conn)
        return True

    def handle_h2c_upgrade(self, conn: Any, req: Any, settings: Any) -> Any:
        """Serve an ``Upgrade: h2c`` request over HTTP/1.1, as RFC 9113 section 3.1 allows."""
        return self._keepalive_after(conn, self.handle_request(req, conn))

    def begin_http2(self, conn: Any) -> Http2Connection:
        """Return the HTTP/2 state of *conn*, which has just been opened."""
        conn.sock.setblocking(False)
        return Http2Connection(
            conn.parser,
            patience=self.idle_timeout,
            rate=self.body_rate,
            idle=self.cfg.keepalive,
            first=self.head_timeout,
            threads=int(self.cfg.threads),
            wake=lambda: self.method_queue.defer(self._look_at_http2, conn),
        )

    def _begin_http2(self, conn: Any) -> None:
        self._http2[conn] = None
        self._read_http2(conn)

    def _read_http2(self, conn: Any, _socket: object = None) -> None:
        """Read and write *conn*, which is readable or writable; runs in the loop."""
        if conn not in self._http2:
            return
        try:
            if conn.parser.receive():
                self.method_queue.defer(self._read_http2, conn)
        except Exception:
            self.log.exception("HTTP/2 connection error")
            conn.parser.close()
        self._look_at_http2(conn)

    def _look_at_http2(self, conn: Any) -> None:
        """Update the poller for *conn*, offer its next request, or close it; runs in the loop."""
        if conn not in self._http2:
            return
        client: Http2Connection = conn.parser
        watched, wanted = client.watch()
        if wanted != watched:
            try:
                if not wanted:
                    self.poller.unregister(conn.sock)
                elif watched:
                    self.poller.modify(conn.sock, wanted, lambda _: self._read_http2(conn))
                else:
                    self.poller.register(conn.sock, wanted, lambda _: self._read_http2(conn))
            except (OSError, KeyError, ValueError):
                client.close()
        if client.is_closed:
            if not client.in_flight:
                self._forget_http2(conn)
        elif client.wants():
            self.keepalived_conns.offer(lambda: self._serve_http2(conn))

    def _forget_http2(self, conn: Any) -> None:
        del self._http2[conn]
        self.nr_conns -= 1
        try:
            conn.close(graceful=not conn.parser.broken)
        except Exception:
            self.log.exception("Error closing a connection")
            util.close(conn.sock)

    def end_idle_http2(self, now: float, *, force: bool = False) -> None:
        """Close the HTTP/2 connections whose idle time is over, or all; runs in the loop."""
        for conn in list(self._http2):
            if force or conn.parser.expired(now):
                conn.parser.close()
                self._look_at_http2(conn)
                if force and conn in self._http2:
                    self._forget_http2(conn)

    def drain_http2(self, until: float) -> None:
        """Send GOAWAY to idle clients, and serve the requests that arrive before *until*."""
        for conn in self._http2:
            conn.parser.drain(until)

    def refuse_http2(self) -> None:
        """Reject every further request (REFUSED_STREAM)."""
        for conn in self._http2:
            conn.parser.refuse_more()

    def silent_http2(self) -> tuple[float, Any] | None:
        """Return the connection that has been idle for longest, and since when."""
        silent = [
            (since, conn) for conn in self._http2 if (since := conn.parser.silent_since) is not None
        ]
        return min(silent, key=lambda each: each[0], default=None)

    def end_http2(self, conn: Any) -> None:
        """Close *conn*."""
        conn.parser.close()
        self._look_at_http2(conn)

    def _serve_http2(self, conn: Any) -> None:
        """Serve the next request of *conn*; runs in a pool thread."""
        client: Http2Connection = conn.parser
        request, more = client.take()
        if more:
            self.keepalived_conns.offer(lambda: self._serve_http2(conn))
        if request is None:
            return
        stream = request.stream
        try:
            if isinstance(request, RefusedRequest):
                self._refuse(request, conn, client)
            else:
                if stream.length == 0:
                    stream.await_end()
                self.handle_http2_request(request, conn, client)
        except (HTTP2Error, ConnectionError) as error:
            self.log.debug("HTTP/2 stream cut: %s", error)  # finish() below resets it
        except (Exception, SystemExit, KeyboardInterrupt):
            if not client.is_closed and not stream.gone:
                self.log.exception("Error handling HTTP/2 request")
                self._fail(client, stream)
        finally:
            client.finish(stream)
            if client.is_closed or not self.alive:
                self.method_queue.defer(self._look_at_http2, conn)
            elif client.wants():
                self.keepalived_conns.offer(lambda: self._serve_http2(conn))

    def refusal(
        self, req: Any, addr: Any, exc: BaseException
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        """Return the status, fields and body of the response to a rejected request."""
        raise NotImplementedError

    def _refuse(self, request: RefusedRequest, conn: Any, client: Http2Connection) -> None:
        status, fields, body = self.refusal(request, conn.client, request.error)
        client.respond(request.stream, status, fields, end=not body)
        client.send(request.stream, body, end=True)

    def _fail(self, client: Http2Connection, stream: Stream) -> None:
        try:
            client.fail(stream)
        except HTTP2Error as error:
            self.log.debug("HTTP/2 error response failed: %s", error)

    def handle_http2_request(self, req: Any, conn: Any, h2_conn: Any) -> None:
        """Serve one request.

        :raises HTTP2Error: The client has left, or does not read the response.
        """
        stream = req.stream
        environ: dict[str, Any] = {}
        response = None
        try:
            self.cfg.pre_request(self, req)
            response, environ = wsgi.create(
                req,
                conn.sock,
                conn.client,
                conn.server,
                self.cfg,
                response_class=_Response,
                response_args=(h2_conn, stream),
            )
            environ["wsgi.multithread"] = True
            environ["wsgi.early_hints"] = lambda headers: h2_conn.inform(stream, 103, headers)
            environ[CLIENT_STREAM] = stream
            if "CONTENT_LENGTH" not in environ and (stream.size or not stream.complete):
                environ["HTTP_TRANSFER_ENCODING"] = "chunked"  # what HTTP/1.1 sends in this case
            self.nr += 1
            if self.nr >= self.max_requests and self.alive:
                self.log.info("Autorestarting worker after current request.")
                self.alive = False
            body = self.wsgi(environ, response.start_response)
            try:
                for item in body:
                    response.write(item)
                response.close()
            finally:
                close_body(body)
        finally:
            try:
                self.cfg.post_request(self, req, environ, response)
            except Exception:
                self.log.exception("Exception in post_request hook")


class _Response(HTTP2Response):  # type: ignore[misc]
    """Writes a response as HTTP/2 frames; without a body, the HEADERS frame ends the stream."""

    def __init__(
        self, req: Any, sock: Any, cfg: Any, client: Http2Connection, stream: Stream
    ) -> None:
        super().__init__(req, sock, cfg, client, stream.stream_id)
        self.headers_sent = False
        self._client = client
        self._stream = stream

    def send_headers(self, *, end: bool = False) -> None:
        """Send the response head, once."""
        if self.headers_sent:
            return
        names = {name.lower() for name, _ in self.headers}
        fields = list(self.headers)
        if "server" not in names:
            fields.append(("server", self.version))
        if "date" not in names:
            fields.append(("date", util.http_date()))
        end = end or self._omits_body or self.response_length == 0
        self._client.respond(self._stream, self.status_code, fields, end=end)
        self.headers_sent = True

    def _emit_body(self, data: bytes) -> None:
        if data:
            end = self.response_length is not None and self.sent >= self.response_length
            self._client.send(self._stream, data, end=end)

    def close(self) -> None:
        """End the response.

        :raises HTTP2StreamError: It is shorter than its ``Content-Length``; the stream is reset.
        """
        self.send_headers(end=True)
        if not self._stream.ended and self.sent < (self.response_length or 0):
            raise HTTP2StreamError(self.stream_id, "the response is shorter than its length")
        if not self._stream.ended:
            self._client.send(self._stream, b"", end=True)
