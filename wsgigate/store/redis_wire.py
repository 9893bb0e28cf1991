"""What a Redis says, byte by byte: answers out of whatever parts of them come in.

(Redis documentation, "Redis serialization protocol specification", RESP2.) Nothing here reads a
socket. What is not of the protocol is never guessed at: it is :class:`Malformed`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

__all__ = ["Answers", "Malformed", "Refusal", "command", "integers", "packed"]

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
