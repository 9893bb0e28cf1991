"""A gunicorn worker that serves HTTP/1.1 itself, and that slow clients cannot block.

gunicorn's own threaded worker has no deadline for a client after the first byte. As many clients as
it has threads, each sending half a head or half a body or never reading, block it forever; and each
client that keeps its socket open after ``Connection: close`` stops the accept loop for two seconds.
``GateWorker`` builds on ``gunicorn.workers.base.Worker``; :data:`TESTED` names the supported
releases, and other releases run gunicorn's own worker.

Theory of operation
-------------------

Threads and ownership

- The main thread runs the loop (``gunicorn_loop``): it accepts, expires idle connections, drains
  lingering ones and reads all HTTP/2 connections. It never blocks on a client.
- Every pool thread waits on the same epoll for any connection (``gunicorn_threads``). It reads what
  has arrived, without blocking, and serves the request once enough of it is there
  (``gunicorn_connection``). So a request needs no hand-over between threads, and a client that
  sends its head or a short body slowly occupies none.
- A connection belongs to exactly one of: the table of idle connections, the thread that serves it,
  the lingering table, or (HTTP/2) the loop. ``_lingering`` and ``_http2`` are changed by the main
  thread only; pool threads reach it by :meth:`~wsgigate.servers.gunicorn_loop.LoopWorker.defer`.
  ``_open`` has all connections until they linger.
- A connection whose client reads slowly is in the table of idle ones for its output, even while a
  thread serves it. A thread that finds it so when the app is done leaves it to the thread that
  sends the last of the output: :meth:`Connection.leave` decides, under the connection's lock, which
  of the two calls :meth:`GateWorker._after`. A connection that the loop expires meanwhile is ended
  by the thread that serves it, or if none does, by the loop: :meth:`Connection.give_up`.
- :meth:`GateWorker.release` and :meth:`GateWorker.abort` end a connection once, however often
  they are called.

Slow clients

- Deadlines: see ``gunicorn_connection``. The loop closes the connections that no thread has.
- A thread does wait for a client that sends a body of more than 64 KiB, or does not read a response
  of more than 256 KiB. Such threads are counted (``_waits``). When no thread is free and a request
  waits, those beyond a quarter of the threads end: see :meth:`GateWorker._free_threads`.

Boot

- gunicorn's master sends each signal once. A worker that was just forked still has the master's
  handlers, which queue the signal in the worker's copy of the master's queue, where no code reads
  it. ``init_signals`` therefore installs the worker's handlers first and drains that queue second;
  the other order would lose a signal that arrives in between.
- When several workers fail to boot, only one may exit with ``WORKER_BOOT_ERROR``, and the others
  wait for the master's signal: see :meth:`BootingWorker.init_process`.
"""

from __future__ import annotations

import errno
import math
import os
import queue
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any, cast
from wsgiref.types import StartResponse

from gunicorn import SERVER_SOFTWARE
from gunicorn.arbiter import Arbiter
from gunicorn.glogging import Logger as GunicornLogger
from gunicorn.http.message import _ip_in_allow_list
from gunicorn.http.wsgi import FileWrapper, WSGIErrorsWrapper
from gunicorn.http2 import negotiation
from gunicorn.sock import ssl_context

from wsgigate.http.forwarded import AddressList
from wsgigate.http.problem import Problem, status_line
from wsgigate.http.wsgi import LEND_THREAD, READ_AHEAD, REASON, address_key, close_body
from wsgigate.middleware.logger import Logger
from wsgigate.server_check import facts_of_gunicorn, findings, log_findings
from wsgigate.servers.gunicorn_connection import (
    BUFFERED,
    ClientGone,
    Connection,
    Deadlines,
    Http2Preface,
    Request,
    TlsConnection,
)
from wsgigate.servers.gunicorn_http2 import Http2Worker, problem_of
from wsgigate.servers.gunicorn_loop import LOOK, STOP_LINGER, nothing
from wsgigate.servers.gunicorn_threads import IdleConnections, Threads
from wsgigate.servers.http1_request import BadRequest, Head, HeadParser, HeadRules
from wsgigate.servers.http1_response import Response, http_date

__all__ = ["TESTED", "BootingWorker", "GateWorker"]


# Boot: signals during the fork, the self-check, and workers that fail to boot.

TESTED = ((27, 0), (28, 0))
"""The supported gunicorn releases: from the first (inclusive) to the second (exclusive)."""

