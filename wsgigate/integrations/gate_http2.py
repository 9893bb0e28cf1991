"""HTTP/2 to clients of a GateWorker: gunicorn's own, without a thread for who asks for nothing.

gunicorn gives each connection a thread for as long as it lasts, and lets a client that sends or
takes a byte now and then have it for ever. Here

- a connection between two requests waits in the poller, as one of HTTP/1.1 does;
- a body and a response have the deadlines that they have over HTTP/1.1;
- what an app sees is a request like any other: no ``HTTP_VERSION``, which would pass for a field of
  the client's, bytes of fields as PEP 3333 has them, and a body without a length said to be one;
- what the worker's own failures are is told to the log, not to the client.

The requests of one connection are served one after the other: that is gunicorn's way, as a WSGI
server's thread can wait for one thing only.
"""

from __future__ import annotations

import ssl
import time
from io import BytesIO
from types import SimpleNamespace
from typing import Any

from gunicorn.http import wsgi
from gunicorn.http2.connection import HTTP2ServerConnection
from gunicorn.http2.errors import (
    HTTP2ConnectionError,
    HTTP2Error,
    HTTP2ErrorCode,
)
from gunicorn.http2.response import HTTP2Response
from gunicorn.http2.stream import StreamState

from wsgigate.integrations.gate_linger import LingeringWorker
from wsgigate.wsgi import close_body

__all__ = ["Http2Client", "Http2Worker"]

SLICE = 65536
"""Bytes of a response that must be taken within the patience."""

_LATER = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Http2Client(HTTP2ServerConnection):  # type: ignore[misc]
    """A client's end of an HTTP/2 connection, with its deadlines.

    It is never made: a connection that gunicorn has made becomes one by :meth:`take`.
    """

    unreader = SimpleNamespace(buf=BytesIO())
    """What gunicorn asks for bytes that it has read ahead; here there are none."""

    @classmethod
    def take(cls, connection: Any, *, patience: float, rate: float, idle: float) -> None:
        """Make *connection* one of these.

        :param patience: Seconds for its client to send more of a body or take more of a response.
        :param rate: Bytes of a body that earn one more second in all.
        :param idle: Seconds from the end of a request to the next one.
        """
        connection.__class__ = cls
        connection.patience = connection.stream_timeout = patience
        connection.rate = rate
        connection.idle = idle
        connection.last_served = 0
        connection.idle_from = time.monotonic()
        connection.waited = 0.0
        connection.taken_by = None
        connection.h2_conn.config.header_encoding = "latin-1"  # as PEP 3333 has it

    def arrived(self) -> list[Any] | None:
        """Return the requests that have arrived, without waiting; None when nothing has.

        :raises HTTP2Error: The connection is broken, or the client breaks the protocol.
        """
        if self.pending_requests or self._deferred_events:
            return list(self.receive_data())  # which reads nothing then
        self.sock.setblocking(False)
        try:
            data = self.sock.recv(self.READ_BUFFER_SIZE)
        except _LATER:
            return None
        except OSError as error:
            raise HTTP2ConnectionError(str(error)) from error
        finally:
            self.sock.settimeout(self.patience)
        return list(self.receive_data(data))

    def begin(self) -> None:
        """Say that a request is to be served."""
        self.waited = 0.0

    def end(self, stream_id: int) -> None:
        """Say that it was."""
        self.last_served = stream_id
        self.idle_from = time.monotonic()

    def pump(self, stream_id: int | None = None) -> None:
        """Read more of the body of a stream, unless its client is too slow: then it is cut."""
        stream = self.streams.get(stream_id)
        received = 0 if stream is None else stream.body_size
        left = self.patience + received / self.rate - self.waited
        if left <= 0:
            self.abort_stream(stream_id, HTTP2ErrorCode.CANCEL)
            return
        self.stream_timeout = min(left, self.patience)
        began = time.monotonic()
        super().pump(stream_id)
        self.waited += time.monotonic() - began

    def send_data(self, stream_id: int, data: bytes, end_stream: bool = False) -> bool:
        """Send slice by slice, each of which has the patience to be taken in."""
        if len(data) <= SLICE:
            return self._send_slice(stream_id, data, end_stream)
        for start in range(0, len(data), SLICE):
            last = end_stream and start + SLICE >= len(data)
            if not self._send_slice(stream_id, data[start : start + SLICE], last):
                return False
        return True

    def _send_slice(self, stream_id: int, data: bytes, end_stream: bool) -> bool:
        self.taken_by = time.monotonic() + self.patience
        self.sock.settimeout(self.patience)
        sent: bool = super().send_data(stream_id, data, end_stream)
        return sent

    def _wait_for_flow_control_window(self, stream_id: int, deadline: float | None = None) -> int:
        # The deadline given begins anew with every byte that the client has room for.
        room: int = super()._wait_for_flow_control_window(stream_id, self.taken_by)
        return room

    def send_response_headers(
        self, stream_id: int, status: int, headers: Any, end_stream: bool = False
    ) -> bool:
        """Send a response's head, its bytes as the app gave them."""
        told = [(name, value if value.isascii() else _text(value)) for name, value in headers]
        sent: bool = super().send_response_headers(stream_id, status, told, end_stream)
        return sent

    def say_goodbye(self) -> None:
        """Tell the client which request was the last one served (RFC 9113 section 6.8)."""
        try:
            self.sock.setblocking(False)
        except OSError:
            return
        self.close(last_stream_id=self.last_served)


