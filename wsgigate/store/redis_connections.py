"""A pool of connections to one Redis server, opened by redis-py and read by hiredis (RESP2).

A connection whose state is in doubt is closed: an answer must never be taken for another call's.

redis-py connects, negotiates TLS, authenticates and selects the database, and hiredis parses the
answers. redis-py's own exchange and pool are not used: it limits neither the time of a whole answer
(its timeout is one for each part) nor its size, and its pool costs more than half of a decision.
Processor time of a decision by token bucket (``python -m benchmarks.redis_exchange``, medians of 21
turns on a shared machine, so that only figures of one run compare; redis-py 8.1, hiredis 3.5,
Python 3.11):

- this exchange: 19.7 us
- redis-py's ``Connection`` with our packed commands, without the two limits: 21.0 us
- its ``BlockingConnectionPool`` with our packed commands: 30.8 us without the two limits, 30.9 us
  with them
- its ``Redis.execute_command``, without the two limits: 49.8 us

A reader of our own and the kernel's socket timeouts, in place of hiredis and Python's, took 19.6 us
where this exchange took 21.9 us (medians of 11 processes of each in turn): they were some 140 lines
longer. redis-py's reader in Python took 1.6 times as much as this exchange.
"""

from __future__ import annotations

import _socket
import inspect
import re
import select
import ssl
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import hiredis
from redis.backoff import NoBackoff
from redis.connection import (
    AbstractConnection,
    Connection,
    UnixDomainSocketConnection,
)
from redis.exceptions import RedisError, ResponseError
from redis.retry import Retry

from wsgigate.runtime.clocks import real
from wsgigate.runtime.tls import client_context
from wsgigate.store import StoreError

__all__ = [
    "LEAST",
    "LONG",
    "SHORT",
    "SIZE",
    "ErrorReply",
    "Fits",
    "Malformed",
    "RedisConnectionPool",
    "Unreachable",
    "Wire",
    "command",
    "is_number",
    "packed",
]


SIZE = 128 * 1024
"""Maximum bytes of one answer unless its caller expects more: twice the largest value."""

LEAST = 3
"""Bytes of the shortest item of an array: ``+`` and the end of the line."""

SHORT, LONG = 4096, 65536
"""Bytes received at once: of the beginning of an answer, which is mostly all of it, and of the
rest."""

_INCOMPLETE: Any = object()

_LARGE = re.compile(rb"[*$~>|%][0-9]{5}").search


class Malformed(ValueError):
    """The input violates the protocol, is too large, or has more answers than expected."""


_LASTING = re.compile(
    "WRONGPASS|NOAUTH|NOPERM|DENIED|MOVED|CROSSSLOT"
    "|ERR (?:DB index is out of range|invalid DB index|unknown command|unknown subcommand"
    "|AUTH |Client sent AUTH|invalid password"
    "|SELECT is not allowed|This instance has cluster support disabled)",
    re.IGNORECASE,
).match


class ErrorReply:
    """An error answer of the server.

    :ivar code: Its first word: ``NOSCRIPT``, ``OOM`` and so on.
    """

    __slots__ = ("code", "text")

    def __init__(self, text: str) -> None:
        # Redis and Valkey say so, instead of NOAUTH, when the first command without a password
        # has more than ten parts, such as a script with its keys and values, or a long one.
        if text.startswith("ERR Protocol error: unauthenticated "):
            text = "NOAUTH Authentication required."
        self.text = text
        self.code = text.partition(" ")[0]

    @property
    def lasting(self) -> bool:
        """Whether it lasts until the configuration of the gateway or the server changes."""
        return _LASTING(self.text) is not None


def command(*parts: bytes) -> bytes:
    """Return a command in the form that is sent."""
    return b"*%d\r\n%b" % (len(parts), packed(*parts))


def packed(*parts: bytes) -> bytes:
    """Return parts of a command in the form that is sent."""
    return b"".join([b"$%d\r\n%b\r\n" % (len(part), part) for part in parts])


