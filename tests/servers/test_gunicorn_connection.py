"""A client's connection to a GateWorker with sockets and no server: heads and bodies."""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Callable

import pytest

from tests.servers.peer import MakePeer, Peer
from wsgigate.servers.gunicorn_body import ClientGone, ClientStalled
from wsgigate.servers.gunicorn_connection import (
    BUFFERED,
    Http2Preface,
    Request,
)
from wsgigate.servers.http1_request import PREFACE, BadRequest, HeadRules

SOON = 0.05
HEAD = b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n"


def repeat(action: Callable[[], object]) -> None:
    while True:
        action()


def body_of(request: Request | None) -> bytes:
    assert request is not None
    data: bytes = request.environ["wsgi.input"].read()
    return data


# Heads


def test_a_request_is_served_once_its_head_is_complete(peer: Peer) -> None:
    for at in range(0, len(HEAD) - 1, 5):
        assert peer.say(HEAD[at : at + 5][: len(HEAD) - 1 - at]) is None
    request = peer.say(HEAD[-1:])
    assert request is not None
    environ = request.environ
    assert (environ["PATH_INFO"], environ["HTTP_HOST"]) == ("/a", "a")
    assert environ["REMOTE_ADDR"] == "127.0.0.1"
    assert (request.streamed, environ["wsgi.input"].read()) == (None, b"")


def test_pipelined_requests_are_served_one_after_the_other(peer: Peer) -> None:
    first = peer.say(HEAD + HEAD.replace(b"/a", b"/b") + b"GET")
    assert first is not None
    assert peer.ours.has_read_ahead()
    second = peer.ours.advance()
    assert second is not None
    assert (first.environ["PATH_INFO"], second.environ["PATH_INFO"]) == ("/a", "/b")
    assert peer.ours.advance() is None
    third = peer.say(b" /c HTTP/1.0\r\n\r\n")
    assert third is not None
    assert third.environ["PATH_INFO"] == "/c"


@pytest.mark.parametrize("pieces", [[b"\r\n" + HEAD], [b"\r", b"\n", HEAD], [b"\r\n", HEAD]])
def test_one_empty_line_before_a_request_is_ignored(pieces: list[bytes], peer: Peer) -> None:
    for _ in range(2):
        requests = [peer.say(piece) for piece in pieces]
        assert requests[-1] is not None


@pytest.mark.parametrize(
    "pieces", [[b"\r\n\r\n" + HEAD], [b"\r\n\r", b"\n" + HEAD], [b"\r\n", b"\r\n", HEAD]]
)
def test_two_empty_lines_before_a_request_are_not(pieces: list[bytes], peer: Peer) -> None:
    for piece in pieces[:-1]:
        peer.client.sendall(piece)
    with pytest.raises(BadRequest):
        peer.say(pieces[-1])


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET / HTTP/1.1\nHost: a\n\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\n", 400),
        (b"\nGET / HTTP/1.1\r\n", 400),
        (b"\r\n\r\n\r\n", 400),
        (b"GET /" + b"a" * 200, 414),
        (b"GET / HTTP/1.1\r\n" + b"X: " + b"a" * 2000, 431),
    ],
)
def test_a_head_that_cannot_become_valid_is_refused_at_once(
    data: bytes, status: int, make_peer: MakePeer
) -> None:
    peer = make_peer(rules=HeadRules(request_line=100, fields=10, field_size=150))
    with pytest.raises(BadRequest) as caught:
        peer.say(data)
    assert caught.value.problem.status == status


@pytest.mark.parametrize("data", [b"", b"GET / HT"])
def test_a_client_that_leaves_before_its_head_is_complete_gets_nothing(
    data: bytes, peer: Peer
) -> None:
    peer.client.sendall(data)
    peer.client.close()
    with pytest.raises(ClientGone):
        repeat(peer.advance)


def test_a_head_in_drops_ends_at_the_deadline(peer: Peer) -> None:
    assert peer.say(b"GET / HTTP/1.1\r\nX: ") is None
    peer.ours.timeout = 0.0
    with pytest.raises(ClientStalled):
        peer.say(b"a")


