"""HTTP/1.1 under GateWorker: calls the app for a request, and sends its response or a refusal.

Theory of operation
-------------------

- A pool thread calls :meth:`Http1Worker.serve` with a connection that belongs to it and a request
  of which enough has arrived (``gunicorn_connection``). It returns whether the connection stays
  open; the thread then lets the connection go (``gunicorn_worker``).
- What goes wrong before the head is sent becomes a response of its own. What goes wrong later must
  be seen by the client: the end of the connection shows it where the response has a length or is
  chunked. The end of any other response *is* the end of the connection, so the connection is reset
  unless the response is complete: see ``gunicorn_connection``.
- gunicorn's hooks and its access log see each request, but their arguments are made only where a
  hook is set or the log is on.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any, cast
from wsgiref.types import StartResponse

from gunicorn import SERVER_SOFTWARE
from gunicorn.glogging import Logger as GunicornLogger
from gunicorn.http.wsgi import FileWrapper, WSGIErrorsWrapper

from wsgigate.http.problem import Problem, status_line
from wsgigate.http.wsgi import READ_AHEAD, REASON, close_body
from wsgigate.middleware.logger import Logger
from wsgigate.servers.gunicorn_body import ClientGone
from wsgigate.servers.gunicorn_connection import BUFFERED, ClientConnection, Request, TlsConnection
from wsgigate.servers.gunicorn_loop import LoopWorker, nothing
from wsgigate.servers.gunicorn_threads import IdleConnections
from wsgigate.servers.http1_request import BadRequest, Head
from wsgigate.servers.http1_response import Response, http_date
from wsgigate.telemetry.metrics import Counter

__all__ = ["LOST", "Http1Worker"]

REJECTED = Counter(
    "wsgigate_worker_requests_rejected",
    "Requests that the server rejected before the app: malformed, too large or too slow ones.",
    ("http_response_status_code",),
)


LOST = (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN)
"""Errors of a lost connection; an app that cannot complete a response ends it by one of them."""

_INNER = ("app", "wsgi_app", "application")
"""The attributes by which a middleware usually names the app that it wraps."""

_FAILED = Problem(500, "The server failed.")
"""The response to a request for which the app fails."""


class Http1Worker(LoopWorker):
    """A worker whose threads serve HTTP/1.1 requests."""

    idle: IdleConnections

    def prepare(self) -> None:
        """Make what belongs to this process, and decide what the settings say."""
        super().prepare()
        cfg = self.cfg
        self.keep_alive = int(cfg.keepalive or 0)
        self._most_kept = self.worker_connections - int(cfg.threads)
        self._pre = None if _is_default(cfg.settings, "pre_request") else cfg.pre_request
        self._post = None if _is_default(cfg.settings, "post_request") else cfg.post_request
        self._logs = _logs_requests(self.log, cfg)
        self._hooks = self._logs or self._pre is not None or self._post is not None
        self._tls = cfg.is_ssl

    def environ(self) -> dict[str, Any]:
        """Return what the environs of all requests have in common."""
        cfg = self.cfg
        return {
            "wsgi.errors": _ErrorStream(cfg),
            "wsgi.version": (1, 0),
            "wsgi.multithread": True,
            "wsgi.multiprocess": int(cfg.workers) > 1,
            "wsgi.run_once": False,
            "wsgi.file_wrapper": FileWrapper,
            "wsgi.input_terminated": True,
            "wsgi.url_scheme": "https" if cfg.is_ssl else "http",
            "SERVER_SOFTWARE": SERVER_SOFTWARE,
        }

    def serve(self, connection: ClientConnection, request: Request) -> bool:
        """Serve *request*; return whether the connection stays open."""
        head, environ, streamed = request
        self.nr += 1
        if self.nr >= self.max_requests and self.alive:
            self.log.info("Autorestarting worker after current request.")
            self.alive = False
            self.defer(nothing)
        keep = head.keep and self.alive and self.keep_alive > 0 and len(self.idle) < self._most_kept
        response = Response(
            connection.send,
            head.method,
            head.version,
            keep=keep,
            keep_alive=self.keep_alive,
            begins=None if streamed is None else streamed.response_begins,
            unframed=connection.begin_unframed,
        )
        if connection.buffer:
            environ[READ_AHEAD] = True
        upgrade = self._tls and "HTTP_UPGRADE" in environ
        if upgrade:  # for an app that takes the socket over
            cast("TlsConnection", connection).blocks = True
            connection.sock.setblocking(True)
        if "SERVER_NAME" not in environ:
            _name_server(environ, connection.server)
        environ["wsgi.early_hints"] = response.hint
        hooks = self._hooks and _HookRequest(head, environ)
        began = datetime.now() if hooks else None
        body = None
        try:
            if hooks and self._pre is not None:
                self._pre(self, hooks)
            body = self.wsgi(environ, response.start)
            if type(body) is FileWrapper and self._send_file(connection, response, body):
                pass
            else:
                response.run(body)
            connection.incomplete = False
        except BadRequest as error:
            if not response.head_sent:
                self.send_refusal(connection, error, response)
            return False
        except ClientGone as error:
            self.log.debug("Connection lost: %s", error)
            connection.abandon()
            return False
        except (Exception, SystemExit, KeyboardInterrupt) as error:
            if type(error) is StopIteration and "HTTP_UPGRADE" in environ:
                return False  # the app took the socket over: simple-websocket ends so
            if response.head_sent and isinstance(error, OSError) and error.errno in LOST:
                self.log.debug("Response cut: %s", error)
            else:
                self.log.exception("Error handling request %s %s", head.method, head.target)
            if not response.head_sent:
                failed = BadRequest(_FAILED, "the application failed")
                self.send_refusal(connection, failed, response)
            return False
        finally:
            try:
                close_body(body)
            except Exception:
                self.log.exception("Error closing the response")
            if hooks and began is not None:
                self._after_request(hooks, environ, response, began)
            if upgrade:
                cast("TlsConnection", connection).blocks = False
                connection.sock.setblocking(False)
        if streamed is not None and response.keep and not streamed.discard(BUFFERED):
            return False
        return response.keep

    def _after_request(
        self, request: _HookRequest, environ: dict[str, Any], response: Response, began: datetime
    ) -> None:
        try:
            if self._logs:
                self.log.access(response, request, environ, datetime.now() - began)
            if self._post is not None:
                self._post(self, request, environ, response)
        except Exception:
            self.log.exception("Exception in the access log or the post_request hook")

    def _send_file(self, connection: ClientConnection, response: Response, body: Any) -> bool:
        """Send the file in *body* by ``sendfile``; return False where that is not possible."""
        if self._tls or self.cfg.sendfile is False or not response.status:
            return False
        try:
            number = body.filelike.fileno()
            offset = body.filelike.tell()  # not the descriptor's, which buffers are ahead of
            os.lseek(number, 0, os.SEEK_CUR)  # fails for a pipe
            count = max(0, os.fstat(number).st_size - offset)
        except (AttributeError, OSError, ValueError):
            return False
        if response.length is not None:  # that of a shorter file: finish() below cuts the response
            count = min(count, response.length)
        elif response.chunked:
            response.set_length(count)
        else:
            return False
        response.begin()
        if not response.body_forbidden:
            connection.send_file(body.filelike, offset, count)
            response.sent = count
        response.finish()
        return True

    def send_refusal(
        self, connection: ClientConnection, error: BadRequest, instead: Response | None = None
    ) -> None:
        """Send the response to a request that cannot be served, and log it.

        :param instead: The app's response, which was not sent; the access log gets the sent one.
        """
        status, fields, body = self.refusal(error.problem, str(error), connection.client)
        if instead is not None:
            instead.status, instead.status_code = status_line(status), status
            instead.headers, instead.sent = fields, len(body)
        head = "".join(f"{name}: {value}\r\n" for name, value in fields)
        first = f"HTTP/1.1 {status_line(status)}\r\nConnection: close\r\n"
        try:
            connection.send((first + head + "\r\n").encode("latin-1") + body)
        except ClientGone as problem:
            self.log.debug("Failed to send an error response: %s", problem)

    def refusal(
        self, problem: Problem, reason: str, client: Any, method: str = "", target: str = ""
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        """Return the status, fields and body of the response to a rejected request.

        The Logger middleware of the app, if it has one, logs it. HTTP/2 uses this as well.

        :param client: The client's address as ``socket.accept`` gives it.
        :param method: The request's method, where it is known.
        :param target: Its target, where it is known.
        """
        if problem is not _FAILED:
            REJECTED.labels(str(problem.status)).add()
        known = isinstance(client, tuple) and len(client) > 1  # a Unix socket has no address
        host, port = (str(client[0]), str(client[1])) if known else ("", "")
        if problem is not _FAILED:
            self.log.warning("Invalid request from ip=%s: %s", host, reason)
        environ: dict[str, Any] = {
            "REQUEST_METHOD": method,
            "RAW_URI": target,
            "SERVER_PROTOCOL": "HTTP/1.1",
            "PATH_INFO": "",
            "QUERY_STRING": "",
            "REMOTE_ADDR": host,
            "REMOTE_PORT": port,
            "wsgi.url_scheme": "https" if self.cfg.is_ssl else "http",
            REASON: reason,
        }
        fields = [("Date", http_date())]

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


class _ErrorStream:
    """An app's error stream, which goes where gunicorn's log goes, also after that was reopened."""

    def __init__(self, cfg: Any) -> None:
        self._cfg = cfg

    def write(self, data: str) -> None:
        WSGIErrorsWrapper(self._cfg).write(data)

    def writelines(self, lines: Iterable[str]) -> None:
        self.write("".join(lines))

    def flush(self) -> None:
        """Do nothing: what is written leaves at once."""


class _HookRequest:
    """A request as gunicorn's hooks and its access log expect it."""

    def __init__(self, head: Head, environ: dict[str, Any]) -> None:
        self.method = head.method
        self.uri = head.target
        self.path = environ["PATH_INFO"]
        self.query = environ["QUERY_STRING"]
        self.version = head.version
        self.remote_addr = environ.get("REMOTE_ADDR")
        self.headers = [
            (key.removeprefix("HTTP_").replace("_", "-"), value)
            for key, value in environ.items()
            if key.startswith("HTTP_") or key in ("CONTENT_TYPE", "CONTENT_LENGTH")
        ]


