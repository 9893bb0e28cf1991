"""One health check as steps that never block: to connect, perhaps over TLS, to ask and to read.

What is asked may be broken or hostile: it may redirect to an address that only the gateway reaches,
send without end, or send one byte a second. So no redirect is followed, at most 64 KiB are read,
and the deadline holds for the whole of the check, not for each read of it.
"""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Callable, Generator, Sequence
from errno import (
    EADDRNOTAVAIL,
    EHOSTUNREACH,
    EMFILE,
    ENETUNREACH,
    ENFILE,
    ENOBUFS,
    ENOMEM,
)
from functools import partial
from selectors import EVENT_READ, EVENT_WRITE
from typing import Any, NamedTuple, TypeAlias
from urllib.parse import urlsplit

from wsgigate.discovery import Instance, host_and_port
from wsgigate.proxy.dial import Check, see
from wsgigate.proxy.faults import BrokenResponse
from wsgigate.proxy.names import Address
from wsgigate.proxy.wire import ResponseReader
from wsgigate.rules.health import MOST_BODY, HealthCheck, Outcome, judge

__all__ = ["Steps", "Wait", "steps"]

_BLOCK = 65_536
_BUSY_PAUSE = 0.02
_OWN = frozenset({EMFILE, ENFILE, ENOBUFS, ENOMEM, EADDRNOTAVAIL})
"""What this machine lacks is no fault of an instance."""

_RESPONSE_TIME = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]{0,30}[\x21-\x7e])?")


class Wait(NamedTuple):
    """What a check waits for.

    :ivar sock: The socket, ``None`` for what comes from elsewhere.
    :ivar events: ``EVENT_READ``, ``EVENT_WRITE``, or 0.
    :ivar until: When it has waited long enough, and is to be thrown a :exc:`TimeoutError`.
    """

    sock: socket.socket | None
    events: int
    until: float


Steps: TypeAlias = Generator[Wait, Any, Outcome]
"""A check that yields what it waits for, is sent nothing when that has come, and returns what it
found. Of the first :class:`Wait` it is sent the addresses of the instance, or thrown why there are
none. It raises for what this machine lacks, never for what an instance does."""


class _Incomplete(Exception):
    """The connection ended too early."""


def steps(
    instance: Instance,
    check: HealthCheck,
    host: str,
    tls: ssl.SSLContext | None,
    clock: Callable[[], float],
    allowed: Check | None = None,
) -> Steps:
    """Return the steps of one check.

    :param host: Whom a certificate is to name.
    :param tls: By what TLS is spoken; ``None`` to speak none.
    :param clock: Seconds of a clock that never steps back.
    :param allowed: Asked about each address just before it is connected to.
    """
    started = clock()
    deadline = started + check.timeout
    reader = ResponseReader(check.method)
    sock: socket.socket | None = None
    try:
        addresses = yield Wait(None, 0, deadline)
        sock = yield from _connect(addresses, deadline, clock, allowed)
        if tls is not None and check.path is not None:
            sock = tls.wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False)
            yield from _ready(sock, sock.do_handshake, EVENT_READ, deadline)
        took = f"{(clock() - started) * 1000:.2f}ms"
        if check.path is None:
            return Outcome(True, None, took)
        yield from _send(sock, _request(instance, check, tls is not None), deadline)
        while not reader.feed_head((yield from _receive(sock, reader, deadline))):
            pass
        took = _told_time(reader.fields) or f"{(clock() - started) * 1000:.2f}ms"
        body = yield from _body(sock, reader, deadline)
        return judge(check, reader.status, took, body)
    except Exception as problem:  # whatever an instance causes is its failure
        if isinstance(problem, OSError) and problem.errno in _OWN:
            raise
        status = reader.status if reader.status >= 200 else None
        return Outcome(False, status, error=_words(problem))
    finally:
        if sock is not None:
            sock.close()


def _request(instance: Instance, check: HealthCheck, secure: bool) -> bytes:
    fields = {
        "Host": check.host or _authority(instance, check, secure),
        "User-Agent": "wsgigate-health",
        "Accept": "*/*",
        "Accept-Encoding": "identity",
    }
    for name, value in check.fields.items():
        replaced = next((known for known in fields if known.lower() == name.lower()), name)
        fields[replaced] = value
    if check.method in ("POST", "PUT", "PATCH"):
        fields["Content-Length"] = "0"
    fields["Connection"] = "close"
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"{check.method} {check.path} HTTP/1.1\r\n{head}\r\n".encode("latin-1")