class Wire:
    """The socket of a connection of redis-py: sends commands and returns the answers.

    It is also redis-py's parser while redis-py opens the connection, so that errors are as the
    server wrote them in every version of redis-py.

    An answer has ``timeout`` seconds in all, in however many parts it comes: a server that sends a
    byte now and then must not hold a thread. Only a long answer (pages of values) earns more time
    by what has arrived: ``timeout`` for each 128 KiB. The clock is read again only for answers in
    several parts.

    Only names that gevent's monkey patching replaces are used (``socket``, ``ssl``,
    ``select.poll``), and they are looked up when they are needed.

    :param timeout: Maximum seconds to send, and to receive an answer. The one that redis-py passes
        cannot be used: redis-py 5.0 loses it for Unix sockets.
    :param clock: Returns monotonic seconds.
    """

    def __init__(self, timeout: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._timeout = timeout
        self._clock = clock
        self._sock: Any = None
        self._reader: Any = None
        self._poll: Any = None

    def ask(self, packed: bytes, expected: int, most: int = SIZE) -> list[Any]:
        """Send *packed* commands and return the *expected* number of answers.

        :param most: Maximum bytes of all answers.
        :raises OSError: The connection failed, or the time ran out.
        :raises Malformed: The answers violate the protocol, or are too many.
        """
        try:
            self._sock.sendall(packed)
        except TimeoutError:
            raise TimeoutError("Timeout writing to socket") from None
        return self._answers(expected, most)

    def spoilt(self) -> bool:
        """Return whether unexpected data arrived, or the server closed the connection."""
        if self._poll is not None:
            return bool(self._poll(0))
        sock = self._sock
        try:
            sock.settimeout(0)
            try:
                sock.recv(1)
            finally:
                sock.settimeout(self._timeout)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return False  # nothing; or a record of TLS itself, such as a session ticket
        except OSError:
            pass
        return True

    def _answers(self, expected: int, most: int) -> list[Any]:
        began, gets, received = self._clock(), self._reader.gets, bytearray()
        checked = -1  # up to where the announced lengths were checked; -1: they are all short
        data = self._part(SHORT)
        answers: list[Any] = []
        while True:
            before = len(received)
            received += data
            if len(received) > most:
                raise Malformed(f"Protocol error: an answer is larger than {most} bytes")
            if checked >= 0 or _LARGE(received, max(0, before - 5)):
                checked = _check_lengths(received, max(0, checked), most)
            self._reader.feed(data)
            while (answer := gets()) is not _INCOMPLETE:
                answers.append(answer)
                if len(answers) == expected:
                    if self._reader.has_data():
                        raise Malformed("Protocol error: more answers than expected")
                    return answers
            left = began + self._timeout * (1 + len(received) // SIZE) - self._clock()
            if left <= 0:
                raise TimeoutError("Timeout reading from socket")
            try:
                self._sock.settimeout(left)
                data = self._part(LONG)
            finally:
                self._sock.settimeout(self._timeout)

    def _part(self, size: int) -> bytes:
        try:
            data: bytes = self._sock.recv(size)
        except TimeoutError:
            raise TimeoutError("Timeout reading from socket") from None
        if not data:
            raise ConnectionError("Connection closed by server.")
        return data

    # The methods that redis-py calls.

    def on_connect(self, connection: Any) -> None:
        sock = self._sock = connection._sock
        sock.settimeout(self._timeout)
        self._reader = hiredis.Reader(
            protocolError=Malformed, replyError=ErrorReply, notEnoughData=_INCOMPLETE
        )
        if isinstance(sock, _socket.socket) and not isinstance(sock, ssl.SSLSocket):
            poll = select.poll()  # one system call instead of three; not for TLS and gevent
            poll.register(sock, select.POLLIN)
            self._poll = poll.poll

    def on_disconnect(self) -> None:
        self._sock = None

    def can_read(self, timeout: float = 0) -> bool:
        return self._sock is not None and self.spoilt()

    def read_response(self, disable_decoding: bool = False, **settings: Any) -> Any:
        if self._sock is None:
            raise ConnectionError("Connection closed.")
        [answer] = self._answers(1, SIZE)
        return ResponseError(answer.text) if isinstance(answer, ErrorReply) else answer


def _check_lengths(received: bytearray, place: int, most: int) -> int:
    """Check the lengths that are announced from *place* on; return where the next line begins.

    hiredis makes a list for as many items as an array announces: a few bytes would take gigabytes,
    and stop all threads for as long as the garbage collector needs to look at these.

    :raises Malformed: The answer is larger than *most* bytes.
    """
    while (end := received.find(b"\r\n", place)) >= 0:
        kind, length = received[place : place + 1], received[place + 1 : end]
        place = end + 2
        if kind == b"$" or kind == b"*":
            number = int(length)
            if number > (most if kind == b"$" else most // LEAST):
                raise Malformed(f"Protocol error: an answer is larger than {most} bytes")
            if kind == b"$" and number >= 0:
                place += number + 2
        elif kind not in b"+-:":
            raise Malformed(f"Protocol error: a type that RESP2 does not have, {bytes(kind)!r}")
    return place


Fits: TypeAlias = Callable[[Any], bool]
"""Returns whether an answer has the expected shape."""


def is_number(text: Any) -> bool:
    """Return whether *text* is a number of at most 20 digits, written as a string."""
    return text.__class__ is bytes and text.isdigit() and len(text) <= 20


_REQUIRED = {
    "required": ssl.CERT_REQUIRED,
    "optional": ssl.CERT_OPTIONAL,
    "none": ssl.CERT_NONE,
}


class Unreachable(Exception):
    """The server cannot be reached, does not answer in time, or violates the protocol.

    :ivar lasting: Whether it lasts until the configuration of the gateway or the server changes.
    """

    def __init__(self, text: str, *, lasting: bool = False) -> None:
        super().__init__(text)
        self.lasting = lasting


# suppresses CLIENT SETINFO of redis-py, which needs two more round trips per connection
_NO_CLIENT_INFO = (
    {"driver_info": None}
    if "driver_info" in inspect.signature(AbstractConnection.__init__).parameters
    else {"lib_name": None, "lib_version": None}
)


class _TLSConnection(Connection):  # type: ignore[misc]
    """A connection of redis-py with the TLS policy of :mod:`wsgigate.runtime.tls`.

    redis-py's ``SSLConnection`` uses ``ssl.create_default_context``, which differs between versions
    of Python. The options are the same: ``ssl_ca_certs`` and so on.
    """

    def __init__(self, **settings: Any) -> None:
        self._tls = {name: settings.pop(name) for name in [*settings] if name.startswith("ssl_")}
        super().__init__(**settings)

    def _connect(self) -> Any:
        sock = super()._connect()
        try:
            return self._context().wrap_socket(sock, server_hostname=self.host)
        except BaseException:
            sock.close()
            raise

    def _context(self) -> ssl.SSLContext:
        """Return a new context, so that the next connection reads renewed files."""
        given = self._tls.get
        context = client_context()
        context.check_hostname = given("ssl_check_hostname", True)
        context.verify_mode = _REQUIRED[given("ssl_cert_reqs", "required")]
        authorities = [given(f"ssl_ca_{name}") or None for name in ("certs", "path", "data")]
        if any(authorities):
            context.load_verify_locations(*authorities)
        elif context.verify_mode is not ssl.CERT_NONE:
            context.load_default_certs()
        key = given("ssl_keyfile")
        certificate = given("ssl_certfile") or key
        if certificate:
            context.load_cert_chain(certificate, key, given("ssl_password"))
        ciphers = given("ssl_ciphers")
        if ciphers:
            context.set_ciphers(ciphers)
        return context


class _PooledConnection(NamedTuple):
    """A connection opened by redis-py, and its socket."""

    connection: AbstractConnection
    wire: Wire


class RedisConnectionPool:
    """A pool of connections of one process to one server.

    A connection is used for one exchange at a time. If anything but the complete answers arrives on
    it, it is closed and never used again, so that no answer can be taken for another's.

    :param address: Host and port; for a Unix socket its path and 0.
    :param tls: Whether to use TLS.
    :param settings: Further arguments of redis-py's connections.
    :param most: Maximum number of connections.
    :param wait: Maximum seconds to wait for a connection while all are in use.
    """

    def __init__(
        self,
        address: tuple[str, int],
        *,
        tls: bool,
        settings: dict[str, Any],
        most: int,
        wait: float,
    ) -> None:
        host, port = address
        self.address = address
        self._kind: type[AbstractConnection]
        if port:
            self.shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            self._kind = _TLSConnection if tls else Connection
            where = {"host": host, "port": port, "socket_keepalive": True}
        else:
            self.shown, self._kind, where = (
                f"unix:{host}",
                UnixDomainSocketConnection,
                {"path": host},
            )
        self._settings = {**_NO_CLIENT_INFO, **where, **settings, "protocol": 2}
        self._wait = wait
        self._most = most
        # the last used last; append and pop are atomic
        self._free: list[_PooledConnection] = []
        self._open = 0  # open connections, including those in use
        self._waiting = 0
        self._changed = threading.Condition()  # for the two numbers above
        self._closed = False

    @property
    def open_connections(self) -> int:
        """The number of connections, in use or idle."""
        return self._open

    @property
    def idle_connections(self) -> int:
        """The number of idle connections."""
        return len(self._free)

    @property
    def waiting(self) -> int:
        """The number of threads that wait for a connection."""
        with self._changed:
            return self._waiting

    def exchange(
        self, packed: bytes, answers: int = 1, fits: Fits | None = None, most: int = SIZE
    ) -> list[Any]:
        """Send *packed* commands, and return as many *answers*; one may be an :class:`ErrorReply`.

        :param fits: Returns whether an answer has the expected shape. A connection with another
            answer is out of step, or leads to something other than a Redis.
        :param most: Maximum bytes of all answers.
        :raises Unreachable: It is unknown whether the commands were carried out.
        :raises StoreError: No connection became free in time; nothing was sent.
        """
        try:
            line: _PooledConnection | None = self._free.pop()
        except IndexError:
            line = self._wait_for_one()
        kept = None
        try:
            if line is None or line.wire.spoilt():
                line = self._opened(line)
            got = line.wire.ask(packed, answers, most)
            if fits is not None:
                for answer in got:
                    if not fits(answer) and answer.__class__ is not ErrorReply:
                        raise Malformed("Protocol error: an answer to another question")
            kept = line
            return got
        # OverflowError: an impossible port; TypeError: redis-py got an answer of an unexpected type
        # while it opened the connection
        except (RedisError, OSError, ValueError, OverflowError, TypeError) as error:
            raise Unreachable(self._message(error), lasting=_lasting(error)) from error
        finally:
            if kept is None:
                self._drop(line)
            else:
                self._free.append(kept)
                if self._waiting:
                    with self._changed:
                        self._changed.notify()
                if self._closed:
                    self.close()

    def close(self) -> None:
        """Close all idle connections; those in use are closed after use."""
        self._closed = True
        while self._free:
            try:
                line = self._free.pop()
            except IndexError:
                break  # another thread took the last one
            self._drop(line)

    def _wait_for_one(self) -> _PooledConnection | None:
        """Return a connection that becomes free; ``None`` if another may be opened."""
        until = real() + self._wait
        with self._changed:
            self._waiting += 1  # before the check, as a returning thread reads it after
            try:
                while True:
                    try:
                        return self._free.pop()
                    except IndexError:
                        pass
                    if self._open < self._most:
                        self._open += 1
                        return None
                    left = until - real()
                    if left <= 0:
                        break
                    self._changed.wait(left)
            finally:
                self._waiting -= 1
        raise StoreError(
            f"all {self._most} connections to {self.shown} were in use for {self._wait:g} s"
        )

    def _opened(self, spoilt: _PooledConnection | None) -> _PooledConnection:
        """Return a new connection, in place of *spoilt*."""
        if spoilt is not None:
            spoilt.connection.disconnect()
        wire = Wire(self._settings["socket_timeout"])
        connection = self._kind(
            **self._settings, parser_class=lambda **_: wire, retry=Retry(NoBackoff(), 0)
        )
        try:
            connection.connect()
            return _PooledConnection(connection, wire)
        except BaseException:
            connection.disconnect()
            raise

    def _drop(self, line: _PooledConnection | None) -> None:
        """Close *line*, if any, and free its place in the pool."""
        try:
            if line is not None:
                line.connection.disconnect()
        finally:
            with self._changed:
                self._open -= 1
                self._changed.notify()

    def _message(self, error: Exception) -> str:
        text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        return text if self.shown in text else f"{self.shown}: {text}"


_PASSING_CERTIFICATE = frozenset([9, 10, 11, 12])
"""Codes of X509_verify_cert(3) for a certificate or revocation list that is not yet or no longer
valid: renewing it on the server ends the failure."""


def _lasting(error: Exception) -> bool:
    """Return whether *error* lasts until the configuration of gateway or server changes."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ssl.SSLCertVerificationError):
            return seen.verify_code not in _PASSING_CERTIFICATE
        if isinstance(seen, ResponseError):
            return ErrorReply(str(seen)).lasting
        seen = seen.__cause__ or seen.__context__
    return False
