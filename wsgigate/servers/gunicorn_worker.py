"""A gthread worker that slow clients can not hold.

gunicorn's own has no deadline for a client once its first byte has come: as many clients as it has
threads that send half a head, half a body, or never read, block it for ever; and each client that
keeps its socket open after ``Connection: close`` stops it from accepting for two seconds. Here

- all threads watch all connections: a request is served by whichever thread is free, without being
  handed from one to another, and a connection takes none until there is something to read;
- a request head, and the TLS handshake before it, must be complete ``head_timeout`` seconds after
  its first byte;
- a body that stalls or trickles, or a response that is not taken, ends after ``idle_timeout``
  seconds;
- a connection that was answered for the last time lingers in the poller, not in the accept loop;
- a worker whose threads are all busy leaves new connections to the other workers first;
- a worker with as many connections as it may have closes the one that has been silent for longest,
  and one without a file descriptor left rests from accepting, where gunicorn's dies;
- a worker that is told to stop closes its listeners first, or the kernel would accept for it;
- a signal to stop that comes while a worker is being forked is heeded, not lost;
- a worker that is to end at once does so, whatever its threads wait for.

It builds on the inside of ``gunicorn.workers.gthread``, no public interface: see ``TESTED``.
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

from wsgigate.server_check import facts_of_gunicorn, findings, tell
from wsgigate.servers.gunicorn_connection import Connection
from wsgigate.servers.gunicorn_http1 import Http1Worker
from wsgigate.servers.gunicorn_threads import IdleConnections, Threads

__all__ = ["BootingWorker", "GateWorker", "TESTED"]


# How a GateWorker begins: heedful of signals, and not at all where it would serve unsafely.

TESTED = ((27, 0), (28, 0))
"""The gunicorn releases it was tested with: from the first, before the second."""

_PAUSE = 0.05

_STOP = (signal.SIGTERM, signal.SIGQUIT, signal.SIGINT)


class _Word:
    """What one of a master's workers has, whichever asks first, and the others have not."""

    def __init__(self) -> None:
        self._taken, given = os.pipe()
        os.set_blocking(self._taken, False)
        os.write(given, b"1")
        self._given = given  # open, or those who come late would read the end

    def take(self) -> bool:
        """Return whether it is this process's now."""
        try:
            return bool(os.read(self._taken, 1))
        except BlockingIOError:
            return False