_PAUSE = 0.05
"""Seconds between two heartbeats of a worker that failed to boot and waits for its signal."""

_UNSUPPORTED = (
    "permit_obsolete_folding",
    "strip_header_spaces",
    "permit_unconventional_http_version",
    "do_handshake_on_connect",
)
"""Settings without effect: those of leniency, and one that would let a client block the loop."""

_STOP = (signal.SIGTERM, signal.SIGQUIT, signal.SIGINT)


class _OnceToken:
    """A token in a pipe that exactly one of the forked workers can take."""

    def __init__(self) -> None:
        self._read_end, write_end = os.pipe()
        os.set_blocking(self._read_end, False)
        os.write(write_end, b"1")
        self._write_end = write_end  # stays open: later readers must get EAGAIN, not end of file

    def take(self) -> bool:
        """Return whether this process has taken the token."""
        try:
            return bool(os.read(self._read_end, 1))
        except BlockingIOError:
            return False


class BootingWorker(Http2Worker):
    """gunicorn's threaded worker with a self-check at boot, and no signal lost during the fork."""

    booted: bool
    _boot_error: _OnceToken | None = None

    @classmethod
    def check_config(cls, cfg: Any, log: Any) -> None:
        """Prepare for forking workers; the master calls this at its start."""
        for name in _UNSUPPORTED:
            if getattr(cfg, name):
                log.warning("GateWorker does not support gunicorn's setting %s", name)
        cls._boot_error = _OnceToken()

    def init_process(self) -> None:
        """Load the app and serve it.

        When several workers fail to boot, only one exits with that status. The master ends with the
        status of the first worker it reaps (3: a worker failed to boot). If a second one has exited
        before the master signalled it, the master fails with a traceback and another status.
        """
        try:
            super().init_process()
        except (Exception, SystemExit) as error:
            refused = isinstance(error, Exception) or error.code == Arbiter.WORKER_BOOT_ERROR
            if self.booted or not refused or self._boot_error is None or self._boot_error.take():
                raise
            self.log.error(
                "Worker failed to boot, as another one did; waiting for the master's signal: %r",
                error,
            )
            self._wait_for_stop()

    def _wait_for_stop(self) -> None:
        while self.alive and self._has_master():
            self.notify()
            time.sleep(_PAUSE)

    def load_wsgi(self) -> None:
        """Load the app; for a gateway, run the self-check of the server's settings.

        :raises SystemExit: The settings are unsafe, and ``gateway.self_check`` is ``refuse``.
        """
        super().load_wsgi()
        mode = getattr(self.wsgi, "self_check", None)
        if mode is not None:
            facts = facts_of_gunicorn(self.cfg, worker="GateWorker", tested=TESTED)
            if log_findings(findings(facts), mode, self.log):
                raise SystemExit(Arbiter.WORKER_BOOT_ERROR)  # which ends the master, too

    def init_signals(self) -> None:
        """Install the signal handlers, then handle the signals that arrived before.

        Until now the forked worker had the master's handlers, which put a signal into the worker's
        copy of the master's queue, where it would stay unread. gunicorn's master sends each signal
        once, and kills the worker after ``graceful_timeout``.
        """
        inherited = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
        super().init_signals()
        signals = getattr(inherited, "SIG_QUEUE", None)
        while signals is not None:
            try:
                number = signals.get_nowait()
            except queue.Empty:
                return
            if number in _STOP:
                self.handle_exit(number, None)


# Serving.

PATIENCE = 1.0
"""Seconds for which a thread waits for a request before it checks whether the pool has stopped."""

HELD = 0.3
"""Seconds for which a thread may wait for its client while no other thread is free."""

SHORTEST = 0.05
"""Seconds to which :data:`HELD` falls while more and more slow clients come."""

CALM = 5.0
"""Seconds after which :data:`HELD` is as before."""

_INNER = ("app", "wsgi_app", "application")

_LOST = (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN)
"""Errors by which an app ends a response that it cannot complete."""

_FAILED = Problem(500, "The server failed.")


