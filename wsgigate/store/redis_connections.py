"""Connections to one Redis: few, kept, and dropped as soon as anything about them is in doubt."""

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
    "Answers",
    "Connections",
    "Fits",
    "Malformed",
    "Refusal",
    "Unreachable",
    "Wire",
    "command",
    "integers",
    "packed",
]


# What a Redis says, byte by byte: answers out of whatever parts of them come in.
#
# (Redis documentation, "Redis serialization protocol specification", RESP2.) Nothing here reads a
# socket. What is not of the protocol is never guessed at: it is :class:`Malformed`.

LINE = 16 * 1024
"""Bytes of a line at most: an error, a size, a number."""

DEPTH = 8
"""Arrays within each other at most; those of ``CLUSTER SLOTS`` are four."""

SIZE = 128 * 1024
"""Bytes of one answer at most unless its caller expects more: twice the largest value of a store.
Nothing is allocated by a length or a count that the server merely names: of an array, no more items
are believed than fit into these bytes."""

LEAST = 3
"""Bytes of the shortest item of an array, ``+`` and the end of the line."""

_NUMBER = re.compile(rb"[+-]?[0-9]{1,19}").fullmatch

_LENGTH = re.compile(rb"-1|0|[1-9][0-9]{0,9}").fullmatch

_HEAD = re.compile(rb"\*([1-9][0-9]?)\r\n?").fullmatch

_UNFINISHED: Any = object()


class Malformed(ValueError):
    """What came in is no answer, too large a one, or more than was asked for."""


_LASTING = re.compile(
    "WRONGPASS|NOAUTH|NOPERM|DENIED|MOVED|CROSSSLOT"
    "|ERR (?:DB index is out of range|invalid DB index|unknown command|unknown subcommand"
    "|AUTH |Client sent AUTH|invalid password"
    "|SELECT is not allowed|This instance has cluster support disabled)",
    re.IGNORECASE,
).match


