"""From an instance's address to an open connection: every address tried, TLS by one policy."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any
from urllib.parse import unquote, urlsplit

import requests

from wsgigate.proxy.faults import NotConnected, TlsFailed
from wsgigate.tls import Cert, Contexts, Verify

__all__ = ["Cert", "Check", "Contexts", "Dial", "Holds", "Verify", "dialer", "see"]

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
