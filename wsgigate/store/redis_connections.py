"""Connections to one Redis: few, kept, and dropped as soon as anything about them is in doubt."""

from __future__ import annotations

import inspect
import threading
from typing import Any

from redis.backoff import NoBackoff
from redis.connection import (
    AbstractConnection,
    Connection,
    DefaultParser,
    SSLConnection,
    UnixDomainSocketConnection,
)
from redis.exceptions import RedisError, ResponseError
from redis.retry import Retry

from wsgigate.store import StoreError

__all__ = ["Connections", "Refusal", "Unreachable", "command"]


class Unreachable(Exception):
    """The server was not reached, did not answer in time, or not in its protocol."""


class Refusal:
    """An error that the server answered with.

    :ivar code: Its first word: ``NOSCRIPT``, ``OOM`` and so on.
    """

    __slots__ = ("code", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.code = text.partition(" ")[0]


class _Parser(DefaultParser):  # type: ignore[misc]
    """Leaves every error as the server wrote it, whichever version of redis-py this is."""

    EXCEPTION_CLASSES: dict[str, Any] = {}  # noqa: RUF012


# what redis-py would tell the server about itself, in two more round trips at every connection
_MODEST = (
    {"driver_info": None}
    if "driver_info" in inspect.signature(AbstractConnection.__init__).parameters
    else {"lib_name": None, "lib_version": None}
)


def command(*parts: bytes) -> bytes:
    """Return a command as it is sent."""
    packed = [b"*%d\r\n" % len(parts)]
    for part in parts:
        packed.append(b"$%d\r\n%b\r\n" % (len(part), part))
    return b"".join(packed)


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
            self._kind = SSLConnection if tls else Connection
            where = {"host": host, "port": port, "socket_keepalive": True}
        else:
            self.shown, self._kind, where = (
                f"unix:{host}",
                UnixDomainSocketConnection,
                {"path": host},
            )
        self._settings = {**_MODEST, **where, **settings, "protocol": 2, "parser_class": _Parser}
        self._wait = wait
        self._most = most
        self._slots = threading.Semaphore(most)
        self._free: list[Any] = []
        self._closed = False

    def exchange(self, packed: bytes, answers: int = 1) -> list[Any]:
        """Send *packed* commands, and return so many *answers*; one may be a :class:`Refusal`.

        :raises Unreachable: It can not be said whether the commands were carried out.
        :raises StoreError: No connection came free in time; nothing was sent.
        """
        if not self._slots.acquire(timeout=self._wait):
            raise StoreError(
                f"all {self._most} connections to {self.shown} were in use for {self._wait:g} s"
            )
        try:
            connection = self._connected()
            try:
                connection.send_packed_command([packed], check_health=False)
                got = [_answer(connection) for _ in range(answers)]
            except BaseException:
                connection.disconnect()
                raise
            if self._closed:
                connection.disconnect()
            else:
                self._free.append(connection)
            return got
        except (RedisError, OSError, ValueError) as error:
            raise Unreachable(self._told(error)) from error
        finally:
            self._slots.release()

    def close(self) -> None:
        """Close what is not in use; what is, is closed after use."""
        self._closed = True
        while self._free:
            try:
                self._free.pop().disconnect()
            except IndexError:
                break  # another thread took the last one

    def _told(self, error: Exception) -> str:
        text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        return text if self.shown in text else f"{self.shown}: {text}"

    def _connected(self) -> Any:
        try:
            connection = self._free.pop()
        except IndexError:
            connection = self._kind(**self._settings, retry=Retry(NoBackoff(), 0))
        else:
            try:
                doubtful = connection.can_read(0)
            except (RedisError, OSError):
                doubtful = True  # the server has closed it
            if doubtful:
                connection.disconnect()
        try:
            connection.connect()
        except BaseException:
            connection.disconnect()
            raise
        return connection


def _answer(connection: Any) -> Any:
    try:
        return connection.read_response(disable_decoding=True)
    except ResponseError as error:
        return Refusal(str(error))
