"""Many health checks at a time in one thread, however long each of them takes."""

from __future__ import annotations

import logging
import re
import selectors
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
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
from heapq import heappop, heappush
from itertools import count
from selectors import EVENT_READ, EVENT_WRITE
from typing import Any, NamedTuple, TypeAlias
from urllib.parse import unquote, urlsplit

from wsgigate.client.dial import Address, Check, Contexts, Names, Verify, check_target, literal
from wsgigate.client.response_reader import BrokenResponse, ResponseReader
from wsgigate.discovery import Instance, host_and_port
from wsgigate.discovery.health_results import Found
from wsgigate.rules.health import MOST_BODY, HealthCheck, Outcome, judge
from wsgigate.runtime import fork

__all__ = ["Prober", "Steps", "TlsPolicy", "Wait", "steps"]


# One health check as steps that never block: to connect, perhaps over TLS, to ask and to read.
#
# What is asked may be broken or hostile: it may redirect to an address that only the gateway
# reaches, send without end, or send one byte a second. So no redirect is followed, at most 64 KiB
# are read, and the deadline holds for the whole of the check, not for each read of it.

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
                check_target(allowed, address)
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


LOG = logging.getLogger("wsgigate.health")


class _Flight:
    """A check under way.

    :ivar watched: The socket that is watched for it.
    :ivar until: When it has waited long enough for what it waits for.
    """

    __slots__ = ("found", "steps", "until", "watched")

    def __init__(self, steps: Steps, found: Found) -> None:
        self.steps = steps
        self.found = found
        self.until = 0.0
        self.watched: int | None = None


class TlsPolicy(NamedTuple):
    """How the instances of a service are connected to.

    :ivar verify: Whether and against which file or folder of authorities TLS is verified.
    :ivar server_name: The name to ask for and verify by TLS; the host's unless given.
    :ivar allowed: Asked about each address just before it is connected to.
    """

    verify: Verify = True
    server_name: str | None = None
    allowed: Check | None = None


_PLAIN = TlsPolicy()