def test_an_idle_connection_has_the_announced_time_and_a_grace(peer: Peer) -> None:
    assert peer.say(HEAD) is not None
    before = peer.ours.timeout
    peer.ours.rest()
    assert peer.ours.timeout <= before - 10.0 + 5.0 + 1.0 + 5.0
    assert peer.ours.served == 1


@pytest.mark.parametrize("pieces", [1, len(PREFACE)])
def test_a_client_of_http2_is_recognized(pieces: int, make_peer: MakePeer) -> None:
    peer = make_peer(http2=True)
    size = len(PREFACE) // pieces
    for at in range(0, len(PREFACE) - size, size):
        assert peer.say(PREFACE[at : at + size]) is None
    with pytest.raises(Http2Preface):
        peer.say(PREFACE[-size:])
    assert peer.ours.buffer == PREFACE


def test_a_client_of_http1_is_served_where_http2_is_possible(make_peer: MakePeer) -> None:
    peer = make_peer(http2=True)
    assert peer.say(b"P") is None
    request = peer.say(b"UT /a HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")
    assert request is not None
    assert request.head.method == "PUT"


def test_the_preamble_of_a_balancer_gives_the_clients_address(make_peer: MakePeer) -> None:
    peer = make_peer(proxied="auto")
    assert peer.say(b"PROXY TCP4 192.0.2.7 192.0.2.1 41") is None
    request = peer.say(b"00 80\r\n" + HEAD)
    assert request is not None
    environ = request.environ
    assert (environ["REMOTE_ADDR"], environ["REMOTE_PORT"]) == ("192.0.2.7", "4100")
    peer.ours.rest()
    again = peer.say(HEAD)
    assert again is not None
    assert again.environ["REMOTE_ADDR"] == "192.0.2.7"
    peer.ours.rest()
    with pytest.raises(BadRequest):
        peer.say(b"PROXY TCP4 192.0.2.8 192.0.2.1 4100 80\r\n" + HEAD)


def test_a_preamble_from_another_peer_is_refused(make_peer: MakePeer) -> None:
    with pytest.raises(BadRequest) as caught:
        make_peer(proxied="v1", may_proxy=False).say(b"PROXY UNKNOWN\r\n" + HEAD)
    assert caught.value.problem.status == 403
    assert make_peer(proxied="v1", may_proxy=False).say(HEAD) is not None


def test_a_malformed_preamble_is_refused(make_peer: MakePeer) -> None:
    with pytest.raises(BadRequest):
        make_peer(proxied="v1").say(b"PROXY TCP4 one two 1 2\r\n" + HEAD)


# Bodies


def post(length: int, body: bytes = b"", *fields: str) -> bytes:
    lines = ["POST / HTTP/1.1", "Host: a", f"Content-Length: {length}", *fields, "", ""]
    return "\r\n".join(lines).encode() + body


def test_a_short_body_is_complete_before_a_thread_is_taken(peer: Peer) -> None:
    assert peer.say(post(10, b"01234")) is None
    request = peer.say(b"56789GET")
    assert (body_of(request), peer.ours.buffer) == (b"0123456789", b"GET")
    assert request is not None
    assert request.streamed is None


def test_a_short_chunked_body_is_complete_before_a_thread_is_taken(peer: Peer) -> None:
    head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert peer.say(head + b"5\r\nhel") is None
    assert body_of(peer.say(b"lo\r\n0\r\n\r\nnext")) == b"hello"
    assert peer.ours.buffer == b"next"


def test_a_client_that_leaves_within_its_body_is_refused(peer: Peer) -> None:
    assert peer.say(post(10, b"01234")) is None
    peer.client.shutdown(socket.SHUT_WR)
    with pytest.raises(BadRequest) as caught:
        peer.advance()
    assert caught.value.problem.status == 400


def test_a_body_that_stalls_has_a_deadline_and_bytes_earn_time(make_peer: MakePeer) -> None:
    peer = make_peer(idle=10.0, rate=100.0)
    assert peer.say(post(5000, b"x" * 1000)) is None
    begun = peer.ours.timeout
    assert peer.say(b"x" * 1000) is None
    assert peer.ours.timeout >= begun
    peer.ours.timeout = 0.0
    assert peer.say(b"x") is None  # it is the sum that counts: this renewed the deadline


