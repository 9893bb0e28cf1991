"""What a connection to a GateWorker sends, and how long a client may take to read it."""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.servers.peer import MakePeer, Peer
from wsgigate.servers.gunicorn_body import ClientGone, ClientStalled
from wsgigate.servers.gunicorn_connection import (
    ABANDONED,
    BACKLOG,
)

SOON = 0.05
HEAD = b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n"


def repeat(action: Callable[[], object]) -> None:
    while True:
        action()


def test_output_that_the_kernel_takes_is_sent_at_once(peer: Peer) -> None:
    peer.ours.send(b"hello")
    assert not peer.ours.flushing
    assert peer.client.recv(100) == b"hello"
    assert not peer.ours.leave(True)


def filled(peer: Peer) -> int:
    """Send until output is owed; return how many bytes that were."""
    size = 0
    while not peer.ours.flushing or peer.ours.flush() is not False:
        peer.ours.send(b"x" * 50_000)
        size += 50_000
    return size


def test_what_a_client_does_not_read_is_kept_and_sent_when_it_does(peer: Peer) -> None:
    size = filled(peer)
    peer.ours.send(b"last")
    assert peer.watched == [peer.ours]  # once
    assert peer.ours.leave(True)
    assert peer.ours.keeps is True
    assert peer.ours.flush() is False
    reader = threading.Thread(target=lambda: got.append(peer.received(size + 4)))
    got: list[bytes] = []
    reader.start()
    while not peer.ours.flush():
        assert peer.ours.wait(select.POLLOUT, 10)
    reader.join()
    assert got[0] == b"x" * size + b"last"
    assert not peer.ours.flushing


def test_what_is_owed_leaves_while_the_app_is_busy_with_the_next_part(peer: Peer) -> None:
    size = filled(peer)
    assert peer.watched == [peer.ours]
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(peer.received(size)))
    reader.start()
    while (done := peer.ours.flush()) is False:
        assert peer.ours.wait(select.POLLOUT, 10)
    reader.join()
    assert done is None  # the thread that serves the request goes on
    assert len(got[0]) == size
    assert not peer.ours.leave(True)


def test_output_does_not_renew_the_time_for_reading_what_came_before(peer: Peer) -> None:
    filled(peer)
    peer.ours.timeout = 7.0
    peer.ours.send(b"next")
    assert peer.ours.timeout == 7.0


def test_a_connection_that_is_given_up_is_ended_by_the_thread_that_serves_it(peer: Peer) -> None:
    filled(peer)
    peer.ours.serving = True
    assert peer.ours.give_up()
    with pytest.raises(ClientStalled):
        peer.ours.send(b"next")
    assert not peer.ours.leave(False)
    assert not peer.ours.give_up()
    assert peer.sock.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8) == ABANDONED


def test_nothing_is_sent_in_the_place_of_what_was_given_up(peer: Peer) -> None:
    """A client would take chunks that end without some in between for a complete response."""

    class Late(bytes):
        """Its sender has begun when the connection is given up, and then its client reads."""

        def __len__(self) -> int:
            peer.ours.give_up()
            while select.select([peer.client], [], [], 0)[0]:
                peer.client.recv(1 << 20)
            return super().__len__()

    filled(peer)
    peer.ours.serving = True
    with pytest.raises(ClientStalled):
        peer.ours.send(Late(b"0\r\n\r\n"))
    assert not select.select([peer.client], [], [], 0)[0]


def test_a_sender_waits_above_the_backlog_and_the_order_is_kept(peer: Peer) -> None:
    filled(peer)
    got: list[bytes] = []
    data = os.urandom(4 * BACKLOG)

    def read() -> None:
        while not got or not got[-1].endswith(data[-100:]):
            got.append((got[-1][-100:] if got else b"") + peer.client.recv(1 << 20))

    reader = threading.Thread(target=read)
    reader.start()
    peer.ours.send(data)
    while peer.ours.flush() is False:
        assert peer.ours.wait(select.POLLOUT, 10)
    reader.join(20)
    assert not reader.is_alive()
    received = got[0] + b"".join(part[100:] for part in got[1:])
    assert received.lstrip(b"x").endswith(data[1:])


def test_a_response_that_is_not_read_is_given_up(make_peer: MakePeer) -> None:
    peer = make_peer(idle=SOON)
    with pytest.raises(ClientStalled):
        peer.ours.send(bytes(64 << 20))
    linger = peer.sock.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8)
    assert (linger, peer.ours.abandoned, peer.waits) == (ABANDONED, True, {})
    with pytest.raises(ClientStalled):
        peer.ours.send(b"x")


def test_no_lock_is_held_while_a_sender_waits(peer: Peer) -> None:
    filled(peer)
    sender = threading.Thread(target=lambda: peer.ours.send(bytes(4 * BACKLOG)))
    sender.start()
    while not peer.waits:
        assert sender.is_alive()
    assert peer.ours.flush() is False  # another thread need not wait for it
    peer.received(3 * BACKLOG + 100_000)
    sender.join(20)
    assert not sender.is_alive()


def test_a_file_follows_what_is_owed(peer: Peer, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"0123456789" * 50_000)
    size = filled(peer)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(peer.received(size + 400_000)))
    reader.start()
    with (tmp_path / "file").open("rb") as file:
        peer.ours.send_file(file, 5, 400_000)
    reader.join()
    assert got[0][size:] == (b"0123456789" * 50_000)[5:400_005]
    assert peer.sock.gettimeout() is None


def test_a_file_that_is_not_read_is_given_up(make_peer: MakePeer, tmp_path: Path) -> None:
    peer = make_peer(idle=SOON)
    with (tmp_path / "file").open("wb+") as file:
        file.truncate(64 << 20)
        with pytest.raises(ClientStalled):
            peer.ours.send_file(file, 0, 64 << 20)
    assert peer.ours.abandoned


@pytest.mark.parametrize("action", ["send", "receive"])
def test_a_broken_connection_is_the_clients_doing(action: str, peer: Peer) -> None:
    peer.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABANDONED)
    peer.client.close()
    use = peer.ours.receive if action == "receive" else lambda: peer.ours.send(b"x" * 1000)
    with pytest.raises(ClientGone):
        repeat(use)
