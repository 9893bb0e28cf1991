"""A client's HTTP/2 connection, without a server around it: the loop is what the test does."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest
from gunicorn.config import Config
from gunicorn.http2.errors import HTTP2Error
from gunicorn.http2.h2conn import server_connection_class

from wsgigate.servers.gunicorn_http2_connection import Http2Connection, RefusedRequest

HEAD = [(":method", "POST"), (":scheme", "https"), (":authority", "a"), (":path", "/")]


class Peer:
    """Both ends of a connection."""

    def __init__(self, *, threads: int = 4, patience: float = 60.0, window: int = 65535) -> None:
        ours, self.socket = socket.socketpair()
        ours.setblocking(False)
        self.socket.setblocking(False)
        state = server_connection_class()(config=h2.config.H2Configuration(client_side=False))
        state.initiate_connection()
        self.woken = 0
        cfg = Config()
        self.ours = Http2Connection(
            SimpleNamespace(sock=ours, cfg=cfg, client_addr=("127.0.0.1", 1), h2_conn=state),
            patience=patience,
            rate=500.0,
            idle=60.0,
            first=10.0,
            threads=threads,
            wake=self._wake,
        )
        self.state = h2.connection.H2Connection(h2.config.H2Configuration())
        self.state.initiate_connection()
        self.state.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window})
        self.state.increment_flow_control_window(1 << 30)
        self.events: list[Any] = []
        self.step()
        self.step()

    def _wake(self) -> None:
        self.woken += 1

    def step(self) -> None:
        """Send what the client has to say, have it read, and read what comes back."""
        data = self.state.data_to_send()
        if data:
            self.socket.sendall(data)
        self.ours.receive()
        self.read()

    def read(self) -> None:
        while True:
            try:
                data = self.socket.recv(1 << 20)
            except BlockingIOError:
                return
            if not data:
                return
            self.events += self.state.receive_data(data)

    def ask(self, *fields: tuple[str, str], end: bool = True) -> int:
        stream: int = self.state.get_next_available_stream_id()
        self.state.send_headers(stream, [*HEAD, *fields], end_stream=end)
        self.step()
        return stream

    def kinds(self) -> list[str]:
        return [type(event).__name__ for event in self.events]

    def close(self) -> None:
        self.ours.sock.close()
        self.socket.close()


@pytest.fixture
def make() -> Iterator[Callable[..., Peer]]:
    made: list[Peer] = []

    def peer(**options: Any) -> Peer:
        made.append(Peer(**options))
        return made[-1]

    yield peer
    for each in made:
        each.close()


def taken(peer: Peer) -> Any:
    request, _ = peer.ours.take()
    assert request is not None
    return request


def test_a_thread_that_waits_for_room_resumes_whichever_thread_made_it(make: Any) -> None:
    peer = make(window=1 << 24)
    peer.ask()
    stream = taken(peer).stream
    peer.ours.respond(stream, 200, [], end=False)
    large = bytes(4 << 20)
    sending = threading.Thread(
        target=peer.ours.send, args=(stream, large), kwargs={"end": True}, daemon=True
    )
    sending.start()
    turns = 0
    while sending.is_alive():
        peer.read()  # the client makes room, and the loop is elsewhere
        peer.ours.drain(float("inf"))  # which sends what there is
        sending.join(0.001)
        turns += 1
        assert turns < 50_000
    while "StreamEnded" not in peer.kinds():
        peer.ours.drain(float("inf"))
        peer.read()
    data = [event for event in peer.events if isinstance(event, h2.events.DataReceived)]
    assert b"".join(event.data for event in data) == large


def test_the_last_bytes_are_handed_on_when_the_stream_has_ended(make: Any) -> None:
    peer = make()
    stream = peer.ask(("content-length", "6"), end=False)
    body = taken(peer).body
    peer.state.send_data(stream, b"abc")
    peer.step()
    assert body.read(3) == b"abc"
    peer.state.send_data(stream, b"def")
    peer.step()
    got: list[bytes] = []
    reading = threading.Thread(target=lambda: got.append(body.read(3)))
    reading.start()
    peer.state.send_data(stream, b"", end_stream=True)
    peer.step()
    reading.join(30)
    assert got == [b"def"]
    assert body.read(1) == b""


def test_a_body_that_stalls_is_cut(make: Any) -> None:
    peer = make(patience=0.05)
    stream = peer.ask(("content-length", "6"), end=False)
    request = taken(peer)
    peer.state.send_data(stream, b"abc")
    peer.step()
    with pytest.raises(HTTP2Error, match="too slowly"):
        request.body.read()
    peer.step()
    assert "StreamReset" in peer.kinds()


def test_a_cancellation_is_reported_once(make: Any) -> None:
    peer = make()
    left: list[str] = []
    stream = peer.ask()
    request = taken(peer)
    request.stream.watch(lambda: left.append("one"))
    forgotten = left.clear
    request.stream.watch(forgotten)
    request.stream.forget(forgotten)
    peer.state.reset_stream(stream)
    peer.step()
    assert left == ["one"]
    request.stream.watch(lambda: left.append("late"))
    assert left == ["one", "late"]
    with pytest.raises(HTTP2Error, match="cancelled"):
        peer.ours.respond(request.stream, 200, [], end=True)
    peer.ours.finish(request.stream)
    assert (peer.ours.in_flight, peer.ours.is_closed) == (0, False)


def test_the_end_of_a_connection_ends_all_that_is_under_way(make: Any) -> None:
    peer = make()
    left: list[int] = []
    for number in range(2):
        peer.ask(end=False)
        taken(peer).stream.watch(lambda number=number: left.append(number))
    peer.ask()
    peer.socket.shutdown(socket.SHUT_RDWR)
    peer.ours.receive()
    assert left == [0, 1]
    assert peer.ours.is_closed
    assert not peer.ours.wants()
    assert peer.ours.take() == (None, False)


def test_a_connection_has_most_of_the_threads_and_its_bodies_half(make: Any) -> None:
    peer = make(threads=8)
    for _ in range(20):
        peer.ask(end=False)
    waiting = [peer.ours.take()[0] for _ in range(5)]
    assert [request is not None for request in waiting] == [True] * 4 + [False]
    for _ in range(4):
        peer.ask()
    assert peer.ours.wants()
    served = [peer.ours.take() for _ in range(3)]
    assert [request is not None for request, _ in served] == [True, True, False]
    assert not peer.ours.wants()
    peer.ours.finish(served[0][0].stream)
    assert peer.ours.wants()
    assert not peer.ours.wants()  # it was offered to a thread already


def test_what_is_refused_waits_for_its_turn_too(make: Any) -> None:
    peer = make()
    peer.ask(("x", "a" * 9000))
    request = taken(peer)
    assert isinstance(request, RefusedRequest)
    assert (request.method, request.uri) == ("POST", "/")
    assert peer.ours.take() == (None, False)


def test_a_client_that_takes_nothing_is_given_up(make: Any) -> None:
    peer = make(window=1 << 24, patience=0.05)
    peer.ask()
    request = taken(peer)
    peer.ours.respond(request.stream, 200, [], end=False)
    with pytest.raises(HTTP2Error, match="not taken"):
        peer.ours.send(request.stream, bytes(1 << 24), end=False)
    assert not peer.ours.expired(0.0)
    assert peer.ours.expired(float("inf"))
    assert peer.ours.broken


def test_a_stopping_worker_sends_goaway_after_the_responses(make: Any) -> None:
    peer = make()
    peer.ask()
    request = taken(peer)
    peer.ours.drain(float("inf"))
    peer.step()
    assert "ConnectionTerminated" not in peer.kinds()
    peer.ours.respond(request.stream, 200, [], end=True)
    peer.ours.finish(request.stream)
    peer.read()
    assert peer.kinds()[-1] == "ConnectionTerminated"
    assert peer.events[-1].error_code == 0
    assert not peer.ours.is_closed  # for requests that have crossed it


def test_a_connection_that_accepts_no_more_refuses_each_stream(make: Any) -> None:
    peer = make()
    first = peer.ask()
    taken(peer)
    peer.ours.refuse_more()
    peer.ask()
    assert peer.ours.take() == (None, False)
    [terminated] = [e for e in peer.events if isinstance(e, h2.events.ConnectionTerminated)]
    assert (terminated.error_code, terminated.last_stream_id) == (0, first)
