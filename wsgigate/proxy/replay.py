"""A request body that can be sent once more: as much of it as is kept."""

from __future__ import annotations

from typing import Protocol
from wsgiref.types import WSGIEnvironment

__all__ = ["Replay", "replayed"]


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class Replay:
    """Reads *source* and keeps what came, until that is too much.

    :param source: ``wsgi.input``.
    :param most: Bytes that are kept; of a longer body none are, once more of it has been read.
    :ivar whole: Whether all that was read is there to be read again.
    """

    __slots__ = ("_at", "_kept", "_most", "_source", "whole")

    def __init__(self, source: _Readable, most: int) -> None:
        self._source = source
        self._most = most
        self._kept = bytearray()
        self._at = 0
        self.whole = True

    def read(self, size: int, /) -> bytes:
        """Return up to *size* bytes, nothing at the end."""
        kept, at = self._kept, self._at
        if at < len(kept):
            block = bytes(kept[at : at + size])
            self._at += len(block)
            return block
        block = self._source.read(size)
        if self.whole:
            if len(kept) + len(block) > self._most:
                self.whole = False
                kept.clear()
                self._at = 0
            else:
                kept += block
                self._at = len(kept)
        return block

    def rewind(self) -> None:
        """Begin anew with what was kept, which must be all."""
        self._at = 0


def replayed(environ: WSGIEnvironment, most: int) -> Replay | None:
    """Put a :class:`Replay` in the place of the request's body; ``None`` when it has none."""
    if environ.get("CONTENT_LENGTH") in (None, "", "0") and "HTTP_TRANSFER_ENCODING" not in environ:
        return None
    environ["wsgi.input"] = replay = Replay(environ["wsgi.input"], most)
    return replay
