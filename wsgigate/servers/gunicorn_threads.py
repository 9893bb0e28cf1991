"""The threads of a worker: the idle connections they serve, and which slow clients lose theirs.

gunicorn has one thread that watches all connections and hands each request to another one, which
hands the connection back through a pipe: two thread wake-ups per request. Here all threads wait on
one epoll, and a free one serves the next readable connection.

Theory of operation
-------------------

- A connection is armed with ``EPOLLONESHOT``: the kernel reports it to one thread, and to no other
  until it is armed again. Without that two threads would read one connection.
- The table ``_waiting`` (by file descriptor) decides ownership. Taking an entry out with
  ``dict.pop``, which is atomic, makes the connection that thread's alone; a thread that finds no
  entry does nothing. The entry must be in the table before the descriptor is armed.
- Once armed, a connection may already belong to another thread. So ``add`` must be the last thing
  that a thread does with it, and an entry is expired only once it is ``watched``, when ``add`` has
  finished.
- Descriptor numbers are reused: an event may be stale, reported for a connection that was closed
  since. ``take`` checks new connections for that, and re-adds those that are not readable.
- Expiry spares a connection that is readable, as a thread is about to serve it.
"""

from __future__ import annotations

import math
import os
import select
import selectors
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any, Generic, Protocol, TypeVar

__all__ = [
    "SHORTEST",
    "SILENT",
    "IdleConnections",
    "NewConnections",
    "ReadinessPoller",
    "SelectorPoller",
    "SlowClients",
    "Threads",
    "Wakeup",
]

C = TypeVar("C", bound=Hashable)
"""A client, or its connection."""

HELD = 0.3
"""Seconds for which a thread may wait for its client while a request waits for a thread."""

SHORTEST = 0.05
"""Seconds to which :data:`HELD` falls while more and more slow clients come."""

CALM = 5.0
"""Seconds after which :data:`HELD` is as before."""

SILENT = 0.002
"""Seconds for which a new connection that has sent nothing is expected to send a request."""


class ReadinessPoller(Protocol):
    """Reports descriptors that are ready, each once until it is armed again."""

    def arm(self, descriptor: int, writable: bool) -> None:
        """Report *descriptor* once when it is readable, or with *writable* when it is writable."""

    def forget(self, descriptor: int) -> None:
        """Stop reporting *descriptor*, which is about to be closed."""

    def wait(self, seconds: float) -> int | None:
        """Return a descriptor that is ready, None if none is within *seconds*."""


class _EpollPoller:
    def __init__(self) -> None:
        self._epoll = select.epoll()

    def arm(self, descriptor: int, writable: bool) -> None:
        events = (select.EPOLLOUT if writable else select.EPOLLIN) | select.EPOLLONESHOT
        try:
            self._epoll.modify(descriptor, events)
        except FileNotFoundError:
            self._epoll.register(descriptor, events)

    def forget(self, descriptor: int) -> None:
        try:
            # Closing it does not unregister it where a child process of the app has a copy.
            self._epoll.unregister(descriptor)
        except OSError:
            pass

    def wait(self, seconds: float) -> int | None:
        for descriptor, _ in self._epoll.poll(seconds, 1):
            return descriptor
        return None


class SelectorPoller:
    """A :class:`ReadinessPoller` in which one thread at a time waits, for systems without epoll.

    :param selector: A selector that accepts changes while it waits, such as kqueue's.
    """

    def __init__(self, selector: selectors.BaseSelector | None = None) -> None:
        self._selector = selector or selectors.DefaultSelector()
        self._turn = threading.Lock()
        self._change = threading.Lock()

    def arm(self, descriptor: int, writable: bool) -> None:
        events = selectors.EVENT_WRITE if writable else selectors.EVENT_READ
        with self._change:
            self._remove(descriptor)
            self._selector.register(descriptor, events)

    def forget(self, descriptor: int) -> None:
        with self._change:
            self._remove(descriptor)

    def _remove(self, descriptor: int) -> None:
        try:
            self._selector.unregister(descriptor)
        except (KeyError, ValueError):
            pass

    def wait(self, seconds: float) -> int | None:
        with self._turn:
            for key, _ in self._selector.select(seconds):
                self.forget(key.fd)
                return key.fd
        return None


_NO_CONNECTION = SimpleNamespace(timeout=0.0)


class _IdleConnection:
    """An idle connection in the table.

    :ivar ahead: Whether its next request has been read, and waits for its turn.
    :ivar since: When the connection became idle.
    :ivar watched: Whether the thread that added it has finished; it must not be closed before.
    """

    __slots__ = ("ahead", "connection", "since", "watched")

    def __init__(self, connection: Any, ahead: bool) -> None:
        self.since = time.monotonic()
        self.connection = connection
        self.ahead = ahead
        self.watched = False