def large(peer: Peer, size: int = 200_000) -> tuple[Request, bytes]:
    """Return a request whose body has begun, and the rest of that."""
    body = os.urandom(size)
    request = peer.say(post(size, body[:BUFFERED]))
    while request is None:
        request = peer.advance()
    assert request.streamed is not None
    return request, body


def test_a_large_body_is_read_as_the_app_asks_for_it(peer: Peer) -> None:
    request, body = large(peer)
    streamed = request.streamed
    assert streamed is not None
    assert not streamed.complete
    sender = threading.Thread(target=peer.client.sendall, args=(body[BUFFERED:] + HEAD,))
    sender.start()
    read = request.environ["wsgi.input"].read
    assert read(0) == b""
    assert read(1000) + read() == body
    assert (read(), streamed.complete) == (b"", True)
    sender.join()
    assert peer.waits == {}
    again = peer.ours.advance() or peer.advance()
    assert again is not None
    assert again.environ["PATH_INFO"] == "/a"


def test_lines_of_a_body_are_read_one_by_one(peer: Peer) -> None:
    lines = [b"x" * (BUFFERED - 1) + b"\n", b"second\n", b"\n", b"last"]
    request = peer.say(post(sum(map(len, lines)), lines[0]))
    while request is None:
        request = peer.advance()
    peer.client.sendall(b"".join(lines[1:]))
    body = request.environ["wsgi.input"]
    assert body.readline(10) == b"x" * 10
    assert body.readline() == lines[0][10:]
    assert body.readline(3) == b"sec"
    assert body.readlines(1) == [b"ond\n"]
    assert list(body) == [b"\n", b"last"]
    assert body.readline() == b""


@pytest.mark.parametrize("sent", [b"", b"x" * 10])
def test_an_app_that_reads_a_body_that_stalls_gets_an_error(
    sent: bytes, make_peer: MakePeer
) -> None:
    peer = make_peer(idle=SOON)
    request, _ = large(peer)
    peer.client.sendall(sent)
    with pytest.raises(ClientStalled):
        request.environ["wsgi.input"].read()
    streamed = request.streamed
    assert streamed is not None
    assert streamed.failed
    assert not streamed.discard(1 << 20)
    assert peer.waits == {}


def test_an_app_that_reads_a_body_that_is_cut_gets_an_error(peer: Peer) -> None:
    request, _ = large(peer)
    peer.client.close()
    with pytest.raises(ClientGone):
        request.environ["wsgi.input"].read()


def test_a_thread_that_waits_for_a_body_can_be_freed(peer: Peer) -> None:
    request, _ = large(peer)
    caught: list[BaseException] = []

    def read() -> None:
        try:
            request.environ["wsgi.input"].read()
        except ClientStalled as error:
            caught.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    while peer.ours not in peer.waits:
        pass
    peer.ours.cut()
    reader.join(30)
    assert len(caught) == 1


@pytest.mark.parametrize("reads", [True, False])
def test_100_continue_is_sent_when_the_app_reads(reads: bool, peer: Peer) -> None:
    request = peer.say(post(4, b"", "Expect: 100-continue"))
    assert request is not None
    streamed = request.streamed
    assert streamed is not None
    if reads:
        peer.client.sendall(b"body")
        assert request.environ["wsgi.input"].read() == b"body"
        assert peer.client.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert streamed.response_begins() == reads
    peer.client.sendall(b"body")
    if not reads:
        assert request.environ["wsgi.input"].read() == b"body"
        peer.ours.sock.shutdown(socket.SHUT_WR)
        assert peer.client.recv(100) == b""


def test_what_is_left_of_a_body_that_has_arrived_is_discarded(peer: Peer) -> None:
    request, body = large(peer, BUFFERED + 100)
    streamed = request.streamed
    assert streamed is not None
    assert not streamed.discard(1 << 20)
    peer.client.sendall(body[BUFFERED:] + b"GET")
    assert peer.ours.wait(select.POLLIN, 10)
    assert streamed.discard(1 << 20)
    assert peer.ours.buffer == b"GET"