class Refusal:
    """An error that the server answered with.

    :ivar code: Its first word: ``NOSCRIPT``, ``OOM`` and so on.
    """

    __slots__ = ("code", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.code = text.partition(" ")[0]

    @property
    def lasting(self) -> bool:
        """Whether it ends only when the gateway or the server is configured otherwise."""
        return _LASTING(self.text) is not None


def command(*parts: bytes) -> bytes:
    """Return a command as it is sent."""
    return b"*%d\r\n%b" % (len(parts), packed(*parts))


def packed(*parts: bytes) -> bytes:
    """Return parts of a command as they are sent."""
    return b"".join([b"$%d\r\n%b\r\n" % (len(part), part) for part in parts])


def integers(data: bytes) -> list[int] | None:
    """Return the numbers of *data* if it is one whole array of them and no more, else None.

    What scripts answer is that nearly always. To be sure of it costs a tenth of what
    :class:`Answers` does.
    """
    form = _form(data[:4])
    found = None if form is None else form(data)
    return None if found is None else list(map(int, found.groups()))


@lru_cache(maxsize=128)
def _form(head: bytes) -> Callable[[bytes], re.Match[bytes] | None] | None:
    """Return what matches all of an array of numbers that begins with *head*."""
    found = _HEAD(head)
    if found is None:
        return None
    count = int(found[1])
    return re.compile(rb"\*%d\r\n" % count + rb":(-?[0-9]{1,18})\r\n" * count).fullmatch


class Answers:
    """So many answers, read from parts that may be cut anywhere.

    Strings are bytes, errors are :class:`Refusal`, arrays lists; what is null is None.

    :param expected: How many answers there are to be, at least one.
    :param most: Bytes of all of them together at most.
    :ivar got: Those that are complete.
    """

    def __init__(self, expected: int, most: int = SIZE) -> None:
        self._most = most
        self.got: list[Any] = []
        # the arrays that lack items, the innermost last, and how many each is to have
        self._lacking = [(self.got, expected)]
        self._unread = bytearray()
        self._bulk = -1  # how long the string is that comes next; below 0: a line comes
        self._size = 0

    def feed(self, data: bytes) -> bool:
        """Take in the next part; return whether that completed all answers.

        :raises Malformed: It cannot be part of what is expected.
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
                    raise Malformed("Protocol error: a string does not end where it is to end")
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
            while len(items) == count:  # which completes the array; perhaps the one it is in, too
                lacking.pop()
                if not lacking:
                    break
                value = items
                items, count = lacking[-1]
                items.append(value)
        if place < len(unread):
            if not lacking:
                raise Malformed("Protocol error: there is more than was asked for")
            if unread is data:
                self._unread += data[place:]
            else:
                del self._unread[:place]
        else:
            self._unread.clear()
        return not lacking

    def _of_line(self, line: bytes) -> Any:
        """Return what *line* says, if that is all of it."""
        kind, told = line[:1], line[1:]
        if kind == b"$" and _LENGTH(told):
            self._bulk = int(told)
            if self._bulk <= self._most:
                return _UNFINISHED if self._bulk >= 0 else None
        elif kind == b"*" and _LENGTH(told):
            count = int(told)
            if count <= 0:
                return None if count else []
            if count <= self._most // LEAST and len(self._lacking) <= DEPTH:
                self._lacking.append(([], count))
                return _UNFINISHED
        elif kind == b":" and _NUMBER(told):
            number = int(told)
            if -(1 << 63) <= number < 1 << 63:
                return number
        elif kind in (b"+", b"-") and b"\r" not in told and b"\n" not in told:
            return told if kind == b"+" else Refusal(told.decode("utf-8", "replace"))
        raise Malformed(f"Protocol error: {line[:40]!r}")


# Questions and answers over one open connection to a Redis, each within its time.
#
# An answer has ``timeout`` seconds in all, however many parts it comes in: a server that sends a
# byte now and then must not hold a thread. Only a long answer (pages of values) earns more time,
# by what has arrived: ``timeout`` for each 128 KiB. The first part is awaited by the socket's own
# timeout, which costs nothing; the clock is looked at again only for answers in several parts.
#
# Only names that gevent's monkey patching replaces are used (``socket``, ``ssl``,
# ``select.poll``), and looked up when they are needed.

_TIMEVAL = struct.Struct("ll")

SHORT, LONG = 4096, 65536
"""How many bytes are asked for at once: of an answer's beginning, which is most often all of it,
and of the rest."""


class Wire:
    """An open socket, for one exchange at a time; whoever gets an error from it closes it.

    :param sock: With nothing unread.
    :param timeout: Seconds that sending may take, and an answer; None: as long as it takes.
    :param clock: Seconds of a clock that never steps back.
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
        # With a timeout of Python's own each operation is two system calls, and twice gives up the
        # interpreter to other threads. gevent's sockets and TLS have no other. (The system's begins
        # anew after a signal, Python's goes on.)
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
            self._send = sock.send  # once: each further part would have a timeout of its own
        sock.settimeout(None if self._kernel else timeout)

    def ask(self, packed: bytes, expected: int, most: int = SIZE) -> list[Any]:
        """Send *packed* commands and return so many answers as are *expected*.

        :param most: Bytes of all answers at most.
        :raises OSError: They are not to be had, or not in time.
        :raises Malformed: What came is not they, or is more than they.
        """
        try:
            if self._send(packed) != len(packed):
                raise TimeoutError  # it came in the middle
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
        """Return whether anything came in that nobody asked for, or the end."""
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
            return False  # nothing; or in TLS, what is not for us, such as a ticket
        except OSError:
            pass
        return True

    def _rest(self, expected: int, data: bytes, began: float, most: int) -> list[Any]:
        answers, size = Answers(expected, most), 0
        while not answers.feed(data):
            size += len(data)
            data = self._part_by(began, 1 + size // SIZE)
        return answers.got

    def _part_by(self, began: float, times: int) -> bytes:
        """Return the next part, if it comes within so many *times* the timeout since *began*."""
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
    """Return *seconds* as the system takes them; rounded up, since none at all is for ever."""
    whole, micros = divmod(max(1, math.ceil(seconds * 1e6)), 1_000_000)
    return _TIMEVAL.pack(whole, micros)


Fits: TypeAlias = Callable[[Any], bool]
"""Whether an answer has the shape that was asked for."""

_REQUIRED = {
    "required": ssl.CERT_REQUIRED,
    "optional": ssl.CERT_OPTIONAL,
    "none": ssl.CERT_NONE,
}


class Unreachable(Exception):
    """The server was not reached, did not answer in time, or not in its protocol.

    :ivar lasting: Whether that ends only when the gateway or the server is configured otherwise.
    """

    def __init__(self, text: str, *, lasting: bool = False) -> None:
        super().__init__(text)
        self.lasting = lasting


class _Parser:
    """Reads for redis-py while it opens a connection, and has the socket for us afterwards.

    That way, errors are as the server wrote them, whichever version of redis-py this is and
    whether hiredis is there or not.

    :param timeout: Seconds that each answer may take; what redis-py 5.0 makes of it is not to be
        relied upon, which forgets it where the socket is a Unix one.
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
        return ResponseError(answer.text) if isinstance(answer, Refusal) else answer


# what redis-py would tell the server about itself, in two more round trips at every connection
_MODEST = (
    {"driver_info": None}
    if "driver_info" in inspect.signature(AbstractConnection.__init__).parameters
    else {"lib_name": None, "lib_version": None}
)


class _TLSConnection(Connection):  # type: ignore[misc]
    """A connection of redis-py with TLS by the policy of all others, whichever redis-py this is.

    Its own ``SSLConnection`` has the policy of ``ssl.create_default_context``, which is not
    the same in all versions of Python. The options are the same, ``ssl_ca_certs`` and so on.
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
        """Return a new context: a renewed file is read by the next connection."""
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


class _Line(NamedTuple):
    """A connection as redis-py opened it, and what goes over it."""

    connection: AbstractConnection
    wire: Wire


class Connections:
    """The connections of one process to one server.

    A connection is used for one exchange at a time. One on which anything but a complete answer
    came in, or too much, is closed and never used again: no answer can be taken for another's.

    :param address: Host and port; of a Unix socket its path and 0.
    :param tls: Whether TLS is spoken.
    :param settings: What else redis-py's connections are made with.
    :param most: How many there are at most.
    :param wait: Seconds to wait for one while all are in use.
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
        self._settings = {**_MODEST, **where, **settings, "protocol": 2}
        self._wait = wait
        self._most = most
        self._free: list[_Line] = []  # the last used last; one step takes from it or adds to it
        self._open = 0  # how many there are, those in use too
        self._waiting = 0
        self._changed = threading.Condition()  # for the two numbers above
        self._closed = False

    def exchange(
        self, packed: bytes, answers: int = 1, fits: Fits | None = None, most: int = SIZE
    ) -> list[Any]:
        """Send *packed* commands, and return so many *answers*; one may be a :class:`Refusal`.

        :param fits: Whether an answer has the shape that was asked for. A connection over which
            another one came is out of step, or leads to something else than a Redis.
        :param most: Bytes of all answers at most.
        :raises Unreachable: It cannot be said whether the commands were carried out.
        :raises StoreError: No connection came free in time; nothing was sent.
        """
        try:
            line: _Line | None = self._free.pop()
        except IndexError:
            line = self._awaited()
        kept = None
        try:
            if line is None or line.wire.spoilt():
                line = self._opened(line)
            got = line.wire.ask(packed, answers, most)
            if fits is not None:
                for answer in got:
                    if not fits(answer) and answer.__class__ is not Refusal:
                        raise Malformed("Protocol error: an answer to another question")
            kept = line
            return got
        # OverflowError: a port that there is not; TypeError: of redis-py, which is opening a
        # connection, about an answer of a type that it does not expect
        except (RedisError, OSError, ValueError, OverflowError, TypeError) as error:
            raise Unreachable(self._told(error), lasting=_lasting(error)) from error
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
        """Close what is not in use; what is, is closed after use."""
        self._closed = True
        while self._free:
            try:
                line = self._free.pop()
            except IndexError:
                break  # another thread took the last one
            self._drop(line)

    def _awaited(self) -> _Line | None:
        """Return what comes free in time; None where one more may be opened."""
        until = real() + self._wait
        with self._changed:
            self._waiting += 1  # before it looks: who gives back looks at this afterwards
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

    def _opened(self, spoilt: _Line | None) -> _Line:
        """Return a new connection, in the place of the one that is *spoilt*."""
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
            return _Line(connection, parser.wire)
        except BaseException:
            connection.disconnect()
            raise

    def _drop(self, line: _Line | None) -> None:
        """Close *line*, or give up to open it: another one may be opened in its place."""
        try:
            if line is not None:
                line.connection.disconnect()
        finally:
            with self._changed:
                self._open -= 1
                self._changed.notify()

    def _told(self, error: Exception) -> str:
        text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        return text if self.shown in text else f"{self.shown}: {text}"


_PASSING_CERTIFICATE = frozenset([9, 10, 11, 12])
"""What X509_verify_cert(3) says of a certificate, or a list of revoked ones, that is not valid yet
or any more: that passes with the server's renewal of it."""


def _lasting(error: Exception) -> bool:
    """Return whether *error* ends only when the gateway or the server is configured otherwise."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ssl.SSLCertVerificationError):
            return seen.verify_code not in _PASSING_CERTIFICATE
        if isinstance(seen, ResponseError):
            return Refusal(str(seen)).lasting
        seen = seen.__cause__ or seen.__context__
    return False
