"""A gunicorn gthread worker that slow clients cannot block.

gunicorn's gthread worker has no deadline for a client after the first byte. As many clients as it
has threads, each sending half a head or half a body or never reading, block it forever; and each
client that keeps its socket open after ``Connection: close`` stops the accept loop for two seconds.
``GateWorker`` builds on internals of ``gunicorn.workers.gthread``, which are not a public
interface: :data:`TESTED` names the supported releases, and other releases run plain gthread.

Theory of operation
-------------------

Threads and ownership

- The main thread runs gunicorn's loop: it accepts, expires idle connections, drains lingering ones
  and reads all HTTP/2 connections. It never blocks on a client.
- Every pool thread waits on the same epoll for any idle connection (``gunicorn_threads``). A
  request is served by the first free thread, without a hand-over between threads; a connection
  occupies no thread until it is readable.
- A connection belongs to exactly one of: the table of idle connections, the thread that serves it,
  the lingering table, or (HTTP/2) the loop. ``nr_conns``, ``_lingering`` and ``_http2`` are changed
  by the main thread only; pool threads reach it by ``method_queue.defer``. A thread that changed
  ``nr_conns`` itself would lose counts, and the worker would stop accepting at its limit.

Deadlines

- The TLS handshake and the request head must be complete ``head_timeout`` seconds after the first
  byte. The loop enforces this by shutting the socket down, as the head may be read by several calls
  that each have their own timeout.
- A body must not stall for ``idle_timeout`` seconds, and earns one more second in all per
  ``body_rate`` bytes; each 64 KiB of a response must be read within ``idle_timeout`` seconds. The
  thread enforces both (``gunicorn_connection``).
- After its last response a connection lingers in the poller, not in the accept loop.

Capacity

- A worker whose threads are all busy leaves new connections to the other workers, for :data:`TURN`
  seconds: after that all workers are busy, and it accepts them, or clients with persistent
  connections would keep all others out.
- At ``worker_connections`` the worker closes the connection that has been silent for longest. Out
  of file descriptors it pauses accepting for :data:`REST` seconds, where gthread's worker exits.

Signals and stop

- gunicorn's master sends each signal once. A worker that was just forked still has the master's
  handlers, which queue the signal in the worker's copy of the master's queue, where no code reads
  it. ``init_signals`` therefore installs the worker's handlers first and drains that queue second;
  the other order would lose a signal that arrives in between.
- A stopping worker closes its listeners first: the kernel completes handshakes for as long as any
  process has the listener open, and such a connection would hang and be reset at exit. While the
  master listens (reload, ``max_requests``), the backlog belongs to the other workers. When the
  master has closed its copies, the last worker to close one would reset the backlog, so each worker
  accepts it first.
- Idle connections then end within ``STOP_KEEPALIVE_LINGER`` seconds, HTTP/2 clients get GOAWAY, and
  the application is notified by its ``stopping`` method. Threads are daemons: a worker that must
  exit at once does so, whatever they wait for.
- When several workers fail to boot, only one may exit with ``WORKER_BOOT_ERROR``, and the others
  wait for the master's signal: see :meth:`BootingWorker.init_process`.
"""

from __future__ import annotations

import errno
import math
import os
import queue
import select
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from gunicorn import util
from gunicorn.arbiter import Arbiter
from gunicorn.workers import gthread

from wsgigate.server_check import facts_of_gunicorn, findings, log_findings
from wsgigate.servers.gunicorn_connection import Connection
from wsgigate.servers.gunicorn_http1 import Http1Worker
from wsgigate.servers.gunicorn_threads import IdleConnections, Threads

__all__ = ["TESTED", "BootingWorker", "GateWorker"]


# Boot: signals during the fork, the self-check, and workers that fail to boot.

TESTED = ((27, 0), (28, 0))
"""The supported gunicorn releases: from the first (inclusive) to the second (exclusive)."""

_PAUSE = 0.05
"""Seconds between two heartbeats of a worker that failed to boot and waits for its signal."""

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


class BootingWorker(Http1Worker):
    """gunicorn's threaded worker with a self-check at boot, and no signal lost during the fork."""

    booted: bool
    _boot_error: _OnceToken | None = None

    @classmethod
    def check_config(cls, cfg: Any, log: Any) -> None:
        """Prepare for forking workers; the master calls this at its start."""
        super().check_config(cfg, log)
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
        while self.alive and self.is_parent_alive():
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


# Serving: accepting, deadlines and the stop.

REST = 1.0
"""Seconds without accepting after the system ran out of file descriptors or memory."""

PATIENCE = 1.0
"""Seconds for which a thread waits for a request before it checks whether the pool has stopped."""

LOOK = 0.25
"""Seconds between two scans for expired connections: each scan visits every connection."""

TURN = 0.02
"""Seconds for which a new connection is left to the other workers while all threads are busy."""

_BROKEN = (errno.EBADF, errno.EFAULT, errno.EINVAL, errno.ENOTSOCK)