def _authority(instance: Instance, check: HealthCheck, secure: bool) -> str:
    """Return what an instance is asked by, at the port of the check."""
    if check.port is None and check.scheme in (None, instance.scheme):
        return instance.authority
    host = urlsplit(f"//{instance.authority}").hostname or ""
    own = 443 if instance.scheme == "https" else 80
    port = check.port or urlsplit(instance.url).port or own
    return host_and_port(
        f"{f'[{host}]' if ':' in host else host}:{port}", "https" if secure else "http"
    )


def _connect(
    addresses: Sequence[Address],
    deadline: float,
    clock: Callable[[], float],
    allowed: Check | None,
) -> Generator[Wait, Any, socket.socket]:
    """Try each address; one that does not answer leaves the others their share of the time."""
    failure: OSError = OSError("the host has no address")
    for number, (family, address) in enumerate(addresses):
        now = clock()
        until = now + (deadline - now) / (len(addresses) - number)
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            if allowed is not None and family != socket.AF_UNIX:
                see(allowed, address)
            sock.setblocking(False)
            while True:
                try:
                    sock.connect(address)
                except BlockingIOError:
                    if family != socket.AF_UNIX:
                        yield Wait(sock, EVENT_WRITE, until)
                        _raise_any(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
                    elif clock() >= until:
                        raise TimeoutError from None
                    else:  # its queue is full, and nothing tells when it no longer is
                        yield from _pause(clock() + _BUSY_PAUSE)
                        continue
                return sock
        except OSError as error:
            failure = error
            sock.close()
        except BaseException:
            sock.close()
            raise
    raise failure


def _raise_any(code: int) -> None:
    if code:
        raise OSError(code, "not connected")  # Python makes the fitting kind of it


def _pause(until: float) -> Generator[Wait, Any, None]:
    try:
        yield Wait(None, 0, until)
    except TimeoutError:
        pass


def _ready(
    sock: socket.socket, act: Callable[[], Any], events: int, deadline: float
) -> Generator[Wait, Any, Any]:
    """Return what *act* returns, once it need not wait; TLS may have to read in order to write."""
    while True:
        try:
            return act()
        except ssl.SSLWantReadError:
            yield Wait(sock, EVENT_READ, deadline)
        except ssl.SSLWantWriteError:
            yield Wait(sock, EVENT_WRITE, deadline)
        except BlockingIOError:
            yield Wait(sock, events, deadline)


def _send(sock: socket.socket, data: bytes, deadline: float) -> Generator[Wait, Any, None]:
    while data:
        sent = yield from _ready(sock, partial(sock.send, data), EVENT_WRITE, deadline)
        data = data[sent:]


def _receive(
    sock: socket.socket, reader: ResponseReader, deadline: float
) -> Generator[Wait, Any, bytes]:
    """Return what has come; that the other side has closed is an error until the head is in."""
    data: bytes = yield from _ready(sock, partial(sock.recv, _BLOCK), EVENT_READ, deadline)
    if not data and reader.status < 200:
        if reader.begun:
            reader.feed_end()  # raises
        raise _Incomplete("Connection closed")
    return data


def _body(
    sock: socket.socket, reader: ResponseReader, deadline: float
) -> Generator[Wait, Any, bytes]:
    """Return the body as far as it matters: a service that can not finish it is not well."""
    body = reader.body
    while not reader.complete and len(body) < MOST_BODY:
        if reader.error is not None:
            raise reader.error
        data = yield from _receive(sock, reader, deadline)
        if data:
            body += reader.feed_body(data)
            continue
        try:
            reader.feed_end()
        except BrokenResponse:
            raise _Incomplete("Incomplete response") from None
    return body[:MOST_BODY]


def _told_time(fields: Sequence[tuple[str, str]]) -> str:
    told = {name.lower(): value for name, value in fields}
    for name in ("response-time", "x-response-time"):
        value = told.get(name, "")
        if _RESPONSE_TIME.fullmatch(value):
            return value
    return ""


_WORDS: tuple[tuple[str, type[BaseException]], ...] = (
    ("Host not found", socket.gaierror),
    ("Timeout", TimeoutError),
    ("TLS failed", ssl.SSLError),
    ("Connection refused", ConnectionRefusedError),
    ("Connection refused", FileNotFoundError),
    ("Address not allowed", PermissionError),
    ("Connection reset", ConnectionResetError),
    ("Connection reset", BrokenPipeError),
    ("Bad response", BrokenResponse),
    ("Host not found", UnicodeError),
)


def _words(error: Exception) -> str:
    """Return what went wrong in words that name no host, address or stack."""
    if isinstance(error, _Incomplete):
        return str(error)
    if isinstance(error, OSError) and error.errno in (EHOSTUNREACH, ENETUNREACH):
        return "Host unreachable"
    for words, kind in _WORDS:
        if isinstance(error, kind):
            return words
    return "Check failed"