class IdleConnections:
    """Idle connections, in the order in which they became idle.

    The main thread adds new connections and closes expired ones; all threads take connections and
    add them again. There is no lock: the thread that removes an entry from the table owns the
    connection.

    :param watch: Reports the readable ones. Default: epoll, or a selector where there is none.
    """

    def __init__(self, watch: ReadinessPoller | None = None) -> None:
        self._watch: ReadinessPoller = watch or (
            _EpollPoller() if hasattr(select, "epoll") else SelectorPoller()
        )
        self._waiting: dict[int, _IdleConnection] = {}
        self._offered: deque[Callable[[], object]] = deque()
        self._wake_fd = -1
        self._wake_lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Any]:
        return iter([entry.connection for entry in list(self._waiting.values())])

    def __getitem__(self, at: int) -> Any:
        """Return an idle connection, whose ``timeout`` gunicorn's loop reads; a placeholder when
        all are being served."""
        waiting = list(self)
        return waiting[at] if waiting else _NO_CONNECTION

    def add(self, connection: Any, *, writable: bool = False) -> None:
        """Add *connection*: the next free thread serves it once it is readable.

        The caller must not touch it afterwards: another thread may own it already.

        :param writable: Report it once it is writable: when its client has read enough of the last
            response, of which a part is owed, or after which a next request was read already.
        :raises OSError: The socket is closed; the connection was not added.
        """
        descriptor = connection.sock.fileno()
        entry = _IdleConnection(connection, writable)
        self._waiting[descriptor] = entry
        try:
            self._watch.arm(descriptor, writable)
        except BaseException:
            self._waiting.pop(descriptor, None)
            raise
        entry.watched = True

    def offer(self, work: Callable[[], object]) -> None:
        """Queue *work* for the next free thread."""
        self._offered.append(work)
        if self._wake_fd < 0:
            with self._wake_lock:
                if self._wake_fd < 0:
                    self._wake_fd, write_end = os.pipe()
                    os.write(write_end, b"!")  # never read: the pipe is readable whenever armed
                    self._wake_write_end = write_end
        self._watch.arm(self._wake_fd, False)

    def take(self, seconds: float) -> Any:
        """Return a readable connection, or offered work; None if there is none for *seconds*."""
        descriptor = self._watch.wait(seconds)
        if descriptor is None:
            return None
        if descriptor == self._wake_fd:
            try:
                work = self._offered.popleft()
            except IndexError:
                return None
            if self._offered:  # the pipe is reported once, however often it was armed
                self._watch.arm(self._wake_fd, False)
            return work
        entry = self._waiting.pop(descriptor, None)
        if entry is None:  # it has just expired, and was closed
            return None
        connection = entry.connection
        if not connection.initialized and not _ready(entry, descriptor):
            # A stale event: its connection was closed, and this new one has the same descriptor.
            self.add(connection)
            return None
        return connection

    def any_ready(self) -> bool:
        """Return whether a connection waits for a free thread, with something to be read."""
        return self.count_ready() > 0

    def count_ready(self) -> int:
        """Return how many connections wait for a free thread, with something to be read."""
        poll = select.poll()
        for descriptor, entry in list(self._waiting.items()):
            if not getattr(entry.connection, "flushing", False):
                poll.register(descriptor, select.POLLOUT if entry.ahead else select.POLLIN)
        return len(self._offered) + len(poll.poll(0))

    @property
    def silent_since(self) -> float:
        """Since when the oldest connection is idle; infinite when there is none."""
        return next((entry.since for entry in list(self._waiting.values())), math.inf)

    def take_oldest(self) -> Any:
        """Remove and return the connection that has been idle for longest, None without one."""
        return next(self._taken(lambda entry: True), None)

    def take_expired(self, now: float) -> Iterator[Any]:
        """Remove and yield the connections whose deadline has passed, to be closed.

        One whose request waits for a free thread is not among them.

        :param now: Seconds of the monotonic clock; infinite for all connections.
        """
        return self._taken(lambda entry: entry.connection.timeout <= now, spare=now < math.inf)

    def _taken(
        self, wanted: Callable[[_IdleConnection], bool], *, spare: bool = True
    ) -> Iterator[Any]:
        """Remove and yield the *wanted* connections; with *spare*, except those that are ready,
        which a thread is about to serve."""
        for descriptor, seen in list(self._waiting.items()):
            if not (seen.watched and wanted(seen)) or (spare and _ready(seen, descriptor)):
                continue
            entry = self._waiting.pop(descriptor, None)
            if entry is None:
                continue  # it is being served
            if entry is not seen:  # it was served, and added again, in between
                self.add(entry.connection, writable=entry.ahead)
                continue
            self._watch.forget(descriptor)
            yield entry.connection


def _ready(entry: _IdleConnection, descriptor: int) -> bool:
    """Return whether the watch reports the connection at once."""
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT if entry.ahead else select.POLLIN)
    return bool(poll.poll(0))


