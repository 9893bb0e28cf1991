"""The threads of a worker, and the connections that wait for them."""

from __future__ import annotations

import math
import os
import queue
import random
import selectors
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, suppress

import pytest

from wsgigate.servers.gunicorn_threads import (
    IdleConnections,
    ReadinessPoller,
    SelectorPoller,
    Threads,
)

HARDLY = 0.05
PLENTY = 10.0
WATCHES: dict[str, Callable[[], ReadinessPoller | None]] = {
    "epoll": lambda: None,
    "turns": lambda: SelectorPoller(selectors.EpollSelector()),
    "turns by default": SelectorPoller,
}


class Waiting:
    """A connection as a worker has it, and its client's end."""

    def __init__(self, *, initialized: bool = True, timeout: float = 1.0) -> None:
        self.sock, self.client = socket.socketpair()
        self.initialized = initialized
        self.timeout = timeout

    def close(self) -> None:
        self.sock.close()
        self.client.close()


Make = Callable[..., Waiting]


@pytest.fixture
def make() -> Iterator[Make]:
    with ExitStack() as stack:

        def made(**options: float) -> Waiting:
            waiting = Waiting(**options)
            stack.callback(waiting.close)
            return waiting

        yield made


@pytest.fixture(params=WATCHES)
def parked(request: pytest.FixtureRequest) -> IdleConnections:
    if not hasattr(selectors, "EpollSelector"):
        pytest.fail("this needs Linux")
    return IdleConnections(WATCHES[request.param]())


def test_a_readable_connection_is_reported_once_until_it_is_added_again(
    parked: IdleConnections, make: Make
) -> None:
    connection = make()
    parked.add(connection)
    assert len(parked) == 1
    assert parked.take(HARDLY) is None
    connection.client.sendall(b"x")
    assert parked.take(PLENTY) is connection
    assert len(parked) == 0
    assert parked.take(HARDLY) is None
    parked.add(connection)
    assert parked.take(PLENTY) is connection


def test_a_connection_read_ahead_is_taken_at_once_after_the_others(
    parked: IdleConnections, make: Make
) -> None:
    first, ahead = make(), make()
    first.client.sendall(b"x")
    parked.add(first)
    parked.add(ahead, writable=True)
    assert [parked.take(PLENTY), parked.take(PLENTY)] == [first, ahead]
    parked.add(ahead)
    assert parked.take(HARDLY) is None


def test_a_closed_connection_cannot_be_added(parked: IdleConnections, make: Make) -> None:
    connection = make()
    connection.sock.close()
    with pytest.raises((OSError, ValueError)):
        parked.add(connection)
    assert len(parked) == 0


def test_expired_connections_are_closed_except_those_that_are_ready(
    parked: IdleConnections, make: Make
) -> None:
    silent, young, spoke, ahead = make(), make(timeout=3.0), make(), make()
    for connection in (silent, young, spoke):
        parked.add(connection)
    parked.add(ahead, writable=True)
    spoke.client.sendall(b"x")
    assert list(parked.take_expired(2.0)) == [silent]
    assert set(parked) == {young, spoke, ahead}
    assert {parked.take(PLENTY), parked.take(PLENTY)} == {spoke, ahead}
    assert list(parked.take_expired(math.inf)) == [young]


def test_a_connection_read_ahead_expires_if_its_client_reads_nothing(
    parked: IdleConnections, make: Make
) -> None:
    connection = make()
    connection.sock.setblocking(False)
    with suppress(BlockingIOError):
        while connection.sock.send(bytes(65536)):
            pass
    connection.client.sendall(b"more")
    parked.add(connection, writable=True)
    assert parked.take(HARDLY) is None
    assert list(parked.take_expired(2.0)) == [connection]


def test_all_are_closed_at_the_end(parked: IdleConnections, make: Make) -> None:
    young, spoke = make(timeout=1e9), make(timeout=1e9)
    parked.add(young)
    parked.add(spoke)
    spoke.client.sendall(b"x")
    assert list(parked.take_expired(math.inf)) == [young, spoke]
    assert not len(parked)


def test_the_oldest_that_is_silent_makes_room(parked: IdleConnections, make: Make) -> None:
    assert parked.take_oldest() is None
    spoke, older, younger = make(), make(), make()
    for connection in (spoke, older, younger):
        parked.add(connection)
    spoke.client.sendall(b"x")
    assert parked.take_oldest() is older
    assert parked.take_oldest() is younger
    assert parked.take_oldest() is None
    assert parked.take(PLENTY) is spoke


def test_what_gunicorn_reads_of_idle_connections(parked: IdleConnections, make: Make) -> None:
    assert parked[0].timeout == 0.0  # a placeholder: all were taken since gunicorn checked
    connections = [make(timeout=float(number)) for number in range(3)]
    for connection in connections:
        parked.add(connection)
    assert parked[0] is connections[0]
    assert list(parked) == connections


