"""HTTP/2 under GateWorker: the loop reads connections, threads serve requests.

Theory of operation
-------------------

HTTP/2 connections

- The loop (the worker's main thread) owns the table of HTTP/2 connections, ``_http2``, and their
  registration in the poller. Methods that say "runs in the loop" must run nowhere else; a pool
  thread reaches them by ``defer``.
- ``_read_http2`` reads a connection until the socket would block, then ``_look_at_http2`` decides
  what happens next: watch other events, offer a request to the next free thread, or close. Every
  change of a connection's state must be followed by ``_look_at_http2``, or the poller keeps
  watching for the wrong events and the connection hangs.
- Requests are offered one at a time per connection: ``_serve_http2`` takes one and, if there is
  another, offers the connection again, behind those of other clients. A client with many requests
  so delays none with few.
- A closed connection is forgotten once its last request has left its thread (``in_flight`` is 0);
  it counts as open until then. Forgetting it earlier would let the worker exit, or accept
  above its limit, while threads still serve it.
- A stopping worker sends GOAWAY as soon as a connection is idle, serves requests that cross it
  until the deadline, then refuses new streams and closes idle connections.

See :mod:`wsgigate.servers.gunicorn_http2_connection` for the connection, its lock and its bounds.
"""

from __future__ import annotations

from typing import Any

from gunicorn import util
from gunicorn.http import errors, get_parser, wsgi
from gunicorn.http2.errors import (
    HTTP2Error,
    HTTP2StreamError,
)
from gunicorn.http2.response import HTTP2Response

from wsgigate.http.fields import one_cookie_field
from wsgigate.http.problem import Problem
from wsgigate.http.wsgi import CLIENT_STREAM, close_body
from wsgigate.servers.gunicorn_http2_connection import Http2Connection, RefusedRequest, Stream
from wsgigate.servers.gunicorn_loop import LoopWorker

__all__ = ["Http2Worker"]


_REFUSED: tuple[tuple[type[Exception], Problem], ...] = (
    (errors.LimitRequestLine, Problem(414, "The request target is too long.")),
    (errors.LimitRequestHeaders, Problem(431, "The request has too many fields or too long ones.")),
    (errors.ExpectationFailed, Problem(417, "Only 100-continue can be expected.")),
    (errors.ConfigurationProblem, Problem(500, "The server failed.")),
)


def _problem_of(error: BaseException) -> Problem:
    """Return the response to a request whose head gunicorn rejects with *error*."""
    return next(
        (each for kind, each in _REFUSED if isinstance(error, kind)),
        Problem(400, "Malformed request head."),
    )


class Http2Worker(LoopWorker):
    """gunicorn's threaded worker whose threads serve HTTP/2 requests instead of connections."""

    alive: bool
    idle_timeout: float
    head_timeout: float
    body_rate: float

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._http2: dict[Any, None] = {}  # connections; only the loop touches it
        self._drained_at: float | None = None

    def begin_http2(self, conn: Any) -> Http2Connection:
        """Return the HTTP/2 state of *conn*, which has just been opened."""
        conn.sock.setblocking(False)
        state = get_parser(self.cfg, conn.sock, conn.client, http2_connection=True)
        state.initiate_connection()
        return Http2Connection(
            state,
            patience=self.idle_timeout,
            rate=self.body_rate,
            idle=self.cfg.keepalive,
            first=self.head_timeout,
            threads=int(self.cfg.threads),
            wake=lambda: self.defer(self._look_at_http2, conn),
        )

    def add_http2(self, conn: Any) -> None:
        """Serve *conn*, whose client speaks HTTP/2; runs in the loop."""
        try:
            conn.http2 = self.begin_http2(conn)
            conn.http2.receive_first(conn.buffer)
        except (OSError, HTTP2Error) as error:  # the client left before the preface was sent
            self.log.debug("HTTP/2 connection lost: %s", error)
            self.abort(conn)
            return
        except Exception:  # as in _read_http2: no client may end the loop
            self.log.exception("HTTP/2 connection error")
            self.abort(conn)
            return
        self._http2[conn] = None
        if self._drained_at is not None:
            conn.http2.drain(self._drained_at)
        self._read_http2(conn)

    def _read_http2(self, conn: Any, _socket: object = None) -> None:
        """Read and write *conn*, which is readable or writable; runs in the loop."""
        if conn not in self._http2:
            return
        try:
            if conn.http2.receive():
                self.defer(self._read_http2, conn)
        except Exception:
            self.log.exception("HTTP/2 connection error")
            conn.http2.close()
        self._look_at_http2(conn)

    def _look_at_http2(self, conn: Any) -> None:
        """Update the poller for *conn*, offer its next request, or close it; runs in the loop."""
        if conn not in self._http2:
            return
        client: Http2Connection = conn.http2
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
            self.idle.offer(lambda: self._serve_http2(conn))

    def _forget_http2(self, conn: Any) -> None:
        del self._http2[conn]
        conn.http2.close()
        if conn.http2.broken:
            self.abort(conn)
        else:
            self.release(conn)

    def end_idle_http2(self, now: float, *, force: bool = False) -> None:
        """Close the HTTP/2 connections whose idle time is over, or all; runs in the loop."""
        for conn in list(self._http2):
            if force or conn.http2.expired(now):
                conn.http2.close()
                self._look_at_http2(conn)
                if force and conn in self._http2:
                    self._forget_http2(conn)

    def drain_http2(self, until: float) -> None:
        """Send GOAWAY to idle clients, and serve the requests that arrive before *until*."""
        self._drained_at = until  # a connection may just be on its way from a thread to the loop
        for conn in self._http2:
            conn.http2.drain(until)

    def refuse_http2(self) -> None:
        """Reject every further request (REFUSED_STREAM)."""
        for conn in self._http2:
            conn.http2.refuse_more()

    def silent_http2(self) -> tuple[float, Any] | None:
        """Return the connection that has been idle for longest, and since when."""
        silent = [
            (since, conn) for conn in self._http2 if (since := conn.http2.silent_since) is not None
        ]
        return min(silent, key=lambda each: each[0], default=None)

    def end_http2(self, conn: Any) -> None:
        """Close *conn*."""
        conn.http2.close()
        self._look_at_http2(conn)

    def _serve_http2(self, conn: Any) -> None:
        """Serve the next request of *conn*; runs in a pool thread."""
        client: Http2Connection = conn.http2
        request, more = client.take()
        if more:
            self.idle.offer(lambda: self._serve_http2(conn))
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
                self.defer(self._look_at_http2, conn)
            elif client.wants():
                self.idle.offer(lambda: self._serve_http2(conn))

    def _refuse(self, request: RefusedRequest, conn: Any, client: Http2Connection) -> None:
        problem = _problem_of(request.error)
        status, fields, body = self.refusal(
            problem, str(request.error), conn.client, request.method, request.uri
        )
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
            req.headers = one_cookie_field(req.headers)
            self.cfg.pre_request(self, req)
            response, environ = wsgi.create(
                req,
                conn.sock,
                conn.client,
                conn.server,
                self.cfg,
                response_class=_Http2Response,
                response_args=(h2_conn, stream),
            )
            environ |= conn.client_certificate
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


class _Http2Response(HTTP2Response):  # type: ignore[misc]
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