class Http2Worker(LingeringWorker):
    """gunicorn's threaded worker, whose threads serve HTTP/2 requests and not connections."""

    alive: bool

    def handle_http2(self, conn: Any) -> bool:
        """Serve the requests that have arrived on *conn*; return whether it is to be kept."""
        client: Http2Client = conn.parser
        try:
            while True:
                requests = client.arrived()
                for request in requests or ():
                    self._serve_http2_stream(request, conn, client)
                if client.is_closed or not self.alive:
                    return False
                if requests is None:
                    return True
        except HTTP2Error as error:
            self.log.debug("HTTP/2 connection closed: %s", error)
        except OSError as error:
            self.log.debug("HTTP/2 connection lost: %s", error)
        except Exception:
            self.log.exception("HTTP/2 connection error")
        return False

    def _serve_http2_stream(self, req: Any, conn: Any, h2_conn: Any) -> None:
        stream_id = req.stream.stream_id
        h2_conn.begin()
        try:
            if req.stream.state is not StreamState.CLOSED:
                self.handle_http2_request(req, conn, h2_conn)
        except (HTTP2Error, ConnectionError) as error:
            self.log.debug("HTTP/2 stream cut: %s", error)  # cleaning up resets it
        except (Exception, SystemExit, KeyboardInterrupt):
            if not h2_conn.is_closed:
                self.log.exception("Error handling HTTP/2 request")
                self._fail(h2_conn, stream_id)
        finally:
            h2_conn.cleanup_stream(stream_id)
            h2_conn.end(stream_id)

    def _fail(self, h2_conn: Any, stream_id: int) -> None:
        try:
            h2_conn.send_error(stream_id, 500)  # what has begun is reset
        except Exception as error:
            self.log.debug("HTTP/2 error response failed: %s", error)

    def handle_http2_request(self, req: Any, conn: Any, h2_conn: Any) -> None:
        """Serve one request.

        :raises HTTP2Error: The client is gone, or does not take the response.
        """
        stream_id = req.stream.stream_id
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
                response_class=HTTP2Response,
                response_args=(h2_conn, stream_id),
            )
            environ["wsgi.multithread"] = True
            environ["wsgi.early_hints"] = lambda headers: h2_conn.send_informational(
                stream_id, 103, headers
            )
            if "CONTENT_LENGTH" not in environ and not req.stream.body_complete:
                environ["HTTP_TRANSFER_ENCODING"] = "chunked"  # as HTTP/1.1 says the same
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


def _text(value: str) -> str:
    """Return the text whose UTF-8 is the bytes that *value* stands for, or else *value*."""
    try:
        return value.encode("latin-1").decode()
    except UnicodeError:
        return value