_SHORT = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class GateWorker(BootingWorker):
    """gunicorn's threaded worker with deadlines for clients, for gunicorn's ``--worker-class``.

    :cvar head_timeout: Seconds for a request head, and for the TLS handshake before it.
    :cvar idle_timeout: Seconds for a client to send more of a body or take more of a response.
    :cvar body_rate: Bytes of a body that earn its client one more second in all.
    """

    head_timeout = 10.0
    idle_timeout = 30.0
    body_rate = 500.0

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._at_work: set[int] = set()  # threads that serve a request
        self._heads: dict[Any, float] = {}  # the deadline of each head that is being read
        self._next_scan = 0.0
        self._rests_until = 0.0
        self._untaken_since: float | None = None  # since when a connection waits in the backlog
        self._keeps_until = math.inf  # when a stopping worker accepts no further request

    @classmethod
    def having(cls, **changes: float | None) -> type[GateWorker]:
        """Return a subclass with the class attributes *changes*, without those that are None."""
        given = {
            name: value
            for name, value in changes.items()
            if value is not None and value != getattr(cls, name)
        }
        return type(cls.__name__, (cls,), given) if given else cls

    @classmethod
    def check_config(cls, cfg: Any, log: Any) -> None:
        """Log a warning for settings that disable the worker's deadlines."""
        super().check_config(cfg, log)
        if cfg.is_ssl and cfg.do_handshake_on_connect:
            log.warning("do_handshake_on_connect leaves TLS handshakes without a deadline")

    def get_thread_pool(self) -> Threads:
        """Return the threads; they start with the first connection, and wait for idle ones."""
        self.keepalived_conns = IdleConnections()
        return Threads(int(self.cfg.threads), self._serve_next)

    def set_accept_enabled(self, enabled: bool) -> None:
        """Accept while a thread is free; else leave the connection to another worker."""
        rested = time.monotonic() >= self._rests_until
        super().set_accept_enabled(enabled and rested and not self._crowded())

    def wait_for_and_dispatch_events(self, timeout: float) -> None:
        """Wait for events; while all threads are busy, check the backlog as well."""
        crowded = self._crowded()
        if crowded:
            self.set_accept_enabled(False)
        if self.alive and not self._accepting and self.nr_conns < self.worker_connections:
            timeout = min(timeout, TURN)  # a thread that becomes free does not wake the loop
        super().wait_for_and_dispatch_events(timeout)
        if crowded:
            self._take_turn()
        else:
            self._untaken_since = None

    def _crowded(self) -> bool:
        """Return whether every thread is busy while other workers may have a free one."""
        return len(self._at_work) >= self.tpool.count and int(self.cfg.workers) > 1

    def _take_turn(self) -> None:
        """Accept what no other worker has accepted for :data:`TURN` seconds: all are busy.

        Persistent connections must not keep other clients from connecting.
        """
        now = time.monotonic()
        if not self.alive or not self._crowded() or not self._has_backlog():
            self._untaken_since = None
        elif self._untaken_since is None:
            self._untaken_since = now
        elif now - self._untaken_since >= TURN and self.nr_conns < self.worker_connections:
            self._untaken_since = None
            for listener in self.sockets:
                self._accept_waiting(listener)

    def _has_backlog(self) -> bool:
        """Return whether a connection waits to be accepted."""
        poll = select.poll()
        for listener in self.sockets:
            poll.register(listener.fileno(), select.POLLIN)
        return bool(poll.poll(0))

    def _accept_waiting(self, listener: socket.socket) -> None:
        for _ in range(self.cfg.threads):
            before = self.nr_conns
            self._accept(listener)
            if self.nr_conns == before:
                return

    def _serve_next(self) -> None:
        """Serve the next readable connection, if one comes soon; each pool thread runs this."""
        connection = self.keepalived_conns.take(PATIENCE)
        if connection is None:
            return
        me = threading.get_ident()
        self._at_work.add(me)
        try:
            if callable(connection):
                self._run_offered(connection)
            elif not self._serve_and_keep(connection):
                self.method_queue.defer(self._close_gracefully, connection)
        finally:
            self._at_work.discard(me)

    def _run_offered(self, work: Callable[[], object]) -> None:
        """Run *work*, which was offered to the next free thread: an HTTP/2 request."""
        try:
            work()
        except BaseException:
            self.log.exception("Error serving a connection")

    def _serve_and_keep(self, connection: Any) -> bool:
        """Serve the request that has arrived; return whether the connection stays open.

        If so, it is no longer this thread's: it is among the idle ones, or the loop's (HTTP/2).
        """
        try:
            connection.data_ready = True
            if not self.handle(connection):
                return False
            if getattr(connection, "is_http2", False):
                return True  # owned by the loop from now on
            connection.set_timeout()
            ahead = connection.has_read_ahead()
            if ahead:  # a pipelined request: it waits until the client has read the response
                connection.timeout = time.monotonic() + self.idle_timeout
            self.keepalived_conns.add(connection, read_ahead=ahead)
        except BaseException:
            self.log.exception("Error serving a connection")
            return False
        # Checked after the connection was added: a worker that begins to stop later finds it there.
        if not self.alive:
            self.method_queue.defer(self._cap_idle)
        return True

    def _cap_idle(self) -> None:
        """Give the idle connections of a stopping worker the time for one more request."""
        super()._cap_keepalive(time.monotonic() + gthread.STOP_KEEPALIVE_LINGER)

    def _close_gracefully(self, connection: Any) -> None:
        """Close a connection after its last response; runs in the loop."""
        self.nr_conns -= 1
        try:
            connection.close(graceful=True)
        except Exception:  # must not end the loop, which serves all other connections
            self.log.exception("Error closing a connection")
            util.close(connection.sock)

    def accept(self, listener: socket.socket) -> None:
        """Accept a connection, unless another worker should."""
        if self._crowded():
            self.set_accept_enabled(False)
        elif self.alive:  # else _stop_listening() decides which worker accepts it
            self._accept(listener)

    def _accept(self, listener: socket.socket) -> None:
        """Accept a connection, and add it to the idle ones until its first byte arrives."""
        try:
            client, address = listener.accept()
        except OSError as error:
            if error.errno in _BROKEN:
                raise
            if error.errno in _SHORT:
                self.log.warning("Accepting paused for %g s: %s", REST, error)
                self._rests_until = time.monotonic() + REST
                self.set_accept_enabled(False)
                self._make_room()
            return
        self.nr_conns += 1
        connection = Connection(self, self.cfg, client, address, listener.getsockname())
        connection.timeout = time.monotonic() + self.head_timeout
        if self.nr_conns >= self.worker_connections:
            self._make_room()
        self.keepalived_conns.add(connection)
        self.tpool.start()

    def _stop_listening(self) -> None:
        """Close this process's listeners: the kernel accepts for as long as one is open.

        A connection accepted for a worker that ends would hang, and be reset when it exits.

        While the master listens, on SIGHUP or when a worker has served ``max_requests``, the
        connections in the backlog belong to the other workers, which are not ending. When the
        gateway stops, the master has closed its listeners before it signals the workers. Closing
        the last copy of a listener resets its backlog, so the worker first accepts the backlog, and
        serves it with ``Connection: close``.
        """
        for listener in self.sockets:
            if not self._master_has(listener):
                before = -1
                while before != self.nr_conns < self.worker_connections:
                    before = self.nr_conns
                    self._accept(listener)
            listener.close()

    def _master_has(self, listener: socket.socket) -> bool:
        """Return whether the master has *listener* open; False where /proc does not show it."""
        try:
            wanted = f"socket:[{os.fstat(listener.fileno()).st_ino}]"
            folder = f"/proc/{self.ppid}/fd/"
            return self.ppid == os.getppid() and any(
                _link(folder + number) == wanted for number in os.listdir(folder)
            )
        except OSError:
            return False

    def _make_room(self) -> None:
        """Close the connection that has been silent for longest, if any is idle."""
        if self.end_oldest_lingering():
            return
        silent = self.silent_http2()
        if silent is not None and silent[0] < self.keepalived_conns.silent_since:
            self.end_http2(silent[1])
            return
        connection = self.keepalived_conns.take_oldest()
        if connection is not None:
            self.nr_conns -= 1
            connection.close()

    def handle(self, conn: Any) -> Any:
        """Serve the request that has begun to arrive on *conn*; runs in a pool thread."""
        self._heads[conn] = time.monotonic() + self.head_timeout
        conn.begin_head()
        try:
            return super().handle(conn)
        except (SystemExit, KeyboardInterrupt) as error:
            # Raised by the application: it would end the worker, and the requests of all others.
            self.handle_error(None, conn.sock, conn.client, RuntimeError(repr(error)))
            return False
        finally:
            self._heads.pop(conn, None)

    def handle_request(self, req: Any, conn: Any) -> Any:
        """Serve a request whose head has been read."""
        self._heads.pop(conn, None)
        conn.begin_body(self.idle_timeout)
        return super().handle_request(req, conn)

    def handle_http2(self, conn: Any) -> Any:
        """Hand an HTTP/2 connection, which enforces its deadlines itself, to the loop."""
        self._heads.pop(conn, None)
        return super().handle_http2(conn)

    def murder_keepalived(self, force: bool = False) -> None:
        """Close expired connections, or all idle ones; the loop calls this every second."""
        now = time.monotonic()
        if now < self._next_scan and self.alive and not force:
            return
        self._next_scan = now + LOOK
        for connection in self.keepalived_conns.take_expired(math.inf if force else now):
            self.nr_conns -= 1
            connection.close()
        self.end_lingering(now)
        if not self.alive and now >= self._keeps_until:
            self.refuse_http2()
        self.end_idle_http2(now, force=force)
        for connection, until in self._heads.copy().items():
            if until < now:
                connection.cut_if_silent()

    def _cap_keepalive(self, deadline: float) -> None:
        # gunicorn calls this once, when the worker begins to stop.
        self._stop_listening()
        super()._cap_keepalive(deadline)
        self._keeps_until = deadline
        self.drain_http2(deadline)
        self.hurry_lingering(deadline)
        stopping = getattr(self.wsgi, "stopping", None)
        if callable(stopping):
            stopping()


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:  # the master has just closed it
        return ""
