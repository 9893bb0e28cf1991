"""HTTP/1.1 requests under GateWorker: 100 Continue, malformed requests, Keep-Alive, versions.

Differences from gunicorn's own worker:

- ``100 Continue`` is sent when the app first reads the body, so an app that rejects a request by
  its head does so before the client has sent the body (RFC 9110 section 10.1.1).
- A request that gunicorn's parser rejects gets a problem document as its response, and is logged by
  the Logger middleware like other rejected requests.
- A persistent connection announces its ``Keep-Alive`` timeout: a client that does not know it may
  send its next request just as the connection is closed.
- A request with a later minor version gets a response in HTTP/1.1 (RFC 9110 section 2.5).
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from datetime import datetime
from typing import Any, cast
from wsgiref.types import StartResponse, WSGIEnvironment

from gunicorn import util
from gunicorn.http import errors, wsgi

from wsgigate.http.problem import Problem, status_line
from wsgigate.http.wsgi import LEND_THREAD, REASON, close_body
from wsgigate.middleware.logger import Logger
from wsgigate.servers.gunicorn_http2 import Http2Worker

__all__ = ["Http1Worker"]


_INNER = ("app", "wsgi_app", "application")

_VERSION = (1, 1)

_FAILED = Problem(500, "The server failed.")

_BAD_HEAD = Problem(400, "Malformed request head.")

_REFUSED: tuple[tuple[type[Exception], Problem], ...] = (
    (errors.LimitRequestLine, Problem(414, "The request target is too long.")),
    (errors.LimitRequestHeaders, Problem(431, "The request has too many fields or too long ones.")),
    (errors.ExpectationFailed, Problem(417, "Only 100-continue can be expected.")),
    (errors.UnsupportedTransferCoding, Problem(501, "Transfer coding not supported.")),
    (errors.ForbiddenProxyRequest, Problem(403, "Request forbidden.")),
    (errors.ConfigurationProblem, _FAILED),
    (errors.InvalidChunkSize, Problem(400, "Malformed request body.")),
    (errors.ChunkMissingTerminator, Problem(400, "Malformed request body.")),
    (errors.InvalidChunkExtension, Problem(400, "Malformed request body.")),
    (errors.InvalidResponseHeader, _FAILED),  # this and the next are errors of the app
    (errors.InvalidResponseHeaderName, _FAILED),
    (errors.ParseException, _BAD_HEAD),
)


class Http1Worker(Http2Worker):
    """gunicorn's threaded worker with the HTTP/1.1 behavior that this module describes."""

    nr: int
    max_requests: int

    def handle_request(self, req: Any, conn: Any) -> bool:
        """Serve a request; return whether its connection is kept."""
        environ: dict[str, Any] = {}
        response: Any = None
        expects, req._expected_100_continue = req._expected_100_continue, False
        try:
            self.cfg.pre_request(self, req)
            began = datetime.now()
            response, environ = wsgi.create(
                req, conn.sock, conn.client, conn.server, self.cfg, response_class=_Response
            )
            environ["wsgi.multithread"] = True
            environ[LEND_THREAD] = self.tpool.lend
            if req.version > _VERSION:  # of the response; SERVER_PROTOCOL has the client's
                req.version = _VERSION
            if expects:
                environ["wsgi.input"] = req.body = _ContinueBody(req, conn.sock, response)
            self.nr += 1
            if self.nr >= self.max_requests:
                if self.alive:
                    self.log.info("Autorestarting worker after current request.")
                    self.alive = False
                response.force_close()
            kept: Any = self.keepalived_conns
            if not self.alive or not self.cfg.keepalive or len(kept) >= self.max_keepalived:
                response.force_close()
            body = self.wsgi(environ, response.start_response)
            try:
                if isinstance(body, environ["wsgi.file_wrapper"]):
                    response.write_file(body)
                else:
                    for item in body:
                        response.write(item)
                response.close()
            finally:
                self.log.access(response, req, environ, datetime.now() - began)
                close_body(body)
            return not response.should_close()
        except OSError:
            raise
        except (Exception, SystemExit):
            if response and response.headers_sent:
                self.log.exception("Error handling request")
                util.close_graceful(conn.sock)
                raise StopIteration from None
            raise
        finally:
            try:
                self.cfg.post_request(self, req, environ, response)
            except Exception:
                self.log.exception("Exception in post_request hook")

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """Answer a request that cannot be served, and log it."""
        if isinstance(exc, ssl.SSLError):  # the client cannot read a plain-text response
            self.log.debug("TLS failed with ip=%s: %s", _address(addr)[0], exc)
            return
        status, fields, body = self.refusal(req, addr, exc)
        head = "".join(f"{name}: {value}\r\n" for name, value in fields)
        first = f"HTTP/1.1 {status_line(status)}\r\nConnection: close\r\n"
        try:
            util.write_nonblock(client, (first + head + "\r\n").encode("latin-1") + body)
        except Exception as error:
            self.log.debug("Failed to send error message: %s", error)

    def refusal(
        self, req: Any, addr: Any, exc: BaseException
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        """Return the status, fields and body of the response to a rejected request.

        The Logger middleware of the app, if it has one, logs it.
        """
        req = req or getattr(exc, "req", None)
        host, port = _address(addr)
        problem = next((each for kind, each in _REFUSED if isinstance(exc, kind)), _FAILED)
        if problem is _FAILED:
            method, uri = getattr(req, "method", "-"), getattr(req, "uri", "-")
            self.log.exception("Error handling request %s %s", method, uri)
        else:
            self.log.warning("Invalid request from ip=%s: %s", host, exc)
        environ: WSGIEnvironment = {
            "REQUEST_METHOD": getattr(req, "method", None) or "",
            "RAW_URI": getattr(req, "uri", None) or "",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "PATH_INFO": "",
            "QUERY_STRING": "",
            "REMOTE_ADDR": host,
            "REMOTE_PORT": port,
            "wsgi.url_scheme": "https" if self.cfg.is_ssl else "http",
            REASON: str(exc),
        }
        fields = [("Date", util.http_date())]

        def start(
            _status: str, headers: list[tuple[str, str]], exc_info: object = None
        ) -> Callable[[bytes], object]:
            fields.extend(headers)
            return lambda data: None

        start_response = cast("StartResponse", start)
        # what failed after the app was called has its line of the Logger
        logger = None if problem is _FAILED else _logger_of(self.wsgi)
        if logger is None:
            body = problem(environ, start_response)
        else:
            body = logger.record(problem, environ, start_response)
        try:
            return problem.status, fields, b"".join(body)
        finally:
            close_body(body)


class _ContinueBody:
    """The body of a client that expects ``100 Continue``, which is sent at the first read."""

    def __init__(self, req: Any, sock: Any, response: Any) -> None:
        self._body = req.body
        self._req = req
        self._sock = sock
        self._response = response
        self._continued = False
        # Unless 100 Continue is sent, the connection closes: a client may send its body or not.
        self._closes, req.must_close = req.must_close, True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._body, name)

    def _continue(self) -> Any:
        if not self._continued:
            self._continued = True
            if not self._response.headers_sent:
                self._sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
                self._req.must_close = self._closes
        return self._body

    def read(self, size: int | None = None) -> bytes:
        """Send 100 Continue if it was not sent; return up to *size* bytes."""
        return cast("bytes", self._continue().read(size))

    def readline(self, size: int | None = None) -> bytes:
        """Send 100 Continue if it was not sent; return a line of up to *size* bytes."""
        return cast("bytes", self._continue().readline(size))

    def readlines(self, hint: int | None = None) -> list[bytes]:
        """Send 100 Continue if it was not sent; return the lines."""
        return cast("list[bytes]", self._continue().readlines(hint))

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> bytes:
        line = self.readline()
        if not line:
            raise StopIteration
        return line


class _Response(wsgi.Response):  # type: ignore[misc]
    def default_headers(self) -> list[str]:
        """Return the first lines of the head, with ``Keep-Alive`` for a persistent connection."""
        lines: list[str] = super().default_headers()
        if lines[3] == "Connection: keep-alive\r\n":
            lines.insert(4, f"Keep-Alive: timeout={self.cfg.keepalive}\r\n")
        return lines


def _address(addr: Any) -> tuple[str, str]:
    if isinstance(addr, tuple) and len(addr) > 1:
        return str(addr[0]), str(addr[1])
    return "", ""


def _logger_of(app: Any) -> Logger | None:
    """Return the Logger middleware in the stack of *app*, None without one."""
    seen: set[int] = set()
    while app is not None and id(app) not in seen:
        if isinstance(app, Logger):
            return app
        seen.add(id(app))
        app = next((getattr(app, name) for name in _INNER if hasattr(app, name)), None)
    return None