@pytest.mark.parametrize("name", WATCHES)
def test_the_last_arming_of_a_descriptor_counts(name: str, make: Make) -> None:
    """A thread can be late to watch what another has served and has watched again since."""
    parked = IdleConnections(WATCHES[name]())
    connection = make()
    for ahead in (False, True):
        parked.add(connection, writable=ahead)
    assert parked.take(PLENTY) is connection
    assert parked.take(HARDLY) is None


class RecordingWatch(ReadinessPoller):
    """A watch that reports what a test sets, and records its calls."""

    def __init__(self) -> None:
        self.ready: list[int] = []
        self.armed: list[int] = []
        self.forgotten: list[int] = []
        self.meanwhile: Callable[[], object] = lambda: None

    def arm(self, descriptor: int, writable: bool) -> None:
        self.armed.append(descriptor)
        meanwhile, self.meanwhile = self.meanwhile, lambda: None
        meanwhile()

    def forget(self, descriptor: int) -> None:
        self.forgotten.append(descriptor)

    def wait(self, seconds: float) -> int | None:
        return self.ready.pop(0) if self.ready else None


def test_a_stale_event_does_not_give_away_a_new_connection(make: Make) -> None:
    """A thread is late: the connection of its event is closed, and a new one has the descriptor."""
    watch = RecordingWatch()
    parked = IdleConnections(watch)
    new = make(initialized=False)
    number = new.sock.fileno()
    parked.add(new)
    watch.ready = [number]
    assert parked.take(0) is None
    assert watch.armed == [number, number]  # it is watched as before
    new.client.sendall(b"x")
    watch.ready = [number, number]
    assert parked.take(0) is new
    assert parked.take(0) is None


def test_a_connection_that_is_being_added_is_not_closed(make: Make) -> None:
    watch = RecordingWatch()
    parked = IdleConnections(watch)
    closed: list[Waiting] = []
    connection = make()

    def look() -> None:
        closed.extend(parked.take_expired(math.inf))
        closed.extend(filter(None, [parked.take_oldest()]))

    watch.meanwhile = look
    parked.add(connection)
    assert closed == []
    assert list(parked.take_expired(2.0)) == [connection]
    assert watch.forgotten == [connection.sock.fileno()]


def test_a_connection_served_during_expiry_is_added_again(make: Make) -> None:
    watch = RecordingWatch()
    parked = IdleConnections(watch)

    class Served(Waiting):
        served: bool

        @property
        def timeout(self) -> float:
            """Looked at, it is served by another thread, and back in its place."""
            if not self.served:
                self.served = True
                assert parked.take(0) is self
                parked.add(self, writable=True)
            return 1.0

        @timeout.setter
        def timeout(self, _: float) -> None:
            self.served = False

    connection = Served()
    with connection.sock, connection.client:
        parked.add(connection)
        watch.ready = [connection.sock.fileno()]
        assert list(parked.take_expired(2.0)) == []
        assert list(parked) == [connection]
        assert len(watch.armed) == 3
        assert list(parked.take_expired(2.0)) == []  # read ahead, still: it waits for a thread


def test_a_connection_served_during_expiry_is_left_alone(make: Make) -> None:
    watch = RecordingWatch()
    parked = IdleConnections(watch)

    class Taken(Waiting):
        @property
        def timeout(self) -> float:
            assert parked.take(0) is self
            return 1.0

        @timeout.setter
        def timeout(self, _: float) -> None:
            """It has one already."""

    connection = Taken()
    with connection.sock, connection.client:
        parked.add(connection)
        watch.ready = [connection.sock.fileno()]
        assert list(parked.take_expired(2.0)) == []
        assert (len(parked), watch.forgotten) == (0, [])


def test_a_closed_connection_that_a_child_process_holds_is_not_reported(make: Make) -> None:
    parked = IdleConnections()
    connection = make()
    copy = os.dup(connection.sock.fileno())
    try:
        parked.add(connection)
        number = connection.sock.fileno()
        assert list(parked.take_expired(2.0)) == [connection]
        connection.sock.close()
        connection.client.sendall(b"x")
        other = make()
        taken = other.sock.detach()
        if taken != number:  # a lower number has become free meanwhile
            os.dup2(taken, number)
            os.close(taken)
        other.sock = socket.socket(fileno=number)
        parked.add(other)
        assert parked.take(HARDLY) is None
        other.client.sendall(b"x")
        assert parked.take(PLENTY) is other
    finally:
        os.close(copy)