class BootingWorker(Http1Worker):
    """gunicorn's threaded worker, which does not serve unsafely, and loses no signal at birth."""

    booted: bool
    _last_word: _Word | None = None

    @classmethod
    def check_config(cls, cfg: Any, log: Any) -> None:
        """Get ready to fork workers; called by the master at its start."""
        super().check_config(cfg, log)
        cls._last_word = _Word()

    def init_process(self) -> None:
        """Load the app and serve it.

        When several workers can not, only one of them says so. The master ends with the status of
        the first it sees (3: a worker failed to boot), and breaks down over the second, with a
        traceback and another status, if that has ended before it was told to.
        """
        try:
            super().init_process()
        except (Exception, SystemExit) as error:
            refused = isinstance(error, Exception) or error.code == Arbiter.WORKER_BOOT_ERROR
            if self.booted or not refused or self._last_word is None or self._last_word.take():
                raise
            self.log.error("Not booted either, and waiting to be told to exit: %r", error)
            self._await_the_end()

    def _await_the_end(self) -> None:
        while self.alive and self.is_parent_alive():
            self.notify()
            time.sleep(_PAUSE)

    def load_wsgi(self) -> None:
        """Load the app; for a gateway, see whether it is safe under these settings.

        :raises SystemExit: It is not, and the gateway is one that refuses then.
        """
        super().load_wsgi()
        mode = getattr(self.wsgi, "self_check", None)
        if mode is not None:
            facts = facts_of_gunicorn(self.cfg, worker="GateWorker", tested=TESTED)
            if tell(findings(facts), mode, self.log):
                raise SystemExit(Arbiter.WORKER_BOOT_ERROR)  # ends the master too

    def init_signals(self) -> None:
        """Listen to signals, and to what came while the master's handlers were still in place.

        A worker that was just forked has them, and they put the signal into its copy of the
        master's queue, which nobody reads. gunicorn's master sends each signal once and then waits
        for ``graceful_timeout`` before it kills.
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


REST = 1.0
"""Seconds without accepting when nothing was left to accept with."""

PATIENCE = 1.0
"""Seconds for which a thread waits for a request before it sees whether it is still wanted."""

LOOK = 0.25
"""Seconds between two looks at who has waited too long, as each is one at every connection."""

TURN = 0.02
"""Seconds for which a connection is left to the other workers while all threads are busy."""

_BROKEN = (errno.EBADF, errno.EFAULT, errno.EINVAL, errno.ENOTSOCK)

_SHORT = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class GateWorker(BootingWorker):
    """gunicorn's threaded worker with deadlines for clients; ``--worker-class`` takes its path.

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
        self._heads: dict[Any, float] = {}  # connections whose head is being read: until when
        self._looks_at = 0.0
        self._rests_until = 0.0
        self._untaken_since: float | None = None
        self._keeps_until = math.inf  # when a stopping worker takes no further request

    @classmethod
    def having(cls, **changes: float | None) -> type[GateWorker]:
        """Return the class with other values in the place of its own, those that are not None."""
        given = {
            name: value
            for name, value in changes.items()
            if value is not None and value != getattr(cls, name)
        }
        return type(cls.__name__, (cls,), given) if given else cls

    @classmethod
    def check_config(cls, cfg: Any, log: Any) -> None:
        """Warn of settings that undo what the worker is for."""
        super().check_config(cfg, log)
        if cfg.is_ssl and cfg.do_handshake_on_connect:
            log.warning("do_handshake_on_connect leaves TLS handshakes without a deadline")

    def get_thread_pool(self) -> Threads:
        """Return the threads, and have them watch the connections, once there are any."""
        self.keepalived_conns = IdleConnections()
        return Threads(int(self.cfg.threads), self._serve_next)

    def set_accept_enabled(self, enabled: bool) -> None:
        """Accept while a thread is free; a connection that would wait is another worker's."""
        rested = time.monotonic() >= self._rests_until
        super().set_accept_enabled(enabled and rested and not self._crowded())

    def wait_for_and_dispatch_events(self, timeout: float) -> None:
        """Wait for something to happen, and while all threads are busy look after newcomers."""
        crowded = self._crowded()
        if crowded:
            self.set_accept_enabled(False)
        if self.alive and not self._accepting and self.nr_conns < self.worker_connections:
            timeout = min(timeout, TURN)  # for a thread may be free by then, and wakes nobody
        super().wait_for_and_dispatch_events(timeout)
        if crowded:
            self._take_turn()
        else:
            self._untaken_since = None

    def _crowded(self) -> bool:
        """Return whether every thread is busy while other workers may have a free one."""
        return len(self._at_work) >= int(self.cfg.threads) and int(self.cfg.workers) > 1

    def _take_turn(self) -> None:
        """Accept what no other worker has taken for a while: they are all busy.

        Clients that keep their connections must not keep others from having one.
        """
        now = time.monotonic()
        if not self.alive or not self._crowded() or not self._anybody_waits():
            self._untaken_since = None
        elif self._untaken_since is None:
            self._untaken_since = now
        elif now - self._untaken_since >= TURN and self.nr_conns < self.worker_connections:
            self._untaken_since = None
            for listener in self.sockets:
                self._accept_waiting(listener)

    def _anybody_waits(self) -> bool:
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
        """Serve the next request of any connection, if one comes soon; runs in each thread."""
        connection = self.keepalived_conns.take(PATIENCE)
        if connection is None:
            return
        me = threading.get_ident()
        self._at_work.add(me)
        try:
            if callable(connection):
                self._done(connection)
            elif not self._served_and_kept(connection):
                self.method_queue.defer(self._let_go, connection)
        finally:
            self._at_work.discard(me)

    def _done(self, work: Callable[[], object]) -> None:
        """Do what was offered to the next free thread: a request of an HTTP/2 connection."""
        try:
            work()
        except BaseException:
            self.log.exception("Error serving a connection")

    def _served_and_kept(self, connection: Any) -> bool:
        """Serve what has arrived; return whether the connection waits for more by now."""
        try:
            connection.data_ready = True
            if not self.handle(connection):
                return False
            if getattr(connection, "is_http2", False):
                return True  # the loop's from now on
            connection.set_timeout()
            ahead = connection.has_read_ahead()
            if ahead:  # it waits for its client to take an answer
                connection.timeout = time.monotonic() + self.idle_timeout
            if not self.alive:
                until = time.monotonic() + gthread.STOP_KEEPALIVE_LINGER
                connection.timeout = min(connection.timeout, until)
                self.method_queue.defer(_look_again)
            self.keepalived_conns.add(connection, read_ahead=ahead)
        except BaseException:
            self.log.exception("Error serving a connection")
            return False
        return True

    def _let_go(self, connection: Any) -> None:
        """Close a connection that was answered for the last time; runs in the loop."""
        self.nr_conns -= 1
        try:
            connection.close(graceful=True)
        except Exception:  # whatever it is, it is nothing that the others are to suffer from
            self.log.exception("Error closing a connection")
            util.close(connection.sock)

    def accept(self, listener: socket.socket) -> None:
        """Accept a connection, unless another worker should."""
        if self._crowded():
            self.set_accept_enabled(False)
        elif self.alive:  # else _stop_listening() knows whose it is
            self._accept(listener)

    def _accept(self, listener: socket.socket) -> None:
        """Accept a connection and wait for its first byte."""
        try:
            client, address = listener.accept()
        except OSError as error:
            if error.errno in _BROKEN:
                raise
            if error.errno in _SHORT:
                self.log.warning("Resting from accepting connections: %s", error)
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

        What it accepts for a worker that ends would hang, and be reset when the worker exits.

        While the master listens, on SIGHUP or when a worker has served its number of requests,
        connections in the backlog belong to the other workers, which are not ending. When the
        gateway stops, the master has closed its listeners before it signals the workers. Whoever
        closes the last copy resets what is in the backlog, so that is accepted first, and served
        with ``Connection: close``.
        """
        for listener in self.sockets:
            if not self._master_has(listener):
                before = -1
                while before != self.nr_conns < self.worker_connections:
                    before = self.nr_conns
                    self._accept(listener)
            listener.close()

    def _master_has(self, listener: socket.socket) -> bool:
        """Return whether the master has *listener* open; False where that cannot be found out."""
        try:
            wanted = f"socket:[{os.fstat(listener.fileno()).st_ino}]"
            folder = f"/proc/{self.ppid}/fd/"
            return self.ppid == os.getppid() and any(
                _link(folder + number) == wanted for number in os.listdir(folder)
            )
        except OSError:
            return False

    def _make_room(self) -> None:
        """Close the connection from which nothing has come for longest, if there is one."""
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
        """Serve what has begun to arrive on *conn*, in a thread of the pool."""
        self._heads[conn] = time.monotonic() + self.head_timeout
        conn.begin_head()
        try:
            return super().handle(conn)
        except (SystemExit, KeyboardInterrupt) as error:
            # An application's, which would end the worker and everybody else's requests.
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
        """Serve what has arrived on an HTTP/2 connection, which has deadlines of its own."""
        self._heads.pop(conn, None)
        return super().handle_http2(conn)

    def murder_keepalived(self, force: bool = False) -> None:
        """Close what has waited too long, or all; called by the loop, at least once a second."""
        now = time.monotonic()
        if now < self._looks_at and self.alive and not force:
            return
        self._looks_at = now + LOOK
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
        self._stop_listening()  # called once, when the worker begins to stop
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
    except OSError:  # the master has closed it meanwhile
        return ""


def _look_again() -> None:
    """Do nothing: the loop is to see that the worker stops."""
