"""A request's body of which a copy is kept while it is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from io import BytesIO
from typing import Any, Protocol

__all__ = ["KeptBody"]


class _Reader(Protocol):
    """What WSGI wants of ``wsgi.input`` (PEP 3333), made of two of these methods.

    A size of ``None`` means the same as none, as it does to :mod:`io` and to servers.
    """

    def read(self, size: int | None = -1, /) -> bytes: ...

    def readline(self, size: int | None = -1, /) -> bytes: ...

    def readlines(self, hint: int | None = -1, /) -> list[bytes]:
        return list(self)

    def __iter__(self) -> Iterator[bytes]:
        while line := self.readline():
            yield line


class KeptBody(_Reader):
    """Reads *source*, and keeps what came as long as that is not too much.

    :param source: ``wsgi.input``.
    :param most: Bytes that are kept; of a longer body none are, once more of it has been read.
    :param expected: How many bytes the body has, ``None`` when its end is told by the source.
    :ivar too_large: Whether more has been read.
    """

    def __init__(self, source: Any, most: int, expected: int | None = None) -> None:
        self.too_large = False
        self._source = source
        self._most = most
        self._expected = expected
        self._copy = bytearray()
        self._ended = False

    def read(self, size: int | None = -1, /) -> bytes:
        return self._kept_of(self._source.read, size)

    def readline(self, size: int | None = -1, /) -> bytes:
        return self._kept_of(self._source.readline, size)

    def whole(self) -> bytes | None:
        """Return all of the body; ``None`` when it was too large, or not read to its end."""
        if self.too_large:
            return None
        ended = self._ended if self._expected is None else len(self._copy) == self._expected
        return bytes(self._copy) if ended else None

    def again(self) -> _Reader | None:
        """Return the body from its beginning, ``None`` when that is lost."""
        return None if self.too_large else _Again(bytes(self._copy), self._source)

    def _kept_of(self, read: Callable[..., bytes], size: int | None) -> bytes:
        block = read() if size is None or size < 0 else read(size)
        if not block:
            self._ended = self._ended or size != 0
        elif not self.too_large:
            if len(self._copy) + len(block) > self._most:
                self.too_large = True
                self._copy = bytearray()
            else:
                self._copy += block
        return block


class _Again(_Reader):
    """What was kept, and then what is left of the source."""

    def __init__(self, kept: bytes, source: Any) -> None:
        self._kept = BytesIO(kept)
        self._source = source

    def read(self, size: int | None = -1, /) -> bytes:
        block = self._kept.read(size)
        if size is None or size < 0:
            rest: bytes = self._source.read()
            return block + rest
        if len(block) < size:
            block += self._source.read(size - len(block))
        return block

    def readline(self, size: int | None = -1, /) -> bytes:
        line = self._kept.readline(size)
        if line.endswith(b"\n") or len(line) == size:
            return line
        read = self._source.readline
        rest: bytes = read() if size is None or size < 0 else read(size - len(line))
        return line + rest