class GateWorker(BootingWorker):
    """gunicorn's threaded worker with deadlines for clients, for gunicorn's ``--worker-class``.

    :cvar head_timeout: Seconds for a request head, and for the TLS handshake before it.
    :cvar idle_timeout: Seconds for a client to send more of a body or take more of a response.
    :cvar body_rate: Bytes of a body that earn its client one more second in all.
    :cvar max_connections_per_client: Connections that one address may have open, or one /64 network
        of IPv6; None for any number. Those of a Unix socket have no address, and no limit.
    :cvar trusted_proxies: Addresses and networks without that limit.
    """

    head_timeout = 10.0
    idle_timeout = 30.0
    body_rate = 500.0
    max_connections_per_client: int | None = None
    trusted_proxies: Sequence[str] = ()

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._open: dict[Connection, None] = {}
        self._at_work: set[int] = set()  # threads that handle an event
        self._waits: dict[Connection, float] = {}  # since when a thread waits for its client
        self._silent: dict[Connection, tuple[float, int]] = {}  # since when, and the progress
        self._pressed_since = math.inf  # since when requests wait for a thread
        self._cut_at = -math.inf
        self._held = HELD
        self._next_scan = 0.0
        self._stop_at: float | None = None  # when a stopping worker accepts no further request

    @classmethod
    def having(cls, **changes: Any) -> type[GateWorker]:
        """Return a subclass with the class attributes *changes*, without those that are None."""
        given = {
            name: value
            for name, value in changes.items()
            if value is not None and value != getattr(cls, name)
        }
        return type(cls.__name__, (cls,), given) if given else cls

    def prepare(self) -> None:
        """Make what belongs to this process, and decide what the settings say."""
        super().prepare()
        cfg = self.cfg
        self.idle = IdleConnections()
        self.tpool = Threads(int(cfg.threads), self._serve_next)
        self._keep_alive = int(cfg.keepalive or 0)
        self._most_kept = self.worker_connections - int(cfg.threads)
        self._rules = HeadRules(
            request_line=min(cfg.limit_request_line, 8190) if cfg.limit_request_line >= 0 else 8190,
            fields=min(cfg.limit_request_fields, 32768) if cfg.limit_request_fields > 0 else 32768,
            field_size=cfg.limit_request_field_size if cfg.limit_request_field_size > 0 else 8190,
            header_map=cfg.header_map,
            any_method=cfg.permit_unconventional_http_method,
            upper_method=cfg.casefold_http_method,
            script_name=os.environ.get("SCRIPT_NAME", ""),
        )
        self._deadlines = Deadlines(
            self.head_timeout, self.idle_timeout, self.body_rate, self._keep_alive
        )
        self._plain = HeadParser(self._rules)
        self._trusted = HeadParser(
            self._rules,
            secure={
                "HTTP_" + name.upper().replace("-", "_"): value
                for name, value in cfg.secure_scheme_headers.items()
            },
            forwarders=frozenset(name.upper() for name in cfg.forwarder_headers),
        )
        self._environ = {
            "wsgi.errors": _Errors(cfg),
            "wsgi.version": (1, 0),
            "wsgi.multithread": True,
            "wsgi.multiprocess": int(cfg.workers) > 1,
            "wsgi.run_once": False,
            "wsgi.file_wrapper": FileWrapper,
            "wsgi.input_terminated": True,
            "wsgi.url_scheme": "https" if cfg.is_ssl else "http",
            "SERVER_SOFTWARE": SERVER_SOFTWARE,
            LEND_THREAD: self.tpool.lend,
        }
        settings = cfg.settings
        self._pre = None if _is_default(settings, "pre_request") else cfg.pre_request
        self._post = None if _is_default(settings, "post_request") else cfg.post_request
        self._logs = _logs_requests(self.log, cfg)
        self._hooks = self._logs or self._pre is not None or self._post is not None
        self._tls = cfg.is_ssl
        self._proxied = cfg.proxy_protocol
        self._clients = _Clients(self.max_connections_per_client, self.trusted_proxies)

    # Connections.

    def opened(self, client: socket.socket, address: Any, listener: Any) -> None:
        """Add a connection that was accepted to the idle ones; it belongs to no thread yet."""
        counted = ""
        may_proxy = self._proxied != "off" and self._may_proxy(address)
        if self._clients.most and isinstance(address, tuple) and not may_proxy:
            counted = address_key(address[0])
            refused = self._clients.enter(counted, address[0])
            if refused is not None:
                if refused:
                    self.log.warning(
                        "Connections closed: ip=%s has %d (max_connections_per_client)",
                        address[0],
                        self._clients.most,
                    )
                client.close()
                return
        environ = self._environ.copy()
        environ["gunicorn.socket"] = client
        server = listener.getsockname()
        if isinstance(address, tuple):
            environ["REMOTE_ADDR"], environ["REMOTE_PORT"] = address[0], str(address[1])
            trusted = _ip_in_allow_list(
                address[0], self.cfg.forwarded_allow_ips, self.cfg.forwarded_allow_networks()
            )
        else:
            environ["REMOTE_ADDR"] = address.decode() if isinstance(address, bytes) else address
            trusted = True
        if isinstance(server, tuple):
            environ["SERVER_NAME"], environ["SERVER_PORT"] = server[0], str(server[1])
        kind = Connection
        if self._tls:
            try:
                client.setblocking(False)
                client = ssl_context(self.cfg).wrap_socket(
                    client,
                    server_side=True,
                    suppress_ragged_eofs=self.cfg.suppress_ragged_eofs,
                    do_handshake_on_connect=False,
                )
            except OSError as error:
                # nothing was read yet, so either a file cannot be used, or the client has left
                level = self.log.debug if error.errno in _LOST else self.log.error
                level("TLS failed with ip=%s: %s", environ["REMOTE_ADDR"], error)
                client.close()
                self._clients.leave(counted)
                return
            environ["gunicorn.socket"] = client
            kind = TlsConnection
        elif client.gettimeout() is not None:
            client.setblocking(True)
        connection = kind(
            client,
            address,
            environ,
            self._trusted if trusted else self._plain,
            self._rules,
            self._deadlines,
            waits=self._waits,
            watch=self._watch_output,
            proxied=self._proxied,
            may_proxy=may_proxy,
            http2=not self._tls and negotiation.prior_knowledge_allowed(self.cfg, address),
        )
        connection.server = server
        connection.counted = counted
        self._open[connection] = None
        self.idle.add(connection)
        self.tpool.start()

    def _watch_output(self, connection: Connection) -> None:
        self.idle.add(connection, writable=True)

    def _may_proxy(self, address: Any) -> bool:
        """Return whether the peer may send a preamble of the PROXY protocol."""
        cfg = self.cfg
        return not isinstance(address, tuple) or _ip_in_allow_list(
            address[0], cfg.proxy_allow_ips, cfg.proxy_allow_networks()
        )

    def connections(self) -> int:
        """Return the number of connections that are open."""
        return len(self._open) + len(self._lingering)

    def pause(self) -> float:
        """Return how many seconds the loop may wait for an event."""
        return SHORTEST if self._waits else LOOK

    def is_crowded(self) -> bool:
        """Return whether every thread is busy while other workers may have a free one."""
        return len(self._at_work) >= self.tpool.count and int(self.cfg.workers) > 1

    def make_room(self) -> None:
        """Close the connection that has been silent for longest, if any is idle."""
        silent = self.silent_http2()
        if silent is not None and silent[0] < self.idle.silent_since:
            self.end_http2(silent[1])
            return
        connection = self.idle.take_oldest()
        if connection is not None:
            self.drop(connection)

    def drop(self, connection: Connection) -> None:
        """Close a connection at once; if a thread serves its request, that one closes it."""
        if connection.give_up():
            connection.cut()
        else:
            self.abort(connection)

    def release(self, conn: Connection) -> None:
        """Close *conn* in steps; runs in the loop."""
        if not self._forget(conn):
            return
        if conn.abandoned:
            conn.close()
        else:
            self.linger(conn.sock)

    def abort(self, conn: Connection) -> None:
        """Close *conn* at once."""
        if self._forget(conn):
            conn.close()

    def _forget(self, conn: Connection) -> bool:
        """Return whether *conn* was open until now."""
        if self._open.pop(conn, conn) is not None:
            return False
        self._clients.leave(conn.counted)
        return True

    def expire(self, now: float) -> None:
        """Close the connections whose time is over."""
        super().expire(now)
        if self._waits:
            self._free_threads(now)
        if now < self._next_scan:
            return
        self._next_scan = now + LOOK
        for connection in self.idle.take_expired(now):
            self.drop(connection)
        if self._stop_at is not None and now >= self._stop_at:
            self.refuse_http2()
        self.end_idle_http2(now)

    def _free_threads(self, now: float) -> None:
        """Cut clients that threads wait for, where no thread is left for a request that waits.

        Slow uploads and unread responses may hold a quarter of the threads. When a request has
        waited for :data:`HELD` seconds, of those beyond the ones end that have neither sent nor
        read a byte in that time, those that have been silent for longest first. Clients that come
        in their place are given half of that each time: with many of them, others wait for the sum.
        """
        surplus = len(self._waits) - self.tpool.count // 4
        if surplus <= 0 or len(self._at_work) < self.tpool.count or not self.idle.any_ready():
            self._silent.clear()
            self._pressed_since = math.inf
            if now - self._cut_at > CALM:
                self._held = HELD
            return
        self._pressed_since = min(self._pressed_since, now)
        silent: dict[Connection, tuple[float, int]] = {}
        for connection, since in self._waits.copy().items():
            progress = connection.progress()
            before, seen = self._silent.get(connection, (since, progress))
            silent[connection] = (
                (max(before, since), progress) if seen == progress else (now, progress)
            )
        self._silent = silent
        if now - self._pressed_since < self._held:
            return
        longest = sorted(silent, key=lambda each: silent[each][0])
        ended = [each for each in longest[:surplus] if now - silent[each][0] >= self._held]
        for connection in ended:
            connection.cut()
        if ended:
            self.log.warning("%d connections cut: all threads wait for slow clients", len(ended))
            self._cut_at = now
            self._held = max(self._held / 2, SHORTEST)

    def begin_stop(self, deadline: float) -> None:
        """Have idle connections end by *deadline*."""
        super().begin_stop(deadline)
        self._stop_at = deadline
        self._cap_idle()
        self.drain_http2(deadline)

    def _cap_idle(self) -> None:
        """Give the idle connections of a stopping worker the time for one more request.

        Those whose request arrives slowly, or whose response is read slowly, keep their deadlines.
        """
        until = time.monotonic() + STOP_LINGER
        for connection in self.idle:
            if connection.is_idle:
                connection.timeout = min(connection.timeout, until)

    def end(self) -> None:
        """Close all connections that are left."""
        for connection in self.idle.take_expired(math.inf):
            self.drop(connection)
        self.end_idle_http2(time.monotonic(), force=True)
        for connection in list(self._open):
            self.drop(connection)
        self.tpool.shutdown()

    # Requests; all of this runs in the threads of the pool.

    def _serve_next(self) -> None:
        """Handle the next event of a connection, if one comes soon."""
        connection = self.idle.take(PATIENCE)
        if connection is None:
            return
        me = threading.get_ident()
        self._at_work.add(me)
        try:
            if callable(connection):
                connection()  # an HTTP/2 request
            else:
                self._handle(connection)
        except BaseException:
            self.log.exception("Error serving a connection")
            if not callable(connection):
                self.defer(self.abort, connection)
        finally:
            self._at_work.discard(me)

    def _handle(self, connection: Connection) -> None:
        """Handle an event of *connection*: it is readable, or its client has read enough."""
        if connection.flushing:
            self._flush(connection)
            return
        try:
            request = connection.advance()
        except BadRequest as error:
            connection.serving = True
            self._send_refusal(connection, error)
            self._leave(connection, False)
            return
        except Http2Preface:
            self.defer(self.add_http2, connection)
            return
        except ClientGone as error:
            self.log.debug("Connection closed: %s", error)
            self.abort(connection)
            return
        if request is None:
            self.idle.add(connection)
            return
        connection.serving = True
        keep = False
        try:
            keep = self._serve(connection, request)
        finally:
            self._leave(connection, keep)

    def _leave(self, connection: Connection, keep: bool) -> None:
        if not connection.leave(keep):
            self._after(connection, keep)

    def _flush(self, connection: Connection) -> None:
        """Send what *connection* owes, as its client has read enough."""
        try:
            done = connection.flush()
        except ClientGone as error:
            self.log.debug("Connection lost: %s", error)
            self.drop(connection)
            return
        if done is False:
            self.idle.add(connection, writable=True)
        elif done:
            self._after(connection, bool(connection.keeps))

    def _after(self, connection: Connection, keep: bool) -> None:
        """Wait for the next request of *connection*, or close it."""
        if keep:
            connection.rest()
            self.idle.add(connection, writable=connection.has_read_ahead())
            # after it was added: a worker that begins to stop later finds it there
            if not self.alive:
                self.defer(self._cap_idle)
        elif connection.abandoned:
            self.abort(connection)
        else:
            self.defer(self.release, connection)

    def _serve(self, connection: Connection, request: Request) -> bool:
        """Serve *request*; return whether the connection stays open."""
        head, environ, streamed = request
        self.nr += 1
        if self.nr >= self.max_requests and self.alive:
            self.log.info("Autorestarting worker after current request.")
            self.alive = False
            self.defer(nothing)
        keep = (
            head.keep and self.alive and self._keep_alive > 0 and len(self.idle) < self._most_kept
        )
        response = Response(
            connection.send,
            head.method,
            head.version,
            keep=keep,
            keep_alive=self._keep_alive,
            begins=None if streamed is None else streamed.response_begins,
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
        except BadRequest as error:
            if not response.head_sent:
                self._send_refusal(connection, error, response)
            elif not response.is_framed:
                connection.abandon()
            return False
        except ClientGone as error:
            self.log.debug("Connection lost: %s", error)
            connection.abandon()
            return False
        except (Exception, SystemExit, KeyboardInterrupt) as error:
            if type(error) is StopIteration and "HTTP_UPGRADE" in environ:
                return False  # the app took the socket over: simple-websocket ends so
            if response.head_sent and isinstance(error, OSError) and error.errno in _LOST:
                self.log.debug("Response cut: %s", error)
            else:
                self.log.exception("Error handling request %s %s", head.method, head.target)
            if not response.head_sent:
                failed = BadRequest(_FAILED, "the application failed")
                self._send_refusal(connection, failed, response)
            elif not response.is_framed:  # its end would look like that of a complete response
                connection.abandon()
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

    def _send_file(self, connection: Connection, response: Response, body: Any) -> bool:
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
        if response.length is not None:
            count = min(count, response.length)
        elif not response.chunked:
            return False
        response.set_length(count)
        response.begin()
        if not response.body_forbidden:
            connection.send_file(body.filelike, offset, count)
            response.sent = count
        response.finish()
        return True

    def _send_refusal(
        self, connection: Connection, error: BadRequest, instead: Response | None = None
    ) -> None:
        """Send the response to a request that cannot be served, and log it.

        :param instead: The app's response, which was not sent; the access log gets the sent one.
        """
        status, fields, body = self.refusal(None, connection.client, error)
        if instead is not None:
            instead.status, instead.status_code = status_line(status), status
            instead.headers, instead.sent = fields, len(body)
        head = "".join(f"{name}: {value}\r\n" for name, value in fields)
        first = f"HTTP/1.1 {status_line(status)}\r\nConnection: close\r\n"
        try:
            connection.send((first + head + "\r\n").encode("latin-1") + body, True)
        except ClientGone as problem:
            self.log.debug("Failed to send an error response: %s", problem)

    def refusal(
        self, req: Any, addr: Any, exc: BaseException
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        """Return the status, fields and body of the response to a rejected request.

        The Logger middleware of the app, if it has one, logs it.
        """
        host, port = _address(addr)
        problem = exc.problem if isinstance(exc, BadRequest) else problem_of(exc)
        if problem is not _FAILED:
            self.log.warning("Invalid request from ip=%s: %s", host, exc)
        environ: dict[str, Any] = {
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


class _Clients:
    """Counts the connections of each client address; those that linger do not count.

    :param most: The most that one may have; None for any number.
    :param exempt: Addresses and networks that are not counted.
    """

    def __init__(self, most: int | None, exempt: Iterable[str]) -> None:
        self.most = most or 0
        self._exempt = AddressList(exempt)
        self._lock = threading.Lock()
        self._open: dict[str, int] = {}
        self._refused: set[str] = set()  # since each had no connection: logged once

    def enter(self, key: str, address: str) -> bool | None:
        """Count a connection; return None, or if it is one too many whether to log that."""
        if address in self._exempt:
            return None
        with self._lock:
            count = self._open.get(key, 0)
            if count < self.most:
                self._open[key] = count + 1
                return None
            first = key not in self._refused
            self._refused.add(key)
            return first

    def leave(self, key: str) -> None:
        """Count a connection no longer; *key* is empty for one that was not counted."""
        if not key:
            return
        with self._lock:
            count = self._open.get(key, 0) - 1
            if count > 0:
                self._open[key] = count
            else:
                self._open.pop(key, None)
                self._refused.discard(key)


class _Errors:
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