class Prober:
    """Ask instances whether they are well, over TCP, HTTP, TLS and Unix sockets.

    A check that hangs costs a socket and no thread. The thread starts with the first check, in a
    forked process with the first check there, and ends with :meth:`stop`.

    :param manners: How instances are connected to, by service.
    :param clock: Seconds of a clock that never steps back.
    :raises ValueError: A file or folder of authorities can not be used.
    """

    def __init__(
        self,
        manners: Mapping[str, TlsPolicy] | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._manners = dict(manners or {})
        self._contexts = Contexts()
        self._clock = clock
        for manner in self._manners.values():
            if isinstance(manner.verify, str):
                try:
                    self._contexts.get(manner.verify, None)
                except OSError as error:
                    told = f"verify names no usable authorities: {manner.verify!r}: {error}"
                    raise ValueError(told) from error
        self._round: _Round | None = None
        fork.renew_at_fork(self)

    def ask(
        self,
        service: str,
        instance: Instance,
        check: HealthCheck,
        found: Found,
    ) -> None:
        """Start a check of *instance*; one thread at a time may.

        :param found: Called with the outcome, in the thread that checks, soon after the check's
            timeout at the latest; not at all when :meth:`stop` comes before.
        """
        parts = urlsplit(instance.url)
        host = parts.hostname or ""
        manner = self._manners.get(service, _PLAIN)
        unix = instance.scheme == "http+unix"
        secure = not unix and (check.scheme or instance.scheme) == "https"
        tls = self._contexts.get(manner.verify, None) if secure else None
        name = manner.server_name or host
        if check.host and manner.server_name is None and literal(host, 0) is not None:
            name = urlsplit(f"//{check.host}").hostname or host  # certificates are for names
        name = name.rstrip(".")
        flight = _Flight(steps(instance, check, name, tls, self._clock, manner.allowed), found)
        going = self._round
        if going is None or not going.lives():
            going = _Round(self._clock)
            going.start()
            self._round = going
        going.begin(flight)
        if unix:  # it has no ports
            going.tell(flight, [(socket.AF_UNIX, unquote(parts.netloc))])
            return
        port = check.port or parts.port or (443 if instance.scheme == "https" else 80)
        address = literal(host, port)
        if address is not None:
            going.tell(flight, [address])
        else:
            going.names.look_up(host, port, partial(going.tell, flight))

    def stop(self) -> None:
        """End the thread, and abandon the checks under way."""
        going, self._round = self._round, None
        if going is not None:
            going.stop()

    def after_fork(self) -> None:
        """Close what the parent had open."""
        going, self._round = self._round, None
        if going is not None:
            going.close()


class _Round:
    """The thread of one process, and what belongs to it alone."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.names = Names()
        self._clock = clock
        self._selector = selectors.DefaultSelector()
        self._ear, self._mouth = socket.socketpair()
        self._ear.setblocking(False)
        self._mouth.setblocking(False)
        self._selector.register(self._ear, selectors.EVENT_READ)
        self._inbox: deque[Callable[[], None]] = deque()
        self._flights: set[_Flight] = set()
        self._timers: list[tuple[float, int, _Flight]] = []
        self._numbers = count()
        self._stopping = False
        self._thread = threading.Thread(
            target=self._run, name="wsgigate-health-prober", daemon=True
        )

    def start(self) -> None:
        try:
            self._thread.start()
        except RuntimeError:  # no thread is to be had
            self.close()
            raise

    def lives(self) -> bool:
        """Tell whether the thread still runs."""
        return self._thread.is_alive()

    def begin(self, flight: _Flight) -> None:
        """Have *flight* begun."""
        self._do(lambda: self._begin(flight))

    def tell(self, flight: _Flight, answer: list[tuple[int, object]] | Exception) -> None:
        """Have *flight* go on with the addresses of its instance, or with why there are none."""
        self._do(lambda: self._go_on(flight, answer))

    def stop(self) -> None:
        """End the thread."""
        self._stopping = True
        self._wake()
        if threading.current_thread() is not self._thread:
            self._thread.join(1.0)

    def _do(self, work: Callable[[], None]) -> None:
        self._inbox.append(work)
        self._wake()

    def _wake(self) -> None:
        try:
            self._mouth.send(b"\0")
        except OSError:
            pass  # it is awake, or has ended

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._turn()
        finally:
            self.close()

    def close(self) -> None:
        """Close all that is open, once the thread has ended or is another process's."""
        for flight in self._flights:
            try:
                flight.steps.close()
            except ValueError:
                pass  # forked from in the middle of a step, which never ends here
        self._selector.close()
        self._ear.close()
        self._mouth.close()

    def _turn(self) -> None:
        """Wait for something to happen, and see to all that has."""
        timers = self._timers
        timeout = max(0.0, timers[0][0] - self._clock()) if timers else None
        ready = self._selector.select(timeout)
        now = self._clock()  # not later: what comes while this thread is held up still counts
        for key, _ in ready:
            if key.data is not None:
                self._go_on(key.data, None)
            else:
                self._listen()
        while self._inbox:
            self._inbox.popleft()()
        while timers and timers[0][0] <= now:
            until, _, flight = heappop(timers)
            if flight in self._flights and flight.until == until:
                flight.until = 0.0
                self._go_on(flight, TimeoutError("the deadline has passed"))

    def _listen(self) -> None:
        try:
            while self._ear.recv(4096):
                pass
        except BlockingIOError:
            pass

    def _begin(self, flight: _Flight) -> None:
        self._flights.add(flight)
        self._go_on(flight, None)

    def _go_on(self, flight: _Flight, answer: object) -> None:
        """Have *flight* do what it can, and watch what it waits for then."""
        if flight not in self._flights:
            return  # its time was up
        if flight.watched is not None:
            self._selector.unregister(flight.watched)
            flight.watched = None
        try:
            if isinstance(answer, Exception):
                wait = flight.steps.throw(answer)
            else:
                wait = flight.steps.send(answer)
        except StopIteration as end:
            self._end(flight, end.value)
            return
        except Exception as error:
            self._end(flight, error)
            return
        if wait.sock is not None:
            self._selector.register(wait.sock, wait.events, flight)
            flight.watched = wait.sock.fileno()
        if flight.until != wait.until:
            flight.until = wait.until
            heappush(self._timers, (wait.until, next(self._numbers), flight))

    def _end(self, flight: _Flight, outcome: Outcome | Exception) -> None:
        self._flights.discard(flight)
        try:
            flight.found(outcome)
        except Exception:
            LOG.exception("A health result could not be taken")
