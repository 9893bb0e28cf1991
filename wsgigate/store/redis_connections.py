"""Connections to one Redis: few, kept, and dropped as soon as anything about them is in doubt."""

from __future__ import annotations

import inspect
import ssl
import threading
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

from redis.backoff import NoBackoff
from redis.connection import (
    AbstractConnection,
    Connection,
    UnixDomainSocketConnection,
)
from redis.exceptions import RedisError, ResponseError
from redis.retry import Retry

from wsgigate.clocks import real
from wsgigate.rules.tls import client_context
from wsgigate.store import StoreError
from wsgigate.store.redis_socket import Wire
from wsgigate.store.redis_wire import SIZE, Malformed, Refusal

__all__ = ["Connections", "Fits", "Unreachable"]

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
