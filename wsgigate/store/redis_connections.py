"""A pool of connections to one Redis server, and the reader of its protocol (RESP2).

A connection whose state is in doubt is closed: an answer must never be taken for another call's.
"""

from __future__ import annotations

import _socket
import inspect
import math
import re
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple, TypeAlias

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
    "SIZE",
    "ConnectionPool",
    "ErrorReply",
    "Fits",
    "Malformed",
    "ReplyReader",
    "Unreachable",
    "Wire",
    "command",
    "integers",
    "packed",
]


# The protocol reader: answers from parts that may be cut anywhere, without reading a socket (Redis
# documentation, "Redis serialization protocol specification", RESP2). Input that violates the
# protocol is never guessed at: it is :class:`Malformed`.

LINE = 16 * 1024
"""Maximum bytes of a line: an error, a length, a number."""

DEPTH = 8
"""Maximum depth of nested arrays; ``CLUSTER SLOTS`` has four."""

SIZE = 128 * 1024
"""Maximum bytes of one answer unless its caller expects more: twice the largest value of a store.
No memory is allocated for a length or count that the server only announces: an array may have no
more items than fit into these bytes."""

LEAST = 3
"""Bytes of the shortest item of an array: ``+`` and the end of the line."""

_NUMBER = re.compile(rb"[+-]?[0-9]{1,19}").fullmatch

_LENGTH = re.compile(rb"-1|0|[1-9][0-9]{0,9}").fullmatch

_HEAD = re.compile(rb"\*([1-9][0-9]?)\r\n?").fullmatch

_UNFINISHED: Any = object()


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


def integers(data: bytes) -> list[int] | None:
    """Return the numbers of *data* if it is exactly one array of integers, else ``None``.

    Scripts nearly always answer so. This check costs a tenth of what :class:`ReplyReader` does.
    """
    form = _form(data[:4])
    found = None if form is None else form(data)
    return None if found is None else list(map(int, found.groups()))


@lru_cache(maxsize=128)
def _form(head: bytes) -> Callable[[bytes], re.Match[bytes] | None] | None:
    """Return the matcher of a whole array of integers that begins with *head*."""
    found = _HEAD(head)
    if found is None:
        return None
    count = int(found[1])
    return re.compile(rb"\*%d\r\n" % count + rb":(-?[0-9]{1,18})\r\n" * count).fullmatch


