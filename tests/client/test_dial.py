"""Opening a connection: addresses, deadline, TLS; a failure leaves no socket open."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from typing import Any

import pytest
import requests

from wsgigate.client.destinations import Destinations
from wsgigate.client.dial import dialer
from wsgigate.client.response_reader import NotConnected
from wsgigate.runtime.tls import Contexts
from wsgigate.testing.fakes import FakeClock

KIND = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
HERE, THERE, NOWHERE = (*KIND, ("a", 1)), (*KIND, ("b", 1)), (*KIND, ("c", 1))


class Interrupted(BaseException):
    """What is no error of the system's."""


class Sockets:
    """Sockets whose connects end as configured, in order."""

    def __init__(self, clock: FakeClock, *ends: BaseException | None) -> None:
        self.made: list[Any] = []
        self.timeouts: list[float | None] = []
        self.takes = 0.0
        ends_left = list(ends)
        sockets = self

        class Socket(socket.socket):
            def __init__(self, *arguments: Any, **options: Any) -> None:
                super().__init__(*arguments, **options)
                sockets.made.append(self)

            def settimeout(self, seconds: float | None) -> None:
                sockets.timeouts.append(seconds)

            def connect(self, address: Any) -> None:
                clock.advance(sockets.takes)
                end = ends_left.pop(0)
                if end is not None:
                    raise end

        self.kind = Socket

    def closed(self) -> list[bool]:
        """Return of each socket whether it was closed; close them."""
        closed = [each.fileno() == -1 for each in self.made]
        for each in self.made:
            each.close()
        return closed


Use = Callable[..., Sockets]


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(100.0)


@pytest.fixture
def use(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> Use:
    def used(*ends: BaseException | None, addresses: tuple[Any, ...] = (HERE,)) -> Sockets:
        sockets = Sockets(clock, *ends)
        monkeypatch.setattr(socket, "socket", sockets.kind)
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: addresses)
        return sockets

    return used


def test_each_address_gets_an_equal_share_of_the_time_left(clock: FakeClock, use: Use) -> None:
    sockets = use(TimeoutError(), OSError(), None, addresses=(HERE, THERE, NOWHERE))
    sockets.takes = 3.0
    made = dialer("http://x", True, None, Contexts(), clock)(109.0)
    assert made is sockets.made[2]
    assert sockets.timeouts == [3.0, 3.0, 3.0]
    assert sockets.closed() == [True, True, False]


def test_when_no_address_accepts_the_error_is_that_of_the_last(clock: FakeClock, use: Use) -> None:
    sockets = use(TimeoutError(), ConnectionRefusedError("no"), addresses=(HERE, THERE))
    with pytest.raises(NotConnected, match="no"):
        dialer("http://x", True, None, Contexts(), clock)(109.0)
    assert sockets.closed() == [True, True]


def test_no_address_is_tried_after_the_deadline(clock: FakeClock, use: Use) -> None:
    sockets = use(OSError(), addresses=(HERE, THERE))
    sockets.takes = 9.0
    with pytest.raises(requests.ConnectTimeout):
        dialer("http://x", True, None, Contexts(), clock)(109.0)
    assert sockets.closed() == [True]


@pytest.mark.parametrize("origin", ["http://x", "http+unix://x"])
def test_a_socket_is_closed_when_connecting_is_interrupted(
    origin: str, clock: FakeClock, use: Use
) -> None:
    sockets = use(Interrupted())
    with pytest.raises(Interrupted):
        dialer(origin, True, None, Contexts(), clock)(109.0)
    assert sockets.closed() == [True]


def test_a_unix_socket_that_refuses_is_closed(clock: FakeClock, use: Use) -> None:
    sockets = use(BlockingIOError(), ConnectionRefusedError())
    with pytest.raises(NotConnected):
        dialer("http+unix://x", True, None, Contexts(), clock)(109.0)
    assert sockets.closed() == [True, True]


class Shaking(Contexts):
    """Contexts whose handshake ends as configured."""

    def __init__(self, end: BaseException | None) -> None:
        super().__init__()
        self._end = end
        self.names: list[str] = []

    def get(self, verify: Any, cert: Any = None) -> Any:
        return self

    def wrap_socket(self, plain: Any, server_hostname: str, **options: Any) -> Any:
        self.names.append(server_hostname)
        assert options == {"suppress_ragged_eofs": False, "do_handshake_on_connect": False}
        plain.do_handshake = self._shake
        return plain

    def _shake(self) -> None:
        if self._end is not None:
            raise self._end