class NewConnections:
    """The accepted connections that wait for a thread to read their first bytes.

    One that has sent nothing counts for :data:`SILENT` seconds only: silent clients take no thread,
    and must not keep a worker from accepting others. For the main thread only.
    """

    def __init__(self) -> None:
        self._unread: dict[Any, float] = {}  # until when each counts though it is silent

    def add(self, connection: Any, now: float) -> None:
        """Add *connection*, which was accepted at *now*."""
        self._unread[connection] = now + SILENT

    def count(self, now: float) -> int:
        """Return how many connections will take a thread, or may do so at any moment."""
        for connection, until in list(self._unread.items()):
            if connection.initialized or (now >= until and not _readable(connection)):
                del self._unread[connection]
        return len(self._unread)

    def __len__(self) -> int:
        """Return how many counted last."""
        return len(self._unread)


def _readable(connection: Any) -> bool:
    descriptor = connection.sock.fileno()
    if descriptor < 0:  # closed
        return False
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))


class Threads:
    """Daemon threads that call one function repeatedly.

    At exit the interpreter joins the threads of a ``ThreadPoolExecutor``, whatever they wait for: a
    worker that must quit at once, or whose graceful timeout is over, would run as long as its
    slowest backend.

    :param count: The number of threads.
    :ivar count: The number of threads, those that were lent included.
    :param work: The function that each calls until :meth:`shutdown`; it returns after a second or
        so when there is nothing to do.
    """

    def __init__(self, count: int, work: Callable[[], object]) -> None:
        self.count = count
        self._work = work
        self._started = False
        self._ended = False
        self._lock = threading.Lock()  # made after the fork: the worker makes its threads then
        self._surplus = 0

    def start(self) -> None:
        """Start the threads, once."""
        if self._started:
            return
        self._started = True
        for number in range(1, self.count + 1):
            name = f"gate-worker-{number}"
            threading.Thread(target=self._run, name=name, daemon=True).start()

    def lend(self) -> Callable[[], None]:
        """Start one more thread in place of the calling one, which a WebSocket holds for long.

        Where the system starts no thread, the calling one is not replaced.

        :returns: A function that has one thread end again; a second call does nothing.
        """
        returned = threading.Lock()

        def give_back() -> None:
            if returned.acquire(blocking=False):
                with self._lock:
                    self._surplus += 1

        try:
            threading.Thread(target=self._run, name="gate-worker-lent", daemon=True).start()
        except RuntimeError:
            returned.acquire()
            return give_back
        with self._lock:
            self.count += 1
        return give_back

    def shutdown(self, wait: bool = False) -> None:
        """Let each thread end after its present call of the function; does not wait."""
        self._ended = True

    def _run(self) -> None:
        while not self._ended:
            self._work()
            if self._surplus:
                with self._lock:
                    if self._surplus:
                        self._surplus -= 1
                        self.count -= 1
                        return


class Wakeup:
    """Ends the wait of a thread that polls its descriptor as well as a socket."""

    def __init__(self) -> None:
        self._read_end, self._write_end = os.pipe()
        os.set_blocking(self._read_end, False)
        os.set_blocking(self._write_end, False)

    def fileno(self) -> int:
        """Return the descriptor, which is readable once :meth:`set` was called."""
        return self._read_end

    def set(self) -> None:
        """End the wait; for other threads."""
        try:
            os.write(self._write_end, b"!")
        except BlockingIOError:  # it has been ended often enough
            pass

    def clear(self) -> None:
        """Let the next wait begin."""
        try:
            os.read(self._read_end, 4096)
        except BlockingIOError:
            pass

    def __del__(self) -> None:  # with its thread
        os.close(self._read_end)
        os.close(self._write_end)


class SlowClients(Generic[C]):
    """Decides which clients lose the thread that waits for them; the time is an argument.

    When a request has waited for :data:`HELD` seconds, the clients that have neither sent nor read
    a byte in that time can lose theirs, those that have been silent for longest first. Clients that
    come in their place are given half of that each time: with many of them, others wait for the
    sum.
    """

    def __init__(self) -> None:
        self._silent: dict[C, tuple[float, int]] = {}  # since when, and the progress
        self._pressed_since = math.inf  # since when requests wait for a thread
        self._cut_at = -math.inf
        self._held = HELD

    def relax(self, now: float) -> None:
        """Record that no request waits for a thread."""
        self._silent.clear()
        self._pressed_since = math.inf
        if now - self._cut_at > CALM:
            self._held = HELD

    def select(self, waits: Mapping[C, tuple[float, int]], most: int, now: float) -> list[C]:
        """Return the clients to cut, as a request waits for a thread; called repeatedly.

        :param waits: For each client the time since which its thread waits for it, and a number
            that changes while it reads.
        :param most: How many may be cut.
        """
        self._pressed_since = min(self._pressed_since, now)
        silent: dict[C, tuple[float, int]] = {}
        for client, (since, progress) in waits.items():
            before, seen = self._silent.get(client, (since, progress))
            silent[client] = (max(before, since) if seen == progress else now, progress)
        self._silent = silent
        if now - self._pressed_since < self._held:
            return []
        longest = sorted(silent, key=lambda each: silent[each][0])
        ended = [each for each in longest[:most] if now - silent[each][0] >= self._held]
        if ended:
            self._cut_at = now
            self._held = max(self._held / 2, SHORTEST)
        return ended
