"""Opens connections to instances: name resolution, address checks, TCP, Unix sockets, TLS.

The address check runs on the very address that is connected to, after name resolution: a check of
the name alone would let DNS rebinding lead the gateway to a forbidden address. All steps share one
deadline.
"""

from __future__ import annotations

import ipaddress
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from errno import ENOMEM
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, TypeAlias, TypeVar
from urllib.parse import unquote, urlsplit

import requests

from wsgigate.client.response_reader import NotConnected, TlsFailed
from wsgigate.runtime.tls import Cert, Contexts, Verify

__all__ = [
    "BackgroundResolver",
    "Check",
    "Dial",
    "OnSocket",
    "SocketAddress",
    "check_target",
    "dialer",
    "literal",
    "shares",
]

A = TypeVar("A")

SocketAddress: TypeAlias = tuple[int, Any]
"""An address family, and the argument of ``connect`` for a socket of that family."""

OnAddresses: TypeAlias = Callable[["list[SocketAddress] | Exception"], None]


def literal(host: str, port: int) -> SocketAddress | None:
    """Return the address for an IP literal *host*; ``None`` for a name."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    if address.version == 4:
        return socket.AF_INET, (host, port)
    return socket.AF_INET6, (host, port)


class BackgroundResolver:
    """Resolves names in background threads; concurrent requests for a name share one lookup.

    A thread ends when its queue is empty. A lookup that hangs occupies its thread until the
    resolver returns.

    :param most: Maximum number of concurrent lookups.
    :param resolve: Resolves a name, with the signature of :func:`socket.getaddrinfo`.
    """

    def __init__(
        self, most: int = 8, *, resolve: Callable[..., list[Any]] = socket.getaddrinfo
    ) -> None:
        self._most = most
        self._resolve = resolve
        self._lock = threading.Lock()
        self._waiting: dict[str, list[tuple[int, OnAddresses]]] = {}
        self._queue: deque[str] = deque()
        self._threads = 0

    def resolve(self, host: str, port: int, found: OnAddresses) -> None:
        """Resolve *host*, and call *found* from another thread with the addresses or the error.

        When no thread can be started, *found* is called with that error from this thread.
        """
        with self._lock:
            waiting = self._waiting.setdefault(host, [])
            waiting.append((port, found))
            if len(waiting) > 1:
                return
            self._queue.append(host)
            if self._threads >= self._most:
                return
            try:
                threading.Thread(target=self._run, name="wsgigate-resolver", daemon=True).start()
                self._threads += 1
                return
            except RuntimeError:
                if self._threads:
                    return  # a running thread resolves it
                self._queue.clear()
                del self._waiting[host]
        found(OSError(ENOMEM, "cannot start a thread to resolve a name"))

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._queue:
                    self._threads -= 1
                    return
                host = self._queue.popleft()
            answer: list[Any] | Exception
            try:
                answer = self._resolve(host, None, type=socket.SOCK_STREAM)
            except (OSError, UnicodeError) as error:
                answer = error
            with self._lock:
                waiting = self._waiting.pop(host)
            for port, found in waiting:
                if isinstance(answer, Exception):
                    found(answer)
                else:
                    found([(family, (at[0], port, *at[2:])) for family, *_, at in answer])


OnSocket: TypeAlias = Callable[[Any], object]
"""Called with a socket before it connects, so that another thread can shut it down, and with
``None`` before it may serve another request; returns ``False`` when the request was aborted."""

Dial = Callable[..., socket.socket]
"""Opens a socket, given a deadline by the monotonic clock and optionally an :data:`OnSocket`."""

Check = Callable[[IPv4Address | IPv6Address, int], object]
"""Raises ValueError for an address and port that the gateway must not connect to."""

_BUSY_PAUSE = 0.01


def dialer(
    origin: str,
    verify: Verify,
    cert: Cert,
    contexts: Contexts,
    clock: Callable[[], float],
    *,
    check: Check | None = None,
    server_name: str | None = None,
) -> Dial:
    """Return a function that opens connections to *origin*.

    :param origin: ``http://HOST[:PORT]``, ``https://HOST[:PORT]``, or ``http+unix://PATH`` with the
        path of a socket percent-encoded.
    :param check: Called with each address and port immediately before connecting, after name
        resolution.
    :param server_name: Name for TLS SNI and certificate verification. Default: the host.
    :raises requests.exceptions.InvalidURL: *origin* has none of these forms.
    """
    try:
        parts = urlsplit(origin)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise requests.exceptions.InvalidURL(str(error)) from None
    if parts.scheme == "http+unix":
        path = unquote(parts.netloc)
        return lambda until, on_socket=None: _mapped(
            lambda: _dial_unix(path, until, clock, on_socket)
        )
    if parts.scheme not in ("http", "https") or not host:
        raise requests.exceptions.InvalidURL(f"not an instance URL: {origin!r}")
    secure = parts.scheme == "https"
    address = (host, port or (443 if secure else 80))
    name = (server_name or host).rstrip(".")
    if not secure:
        return lambda until, on_socket=None: _mapped(
            lambda: _dial_tcp(address, until, clock, check, on_socket)
        )

    def dial(until: float, on_socket: OnSocket | None = None) -> socket.socket:
        context = contexts.get(verify, cert)
        sock = _mapped(lambda: _dial_tcp(address, until, clock, check, on_socket))
        try:
            sock.settimeout(max(until - clock(), 0.001))
            sock = tls = context.wrap_socket(
                sock,
                server_hostname=name,
                suppress_ragged_eofs=False,
                do_handshake_on_connect=False,
            )
            if on_socket is not None:
                on_socket(tls)
            tls.do_handshake()
            return tls
        except TimeoutError as error:
            sock.close()
            raise requests.ConnectTimeout(error) from error
        except (OSError, ValueError) as error:
            sock.close()
            raise TlsFailed(error) from error
        except BaseException:
            sock.close()
            raise

    return dial


def _mapped(dial: Callable[[], socket.socket]) -> socket.socket:
    try:
        return dial()
    except TimeoutError as error:
        raise requests.ConnectTimeout(error) from error
    except (OSError, UnicodeError) as error:
        raise NotConnected(error) from error


def shares(
    addresses: Sequence[A], until: float, clock: Callable[[], float]
) -> Iterator[tuple[A, float]]:
    """Yield each address, and the seconds that it may take: an equal share of the time left.

    :param until: When connecting fails, by *clock*.
    :raises TimeoutError: No time is left for the next address.
    """
    for number, address in enumerate(addresses):
        left = until - clock()
        if left <= 0:
            raise TimeoutError("connecting took too long")
        yield address, left / (len(addresses) - number)


def _dial_tcp(
    address: tuple[str, int],
    until: float,
    clock: Callable[[], float],
    check: Check | None,
    on_socket: OnSocket | None = None,
) -> socket.socket:
    """Connect to the first address that accepts."""
    found = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)
    failure: OSError = OSError("the host has no address")
    for (family, kind, protocol, _, target), share in shares(found, until, clock):
        sock = None
        try:
            if check is not None:
                check_target(check, target)
            sock = socket.socket(family, kind, protocol)
            sock.settimeout(share)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _announce(on_socket, sock)
            sock.connect(target)
            return sock
        except OSError as error:
            failure = error
            if sock is not None:
                sock.close()
        except BaseException:
            if sock is not None:
                sock.close()
            raise
    raise failure


def check_target(check: Check, target: tuple[Any, ...]) -> None:
    """Apply *check* to *target*, the argument of a socket's ``connect``.

    :raises PermissionError: The address is not allowed.
    """
    try:
        check(ip_address(str(target[0]).partition("%")[0]), target[1])
    except ValueError as error:
        raise PermissionError(f"not connected: {error}") from error


def _dial_unix(
    path: str, until: float, clock: Callable[[], float], on_socket: OnSocket | None = None
) -> socket.socket:
    while True:
        left = until - clock()
        if left <= 0:
            raise TimeoutError("connecting took too long")
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(left)
            _announce(on_socket, sock)
            sock.connect(path)
            return sock
        except BlockingIOError:  # the listen queue is full; Linux reports that at once
            sock.close()
            time.sleep(_BUSY_PAUSE)
        except BaseException:
            sock.close()
            raise


def _announce(on_socket: OnSocket | None, sock: socket.socket) -> None:
    """Pass a socket that is about to connect to *on_socket*.

    :raises ConnectionAbortedError: The request was aborted.
    """
    if on_socket is not None and on_socket(sock) is False:
        raise ConnectionAbortedError("the request was aborted")
