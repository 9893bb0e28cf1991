"""Clients that disconnect while an instance handles their request."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest

from wsgigate.discovery import Instance
from wsgigate.http.wsgi import REASON, ClientLeft, close_body
from wsgigate.proxy.disconnect import Disconnects
from wsgigate.proxy.forwarder import Forwarder
from wsgigate.proxy.pool import Pool
from wsgigate.testing.backend import Backend, Received, reply
from wsgigate.testing.fakes import Server, new_environ


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Return the server's and the client's end of a connection."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


class Unhurried(Disconnects):
    """Looks only when it is told to."""

    def _run(self) -> None:
        pass


def held(connection: socket.socket, _request: Received) -> bool:
    return connection.recv(1) != b""  # until the gateway lets go


@pytest.mark.parametrize("ahead", [b"", b"GET /next HTTP/1.1\r\n\r\n"])
def test_a_disconnect_is_detected_when_the_client_closes_and_not_before(
    pair: tuple[socket.socket, socket.socket], ahead: bytes
) -> None:
    ours, theirs = pair
    disconnects = Unhurried()
    watch = disconnects.watch(new_environ() | told(ours))
    theirs.sendall(ahead)
    disconnects.check()
    assert not watch.gone
    theirs.close()
    disconnects.check()
    assert watch.gone


def told(client: socket.socket) -> dict[str, object]:
    return {"gunicorn.socket": client, "SERVER_PROTOCOL": "HTTP/1.1"}


def test_a_request_is_served_if_the_watching_thread_cannot_start(
    pair: tuple[socket.socket, socket.socket],
    threadless: Callable[[], AbstractContextManager[None]],
) -> None:
    ours, theirs = pair
    disconnects = Disconnects(tick=0.001)
    with threadless():
        disconnects.watch(new_environ() | told(ours)).close()
    watch = disconnects.watch(new_environ() | told(ours))
    upstream, instance = socket.socketpair()
    with upstream, instance:
        watch.set_upstream(upstream)
        theirs.close()
        instance.settimeout(30)
        assert instance.recv(1) == b""  # somebody looks again by now
    watch.close()


def test_a_released_connection_is_not_closed_on_disconnect(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    disconnects = Unhurried()
    upstream, instance = socket.socketpair()
    with upstream, instance:
        watch = disconnects.watch(new_environ() | told(ours))
        watch.set_upstream(upstream)
        watch.set_upstream(None)
        theirs.close()
        disconnects.check()
        assert watch.gone
        upstream.sendall(b"another request's")
        assert instance.recv(100) == b"another request's"
        watch.set_upstream(upstream)  # too late: nobody is there to take the answer
        assert instance.recv(100) == b""


def test_a_connection_attempt_can_check_whether_the_client_waits(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    disconnects = Unhurried()
    watch = disconnects.watch(new_environ() | told(ours))
    with socket.socket() as upstream:
        assert watch.set_upstream(upstream) is True
        theirs.close()
        disconnects.check()
        assert watch.set_upstream(upstream) is False


@pytest.mark.parametrize("protocol", ["HTTP/1.0", "HTTP/1.1"])
def test_a_finished_request_does_not_close_its_connection(
    protocol: str, pair: tuple[socket.socket, socket.socket]
) -> None:
    ours, _ = pair
    watch = Unhurried().watch(
        {"gunicorn.socket": ours, "SERVER_PROTOCOL": protocol, "REQUEST_METHOD": "GET"}
    )
    upstream, instance = socket.socketpair()
    with upstream, instance:
        watch.set_upstream(upstream)
        watch.close()
        watch.disconnected()  # it was being looked at in that moment
        assert watch.gone
        upstream.sendall(b"another request's")
        assert instance.recv(100) == b"another request's"


def test_a_forked_worker_watches_its_own_clients(
    pair: tuple[socket.socket, socket.socket], in_child: Callable[[Callable[[], bool]], bool]
) -> None:
    ours, _ = pair
    disconnects = Unhurried()
    watch = disconnects.watch(new_environ() | told(ours))

    def looks() -> bool:
        disconnects.watch(new_environ() | told(ours))
        return disconnects.watched == 1

    assert in_child(looks)
    watch.close()


def test_a_finished_request_is_not_watched(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    disconnects = Unhurried()
    watch = disconnects.watch(new_environ() | told(ours))
    watch.close()
    watch.close()
    theirs.close()
    disconnects.check()
    assert not watch.gone


@pytest.mark.parametrize(
    "environ", [{}, {"SERVER_PROTOCOL": "HTTP/2.0", "gunicorn.socket": object()}]
)
def test_a_request_without_a_client_socket_is_not_watched(environ: dict[str, object]) -> None:
    disconnects = Unhurried()
    watch = disconnects.watch(new_environ() | environ)
    disconnects.check()
    assert watch.client is None
    assert not watch.gone


def test_a_disconnect_before_the_response_closes_the_upstream_connection(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    with Backend(held, reply(b"ok")) as backend:
        pool = Pool("svc", [Instance(backend.url)])
        forwarder = Forwarder(pool, disconnects=Disconnects(tick=0.001))
        environ = new_environ() | told(ours)
        answer = Server()
        thread = threading.Thread(target=answer.serve, args=(forwarder, environ))
        thread.start()
        backend.wait_for_requests(1)
        theirs.close()
        thread.join(30)
        backend.wait_until_closed()
        assert answer.status == "499 Client Closed Request"
        assert environ[REASON] == "the client has disconnected"
        assert Server().serve(forwarder, new_environ()).chunks == [b"ok"]


def test_a_disconnect_during_the_response_closes_the_upstream_connection(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair

    def begins(connection: socket.socket, request: Received) -> bool:
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\nfirst")
        return held(connection, request)

    with Backend(begins) as backend:
        pool = Pool("svc", [Instance(backend.url)])
        forwarder = Forwarder(pool, disconnects=Disconnects(tick=0.001))
        body = forwarder(new_environ() | told(ours), Server().start_response)
        chunks = iter(body)
        assert next(chunks) == b"first"
        theirs.close()
        with pytest.raises(ClientLeft):
            next(chunks)
        close_body(body)
        backend.wait_until_closed()


def test_a_disconnect_after_the_body_was_read_keeps_the_upstream_connection(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    disconnects = Unhurried()
    with Backend(reply(b"ok")) as backend:
        forwarder = Forwarder(Pool("svc", [Instance(backend.url)]), disconnects=disconnects)
        body = forwarder(new_environ() | told(ours), Server().start_response)
        assert b"".join(body) == b"ok"  # read to its end, not closed: the connection is free
        theirs.close()
        disconnects.check()
        assert Server().serve(forwarder, new_environ()).chunks == [b"ok"]
        assert backend.connections == 1
        close_body(body)
