"""The worker class for gunicorn: its connections from accept to close, and the threads they take.

gunicorn's own threaded worker has no deadline for a client after the first byte. As many clients as
it has threads, each sending half a head or half a body or never reading, block it forever; and each
client that keeps its socket open after ``Connection: close`` stops the accept loop for two seconds.
``GateWorker`` builds on ``gunicorn.workers.base.Worker``; ``TESTED`` names the supported releases,
and other releases run gunicorn's own worker.

Theory of operation
-------------------

The classes below :class:`GateWorker`, each in its file:

- ``gunicorn_loop``: the main thread. It accepts, expires idle connections, drains lingering ones,
  reads all HTTP/2 connections, and stops. It never blocks on a client.
- ``gunicorn_boot``: what happens before that.
- ``gunicorn_http1`` and ``gunicorn_http2``: a thread serves one request.

This file connects them. A pool thread waits, with all others, on one epoll for any connection
(``gunicorn_threads``). It reads what has arrived, without blocking, and serves the request once
enough of it is there (``gunicorn_connection``). So a request needs no hand-over between threads,
and a client that sends its head or a short body slowly occupies none.

Ownership

- A connection belongs to exactly one of: the table of idle connections, the thread that serves it,
  the lingering table, or (HTTP/2) the loop. ``_lingering`` and ``_http2`` are changed by the main
  thread only; pool threads reach it by :meth:`~wsgigate.servers.gunicorn_loop.LoopWorker.defer`.
  ``_open`` has all connections until they linger.
- A connection whose client reads slowly is in the table of idle ones for its output, even while a
  thread serves it. A thread that finds it so when the app is done leaves it to the thread that
  sends the last of the output: :meth:`ClientConnection.leave` decides, under the connection's
  lock, which of the two calls :meth:`GateWorker._after`. A connection that the loop expires
  meanwhile is ended by the thread that serves it, or if none does, by the loop:
  :meth:`ClientConnection.give_up`.
- :meth:`GateWorker.release` and :meth:`GateWorker.abort` end a connection once, however often
  they are called.

Slow clients

- Deadlines: see ``gunicorn_connection``. The loop closes the connections that no thread has.
- A thread does wait for a client that sends a body of more than 64 KiB, or does not read a response
  of more than 256 KiB. Such threads are listed in ``waits``. When no thread is free and a request
  waits, those beyond a quarter of the threads end, in the order of :class:`SlowClients`.
"""

from __future__ import annotations

import math
import os
import socket
import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any

from gunicorn.http.message import _ip_in_allow_list
from gunicorn.http2 import negotiation
from gunicorn.sock import ssl_context

from wsgigate.http.forwarded import AddressList
from wsgigate.http.reserved import CLIENT_LISTENER, OWN_LISTENER, is_listener
from wsgigate.http.wsgi import LEND_THREAD, LISTENER, address_key
from wsgigate.runtime.logs import EventLog, one_line
from wsgigate.servers.gunicorn_body import ClientGone, Deadlines, HandshakeFailed
from wsgigate.servers.gunicorn_boot import BootingWorker
from wsgigate.servers.gunicorn_connection import ClientConnection, Http2Preface, TlsConnection
from wsgigate.servers.gunicorn_http1 import LOST, Http1Worker
from wsgigate.servers.gunicorn_http2 import Http2Worker
from wsgigate.servers.gunicorn_loop import LOOK, STOP_LINGER
from wsgigate.servers.gunicorn_threads import (
    SHORTEST,
    SILENT,
    IdleConnections,
    NewConnections,
    SlowClients,
    Threads,
)
from wsgigate.servers.http1_request import BadRequest, HeadParser, HeadRules
from wsgigate.telemetry.metrics import Counter, Gauge

__all__ = ["GateWorker"]


THREADS = Gauge("wsgigate_worker_threads", "Threads of the workers by state.", ("state",))

QUEUE = Gauge(
    "wsgigate_worker_queue",
    "Requests that wait for a thread, as all threads of their worker are busy.",
)

CONNECTIONS = Gauge(
    "wsgigate_worker_connections",
    "Connections of clients: those that threads serve, idle ones, and those that are closing.",
    ("state",),
)

