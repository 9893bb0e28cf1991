"""Tunnels of WebSockets, over real sockets."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from wsgigate.proxy.websocket import Tunnels, relay


class Ends:
    """A tunnel between two connections; *client* and *instance* are the outer ends."""

    def __init__(self) -> None:
        self.client, self._left = socket.socketpair()
        self.instance, self._right = socket.socketpair()
        self.moved: tuple[int, int] | None = None
        for end in (self.client, self.instance):
            end.settimeout(30)

    def run(self, **options: Any) -> None:
        self.moved = relay(self._left, self._right, **{"idle_timeout": 20.0, **options})
        self._left.close()
        self._right.close()

    def start(self, **options: Any) -> threading.Thread:
        thread = threading.Thread(target=self.run, kwargs=options)
        thread.start()
        return thread

    def close(self) -> None:
        for end in (self.client, self.instance, self._left, self._right):
            end.close()


@pytest.fixture
def ends() -> Iterator[Ends]:
    made = Ends()
    yield made
    made.close()


def read(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count and (block := sock.recv(count - len(data))):
        data += block
    return data


def test_bytes_pass_both_ways_until_one_end_closes(ends: Ends) -> None:
    thread = ends.start(first=b"early ")
    ends.client.sendall(b"question")
    assert read(ends.instance, 8) == b"question"
    ends.instance.sendall(b"answer")
    assert read(ends.client, 12) == b"early answer"
    ends.instance.sendall(b"!")
    ends.instance.close()
    assert ends.client.recv(10) == b"!"
    assert ends.client.recv(10) == b""
    thread.join(30)
    assert ends.moved == (8, 13)


def test_two_ends_that_send_before_they_read_do_not_block_each_other(ends: Ends) -> None:
    large = bytes(1 << 22)
    thread = ends.start()
    talkers = [
        threading.Thread(target=end.sendall, args=(large,)) for end in (ends.client, ends.instance)
    ]
    for talker in talkers:
        talker.start()
    assert read(ends.client, len(large)) == large  # the other way is full by now
    assert read(ends.instance, len(large)) == large
    for talker in talkers:
        talker.join()
    ends.client.close()
    thread.join(30)
    assert ends.moved == (len(large), len(large))


def test_an_idle_tunnel_is_closed(ends: Ends) -> None:
    thread = ends.start(idle_timeout=0.001)
    assert ends.client.recv(1) == b""
    thread.join(30)
    assert ends.moved == (0, 0)


def test_stop_ends_a_busy_tunnel(ends: Ends) -> None:
    times = [float("inf"), float("inf"), 0.0]

    def end_at() -> float:
        ends.client.sendall(b"x")  # there is always more to move
        return times.pop(0)

    ends.run(end_at=end_at)
    assert ends.moved == (2, 0)
    assert read(ends.instance, 3) == b"xx"


def test_the_number_of_tunnels_is_limited() -> None:
    tunnels = Tunnels(2)
    assert [tunnels.enter() for _ in range(3)] == [True, True, False]
    tunnels.leave()
    assert tunnels.enter()


def test_no_tunnel_opens_after_stop() -> None:
    tunnels = Tunnels(2)
    tunnels.stop()
    assert not tunnels.enter()


def test_a_negative_limit_is_rejected() -> None:
    with pytest.raises(ValueError, match="0 or more"):
        Tunnels(-1)


def test_a_forked_worker_has_its_own_tunnels_and_ends_them(
    in_child: Callable[[Callable[[], bool]], bool],
) -> None:
    """One that was stopped before its first began that one all the same."""
    tunnels = Tunnels(1)
    assert tunnels.enter()

    def ends() -> bool:
        assert tunnels.enter()
        tunnels.leave()
        return True

    def stops() -> bool:
        tunnels.stop()
        return not tunnels.enter()

    assert in_child(ends)
    assert in_child(stops)
    assert not tunnels.enter()
