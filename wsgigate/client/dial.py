"""From an instance's address to an open connection: every address tried, TLS by one policy."""

from __future__ import annotations

import ipaddress
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from errno import ENOMEM
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, TypeAlias
from urllib.parse import unquote, urlsplit

import requests

from wsgigate.client.response_reader import NotConnected, TlsFailed
from wsgigate.client.tls import Cert, Contexts, Verify

__all__ = [
    "Address",
    "Cert",
    "Check",
    "Contexts",
    "Dial",
    "Holds",
    "Names",
    "Verify",
    "dialer",
    "literal",
    "see",
]


# The addresses of hosts, looked up beside what must not wait for them.

Address: TypeAlias = tuple[int, Any]
"""A family, and what a socket of that family connects to."""

Found: TypeAlias = Callable[["list[Address] | Exception"], None]


def literal(host: str, port: int) -> Address | None:
    """Return the address that *host* is, None for a name."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    if address.version == 4:
        return socket.AF_INET, (host, port)
    return socket.AF_INET6, (host, port)


class Names:
    """Look up names in a few threads, each name once for all who wait for it.

    The threads end when there is nothing to look up. One that the resolver lets hang ends with it.

    :param most: How many names are looked up at a time.
    :param resolve: Looks one up, as :func:`socket.getaddrinfo` does.
    """

    def __init__(
        self, most: int = 8, *, resolve: Callable[..., list[Any]] = socket.getaddrinfo
    ) -> None:
        self._most = most
        self._resolve = resolve
        self._lock = threading.Lock()
        self._waiting: dict[str, list[tuple[int, Found]]] = {}
        self._queue: deque[str] = deque()
        self._threads = 0

    def look_up(self, host: str, port: int, found: Found) -> None:
        """Have *found* called, in another thread, with the addresses of *host* or what failed.

        When no thread is to be had, that is what failed, and *found* is called in this one.
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
                threading.Thread(target=self._run, name="wsgigate-names", daemon=True).start()
                self._threads += 1
                return
            except RuntimeError:
                if self._threads:
                    return  # one of those looks it up
                self._queue.clear()
                del self._waiting[host]
        found(OSError(ENOMEM, "no thread is to be had to look up a name"))

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


Holds = Callable[[socket.socket], object]
"""Told of a socket before it is connected, so that it can be shut down; returns ``False`` when
nobody waits for it any more."""

Dial = Callable[..., socket.socket]
"""Opens a connection before a moment of the monotonic clock; with whom to tell of its socket."""

Check = Callable[[IPv4Address | IPv6Address, int], object]
"""Raises ValueError for an address and port that nobody may be connected to."""

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
    """Return what opens connections to *origin*.

    :param origin: ``http://HOST[:PORT]``, ``https://HOST[:PORT]``, or ``http+unix://PATH`` with the
        path of a socket percent-encoded.
    :param check: Asked about each address just before it is connected to, whatever the host's name
        was said to mean before.
    :param server_name: The name to ask for and verify by TLS; the host's unless given.
    :raises requests.exceptions.InvalidURL: It is none of these.
    """
    try:
        parts = urlsplit(origin)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise requests.exceptions.InvalidURL(str(error)) from None
    if parts.scheme == "http+unix":
        path = unquote(parts.netloc)
        return lambda until, holds=None: _mapped(lambda: _dial_unix(path, until, clock, holds))
    if parts.scheme not in ("http", "https") or not host:
        raise requests.exceptions.InvalidURL(f"no address of an instance: {origin!r}")
    secure = parts.scheme == "https"
    address = (host, port or (443 if secure else 80))
    name = (server_name or host).rstrip(".")
    if not secure:
        return lambda until, holds=None: _mapped(
            lambda: _dial_tcp(address, until, clock, check, holds)
        )

    def dial(until: float, holds: Holds | None = None) -> socket.socket:
        context = contexts.get(verify, cert)
        sock = _mapped(lambda: _dial_tcp(address, until, clock, check, holds))
        try:
            sock.settimeout(max(until - clock(), 0.001))
            sock = tls = context.wrap_socket(
                sock,
                server_hostname=name,
                suppress_ragged_eofs=False,
                do_handshake_on_connect=False,
            )
            if holds is not None:
                holds(tls)
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


def _dial_tcp(
    address: tuple[str, int],
    until: float,
    clock: Callable[[], float],
    check: Check | None,
    holds: Holds | None = None,
) -> socket.socket:
    """Try each address of the host; one that does not answer leaves the others their share."""
    found = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)
    failure: OSError = OSError("the host has no address")
    for number, (family, kind, protocol, _, target) in enumerate(found):
        left = until - clock()
        if left <= 0:
            raise TimeoutError("connecting took too long")
        sock = None
        try:
            if check is not None:
                see(check, target)
            sock = socket.socket(family, kind, protocol)
            sock.settimeout(left / (len(found) - number))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _tell(holds, sock)
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


def see(check: Check, target: tuple[Any, ...]) -> None:
    """See that *target*, what a socket connects to, is allowed.

    :raises PermissionError: It is not.
    """
    try:
        check(ip_address(str(target[0]).partition("%")[0]), target[1])
    except ValueError as error:
        raise PermissionError(f"not connected: {error}") from error


def _dial_unix(
    path: str, until: float, clock: Callable[[], float], holds: Holds | None = None
) -> socket.socket:
    while True:
        left = until - clock()
        if left <= 0:
            raise TimeoutError("connecting took too long")
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(left)
            _tell(holds, sock)
            sock.connect(path)
            return sock
        except BlockingIOError:  # its queue is full, which a socket with a timeout is told at once
            sock.close()
            time.sleep(_BUSY_PAUSE)
        except BaseException:
            sock.close()
            raise


def _tell(holds: Holds | None, sock: socket.socket) -> None:
    """Tell of a socket that is about to be connected.

    :raises ConnectionAbortedError: Nobody waits for it any more.
    """
    if holds is not None and holds(sock) is False:
        raise ConnectionAbortedError("nobody waits for it any more")