CLOSED = Counter(
    "wsgigate_worker_connections_rejected",
    "Connections that a worker closed: client (an address has too many), slow (all threads wait "
    "for slow clients), oldest (there are too many), tls (the handshake cannot begin).",
    ("reason",),
)

PATIENCE = 1.0
"""Seconds for which a thread waits for a request before it checks whether the pool has stopped."""


class GateWorker(BootingWorker, Http1Worker, Http2Worker):
    """gunicorn's threaded worker with deadlines for clients, for gunicorn's ``--worker-class``.

    :cvar head_timeout: Seconds for a request head, and for the TLS handshake before it.
    :cvar idle_timeout: Seconds for a client to send more of a body or take more of a response.
    :cvar body_rate: Bytes of a body that earn its client one more second in all.
    :cvar max_connections_per_client: Connections that one address may have open, or one /64 network
        of IPv6; None for any number. Those of a Unix socket have no address, and no limit.
    :cvar trusted_proxies: Addresses and networks without that limit.
    :cvar metrics_bind: The address of the listener for metrics and probes: it speaks plain HTTP,
        without TLS and the PROXY protocol, and its connections count for no limit.
    :ivar at_work: The threads that handle an event.
    :ivar waits: Since when a thread waits for the client of each connection, in monotonic seconds.
    """

    head_timeout = 10.0
    idle_timeout = 30.0
    body_rate = 500.0
    max_connections_per_client: int | None = None
    trusted_proxies: Sequence[str] = ()
    metrics_bind: str | None = None

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._open: dict[ClientConnection, None] = {}
        self.at_work: set[int] = set()
        self._new = NewConnections()
        self.waits: dict[ClientConnection, float] = {}
        self._slow: SlowClients[ClientConnection] = SlowClients()
        self._next_scan = 0.0
        self._handshakes = EventLog(self._log_handshake, self._log_handshakes_end, most=32)
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
        self.tpool = Threads(int(cfg.threads), self.serve_next)
        self._has_siblings = int(cfg.workers) > 1
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
            self.head_timeout, self.idle_timeout, self.body_rate, self.keep_alive
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
        self._environ = self.environ() | {LEND_THREAD: self.tpool.lend}
        self._proxied = cfg.proxy_protocol
        self._counts = ConnectionCounts(self.max_connections_per_client, self.trusted_proxies)

    # Connections.

    def opened(self, client: socket.socket, address: Any, listener: Any) -> None:
        """Add a connection that was accepted to the idle ones; it belongs to no thread yet."""
        server = listener.getsockname()
        own = is_listener(self.metrics_bind, server)
        may_proxy = not own and self._proxied != "off" and self._may_proxy(address)
        counted = "" if may_proxy or own else self._count(address)
        if counted is None:
            CLOSED.labels("client").add()
            client.close()
            return
        kind = ClientConnection
        tls = self._tls and not own
        if tls:
            try:
                client = self._wrapped(client)
            except OSError as error:
                # nothing was read yet, so either a file cannot be used, or the client has left
                level = self.log.debug if error.errno in LOST else self.log.error
                level("TLS failed with ip=%s: %s", _host(address), error)
                CLOSED.labels("tls").add()
                client.close()
                self._counts.leave(counted)
                return
            kind = TlsConnection
        elif client.gettimeout() is not None:
            client.setblocking(True)
        environ = self._environ.copy()
        if self.metrics_bind is not None:
            environ[LISTENER] = OWN_LISTENER if own else CLIENT_LISTENER
        environ["gunicorn.socket"] = client
        environ["REMOTE_ADDR"] = _host(address)
        if isinstance(address, tuple):
            environ["REMOTE_PORT"] = str(address[1])
        if isinstance(server, tuple):
            environ["SERVER_NAME"], environ["SERVER_PORT"] = server[0], str(server[1])
        connection = kind(
            client,
            address,
            environ,
            self._trusted if self._is_trusted(address) else self._plain,
            self._rules,
            self._deadlines,
            waits=self.waits,
            watch=self._watch_output,
            proxied="off" if own else self._proxied,
            may_proxy=may_proxy,
            http2=not tls and negotiation.prior_knowledge_allowed(self.cfg, address),
        )
        connection.server = server
        connection.counted = counted
        self._open[connection] = None
        if self._has_siblings:
            self._new.add(connection, time.monotonic())
        self.idle.add(connection)
        self.tpool.start()

    def _count(self, address: Any) -> str | None:
        """Count a connection; return the key that it counts for, None if it is one too many.

        The key is empty for a connection without a limit, as that of a Unix socket.
        """
        counts = self._counts
        if not counts.most or not isinstance(address, tuple) or address[0] in counts.exempt:
            return ""
        key = address_key(address[0])
        refused = counts.enter(key)
        if refused is None:
            return key
        if refused:
            self.log.warning(
                "Connections closed: ip=%s has %d (max_connections_per_client)",
                address[0],
                counts.most,
            )
        return None

    def _wrapped(self, client: socket.socket) -> socket.socket:
        """Return *client* wrapped for TLS; the handshake follows as it arrives.

        :raises OSError: A file cannot be used, or the client has left.
        """
        client.setblocking(False)
        wrapped: socket.socket = ssl_context(self.cfg).wrap_socket(
            client,
            server_side=True,
            suppress_ragged_eofs=self.cfg.suppress_ragged_eofs,
            do_handshake_on_connect=False,
        )
        return wrapped

    def _is_trusted(self, address: Any) -> bool:
        """Return whether gunicorn trusts the peer's fields for the scheme."""
        cfg = self.cfg
        return not isinstance(address, tuple) or _ip_in_allow_list(
            address[0], cfg.forwarded_allow_ips, cfg.forwarded_allow_networks()
        )

    def _watch_output(self, connection: ClientConnection) -> None:
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
        return SHORTEST if self.waits else LOOK

    def is_crowded(self) -> bool:
        """Return whether every thread is busy while other workers may have a free one."""
        if not self._has_siblings:
            return False
        return len(self.at_work) + self._new.count(time.monotonic()) >= self.tpool.count

    def turn(self) -> float:
        """Return how many seconds the loop may wait until it looks whether it can accept again."""
        return SILENT if self._new else super().turn()

    def make_room(self) -> None:
        """Close the connection that has been silent for longest, if any is idle."""
        silent = self.silent_http2()
        if silent is not None and silent[0] < self.idle.silent_since:
            self.end_http2(silent[1])
            return
        connection = self.idle.take_oldest()
        if connection is not None:
            CLOSED.labels("oldest").add()
            self.drop(connection)

    def drop(self, connection: ClientConnection) -> None:
        """Close a connection at once; if a thread serves its request, that one closes it."""
        if connection.give_up():
            connection.cut()
        else:
            self.abort(connection)

    def release(self, conn: ClientConnection) -> None:
        """Close *conn* in steps; runs in the loop."""
        if not self._forget(conn):
            return
        if conn.abandoned:
            conn.close()
        else:
            conn.settle()
            self.linger(conn.sock)

    def abort(self, conn: ClientConnection) -> None:
        """Close *conn* at once."""
        if self._forget(conn):
            conn.close()

    def _forget(self, conn: ClientConnection) -> bool:
        """Return whether *conn* was open until now."""
        if self._open.pop(conn, conn) is not None:
            return False
        self._counts.leave(conn.counted)
        return True

    def expire(self, now: float) -> None:
        """Close the connections whose time is over."""
        super().expire(now)
        if self.waits:
            self._free_threads(now)
        if now < self._next_scan:
            return
        self._next_scan = now + LOOK
        self._measure()
        for connection in self.idle.take_expired(now):
            self.drop(connection)
        if self._stop_at is not None and now >= self._stop_at:
            self.refuse_http2()
        self.end_idle_http2(now)

    def _measure(self) -> None:
        """Set the gauges of this worker: four times a second, so that no request pays for it."""
        busy, idle = len(self.at_work), len(self.idle)
        for gauge, state, value in (
            (THREADS, "busy", busy),
            (THREADS, "idle", max(0, self.tpool.count - busy)),
            (CONNECTIONS, "active", max(0, len(self._open) - idle)),
            (CONNECTIONS, "idle", idle),
            (CONNECTIONS, "closing", len(self._lingering)),
        ):
            gauge.labels(state).set(value)
        QUEUE.set(self.idle.count_ready() if busy >= self.tpool.count else 0)

    def _free_threads(self, now: float) -> None:
        """Cut clients that threads wait for, where no thread is left for a request that waits."""
        waits = self.waits.copy()
        surplus = len(waits) - self.tpool.count // 4
        if surplus <= 0 or len(self.at_work) < self.tpool.count or not self.idle.any_ready():
            self._slow.relax(now)
            return
        progress = {each: (since, each.progress()) for each, since in waits.items()}
        ended = self._slow.select(progress, surplus, now)
        for connection in ended:
            connection.cut()
        if ended:
            CLOSED.labels("slow").add(len(ended))
            self.log.warning("%d connections cut: all threads wait for slow clients", len(ended))

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

    def serve_next(self) -> None:
        """Handle the next event of a connection, if one comes soon."""
        connection = self.idle.take(PATIENCE)
        if connection is None:
            return
        me = threading.get_ident()
        self.at_work.add(me)
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
            self.at_work.discard(me)

    def _handle(self, connection: ClientConnection) -> None:
        """Handle an event of *connection*: it is readable, or its client has read enough."""
        if connection.flushing:
            self._flush(connection)
            return
        try:
            request = connection.advance()
        except BadRequest as error:
            connection.serving = True
            self.send_refusal(connection, error)
            self._leave(connection, False)
            return
        except Http2Preface:
            self.defer(self.add_http2, connection)
            return
        except HandshakeFailed as error:
            self._handshakes.add(error.reason, (error.reason, connection.client))
            self.abort(connection)
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
            keep = self.serve(connection, request)
        finally:
            self._leave(connection, keep)

    def _log_handshake(self, event: tuple[str, Any], held: int) -> None:
        reason, client = event
        more = f" ({held} more failed since the last such line)" if held else ""
        host = client[0] if isinstance(client, tuple) and client else "unix"
        self.log.warning("TLS handshake with ip=%s failed: %s%s", host, one_line(reason), more)

    def _log_handshakes_end(self, event: tuple[str, Any], total: int, lasted: float) -> None:
        self.log.warning(
            "No TLS handshake has failed for a minute: %s: %d did in %.0f s",
            one_line(event[0]),
            total,
            lasted,
        )

    def _leave(self, connection: ClientConnection, keep: bool) -> None:
        if not connection.leave(keep):
            self._after(connection, keep)

    def _flush(self, connection: ClientConnection) -> None:
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

    def _after(self, connection: ClientConnection, keep: bool) -> None:
        """Wait for the next request of *connection*, or close it.

        One that was given up is closed in any case: no response could be sent to a next request.
        """
        if connection.abandoned:
            self.abort(connection)
        elif keep:
            connection.rest()
            self.idle.add(connection, writable=connection.has_read_ahead())
            # after it was added: a worker that begins to stop later finds it there
            if not self.alive:
                self.defer(self._cap_idle)
        else:
            self.defer(self.release, connection)


class ConnectionCounts:
    """Counts the connections of each client address; those that linger do not count.

    :param most: The most that one may have; None for any number.
    :param exempt: Addresses and networks that the caller does not count.
    """

    def __init__(self, most: int | None, exempt: Iterable[str]) -> None:
        self.most = most or 0
        self.exempt = AddressList(exempt)
        self._lock = threading.Lock()
        self._open: dict[str, int] = {}
        self._refused: set[str] = set()  # since each had no connection: logged once

    def enter(self, key: str) -> bool | None:
        """Count a connection; return None, or if it is one too many whether to log that."""
        with self._lock:
            count = self._open.get(key, 0)
            if count < self.most:
                self._open[key] = count + 1
                return None
            first = key not in self._refused
            self._refused.add(key)
            return first

    def __len__(self) -> int:
        """Return how many client addresses have a connection."""
        return len(self._open)

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


def _host(address: Any) -> str:
    """Return a peer's address; that of a Unix socket is its path, or empty."""
    if isinstance(address, tuple):
        return str(address[0])
    return address.decode() if isinstance(address, bytes) else str(address)