class ReplyReader:
    """Reads a known number of answers from parts that may be cut anywhere.

    Strings become bytes, errors :class:`ErrorReply`, arrays lists, and null ``None``.

    :param expected: Number of answers, at least one.
    :param most: Maximum bytes of all answers together.
    :ivar got: The complete answers.
    """

    def __init__(self, expected: int, most: int = SIZE) -> None:
        self._most = most
        self.got: list[Any] = []
        # the incomplete arrays, the innermost last, each with its number of items
        self._lacking = [(self.got, expected)]
        self._unread = bytearray()
        self._bulk = -1  # length of the string that comes next; below 0: a line comes next
        self._size = 0

    def feed(self, data: bytes) -> bool:
        """Process the next part; return whether all answers are complete.

        :raises Malformed: The input violates the protocol.
        """
        self._size += len(data)
        if self._size > self._most:
            raise Malformed(f"Protocol error: an answer is larger than {self._most} bytes")
        unread: bytes | bytearray = data
        if self._unread:
            self._unread += data
            unread = self._unread
        lacking, place = self._lacking, 0
        while lacking:
            if self._bulk >= 0:
                end = place + self._bulk
                if len(unread) < end + 2:
                    break
                if unread[end : end + 2] != b"\r\n":
                    raise Malformed("Protocol error: a string is longer than its length")
                value: Any = bytes(unread[place:end])
                self._bulk = -1
            else:
                end = unread.find(b"\r\n", place, place + LINE + 2)
                if end < 0:
                    if len(unread) - place >= LINE + 2:
                        raise Malformed(f"Protocol error: a line is longer than {LINE} bytes")
                    break
                value = self._of_line(bytes(unread[place:end]))
            place = end + 2
            if value is _UNFINISHED:
                continue
            items, count = lacking[-1]
            items.append(value)
            while len(items) == count:  # the array is complete; perhaps the enclosing one too
                lacking.pop()
                if not lacking:
                    break
                value = items
                items, count = lacking[-1]
                items.append(value)
        if place < len(unread):
            if not lacking:
                raise Malformed("Protocol error: more answers than expected")
            if unread is data:
                self._unread += data[place:]
            else:
                del self._unread[:place]
        else:
            self._unread.clear()
        return not lacking

    def _of_line(self, line: bytes) -> Any:
        """Return the value of *line*, or ``_UNFINISHED`` if more lines belong to it."""
        kind, rest = line[:1], line[1:]
        if kind == b"$" and _LENGTH(rest):
            self._bulk = int(rest)
            if self._bulk <= self._most:
                return _UNFINISHED if self._bulk >= 0 else None
        elif kind == b"*" and _LENGTH(rest):
            count = int(rest)
            if count <= 0:
                return None if count else []
            if count <= self._most // LEAST and len(self._lacking) <= DEPTH:
                self._lacking.append(([], count))
                return _UNFINISHED
        elif kind == b":" and _NUMBER(rest):
            number = int(rest)
            if -(1 << 63) <= number < 1 << 63:
                return number
        elif kind in (b"+", b"-") and b"\r" not in rest and b"\n" not in rest:
            return rest if kind == b"+" else ErrorReply(rest.decode("utf-8", "replace"))
        raise Malformed(f"Protocol error: {line[:40]!r}")


# One open connection: commands and answers, each within its time.
#
# An answer has ``timeout`` seconds in all, in however many parts it comes: a server that sends a
# byte now and then must not hold a thread. Only a long answer (pages of values) earns more time by
# what has arrived: ``timeout`` for each 128 KiB. The first part is awaited with the socket's own
# timeout, which costs nothing; the clock is read again only for answers in several parts.
#
# Only names that gevent's monkey patching replaces are used (``socket``, ``ssl``, ``select.poll``),
# and they are looked up when they are needed.

_TIMEVAL = struct.Struct("ll")

SHORT, LONG = 4096, 65536
"""Bytes received at once: of the beginning of an answer, which is mostly all of it, and of the
rest."""