@pytest.mark.parametrize(
    ("end", "raised"),
    [
        (TimeoutError(), requests.ConnectTimeout),
        (ssl.SSLError("bad"), requests.exceptions.SSLError),
        (ConnectionResetError(), requests.exceptions.SSLError),
        (ValueError(), requests.exceptions.SSLError),
        (Interrupted(), Interrupted),
    ],
)
def test_a_handshake_that_fails_closes_the_connection(
    end: BaseException, raised: type[BaseException], clock: FakeClock, use: Use
) -> None:
    sockets = use(None)
    with pytest.raises(raised):
        dialer("https://x", True, None, Shaking(end), clock)(109.0)
    assert sockets.closed() == [True]


@pytest.mark.parametrize(("takes", "left"), [(4.0, 5.0), (40.0, 0.001)])
def test_a_handshake_has_the_time_that_connecting_left(
    takes: float, left: float, clock: FakeClock, use: Use
) -> None:
    """Never 0: the socket would not wait at all."""
    sockets = use(None)
    sockets.takes = takes
    dialer("https://x", True, None, Shaking(None), clock)(109.0)
    assert sockets.timeouts == [9.0, left]
    assert sockets.closed() == [False]


@pytest.mark.parametrize("origin", ["http://x", "https://x", "http+unix://x"])
def test_on_socket_is_called_before_the_socket_waits(
    origin: str, clock: FakeClock, use: Use
) -> None:
    """Another thread can shut it down from then on."""
    sockets = use(None)
    announced: list[Any] = []
    dialled = dialer(origin, True, None, Shaking(None), clock)(109.0, announced.append)
    assert announced == [dialled] * (2 if origin == "https://x" else 1)
    assert sockets.closed() == [False]


def test_an_aborted_request_connects_to_nothing(clock: FakeClock, use: Use) -> None:
    for origin, count in (("http://x", 2), ("http+unix://x", 1)):
        sockets = use(None, addresses=(HERE, THERE))
        with pytest.raises(NotConnected, match="the request was aborted"):
            dialer(origin, True, None, Contexts(), clock)(109.0, lambda _: False)
        assert sockets.closed() == [True] * count


def test_a_trailing_dot_is_removed_from_the_name_for_the_certificate(
    clock: FakeClock, use: Use
) -> None:
    sockets, contexts = use(None), Shaking(None)
    dialer("https://a.test.", True, None, contexts, clock)(109.0)
    assert contexts.names == ["a.test"]
    sockets.closed()


def test_alpn_offers_http_1_1_only() -> None:
    """RFC 7301: else an instance may choose to speak HTTP/2."""
    sent = ssl.MemoryBIO()
    client = Contexts().get(False, None).wrap_bio(ssl.MemoryBIO(), sent, server_hostname="x")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    hello = sent.read()
    assert b"\x00\x09\x08http/1.1" in hello  # a list of one
    assert b"\x02h2" not in hello


def test_server_name_replaces_the_host_for_the_certificate(clock: FakeClock, use: Use) -> None:
    sockets, contexts = use(None), Shaking(None)
    dialer("https://10.0.0.1", True, None, contexts, clock, server_name="a.test.")(109.0)
    assert contexts.names == ["a.test"]
    sockets.closed()


META = (*KIND, ("169.254.169.254", 80))
GOOD = (*KIND, ("10.0.0.1", 80))
ZONED = (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("fe80::1%eth0", 80, 0, 2))


@pytest.mark.parametrize("forbidden", [META, ZONED], ids=["metadata", "link-local"])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_forbidden_address_is_never_connected_to(
    scheme: str, forbidden: Any, clock: FakeClock, use: Use
) -> None:
    sockets = use(addresses=(forbidden,))
    check = Destinations().check
    dial = dialer(f"{scheme}://x", True, None, Shaking(None), clock, check=check)
    with pytest.raises(NotConnected, match=r"not connected: .*link-local address"):
        dial(109.0)
    assert sockets.made == []


def test_after_a_forbidden_address_the_others_are_tried(clock: FakeClock, use: Use) -> None:
    sockets = use(None, addresses=(META, GOOD))
    dialer("http://x", True, None, Contexts(), clock, check=Destinations().check)(109.0)
    assert sockets.closed() == [False]


def test_each_connection_checks_the_resolved_address_again(clock: FakeClock, use: Use) -> None:
    """DNS rebinding: the name may resolve to another address than at registration."""
    dial = dialer("http://x", True, None, Contexts(), clock, check=Destinations().check)
    sockets = use(None, addresses=(GOOD,))
    dial(109.0)
    sockets.closed()
    use(addresses=(META,))
    with pytest.raises(NotConnected):
        dial(109.0)


def test_without_a_check_any_address_is_connected_to(clock: FakeClock, use: Use) -> None:
    sockets = use(None, addresses=(META,))
    dialer("http://x", True, None, Contexts(), clock)(109.0)
    assert sockets.closed() == [False]