def _logs_requests(log: Any, cfg: Any) -> bool:
    """Return whether gunicorn logs each request."""
    return type(log).access is not GunicornLogger.access or bool(
        cfg.accesslog
        or cfg.logconfig
        or cfg.logconfig_dict
        or cfg.logconfig_json
        or (cfg.syslog and not cfg.disable_redirect_access_to_syslog)
    )


def _is_default(settings: Any, name: str) -> bool:
    return settings[name].get() is settings[name].default


def _name_server(environ: dict[str, Any], path: Any) -> None:
    """Set the server's name of the Unix socket at *path*, which is what the client calls it."""
    field = environ.get("HTTP_HOST", "")
    host, colon, port = field.rpartition(":")
    if not colon or port.endswith("]"):
        host, port = field, {"http": "80", "https": "443"}[environ["wsgi.url_scheme"]]
    if not host:
        host, port = os.fsdecode(path), ""
    environ["SERVER_NAME"], environ["SERVER_PORT"] = host, port


def _logger_of(app: Any) -> Logger | None:
    """Return the Logger middleware in the stack of *app*, None without one."""
    seen: set[int] = set()
    while app is not None and id(app) not in seen:
        if isinstance(app, Logger):
            return app
        seen.add(id(app))
        app = next((getattr(app, name) for name in _INNER if hasattr(app, name)), None)
    return None