class Wire:
    """An open socket, for one exchange at a time; a caller that gets an error closes it.

    :param sock: The socket, with no unread data.
    :param timeout: Maximum seconds to send, and to receive an answer; ``None``: unlimited.
    :param clock: Returns monotonic seconds.
    """

    __slots__ = ("_clock", "_kernel", "_poll", "_recv", "_send", "_sock", "_timeout")

    def __init__(
        self,
        sock: socket.socket,
        timeout: float | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._sock = sock
        self._timeout = timeout
        # With Python's own timeout each operation makes two system calls and releases the GIL
        # twice; gevent's sockets and TLS have no other. (The kernel's restarts after a signal,
        # Python's continues.)
        self._kernel = isinstance(sock, _socket.socket) and not isinstance(sock, ssl.SSLSocket)
        self._recv: Callable[[int], bytes] = sock.recv
        self._send: Callable[[bytes], int] = partial(_send_all, sock)
        if self._kernel:
            self._poll = select.poll()
            self._poll.register(sock, select.POLLIN)
        if self._kernel and timeout is not None:
            value = _timeval(timeout)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)
            self._send = sock.send  # one call: each further part would have its own timeout
        sock.settimeout(None if self._kernel else timeout)

    def ask(self, packed: bytes, expected: int, most: int = SIZE) -> list[Any]:
        """Send *packed* commands and return the *expected* number of answers.

        :param most: Maximum bytes of all answers.
        :raises OSError: The connection failed, or the time ran out.
        :raises Malformed: The answers violate the protocol, or are too many.
        """
        try:
            if self._send(packed) != len(packed):
                raise TimeoutError  # the timeout came in the middle
        except (BlockingIOError, TimeoutError):
            raise TimeoutError("Timeout writing to socket") from None
        began = self._clock()
        data = self._part(SHORT)
        if expected == 1:
            numbers = integers(data)
            if numbers is not None:
                return [numbers]
        return self._rest(expected, data, began, most)

    def read(self) -> Any:
        """Return the next answer; the caller has sent the command."""
        began = self._clock()
        return self._rest(1, self._part(SHORT), began, SIZE)[0]

    def spoilt(self) -> bool:
        """Return whether unexpected data arrived, or the server closed the connection."""
        if self._kernel:
            return bool(self._poll.poll(0))
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

    def _rest(self, expected: int, data: bytes, began: float, most: int) -> list[Any]:
        answers, size = ReplyReader(expected, most), 0
        while not answers.feed(data):
            size += len(data)
            data = self._part_by(began, 1 + size // SIZE)
        return answers.got

    def _part_by(self, began: float, times: int) -> bytes:
        """Return the next part, if it arrives within *times* the timeout since *began*."""
        if self._timeout is None:
            return self._part(LONG)
        left = began + self._timeout * times - self._clock()
        if left <= 0:
            raise TimeoutError("Timeout reading from socket")
        if self._kernel:
            if not self._poll.poll(math.ceil(left * 1000)):
                raise TimeoutError("Timeout reading from socket")
            return self._part(LONG)
        try:
            self._sock.settimeout(left)
            return self._part(LONG)
        finally:
            self._sock.settimeout(self._timeout)

    def _part(self, size: int) -> bytes:
        try:
            data = self._recv(size)
        except (BlockingIOError, TimeoutError):
            raise TimeoutError("Timeout reading from socket") from None
        if not data:
            raise ConnectionError("Connection closed by server.")
        return data


def _send_all(sock: socket.socket, packed: bytes) -> int:
    sock.sendall(packed)
    return len(packed)


def _timeval(seconds: float) -> bytes:
    """Return *seconds* as a ``timeval``, rounded up, since zero means no timeout."""
    whole, micros = divmod(max(1, math.ceil(seconds * 1e6)), 1_000_000)
    return _TIMEVAL.pack(whole, micros)


Fits: TypeAlias = Callable[[Any], bool]
"""Returns whether an answer has the expected shape."""

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


class _Parser:
    """The parser of redis-py while it opens a connection; holds the socket for us afterwards.

    So errors are as the server wrote them, in every version of redis-py, with or without hiredis.

    :param timeout: Maximum seconds for each answer. The one that redis-py passes cannot be used:
        redis-py 5.0 loses it for Unix sockets.
    """

    def __init__(self, timeout: float | None) -> None:
        self._timeout = timeout
        self.wire: Wire | None = None

    def on_connect(self, connection: Any) -> None:
        self.wire = Wire(connection._sock, self._timeout)

    def on_disconnect(self) -> None:
        self.wire = None

    def can_read(self, timeout: float = 0) -> bool:
        return self.wire is not None and self.wire.spoilt()

    def read_response(self, disable_decoding: bool = False, **settings: Any) -> Any:
        if self.wire is None:
            raise ConnectionError("Connection closed.")
        answer = self.wire.read()
        return ResponseError(answer.text) if isinstance(answer, ErrorReply) else answer


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


class ConnectionPool:
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
        parser = _Parser(self._settings.get("socket_timeout"))
        connection = self._kind(
            **self._settings, parser_class=lambda **_: parser, retry=Retry(NoBackoff(), 0)
        )
        try:
            connection.connect()
            if parser.wire is None:
                raise ConnectionError("Connection closed.")
            return _PooledConnection(connection, parser.wire)
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
