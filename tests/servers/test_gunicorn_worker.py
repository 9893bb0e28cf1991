"""What a thread of a worker does with one connection, without a server around it."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from wsgigate.servers.gunicorn_threads import IdleConnections
from wsgigate.servers.gunicorn_worker import TURN, GateWorker, _OnceToken

KEPT = 5.0
ENDING = 2.0


class Connection:
    """One that has been read from, with its client's end."""

    initialized = True
    timeout = 0.0

    def __init__(self, *, ahead: bool = False) -> None:
        self.sock, self.client = socket.socketpair()
        self.client.sendall(b"x")
        self._ahead = ahead

    def set_timeout(self) -> None:
        self.timeout = time.monotonic() + KEPT

    def has_read_ahead(self) -> bool:
        return self._ahead


class Worker(GateWorker):
    """One whose requests have known ends."""

    def __init__(self, end: Callable[[], object]) -> None:
        self.alive = True
        self.keepalived_conns = IdleConnections()
        self.deferred: list[tuple[Any, ...]] = []
        self.logged: list[str] = []
        self.log = SimpleNamespace(exception=self.logged.append)
        self.method_queue = SimpleNamespace(defer=lambda *what: self.deferred.append(what))
        self._at_work = set()
        self._ends_with = end

    def handle(self, conn: Any) -> Any:
        assert self._at_work
        return self._ends_with()


Serve = Callable[..., tuple[Worker, Connection]]


@pytest.fixture
def serve() -> Iterator[Serve]:
    opened: list[Connection] = []

    def served(
        end: Callable[[], object], *, alive: bool = True, **options: Any
    ) -> tuple[Worker, Connection]:
        worker, connection = Worker(end), Connection(**options)
        opened.append(connection)
        worker.alive = alive
        worker.keepalived_conns.add(connection)
        worker._serve_next()
        assert not worker._at_work
        return worker, connection

    yield served
    for connection in opened:
        connection.sock.close()
        connection.client.close()


def test_a_kept_connection_waits_for_the_next_request(serve: Serve) -> None:
    before = time.monotonic()
    worker, connection = serve(lambda: True)
    assert list(worker.keepalived_conns) == [connection]
    assert before + KEPT <= connection.timeout <= time.monotonic() + KEPT
    assert worker.deferred == []


def test_a_connection_with_a_read_ahead_request_gets_the_idle_timeout(serve: Serve) -> None:
    before = time.monotonic()
    worker, connection = serve(lambda: True, ahead=True)
    assert worker.keepalived_conns.take(10) is connection
    assert connection.timeout >= before + worker.idle_timeout > before + KEPT


def test_a_stopping_worker_keeps_a_connection_for_a_moment(serve: Serve) -> None:
    worker, connection = serve(lambda: True, alive=False)
    assert list(worker.keepalived_conns) == [connection]
    [[cap]] = worker.deferred
    cap()
    assert connection.timeout <= time.monotonic() + ENDING


def test_a_worker_that_stops_while_a_connection_becomes_idle_keeps_it_for_a_moment() -> None:
    """The loop has capped the idle connections just before this one is among them."""

    class Stopping(IdleConnections):
        def add(self, connection: Any, *, read_ahead: bool = False) -> None:
            worker.alive = False
            worker._cap_idle()
            super().add(connection, read_ahead=read_ahead)

    worker, connection = Worker(lambda: True), Connection()
    worker.keepalived_conns.add(connection)
    waiting = worker.keepalived_conns
    worker.keepalived_conns = Stopping()
    worker.keepalived_conns.take = waiting.take
    worker._serve_next()
    [[cap]] = worker.deferred
    cap()
    connection.sock.close()
    connection.client.close()
    assert list(worker.keepalived_conns) == [connection]
    assert connection.timeout <= time.monotonic() + ENDING


def closes() -> bool:
    raise SystemExit("whatever an application raises")


def test_a_connection_that_is_not_kept_is_closed_by_the_loop(serve: Serve) -> None:
    worker, connection = serve(lambda: False)
    assert worker.deferred == [(worker._close_gracefully, connection)]
    assert (len(worker.keepalived_conns), worker.logged) == (0, [])


def test_an_exception_of_a_request_ends_no_thread(serve: Serve) -> None:
    worker, connection = serve(closes)
    assert worker.deferred == [(worker._close_gracefully, connection)]
    assert worker.logged == ["Error serving a connection"]


def test_a_connection_that_was_closed_meanwhile_is_closed_by_the_loop(serve: Serve) -> None:
    connections: list[Connection] = []

    def end() -> bool:
        connections[0].sock.close()
        return True

    connection = Connection()
    connections.append(connection)
    worker = Worker(end)
    worker.keepalived_conns.add(connection)
    worker._serve_next()
    connection.client.close()
    assert worker.deferred == [(worker._close_gracefully, connection)]
    assert worker.logged == ["Error serving a connection"]
    assert len(worker.keepalived_conns) == 0


@pytest.mark.parametrize(
    ("changes", "waits"),
    [
        ({"_accepting": True}, 1.0),
        ({"_accepting": False}, TURN),  # it was crowded a moment ago, and is not by now
        ({"_accepting": False, "alive": False}, 1.0),
        ({"_accepting": False, "nr_conns": 5}, 1.0),
        ({"_accepting": True, "_at_work": {1, 2}}, TURN),
        (
            {"_accepting": True, "_at_work": {1, 2}, "cfg": SimpleNamespace(threads=2, workers=1)},
            1.0,
        ),
    ],
)
def test_a_worker_that_does_not_accept_checks_again_soon(
    changes: dict[str, Any], waits: float
) -> None:
    """A thread that becomes free does not wake the loop."""
    asked: list[float] = []
    worker = Worker(bool)
    worker.nr_conns, worker.worker_connections, worker._rests_until = 4, 5, 0.0
    worker.cfg, worker.sockets = SimpleNamespace(threads=2, workers=2), []
    worker.tpool = SimpleNamespace(count=2)
    worker.poller = SimpleNamespace(select=lambda timeout: asked.append(timeout) or ())
    worker._untaken_since = None
    worker.__dict__.update(changes)
    worker.wait_for_and_dispatch_events(1.0)
    assert asked[0] == waits


def test_exactly_one_worker_takes_the_token() -> None:
    token, another = _OnceToken(), _OnceToken()
    assert [token.take(), token.take(), another.take()] == [True, False, True]


def test_an_error_on_closing_a_connection_ends_no_worker(serve: Serve) -> None:
    def close(graceful: bool = False) -> None:
        raise AttributeError("whatever it is that goes wrong")

    worker, connection = serve(lambda: False)
    worker.nr_conns = 1
    connection.close = close  # type: ignore[attr-defined]
    worker._close_gracefully(connection)
    assert worker.logged == ["Error closing a connection"]
    assert (worker.nr_conns, connection.sock.fileno()) == (0, -1)