def test_no_request_is_lost_and_none_served_twice_whatever_is_closed_meanwhile(
    parked: IdleConnections,
) -> None:
    """Four threads serve; one opens, closes what waits too long, and makes room for more."""
    random.seed(7)
    lock = threading.Lock()
    served: dict[Waiting, int] = {}
    broken: list[BaseException] = []
    closing: list[Waiting] = []
    requests = 20

    def serve() -> None:
        try:
            connection = parked.take(HARDLY)
            if connection is None:
                return
            data = connection.sock.recv(1, socket.MSG_DONTWAIT)
            connection.initialized = True
            if not data:  # its client has left
                with lock:
                    closing.append(connection)
                return
            with lock:
                served[connection] = served.get(connection, 0) + 1
                last = served[connection] == requests
            connection.sock.sendall(data)
            if last:
                with lock:
                    closing.append(connection)
                return
            parked.add(connection)
        except BaseException as error:
            broken.append(error)

    def ask(connection: Waiting) -> None:
        connection.client.settimeout(PLENTY)
        try:
            for _ in range(requests):
                connection.client.sendall(b"x")
                assert connection.client.recv(1) == b"x"
        except BaseException as error:
            broken.append(error)

    threads = Threads(4, serve)
    threads.start()
    try:
        for _ in range(12):
            asking = [Waiting(initialized=False, timeout=math.inf) for _ in range(6)]
            silent = [Waiting(initialized=False, timeout=random.random()) for _ in range(6)]
            clients = [threading.Thread(target=ask, args=(each,)) for each in asking]
            for each in random.sample(asking + silent, 12):
                parked.add(each)
            for client in clients:
                client.start()
            while any(client.is_alive() for client in clients):
                for expired in parked.take_expired(random.random()):
                    expired.sock.close()
                    another = Waiting(initialized=False, timeout=random.random())
                    silent.append(another)
                    parked.add(another)
                clients[0].join(0.001)
            assert not broken
            for expired in parked.take_expired(2.0):
                expired.close()
            for each in asking:
                each.client.close()
                assert served.pop(each) == requests
            assert not len(parked)
            for _ in range(10_000):
                if len(closing) == len(asking):
                    break
                threading.Event().wait(0.001)  # for threads that have answered, and are not done
            with lock:
                assert set(closing) == set(asking)
                while closing:
                    closing.pop().sock.close()
            for each in silent:
                each.close()
    finally:
        threads.shutdown()
    assert not broken


def test_there_are_as_many_threads_as_asked_for_from_the_start_to_the_end() -> None:
    seen: set[threading.Thread] = set()
    begun = threading.Semaphore(0)
    work: queue.SimpleQueue[threading.Event] = queue.SimpleQueue()

    def one() -> None:
        event = work.get(timeout=PLENTY)
        seen.add(threading.current_thread())
        begun.release()
        event.wait(PLENTY)

    threads = Threads(2, one)
    events = [threading.Event() for _ in range(5)]
    work.put(events[0])
    assert work.qsize() == 1
    threads.start()
    threads.start()
    for event in events[1:3]:
        work.put(event)
    for _ in range(2):
        assert begun.acquire(timeout=PLENTY)
    assert work.qsize() == 1
    assert {thread.name for thread in seen} == {"gate-worker-1", "gate-worker-2"}
    for event in events[:3]:
        event.set()
    threads.shutdown()
    for event in events[3:]:  # for the threads that wait for work by now
        event.set()
        work.put(event)
    for thread in seen:
        thread.join(PLENTY)
    assert not any(thread.is_alive() for thread in seen)
    assert len(seen) == 2


def test_a_thread_is_lent_for_as_long_as_another_is_held() -> None:
    work: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
    served = threading.Semaphore(0)
    threads = Threads(1, lambda: work.get(timeout=PLENTY)())
    threads.start()
    held = threading.Event()
    returns: list[Callable[[], None]] = []

    def hold() -> None:
        returns.append(threads.lend())
        served.release()
        held.wait(PLENTY)
        returns[0]()
        returns[0]()
        served.release()

    work.put(hold)
    assert served.acquire(timeout=PLENTY)
    assert threads.count == 2
    work.put(lambda: served.release())
    assert served.acquire(timeout=PLENTY)  # by the thread that was lent
    held.set()
    assert served.acquire(timeout=PLENTY)
    for _ in range(2):
        work.put(lambda: served.release())
        assert served.acquire(timeout=PLENTY)
    assert threads.count == 1
    threads.shutdown()
    work.put(lambda: None)


def test_without_another_thread_none_is_lent(
    threadless: Callable[[], AbstractContextManager[None]],
) -> None:
    threads = Threads(1, lambda: None)
    with threadless():
        give_back = threads.lend()
    give_back()
    assert threads.count == 1


STUCK = """
import threading
from wsgigate.servers.gunicorn_threads import Threads
began = threading.Event()
def stuck():
    began.set()
    threading.Event().wait()
Threads(1, stuck).start()
began.wait()
"""


def test_a_process_ends_whatever_its_threads_wait_for() -> None:
    assert subprocess.run([sys.executable, "-c", STUCK], timeout=30, check=False).returncode == 0
