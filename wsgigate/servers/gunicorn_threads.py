"""The threads of a worker, and the connections they serve: whoever is free takes what is next.

gunicorn has one thread that watches all connections and hands each request to another one, which
hands the connection back by a pipe: two wake-ups of another thread for a request. Here all threads
watch. The kernel tells one of them of each connection that has something to read, and no other
until it is watched again (epoll's ``EPOLLONESHOT``).
"""

from __future__ import annotations

import math
import os
import select
import selectors
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, Protocol

__all__ = ["IdleConnections", "SelectorWatch", "Threads", "Watch"]


class Watch(Protocol):
    """Tells of descriptors that something can be done with, each once."""

    def arm(self, descriptor: int, writable: bool) -> None:
        """Tell of *descriptor* when it can be read, or when it can be written."""

    def forget(self, descriptor: int) -> None:
        """Tell nothing of *descriptor*, which is to be closed."""

    def wait(self, seconds: float) -> int | None:
        """Return a descriptor that is ready, None when there is none for so long."""


class _Epoll:
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
            # Closing it is not enough where a child process of the app has it too.
            self._epoll.unregister(descriptor)
        except OSError:
            pass

    def wait(self, seconds: float) -> int | None:
        for descriptor, _ in self._epoll.poll(seconds, 1):
            return descriptor
        return None


class SelectorWatch:
    """The same by one thread at a time, for systems without epoll.

    :param selector: One that can be told of descriptors while it waits, as kqueue can.
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


_NOBODY = SimpleNamespace(timeout=0.0)


class _Place:
    """What is known of a connection that waits.

    :ivar ahead: Whether its next request has been read, and only its turn is waited for.
    :ivar since: Since when it has waited.
    :ivar watched: Whether who added it is done with that: before, it is not to be closed.
    """

    __slots__ = ("ahead", "connection", "since", "watched")

    def __init__(self, connection: Any, ahead: bool) -> None:
        self.since = time.monotonic()
        self.connection = connection
        self.ahead = ahead
        self.watched = False


class IdleConnections:
    """Connections that wait for their clients, in the order in which they began to.

    One thread closes connections and adds new ones; all may take one and add it again. There is no
    lock: each connection is taken out of the table by one of them, and is that one's then.

    :param watch: What tells which of them has something to read.
    """

    def __init__(self, watch: Watch | None = None) -> None:
        self._watch: Watch = watch or (_Epoll() if hasattr(select, "epoll") else SelectorWatch())
        self._waiting: dict[int, _Place] = {}
        self._offered: deque[Callable[[], object]] = deque()
        self._bell = -1
        self._ringing = threading.Lock()

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Any]:
        return iter([place.connection for place in list(self._waiting.values())])

    def __getitem__(self, at: int) -> Any:
        """Return one of them, whose ``timeout`` gunicorn's loop looks at; nobody's when all are
        being served by now."""
        waiting = list(self)
        return waiting[at] if waiting else _NOBODY

    def add(self, connection: Any, *, read_ahead: bool = False) -> None:
        """Have *connection* served by the next free thread once there is something to read.

        It is not to be touched any more: it may be another thread's already.

        :param read_ahead: Its next request was read together with the last one: whoever is next
            takes it, but behind those that wait already, and not before its client has taken what
            it was sent.
        :raises OSError: It is closed, so nobody will serve it.
        """
        descriptor = connection.sock.fileno()
        place = _Place(connection, read_ahead)
        self._waiting[descriptor] = place
        try:
            self._watch.arm(descriptor, read_ahead)
        except BaseException:
            self._waiting.pop(descriptor, None)
            raise
        place.watched = True

    def offer(self, work: Callable[[], object]) -> None:
        """Have the next free thread do *work*."""
        self._offered.append(work)
        if self._bell < 0:
            with self._ringing:
                if self._bell < 0:
                    self._bell, mouth = os.pipe()
                    os.write(mouth, b"!")  # it can always be read, and nobody does
                    self._mouth = mouth
        self._watch.arm(self._bell, False)

    def take(self, seconds: float) -> Any:
        """Return a connection to serve, or work that was offered; None when there is none for so
        long."""
        descriptor = self._watch.wait(seconds)
        if descriptor is None:
            return None
        if descriptor == self._bell:
            try:
                work = self._offered.popleft()
            except IndexError:
                return None
            if self._offered:  # the watch tells of the bell once, however often it was armed
                self._watch.arm(self._bell, False)
            return work
        place = self._waiting.pop(descriptor, None)
        if place is None:  # it has waited too long just now, and was closed
            return None
        connection = place.connection
        if not connection.initialized and not _ready(place, descriptor):
            # What was told of was closed, and this is a new one that got its number since.
            self.add(connection)
            return None
        return connection

    @property
    def silent_since(self) -> float:
        """Since when the oldest has waited; infinite when there is none."""
        return next((place.since for place in list(self._waiting.values())), math.inf)

    def take_oldest(self) -> Any:
        """Return the connection that has been silent for longest, which is to be closed."""
        return next(self._taken(lambda place: True), None)

    def take_expired(self, now: float) -> Iterator[Any]:
        """Yield the connections that have been silent for too long, which are to be closed.

        One whose request only waits for a thread is not among them.

        :param now: Seconds of the monotonic clock; infinite for all of them.
        """
        return self._taken(lambda place: place.connection.timeout <= now, spare=now < math.inf)

    def _taken(self, wanted: Callable[[_Place], bool], *, spare: bool = True) -> Iterator[Any]:
        """Take out those that are *wanted*, and that no thread is about to serve if they are to be
        *spared* then."""
        for descriptor, seen in list(self._waiting.items()):
            if not (seen.watched and wanted(seen)) or (spare and _ready(seen, descriptor)):
                continue
            place = self._waiting.pop(descriptor, None)
            if place is None:
                continue  # it is being served
            if place is not seen:  # it was served in between
                self.add(place.connection, read_ahead=place.ahead)
                continue
            self._watch.forget(descriptor)
            yield place.connection


def _ready(place: _Place, descriptor: int) -> bool:
    """Return whether a thread will be told of it at once."""
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT if place.ahead else select.POLLIN)
    return bool(poll.poll(0))


class Threads:
    """Threads that do the same over and over, and that a process does not wait for.

    The interpreter waits at its end for the threads of a ``ThreadPoolExecutor``, whatever they wait
    for themselves: a worker told to quit at once, or whose time to finish is over, would stay as
    long as its slowest backend.

    :param count: How many threads there are.
    :param work: What each does until :meth:`shutdown`; returns after a while.
    """

    def __init__(self, count: int, work: Callable[[], object]) -> None:
        self._count = count
        self._work = work
        self._started = False
        self._ended = False

    def start(self) -> None:
        """Start the threads, unless they run already."""
        if self._started:
            return
        self._started = True
        for number in range(1, self._count + 1):
            name = f"gate-worker-{number}"
            threading.Thread(target=self._run, name=name, daemon=True).start()

    def shutdown(self, wait: bool = False) -> None:
        """Let the threads end once they have done what they are at; does not wait."""
        self._ended = True

    def _run(self) -> None:
        while not self._ended:
            self._work()
